"""Saliency, the pixels that drove a prediction: Grad-CAM, Grad-CAM++ and occlusion, for any network.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) takes the last maps that still have places, weighs each by the mean
gradient of the class's logit, and keeps what is positive of their sum. Grad-CAM++ (Chattopadhay et al. 2018,
arXiv:1710.11063) weighs the positive gradients, so that several objects of a class show. Occlusion (Zeiler and Fergus
2014, arXiv:1311.2901) covers part after part of the image and measures how much the prediction loses: slow, but
it uses the whole network and needs no maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imgclf.core.arguments import require
from imgclf.core.config import EXPLAIN_METHODS, PreprocessConfig
from imgclf.core.registry import unknown_name
from imgclf.core.results import Explanation
from imgclf.core.text import nfc
from imgclf.data.loading.loader import Loader
from imgclf.evaluation.feature_maps import Grid, Site, find_last_site, hooked, spread
from imgclf.evaluation.inference import batch_outputs, device_of, predict
from imgclf.models.ensemble import Ensemble
from imgclf.runtime.compute import in_parts_that_fit, own_copy
from imgclf.runtime.device import pick_precision
from imgclf.transforms.preprocess import mean_color, to_input

MAX_IMAGES = 8  # images whose maps and gradients are in memory together
MAX_COVERED_IMAGES = 32  # covered images that go through the network together
PATCH_SHARE = 1 / 8  # the side of what is covered, as a part of the image's; half of it is the way to the next


def explain(
    model: nn.Module,
    loader: Loader,
    *,
    method: str = EXPLAIN_METHODS[0],
    label: str | None = None,
    precision: torch.dtype | str = torch.float32,
    temperature: float = 1.0,
) -> list[Explanation]:
    """Show which pixels of each image drove the prediction.

    The images stay in memory: with many of them, pass a part at a time. The model stays as it is, and can be used by
    other threads meanwhile. The explanation of an ensemble is the mean over its members.

    Args:
        model: Maps images (n, channels, height, width) to logits (n, k).
        loader: The samples and the names of the classes.
        method: `gradcam`, `gradcam++` or `occlusion`.
        label: The class to explain; by default, the predicted one.
        precision: Of the prediction: `fp32`, `bf16`, `fp16`, or the dtype.
        temperature: Divides the logits, for the probabilities; above 0.

    Returns:
        One for each sample, in order; one that cannot be read carries an error.

    Raises:
        UnknownName: There is no such method or class.
        ConfigError: The network has no feature maps, which Grad-CAM needs.

    Example:
        >>> from imgclf import Classifier, Loader, explain, open_source
        >>> classifier, source = Classifier.load("runs/first"), open_source("digits")
        >>> loader = Loader(source, source.samples[:2], classifier.preprocess_, classes=classifier.classes_)
        >>> explain(classifier.model_, loader, label="3")[0].heat.shape
        (28, 28)
    """
    precision = pick_precision(precision, device_of(model))
    if method not in EXPLAIN_METHODS:
        raise unknown_name("method", method, list(EXPLAIN_METHODS))
    if label is not None:
        require("label", label, str)
        label = next((name for name in loader.classes if nfc(name) == nfc(label)), label)
        if label not in loader.classes:
            raise unknown_name("class of the model", label, list(loader.classes))
    model = own_copy(model)  # for hooks of its own
    with torch.inference_mode(False):  # a caller's inference mode would forbid gradients
        predictions = list(predict(model, loader, top=1, precision=precision, temperature=temperature, backend="torch"))
        labels = [prediction.label if label is None else label for prediction in predictions]
        found: dict[int, tuple[NDArray[np.float32], NDArray[np.uint8], Grid | None]] = {}
        for batch in filter(lambda batch: len(batch.targets), loader.epoch()):
            positions = batch.positions.tolist()
            targets = torch.tensor([loader.classes.index(str(labels[i])) for i in positions], dtype=torch.int64)
            heats, cells = _heats(model, batch.pixels, targets, loader.preprocess, method, precision)
            found |= zip(positions, zip(heats, batch.pixels.cpu().numpy(), repeat(cells)), strict=True)
    return [
        Explanation(said.path, name, said.probabilities[name], method, *found[i])
        if name is not None and said.error is None
        else Explanation(said.path, None, None, method, error=said.error)
        for i, (said, name) in enumerate(zip(predictions, labels, strict=True))
    ]


def _heats(
    model: nn.Module, pixels: Tensor, targets: Tensor, preprocess: PreprocessConfig, method: str, precision: torch.dtype
) -> tuple[list[NDArray[np.float32]], Grid | None]:
    """The heat of each image, scaled so that its hottest pixel is 1; and the size of the maps, None for occlusion."""
    if method == "occlusion":
        pairs = zip(pixels, targets.tolist(), strict=True)
        return [_scaled(_occlusion(model, *pair, preprocess, precision)) for pair in pairs], None
    device, members = device_of(model), list(model.members) if isinstance(model, Ensemble) else [model]
    site = find_last_site(members[0], to_input(pixels[:1], preprocess, device))
    mean_cam = partial(_mean_cam, members, site, method, preprocess.tta != "none")

    def heats(most: int) -> NDArray[np.float32]:
        parts = zip(torch.split(pixels, most), torch.split(targets.to(device), most), strict=True)
        return np.concatenate([mean_cam(to_input(part, preprocess, device), wanted) for part, wanted in parts])

    return [_scaled(heat) for heat in in_parts_that_fit(heats, MAX_IMAGES, device)[0]], site.grid


def _mean_cam(
    members: Sequence[nn.Module], site: Site, method: str, mirrored: bool, images: Tensor, targets: Tensor
) -> NDArray[np.float32]:
    """The mean of the members' maps (n, height, width), and of those of the `mirrored` images."""
    heats = [_cam(member, images, targets, site, method) for member in members]
    if mirrored:  # the views of mirror-shift that are moved by one pixel show the same places
        heats += [_cam(member, images.flip(3), targets, site, method).flip(2) for member in members]
    return torch.stack(heats).mean(0).cpu().numpy()


