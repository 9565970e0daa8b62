"""The linear probe: frozen features and a linear head; what fine-tuning must beat, and where it starts.

The head is an L2-regularized multinomial logistic regression, its strength chosen by cross-validation. To fine-tune
from such a head distorts the features less than to start from a random one (LP-FT: Kumar et al. 2022,
arXiv:2202.10054).
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from imgclf.core.errors import ConfigError
from imgclf.core.results import Probe
from imgclf.data.duplicates import joined, unit_keys
from imgclf.data.loading.loader import Loader
from imgclf.evaluation.inference import Progress, predictions_with_features
from imgclf.evaluation.ood import choose_evenly
from imgclf.models.build import head_of
from imgclf.runtime.compute import enough_threads
from imgclf.runtime.device import pick_device, pick_precision

STRENGTHS = tuple(10 ** (-exponent / 2) for exponent in range(2, 11))  # 0.1 to 1e-5, the strongest first
FOLDS = 5
MAX_FIVE_FOLD_IMAGES = 5_000  # of more, one fold is enough
CHOOSING_DIRECTIONS = 256  # by which a strength is chosen: heads fitted to more of them choose the same (docs/speed.md)
CHOOSING_GRADIENT, FINAL_GRADIENT = 1e-4, 1e-6  # the largest slope at which a fit ends
ITERATIONS = 100


class HeldOut(NamedTuple):
    """How a head does on `images` that it was not fitted to: mean loss and accuracy, and the standard error of the
    latter, in which images that belong together count as one look. NaN where there are none."""

    loss: float = math.nan
    accuracy: float = math.nan
    error: float = math.nan
    images: int = 0


def linear_head(model: nn.Module) -> nn.Linear | None:
    """The last layer of a network, where a probe can be its weights."""
    head = head_of(model)
    return head if isinstance(head, nn.Linear) and head.bias is not None else None


def fit_probe(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str,
    precision: torch.dtype | str,
    *,
    weight: torch.Tensor | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
) -> Probe:
    """Set the linear head of `model` to a logistic regression on its features of the loader's samples.

    Where `load_weights` has left the rows of the head that the network was pretrained with, its own classes say which
    directions of the features matter. Cross-validation parts neither copies nor groups. Every process gets the same
    head.

    Args:
        loader: gives evaluation pixels.
        weight: of the images of each class, (classes,).
        progress: called with the images done and their number.

    Raises:
        ConfigError: for a network whose last layer is not linear, or has no bias.
        OutOfMemory: where a single image does not fit.
    """
    device = pick_device(device)
    precision = pick_precision(precision, device)
    return fit_probe_on_features(model.to(device), loader, precision, weight, progress, backend)[0]


def fit_probe_on_features(
    model: nn.Module,
    loader: Loader,
    precision: torch.dtype,
    weight: torch.Tensor | None,
    progress: Progress | None,
    backend: str,
) -> tuple[Probe, NDArray[np.float32]]:
    """The same on the model's own device, and the features (m, d) of as many images as `choose_evenly` takes."""
    began = time.perf_counter()
    head = linear_head(model)
    if head is None:
        raise ConfigError("a probe needs a network whose last layer is linear, with a bias; leave the probe out")
    features, labels, units = features_of(model, loader, precision, progress, backend)
    found = features.numpy().astype(np.float32)
    prior = getattr(head, "prior", None)
    weights, bias, strength, held_out = fit_logistic(features, labels, head.out_features, prior, weight, units=units)
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.copy_(bias)
    note = "" if held_out.images else "no class has images of two groups"
    seconds = time.perf_counter() - began
    probe = Probe(held_out.accuracy, held_out.error, held_out.loss, strength, len(labels), seconds, note)
    return probe, found[choose_evenly(labels.numpy())]


