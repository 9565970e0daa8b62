"""Model and images in, probabilities out. Evaluation, prediction and each epoch's valid pass come through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imgclf import distributed
from imgclf.compute import autocast, enough_threads, ran_out_of_memory, release_memory, step_flops
from imgclf.data.loader import Batch, Loader
from imgclf.errors import DataError, OutOfMemory
from imgclf.evaluation.answers import Answers
from imgclf.evaluation.metrics import softmax
from imgclf.fold import fold_batch_norms
from imgclf.results import Evaluation, Prediction
from imgclf.specs import Recipe
from imgclf.transforms.pixels import to_input

FEW = 64  # images for which to make a model faster costs more time than it saves

Progress = Callable[[int, int], None]


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
    return _infer(model, loader, device, progress, precision)[:2]


def _infer(
    model: nn.Module, loader: Loader, device: torch.device, progress: Progress | None, precision: torch.dtype
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """What `infer` gives, and the positions of the samples."""
    answers: list[torch.Tensor] = []  # they stay on the device until the last one: to fetch each would wait for it
    labels: list[torch.Tensor] = []
    positions, done = [], 0
    for batch, logits in _forward(model, loader, device, precision):
        answers.append(logits)
        labels.append(batch.targets)
        positions.append(batch.positions.numpy())
        done += len(logits)
        if progress is not None:
            progress(min(done * loader.shard[1], len(loader)), len(loader))
    rows = [torch.cat(answers).cpu().numpy()] if answers else []
    targets = [torch.cat(labels).cpu().numpy()] if labels else []
    if loader.shard[1] > 1:
        rows, targets, positions = _of_all(rows, targets, positions, loader.lost)
    if not rows:
        raise DataError("none of the images can be read", [f"{ref}: {why}" for ref, why in loader.lost.items()])
    return rows[0], targets[0], np.concatenate(positions)


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
    device: torch.device | None = None,
    progress: Progress | None = None,
    precision: torch.dtype = torch.float32,
) -> Answers:
    """What a model says of the labelled samples of a loader that can be read, in order. Raises what `infer` raises."""
    device = device or device_of(model)
    with quick(model, loader, device) as network:
        logits, targets, positions = _infer(network, loader, device, progress, precision)
    samples = [loader.samples[position] for position in positions.tolist()]
    refs, contents = tuple(sample.ref for sample in samples), tuple(sample.sha256 for sample in samples)
    return Answers(logits, targets, refs, contents, loader.classes)


def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device | None = None,
    progress: Progress | None = None,
    precision: torch.dtype = torch.float32,
) -> Evaluation:
    """How a model does on the samples of a loader. Raises what `infer` raises."""
    return answer(model, loader, device, progress, precision).evaluation


def predict(
    model: nn.Module,
    loader: Loader,
    *,
    top: int = 5,
    device: torch.device | None = None,
    precision: torch.dtype = torch.float32,
) -> Iterator[Prediction]:
    """One `Prediction` for each sample of the loader, in order; one that cannot be read carries an error.

    `top` is how many classes each prediction lists, the likeliest first. In float32 what stands beside an image in its
    batch changes no answer.
    """
    device, said = device or device_of(model), 0
    with quick(model, loader, device) as network:
        for batch, logits in _forward(network, loader, device, precision):
            for index, probabilities in zip(batch.positions.tolist(), softmax(logits.cpu().numpy()), strict=True):
                yield from (_failed(loader, i) for i in range(said, index))
                yield _prediction(loader.samples[index].ref, loader.classes, probabilities.tolist(), top)
                said = index + 1
    yield from (_failed(loader, i) for i in range(said, len(loader)))


def device_of(model: nn.Module) -> torch.device:
    """The device on which a model's parameters lie."""
    return next(model.parameters()).device


@contextmanager
def quick(model: nn.Module, loader: Loader, device: torch.device) -> Iterator[nn.Module]:
    """A model to use in the place of `model`, and as many threads as it needs: quicker where there are many images."""
    if len(loader) < FEW:
        yield model
        return
    recipe = loader.recipe
    example = torch.zeros(1, recipe.channels, *recipe.size, device=device)
    network = fold_batch_norms(model, example)
    with enough_threads(step_flops(network, example, loader.batch_size)):
        yield network


def _forward(
    model: nn.Module, loader: Loader, device: torch.device, precision: torch.dtype
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches with their logits, float32 (n, classes) on the device.

    The parts in which a batch goes through the model stay as small as they had to be.
    """
    was_training = model.training
    model.eval()
    most = loader.batch_size
    try:
        for batch in loader.epoch():
            if not len(batch.targets):
                continue
            while True:
                try:
                    logits = _logits(model, batch.pixels, loader.recipe, device, precision, most)
                    break
                except (RuntimeError, MemoryError) as error:
                    if not ran_out_of_memory(error):
                        raise
                    if most == 1:
                        raise OutOfMemory(f"{device} has too little memory for a single image") from error
                most = (min(most, len(batch.pixels)) + 1) // 2
                release_memory(device)
            yield batch, logits
    finally:
        model.train(was_training)


def _logits(
    model: nn.Module, pixels: torch.Tensor, recipe: Recipe, device: torch.device, precision: torch.dtype, most: int
) -> torch.Tensor:
    with torch.inference_mode(), autocast(device, precision):
        parts = []
        for part in torch.split(pixels, most):
            images = to_input(part, recipe, device)
            logits = model(images).float()
            if recipe.tta == "mirror":
                logits = (logits + model(images.flip(3)).float()) / 2
            parts.append(logits)
        return torch.cat(parts)


def _prediction(path: str, classes: tuple[str, ...], probabilities: list[float], top: int) -> Prediction:
    ranked = sorted(range(len(classes)), key=lambda i: -probabilities[i])
    best = tuple((classes[i], probabilities[i]) for i in ranked[: max(1, top)])
    return Prediction(path, best[0][0], best[0][1], best[:top], None, dict(zip(classes, probabilities, strict=True)))


def _failed(loader: Loader, index: int) -> Prediction:
    ref = loader.samples[index].ref
    return Prediction(ref, None, None, error=loader.lost[ref])
