"""Model and images in, probabilities out. Evaluation, prediction and each epoch's valid pass come through here.

All of it only reads: a model may answer in several threads at once, and while a prediction is left half-way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imgclf.core.arguments import whole
from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import DataError
from imgclf.core.results import Evaluation, Prediction
from imgclf.data.loading.loader import Batch, Loader
from imgclf.evaluation.metrics import softmax
from imgclf.evaluation.ood import Rejector
from imgclf.evaluation.predictions import Predictions
from imgclf.models.features import Tapped, feature_layers
from imgclf.models.fuse import fuse_conv_bn
from imgclf.runtime import distributed
from imgclf.runtime.compute import (
    SMALL_STEP,
    autocast,
    enough_threads,
    in_evaluation,
    in_parts_that_fit,
    kept_memory,
    made_on_one_core,
    own_copy,
    step_flops,
)
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.transforms.preprocess import to_input

WAITING = 2**26  # bytes of answers that stay on the device
FEW = 64  # images for which to get ready costs more time than it saves
MANY = 250  # images of 224 pixels from which on it pays to fold batch norms

Progress = Callable[[int, int], None]


class Answered(NamedTuple):
    """An image as the model sees it, uint8 (height, width, channels); its class, and what the model says."""

    pixels: NDArray[np.uint8]
    label: str
    predicted: str


def infer(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    progress: Progress | None = None,
    precision: torch.dtype = torch.float32,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, classes) and class indices (n,) of the loader's samples, in order, without those that are lost.

    Where the loader gives a process its share, every process gets the figures of all.

    `progress` is told (images done, images in all); `precision` is the dtype of autocast. Raises `DataError` where no
    image at all can be read, and `OutOfMemory` where a single one does not fit.
    """
    return infer_placed(model, loader, device, progress, precision)[:2]