def soften_head(model: nn.Module, start: Mapping[str, torch.Tensor], scale: float) -> None:
    """Set the linear head of `model` to `scale` times that of the weights `start`: less confident predictions."""
    head = linear_head(model) if scale != 1 else None
    if head is None:
        return
    own = set(head.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter in own:
                parameter.copy_(scale * start[name])


def features_of(
    model: nn.Module, loader: Loader, precision: torch.dtype, progress: Progress | None = None, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The features (n, d) of the loader's samples, the input of the last layer; their labels (n,), and the numbers (n,)
    of their groups or sets of copies.
    """
    predictions, found = predictions_with_features(model.eval(), loader, progress, precision, backend)
    features, labels = torch.from_numpy(found), torch.from_numpy(predictions.targets)
    samples = {sample.ref: sample for sample in loader.samples}
    units = torch.tensor(joined([samples[ref] for ref in predictions.refs], unit_keys), dtype=torch.int64)
    return features, labels, units


def fit_logistic(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    prior: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    strengths: Sequence[float] = STRENGTHS,
    units: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, float, HeldOut]:
    """Weights (classes, d) and bias (classes,) for features (n, d), the one of the `strengths` (falling) of the L2
    penalty that was chosen, and how heads do on images that are held out; of none where no class has two `units`, and
    where there is nothing to choose. Images of the same number in `units` (n,) are held out together.
    """
    center = features.mean(0)
    mixing = _mixing(features - center, prior)
    points = (features - center) @ mixing
    basis = _directions(points)
    points = points @ basis
    weight = None if weight is None else weight.to(points)
    strength, score = strengths[0], HeldOut()
    if len(strengths) > 1:
        units = torch.arange(len(labels)) if units is None else units
        strength, score = _choose(
            points[:, :CHOOSING_DIRECTIONS].contiguous(), labels, classes, weight, strengths, units
        )
    solution = _minimize(points, labels, classes, strength, weight, FINAL_GRADIENT)
    weights = solution[:, :-1] @ basis.T @ mixing.T
    return weights, solution[:, -1] - weights @ center, strength, score


def _directions(points: torch.Tensor) -> torch.Tensor:
    """The principal directions of centered points (n, d), (d, min(n, d)), those in which they differ most first."""
    if len(points) < points.shape[1]:
        rows: torch.Tensor = torch.linalg.svd(points, full_matrices=False).Vh
        return rows.T
    exact = points.double()
    columns: torch.Tensor = torch.linalg.eigh(exact.T @ exact).eigenvectors
    return columns.flip(1).to(points)


def _mixing(features: torch.Tensor, prior: torch.Tensor | None) -> torch.Tensor:
    """The matrix (d, d) that centered features (n, d) are multiplied by, so that their mean squared length is 1.

    With a `prior` half of that length lies in the scores of the classes that it knows. It is the square root of the
    matrix of inner products of an image's features and scores side by side, so that no feature is added.
    """
    size = _length(features)
    if prior is None:
        return torch.eye(features.shape[1], dtype=features.dtype) / size
    rows = prior.cpu().to(features)  # in two steps: Metal has no float64
    rows = rows - rows.mean(0)
    inner = (torch.eye(features.shape[1]) / size**2 + rows.T @ rows / _length(features @ rows.T) ** 2) / 2
    values, vectors = torch.linalg.eigh(inner.double())
    mixing: torch.Tensor = vectors * values.clamp_min(0).sqrt()
    return mixing.to(features)


def _length(points: torch.Tensor) -> torch.Tensor:
    return points.square().sum(1).mean().sqrt().clamp_min(1e-12)


def _choose(
    points: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    weight: torch.Tensor | None,
    strengths: Sequence[float],
    units: torch.Tensor,
) -> tuple[float, HeldOut]:
    """The strength of least loss on images that are held out, each class spread evenly over the folds."""
    fold = _folds(labels, units)
    tried = range(1 if len(labels) > MAX_FIVE_FOLD_IMAGES else FOLDS)
    held_out = [fold == number for number in tried if (fold == number).any()]
    if not held_out:
        return strengths[len(strengths) // 2], HeldOut()
    known = torch.cat([labels[out] for out in held_out])
    losses, right = list[float](), list[torch.Tensor]()
    heads: list[torch.Tensor] = []
    for strength in strengths:
        heads = [
            _minimize(points[~out], labels[~out], classes, strength, weight, CHOOSING_GRADIENT, start)
            for out, start in zip(held_out, heads or repeat(None), strict=False)
        ]
        pairs = zip(held_out, heads, strict=True)
        logits = torch.cat([points[out] @ head[:, :-1].T + head[:, -1] for out, head in pairs])
        losses.append(float(F.cross_entropy(logits, known)))
        right.append(logits.argmax(1) == known)
        if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3]:  # it rises: weaker ones only overfit more
            break
    best = losses.index(min(losses))
    hits, judged = right[best].double(), torch.cat([units[out] for out in held_out])
    accuracy = float(hits.mean())
    error = _clustered_error(hits - accuracy, judged)
    return strengths[best], HeldOut(losses[best], accuracy, error, len(hits))


def _clustered_error(deviations: torch.Tensor, units: torch.Tensor) -> float:
    """The standard error of a mean whose terms deviate from it by `deviations`, those of one unit together."""
    together = torch.zeros(int(units.max()) + 1, dtype=deviations.dtype).index_add(0, units, deviations)
    return float(together.square().sum().sqrt()) / len(deviations)


def _folds(labels: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """The fold of each image, from 0 to 4, the same within a unit; -1 for a unit without which a class has no image.

    Class by class, the largest units first, each goes to the fold that has held the least of its classes by then. All
    follows the order of the images, so that the same images always give the same head.
    """
    classes = labels.tolist()
    members: dict[int, list[int]] = defaultdict(list)
    for place, unit in enumerate(units.tolist()):
        members[unit].append(place)
    holds = {unit: Counter(classes[place] for place in places) for unit, places in members.items()}
    spread = Counter(label for counts in holds.values() for label in counts)
    sizes = Counter(classes)
    held: list[Counter[int]] = [Counter() for _ in range(FOLDS)]
    fold = [-1] * len(classes)
    for unit in sorted(members, key=lambda unit: (min(holds[unit]), -len(members[unit]))):
        if any(spread[label] < 2 for label in holds[unit]):
            continue
        shares = [sum(some[label] / sizes[label] for label in holds[unit]) for some in held]
        number = shares.index(min(shares))
        held[number].update(holds[unit])
        for place in members[unit]:
            fold[place] = number
    return torch.tensor(fold)


def _minimize(
    points: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    strength: float,
    weight: torch.Tensor | None,
    gradient: float,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights and the bias (classes, d + 1) of least mean cross-entropy plus `strength` / 2 times the squares.

    L-BFGS (Liu and Nocedal 1989) from `start`, until no slope is larger than `gradient`.
    """
    from scipy.optimize import minimize

    shape = classes, points.shape[1] + 1
    shares = torch.ones(len(labels)) if weight is None else weight[labels]
    shares = (shares / shares.sum()).to(points.dtype)[:, None]  # of each image in the mean
    targets = shares * F.one_hot(labels, classes)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:  # without autograd, in half the time
        solution = torch.from_numpy(flat.reshape(shape)).to(points.dtype)
        logs = (points @ solution[:, :-1].T + solution[:, -1]).log_softmax(1)
        value = strength / 2 * solution[:, :-1].square().sum() - (targets * logs).sum()
        errors = shares * logs.exp() - targets
        gradient = torch.column_stack([errors.T @ points + strength * solution[:, :-1], errors.sum(0)])
        return value.item(), gradient.double().numpy().ravel()

    first = np.zeros(shape) if start is None else start.double().numpy()
    options = {"maxiter": ITERATIONS, "maxcor": 20, "gtol": gradient, "ftol": 0.0}
    with enough_threads(2.0 * points.numel() * classes):
        found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x.reshape(shape)).to(points.dtype)
