"""The baseline of fine-tuning, and its start: frozen features and a linear head.

The head is an L2-regularised multinomial logistic regression, its strength chosen by cross-validation. To fine-tune
from such a head distorts the features less than to start from a random one (LP-FT: Kumar et al. 2022,
arXiv:2202.10054).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from imgclf.data.loader import Loader
from imgclf.errors import ConfigError
from imgclf.evaluation.unknown import choose_evenly
from imgclf.inference import Progress, answer_with_features
from imgclf.models.build import head_of
from imgclf.results import Probe

STRENGTHS = tuple(10 ** (-exponent / 2) for exponent in range(2, 11))  # 0.1 to 1e-5, the strongest first
FOLDS = 5
MANY = 5_000  # images from which on one fold is enough, in float32
ITERATIONS = 100


def linear_head(model: nn.Module) -> nn.Linear | None:
    """The last layer of a network, where a probe can be its weights."""
    head = head_of(model)
    return head if isinstance(head, nn.Linear) and head.bias is not None else None


def fit_probe(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: torch.dtype,
    *,
    weight: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Set the linear head of `model` to a logistic regression on its features of the loader's samples.

    The loader gives evaluation pixels. Where `load_weights` has left the rows of the head that the network was
    pretrained with, its own classes say which directions of the features matter. `weight` (classes,) weighs the images
    of each class. Every process gets the same head. Raises `ConfigError` for a network without a linear head, and what
    `infer` raises.
    """
    return fit_probe_on_features(model.to(device), loader, precision, weight=weight, progress=progress)[0]


def fit_probe_on_features(
    model: nn.Module,
    loader: Loader,
    precision: torch.dtype,
    *,
    weight: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[Probe, NDArray[np.float32]]:
    """The same on the model's own device, and the features (m, d) of as many images as `choose_evenly` takes."""
    began = time.perf_counter()
    head = linear_head(model)
    if head is None:
        raise ConfigError("a probe needs a network whose last layer is linear, with a bias; leave the probe out")
    features, labels = features_of(model, loader, precision, progress)
    found = features.numpy().astype(np.float32)
    prior = getattr(head, "prior", None)
    weights, bias, strength, score = fit_logistic(features, labels, head.out_features, prior, weight)
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.copy_(bias)
    loss, accuracy, held_out = score
    error = math.sqrt(accuracy * (1 - accuracy) / held_out) if held_out else math.nan
    probe = Probe(accuracy, error, loss, strength, len(labels), time.perf_counter() - began)
    return probe, found[choose_evenly(labels.numpy())]


def soften_head(model: nn.Module, start: Mapping[str, torch.Tensor], scale: float) -> None:
    """Set the linear head of `model` to `scale` times that of the weights `start`: equal answers, less sure."""
    head = linear_head(model) if scale != 1 else None
    if head is None:
        return
    own = set(head.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter in own:
                parameter.copy_(scale * start[name])


def features_of(
    model: nn.Module, loader: Loader, precision: torch.dtype, progress: Progress | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last layer of `model` gets for the loader's samples (n, d), and their labels, in order.

    In float64 for so few images that it costs nothing.
    """
    answers, found = answer_with_features(model, loader, progress, precision)
    features, labels = torch.from_numpy(found), torch.from_numpy(answers.targets)
    return (features.double() if len(labels) <= MANY else features), labels


def fit_logistic(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    prior: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[torch.Tensor, torch.Tensor, float, tuple[float, float, int]]:
    """Weights (classes, d) and bias (classes,) for features (n, d), the one of the `strengths` (falling) of the L2
    penalty that was chosen, and the mean loss and accuracy on held-out images with their number; NaN and 0 where no
    class has two images, and where there is nothing to choose.
    """
    centre = features.mean(0)
    mixing = _mixing(features - centre, prior)
    points = (features - centre) @ mixing
    basis = torch.linalg.svd(points, full_matrices=False).Vh if len(points) < points.shape[1] else None
    points = points if basis is None else points @ basis.T
    weight = None if weight is None else weight.to(points)
    strength, score = strengths[0], (math.nan, math.nan, 0)
    if len(strengths) > 1:
        strength, score = _choose(points, labels, classes, weight, strengths)
    solution = _minimise(points, labels, classes, strength, weight)
    inner = solution[:, :-1] if basis is None else solution[:, :-1] @ basis
    weights = inner @ mixing.T
    return weights, solution[:, -1] - weights @ centre, strength, score


def _mixing(features: torch.Tensor, prior: torch.Tensor | None) -> torch.Tensor:
    """What centred features (n, d) are multiplied by, (d, d): an image has a mean squared length of 1 after it.

    With a `prior` half of that length lies in the scores of the classes that it knows. It is the square root of the
    matrix of inner products of an image's features and scores side by side, so that no feature is added.
    """
    identity = torch.eye(features.shape[1], dtype=features.dtype)
    inner = identity / _length(features) ** 2
    if prior is not None:
        rows = prior.cpu().to(features)  # in two steps: Metal has no float64
        rows = rows - rows.mean(0)
        inner = (inner + rows.T @ rows / _length(features @ rows.T) ** 2) / 2
    values, vectors = torch.linalg.eigh(inner)
    mixing: torch.Tensor = vectors * values.clamp_min(0).sqrt()
    return mixing


def _length(points: torch.Tensor) -> torch.Tensor:
    return points.square().sum(1).mean().sqrt().clamp_min(1e-12)


def _choose(
    points: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    weight: torch.Tensor | None,
    strengths: Sequence[float],
) -> tuple[float, tuple[float, float, int]]:
    """The strength of least loss on images that are held out, each class spread evenly over the folds."""
    fold = _folds(labels)
    tried = range(1 if len(labels) > MANY else FOLDS)
    held_out = [fold == number for number in tried if (fold == number).any()]
    if not held_out:
        return strengths[len(strengths) // 2], (math.nan, math.nan, 0)
    sums = torch.zeros(len(strengths), 2)
    for out in held_out:
        start = None
        for row, strength in zip(sums, strengths, strict=True):
            start = _minimise(points[~out], labels[~out], classes, strength, weight, start)
            logits = points[out] @ start[:, :-1].T + start[:, -1]
            row[0] += F.cross_entropy(logits, labels[out], reduction="sum")
            row[1] += (logits.argmax(1) == labels[out]).sum()
    best = int(sums[:, 0].argmin())
    n = int(torch.stack(held_out).sum())
    return strengths[best], (float(sums[best, 0]) / n, float(sums[best, 1]) / n, n)


def _folds(labels: torch.Tensor) -> torch.Tensor:
    """A number from 0 to 4 for each image; -1 for one that is alone in its class, which is never held out.

    The places follow the order of the images, so that the same images always give the same head.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels)) - starts[labels[order]]
    return torch.where(counts[labels] > 1, place % FOLDS, -1)


def _minimise(
    points: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    strength: float,
    weight: torch.Tensor | None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights and the bias (classes, d + 1) of least mean cross-entropy plus `strength` / 2 times the squares."""
    solution = torch.zeros(classes, points.shape[1] + 1, dtype=points.dtype) if start is None else start.clone()
    solution.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=ITERATIONS, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = points @ solution[:, :-1].T + solution[:, -1]
        value = F.cross_entropy(logits, labels, weight) + strength / 2 * solution[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return solution.detach()