def _cam(model: nn.Module, images: Tensor, targets: Tensor, site: Site, method: str) -> Tensor:
    """Class activation maps (n, height, width), not scaled: what the maps' places add to the logit."""
    outputs: list[Tensor] = []

    def begin(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        if len(outputs) == site.call + 1:
            torch.set_grad_enabled(True)  # no layer before needs one; `no_grad` below sets it back
        return outputs[-1].clone()  # a later layer may work in place

    with torch.no_grad(), hooked({model.get_submodule(site.name): begin}):
        scores = model(images).float().gather(1, targets[:, None])
        (gradient,) = torch.autograd.grad(scores.sum(), outputs[site.call])
    maps, slopes = site.maps(outputs[site.call].detach()).float(), site.maps(gradient).float()
    weights = _plus_plus(maps, slopes) if method == "gradcam++" else slopes.mean((2, 3), keepdim=True)
    size = (images.shape[2], images.shape[3])
    return spread((weights * maps).sum(1).relu(), site, size)


def _plus_plus(maps: Tensor, slopes: Tensor) -> Tensor:
    """The weights (n, c, 1, 1) of Grad-CAM++ (equations 11 and 19, for the exponential of the logit)."""
    squares = slopes**2
    below = 2 * squares + maps.sum((2, 3), keepdim=True) * squares * slopes
    shares = torch.where(below == 0, 0, squares / torch.where(below == 0, 1, below))
    return (shares * slopes.relu()).sum((2, 3), keepdim=True)


def _occlusion(
    model: nn.Module, image: Tensor, target: int, preprocess: PreprocessConfig, precision: torch.dtype
) -> NDArray[np.float64]:
    """How much the log-odds of the class fall, on average over the patches that cover a pixel (height, width).

    Of log-odds, since a probability of 1.0 hardly moves. Each pixel is covered by as many patches as any other.
    """
    height, width = image.shape[:2]
    patches = list(product(_cuts(height), _cuts(width)))
    gray = torch.tensor(mean_color(preprocess), dtype=torch.uint8, device=image.device)
    odds, most, device = [], MAX_COVERED_IMAGES, device_of(model)
    for start in range(0, len(patches), MAX_COVERED_IMAGES):
        part = patches[start : start + MAX_COVERED_IMAGES]
        covered = image.repeat(len(part), 1, 1, 1)
        for row, (rows, columns) in zip(covered, part, strict=True):
            row[rows, columns] = gray
        compute = partial(batch_outputs, model, covered, preprocess, device, precision)
        logits, most = in_parts_that_fit(compute, most, device)
        odds.append(_log_odds(logits, target))
    whole = _log_odds(batch_outputs(model, image[None], preprocess, device, precision, 1), target)
    losses, covers = np.zeros((height, width)), np.zeros((height, width))
    for (rows, columns), value in zip(patches, np.concatenate(odds), strict=True):
        losses[rows, columns] += whole[0] - value
        covers[rows, columns] += 1
    return np.maximum(losses / covers, 0)


def _cuts(side: int) -> list[slice]:
    """The patches along one side; those at its ends hang over, so that each pixel is in two."""
    stride = max(1, round(side * PATCH_SHARE / 2))
    return [slice(max(0, start), start + 2 * stride) for start in range(-stride, side, stride)]


def _log_odds(logits: Tensor, target: int) -> NDArray[np.float64]:
    """log p / (1 - p) of one class."""
    values = logits.cpu().numpy().astype(np.float64)
    odds: NDArray[np.float64] = values[:, target] - np.logaddexp.reduce(np.delete(values, target, axis=1), axis=1)
    return odds


def _scaled(heat: NDArray[np.floating]) -> NDArray[np.float32]:
    most = heat.max()
    return (heat / most if most > 0 else heat).astype(np.float32)
