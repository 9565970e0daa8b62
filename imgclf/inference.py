"""Model and images in, probabilities out. Evaluation, prediction and each epoch's valid pass come through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imgclf.data.loader import Batch, Loader
from imgclf.errors import DataError
from imgclf.evaluation.metrics import evaluate_logits, softmax
from imgclf.results import Evaluation, Prediction
from imgclf.transforms.pixels import to_input

Progress = Callable[[int, int], None]


def infer(
    model: nn.Module, loader: Loader, device: torch.device, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, classes) and class indices (n,) of the loader's samples, in order, without those that are lost.

    `progress` is told (images done, images in all). Raises `DataError` where no image at all can be read.
    """
    rows, targets, done = [], [], 0
    for batch, logits in _forward(model, loader, device):
        rows.append(logits)
        targets.append(batch.targets.cpu().numpy())
        done += len(logits)
        if progress is not None:
            progress(done, len(loader))
    if not rows:
        raise DataError("none of the images can be read", [f"{ref}: {why}" for ref, why in loader.lost.items()])
    return np.concatenate(rows), np.concatenate(targets)


def evaluate(
    model: nn.Module, loader: Loader, device: torch.device | None = None, progress: Progress | None = None
) -> Evaluation:
    """How a model does on the samples of a loader. Raises `DataError` where no image can be read."""
    logits, targets = infer(model, loader, device or device_of(model), progress)
    return evaluate_logits(logits, targets, loader.classes)


def predict(
    model: nn.Module, loader: Loader, *, top: int = 5, device: torch.device | None = None
) -> Iterator[Prediction]:
    """One `Prediction` for each sample of the loader, in order; one that cannot be read carries an error.

    `top` is how many classes each prediction lists, the likeliest first.
    """
    said = 0
    for batch, logits in _forward(model, loader, device or device_of(model)):
        for index, probabilities in zip(batch.positions.tolist(), softmax(logits), strict=True):
            yield from (_failed(loader, i) for i in range(said, index))
            yield _prediction(loader.samples[index].ref, loader.classes, probabilities.tolist(), top)
            said = index + 1
    yield from (_failed(loader, i) for i in range(said, len(loader)))


def device_of(model: nn.Module) -> torch.device:
    """The device on which a model's parameters lie."""
    return next(model.parameters()).device


def _forward(model: nn.Module, loader: Loader, device: torch.device) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Batches with their logits. In float32 always: what stands beside an image in its batch changes no answer."""
    was_training = model.training
    model.eval()
    try:
        for batch in loader.epoch():
            with torch.inference_mode():
                logits = model(to_input(batch.pixels, loader.recipe, device))
            yield batch, logits.float().cpu().numpy()
    finally:
        model.train(was_training)


def _prediction(path: str, classes: tuple[str, ...], probabilities: list[float], top: int) -> Prediction:
    ranked = sorted(range(len(classes)), key=lambda i: -probabilities[i])
    best = tuple((classes[i], probabilities[i]) for i in ranked[: max(1, top)])
    return Prediction(path, best[0][0], best[0][1], best[:top], None, dict(zip(classes, probabilities, strict=True)))


def _failed(loader: Loader, index: int) -> Prediction:
    ref = loader.samples[index].ref
    return Prediction(ref, None, None, error=loader.lost[ref])