def infer_placed(
    model: nn.Module, loader: Loader, device: torch.device, progress: Progress | None, precision: torch.dtype
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """What `infer` gives, and the positions in the loader's samples (n,)."""
    answers: list[torch.Tensor] = []  # they stay on the device for a while: to fetch each would wait for it
    labels: list[torch.Tensor] = []
    rows, targets, positions, done = [], [], [], 0

    def fetch() -> None:
        rows.append(torch.cat(answers).cpu().numpy())
        targets.append(torch.cat(labels).cpu().numpy())
        answers.clear()
        labels.clear()

    for batch, logits in _forward(model, loader, device, precision):
        answers.append(logits)
        labels.append(batch.targets)
        positions.append(batch.positions.numpy())
        done += len(logits)
        if progress is not None:
            progress(min(done * loader.shard[1], len(loader)), len(loader))
        if len(answers) * logits.nbytes > WAITING:
            fetch()
    if answers:
        fetch()
    if loader.shard[1] > 1:
        rows, targets, positions = _of_all(rows, targets, positions, loader.lost)
    if not rows:
        raise DataError("none of the images can be read", [f"{ref}: {why}" for ref, why in loader.lost.items()])
    return np.concatenate(rows), np.concatenate(targets), np.concatenate(positions)


def _of_all(
    rows: list[NDArray[np.float32]],
    targets: list[NDArray[np.int64]],
    positions: list[NDArray[np.int64]],
    lost: dict[str, str],
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """What all processes found, in the order of the samples; `lost` is completed."""
    shares = distributed.gather((rows, targets, positions, dict(lost)))
    for share in shares:
        lost.update(share[3])
    if not any(share[0] for share in shares):
        return [], [], []
    logits, classes, places = (np.concatenate([part for share in shares for part in share[i]]) for i in range(3))
    order = places.argsort()
    return [logits[order]], [classes[order]], [places[order]]


def answer(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    precision: torch.dtype | str = torch.float32,
    temperature: float = 1.0,
) -> Predictions:
    """What a model says of the labeled samples of a loader that can be read, in order. Raises what `infer` raises."""
    device = device_of(model) if device is None else pick_device(device)
    precision = pick_precision(precision, device)
    with quick(model, loader, device) as network, enough_threads(_batch_flops(network, loader, device)):
        logits, targets, positions = infer_placed(network, loader, device, progress, precision)
    return _answers(loader, logits, targets, positions, temperature)


def predictions_with_features(
    model: nn.Module, loader: Loader, progress: Progress | None = None, precision: torch.dtype = torch.float32
) -> tuple[Predictions, NDArray[np.float32]]:
    """The same in one pass with the features (n, d) of the samples: what the last layer gets.

    Raises `ConfigError` for a network without a known head, and what `infer` raises.
    """
    device = device_of(model)
    with quick(model, loader, device) as network, enough_threads(_batch_flops(network, loader, device)):
        rows, targets, positions = infer_placed(_tapped(model, network), loader, device, progress, precision)
    logits, features = np.split(rows, [len(loader.classes)], axis=1)
    return _answers(loader, np.ascontiguousarray(logits), targets, positions, 1.0), features


def _answers(
    loader: Loader,
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    positions: NDArray[np.int64],
    temperature: float,
) -> Predictions:
    samples = [loader.samples[position] for position in positions.tolist()]
    refs, contents = tuple(sample.ref for sample in samples), tuple(sample.sha256 for sample in samples)
    return Predictions(logits, targets, refs, contents, loader.classes, temperature)


def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    precision: torch.dtype | str = torch.float32,
) -> Evaluation:
    """How a model does on the samples of a loader. Raises what `infer` raises."""
    return answer(model, loader, device, progress, precision).evaluation


def predict(
    model: nn.Module,
    loader: Loader,
    *,
    top: int = 5,
    device: torch.device | str | None = None,
    precision: torch.dtype | str = torch.float32,
    temperature: float = 1.0,
    refusal: Rejector | None = None,
) -> Iterator[Prediction]:
    """One `Prediction` for each sample of the loader, in order; one that cannot be read carries an error.

    `top` is how many classes each prediction lists, the likeliest first; the logits are divided by the `temperature`.
    With a `refusal` each prediction says how unlike the training images its image is, and whether it is accepted. In
    float32 what stands beside an image in its batch changes no answer.
    """
    device, said, k = device_of(model) if device is None else pick_device(device), 0, len(loader.classes)
    precision, top = pick_precision(precision, device), whole("top", top, 1)
    with quick(model, loader, device) as network:
        small = _batch_flops(network, loader, device) < SMALL_STEP
        answering = _forward(network if refusal is None else _tapped(model, network), loader, device, precision)
        for batch, answers in made_on_one_core(answering) if small else answering:
            rows = answers.cpu().numpy()
            likely = softmax(rows[:, :k].astype(np.float64) / temperature)
            scores = itertools.repeat(None) if refusal is None else refusal.unknown.scores(rows[:, :k], rows[:, k:])
            for index, probabilities, score in zip(batch.positions.tolist(), likely.tolist(), scores, strict=False):
                yield from (_failed(loader, i) for i in range(said, index))
                prediction = _prediction(loader.samples[index].ref, loader.classes, probabilities, top)
                yield (prediction if refusal is None or score is None else refusal.judge(prediction, float(score)))
                said = index + 1
    yield from (_failed(loader, i) for i in range(said, len(loader)))


def preview_predictions(model: nn.Module, loader: Loader) -> list[Answered]:
    """The images of a loader that can be read, with the model's answers."""
    answers = []
    for batch, logits in _forward(model, loader, device_of(model), torch.float32):
        pixels, classes = batch.pixels.cpu().numpy(), loader.classes
        triples = zip(pixels, batch.targets.tolist(), logits.argmax(1).tolist(), strict=True)
        answers += [Answered(image, classes[target], classes[found]) for image, target, found in triples]
    return answers


def device_of(model: nn.Module) -> torch.device:
    """The device on which a model's parameters lie."""
    return next(model.parameters()).device


@contextmanager
def quick(model: nn.Module, loader: Loader, device: torch.device) -> Iterator[nn.Module]:
    """A model to use in the place of `model`: quicker where there are many images."""
    if len(loader) < MANY:
        yield model
        return
    network = fuse_conv_bn(model, _example(loader, device))
    try:
        yield network
    finally:
        network.to("meta")  # where it refers to itself, its weights would wait for a garbage collection


def _example(loader: Loader, device: torch.device) -> torch.Tensor:
    return torch.zeros(1, loader.recipe.channels, *loader.recipe.size, device=device)


def _batch_flops(model: nn.Module, loader: Loader, device: torch.device) -> float:
    """The floating-point operations of a batch on a processor; infinite where they are not worth knowing."""
    if len(loader) < FEW or device.type != "cpu":
        return math.inf
    return step_flops(model, _example(loader, device), loader.batch_size)


def _tapped(model: nn.Module, network: nn.Module) -> Tapped:
    """The `network` that `quick` made of a model, with its features; `ConfigError` where it has no known head."""
    return Tapped(own_copy(model) if network is model else network, feature_layers(model))


def _forward(
    model: nn.Module, loader: Loader, device: torch.device, precision: torch.dtype
) -> Generator[tuple[Batch, torch.Tensor]]:
    """Batches with their logits, float32 (n, classes) on the device.

    The parts in which a batch goes through the model stay as small as they had to be.
    """
    most, model = loader.batch_size, in_evaluation(model)
    with kept_memory(device) if len(loader) >= FEW else nullcontext():
        for batch in loader.epoch():
            if not len(batch.targets):
                continue
            n = len(batch.pixels)
            compute = partial(logits_of, model, batch.pixels, loader.recipe, device, precision)
            logits, size = in_parts_that_fit(compute, min(most, n), device)
            most = min(most, size) if size < n else most
            yield batch, logits


def logits_of(
    model: nn.Module,
    pixels: torch.Tensor,
    recipe: PreprocessConfig,
    device: torch.device,
    precision: torch.dtype,
    most: int,
) -> torch.Tensor:
    """The logits (n, classes) of pixels, uint8 (n, height, width, channels), `most` at a time; for eval mode."""
    with torch.inference_mode(), autocast(device, precision):
        parts = []
        for part in torch.split(pixels, most):
            images = to_input(part, recipe, device)
            parts.append(_averaged(model, images, recipe.tta))
        return torch.cat(parts)


def _averaged(model: nn.Module, images: torch.Tensor, tta: str) -> torch.Tensor:
    """The logits of images or, with `tta`, the weighted mean over views of each (Jordan, arXiv:2404.00498)."""
    if tta == "none":
        logits: torch.Tensor = model(images).float()
        return logits
    mirrored: torch.Tensor = (model(images).float() + model(images.flip(3)).float()) / 2
    if tta == "mirror":
        return mirrored
    height, width = images.shape[2:]
    framed = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [_averaged(model, framed[:, :, i : i + height, i : i + width], "mirror") for i in (0, 2)]
    return mirrored / 2 + (moved[0] + moved[1]) / 4


def _prediction(path: str, classes: tuple[str, ...], probabilities: list[float], top: int) -> Prediction:
    ranked = sorted(range(len(classes)), key=lambda i: -probabilities[i])
    best = tuple((classes[i], probabilities[i]) for i in ranked[:top])
    return Prediction(path, best[0][0], best[0][1], best, None, dict(zip(classes, probabilities, strict=True)))


def _failed(loader: Loader, index: int) -> Prediction:
    ref = loader.samples[index].ref
    return Prediction(ref, None, None, error=loader.lost[ref])
