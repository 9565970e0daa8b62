"""Model and images in, probabilities out. Evaluation, prediction and each epoch's valid pass come through here.

All of it only reads: a model can predict in several threads at once, and while another prediction is half-way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
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
from imgclf.data.split import seen_positions
from imgclf.evaluation import openvino
from imgclf.evaluation.metrics import softmax
from imgclf.evaluation.ood import Rejector
from imgclf.evaluation.predictions import Predictions
from imgclf.evaluation.views import weighted_views
from imgclf.models.features import with_features
from imgclf.runtime import distributed
from imgclf.runtime.compute import autocast, enough_threads, in_evaluation, in_parts_that_fit, step_flops
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.transforms.preprocess import to_input

MAX_WAITING_BYTES = 2**26  # of logits that stay on the device
MIN_TUNED_IMAGES = 64  # fewer take less time than it takes to set threads for them

Progress = Callable[[int, int], None]


class PreviewPrediction(NamedTuple):
    """An image as the model sees it, uint8 (height, width, channels), with its class and the predicted one."""

    pixels: NDArray[np.uint8]
    label: str
    predicted: str


def infer(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    progress: Progress | None = None,
    precision: torch.dtype = torch.float32,
    backend: str = "torch",
    features: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """The logits of the loader's samples, without those that can't be read.

    Where the loader gives a process its share, every process gets the logits of all.

    Args:
        model: Maps images (n, channels, height, width) to logits (n, k).
        loader: The samples, in order.
        device: Where the model is.
        progress: Is told (images done, images in all).
        precision: The dtype of autocast.
        backend: `torch`, `openvino` or `auto`; see `predict`.
        features: Whether the features (n, d) follow behind the logits in each row.

    Returns:
        Logits (n, k), class indices (n,), and positions among the loader's samples (n,).

    Raises:
        ConfigError: Features are wanted, and the network has no known head.
        DataError: No image at all can be read.
        OutOfMemory: A single image does not fit.
    """
    rows: list[NDArray[np.float32]] = []
    waiting: list[torch.Tensor] = []  # on the device for a while: to fetch each batch would wait for it
    positions, done = [np.empty(0, np.int64)], 0
    for batch, logits in _forward(model, loader, device, precision, backend, features):
        waiting.append(logits)
        positions.append(batch.positions.numpy())
        done += len(logits)
        if progress is not None:
            progress(min(done * loader.shard[1], len(loader)), len(loader))
        if len(waiting) * logits.nbytes > MAX_WAITING_BYTES:
            rows.append(torch.cat(waiting).cpu().numpy())
            waiting = []
    if waiting:
        rows.append(torch.cat(waiting).cpu().numpy())
    places = np.concatenate(positions)
    if loader.shard[1] > 1:
        shares = distributed.gather((rows, places, dict(loader.unreadable)))
        rows, places = [row for share in shares for row in share[0]], np.concatenate([share[1] for share in shares])
        for share in shares:
            loader.unreadable.update(share[2])
    if not rows:
        raise DataError("none of the images can be read", [f"{ref}: {why}" for ref, why in loader.unreadable.items()])
    order = places.argsort()
    return np.concatenate(rows)[order], np.array(loader.targets)[places[order]], places[order]


def collect_predictions(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    precision: torch.dtype | str = torch.float32,
    temperature: float = 1.0,
    seen: frozenset[str] = frozenset(),
    backend: str = "auto",
) -> Predictions:
    """The predictions of a model for the labeled samples of a loader that can be read, in order.

    Args:
        model: Maps images (n, channels, height, width) to logits (n, k).
        loader: The samples and their classes.
        device: Where the model is; by default, where its parameters are.
        progress: Is told (images done, images in all).
        precision: `fp32`, `bf16`, `fp16`, or the dtype.
        temperature: Divides the logits, for the probabilities.
        seen: The contents of images that the model was trained or validated on, which are marked as such.
        backend: `torch`, `openvino` or `auto`; see `predict`.

    Raises:
        DataError: No image at all can be read.
        OutOfMemory: A single image does not fit.
    """
    device = device_of(model) if device is None else pick_device(device)
    logits, _, positions = infer(model, loader, device, progress, pick_precision(precision, device), backend)
    predictions = _predictions(loader, logits, positions, temperature)
    return replace(predictions, seen=seen_positions(predictions.refs, loader.source, seen))


def predictions_with_features(
    model: nn.Module,
    loader: Loader,
    progress: Progress | None = None,
    precision: torch.dtype = torch.float32,
    backend: str = "auto",
) -> tuple[Predictions, NDArray[np.float32]]:
    """The same in one pass with the features (n, d) of the samples: what the last layer gets.

    Args:
        model: Maps images (n, channels, height, width) to logits (n, k).
        loader: The samples and their classes.
        progress: Is told (images done, images in all).
        precision: The dtype of autocast.
        backend: `torch`, `openvino` or `auto`; see `predict`.

    Raises:
        ConfigError: The network has no known head.
    """
    rows, _, positions = infer(model, loader, device_of(model), progress, precision, backend, features=True)
    logits, features = np.split(rows, [len(loader.classes)], axis=1)
    return _predictions(loader, np.ascontiguousarray(logits), positions, 1.0), features


def _predictions(
    loader: Loader, logits: NDArray[np.float32], positions: NDArray[np.int64], temperature: float
) -> Predictions:
    samples = [loader.samples[position] for position in positions.tolist()]
    refs, contents = tuple(sample.ref for sample in samples), tuple(sample.sha256 for sample in samples)
    return Predictions(logits, np.array(loader.targets)[positions], refs, contents, loader.classes, temperature)


def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    precision: torch.dtype | str = torch.float32,
    backend: str = "auto",
) -> Evaluation:
    """The metrics of a model on the labeled samples of a loader.

    Args:
        model: Maps images (n, channels, height, width) to logits (n, k).
        loader: The samples and their classes.
        device: Where the model is; by default, where its parameters are.
        progress: Is told (images done, images in all).
        precision: `fp32`, `bf16`, `fp16`, or the dtype.
        backend: `torch`, `openvino` or `auto`; see `predict`.

    Raises:
        DataError: No image at all can be read.
        OutOfMemory: A single image does not fit.

    Example:
        >>> from imgclf import Classifier, Loader, evaluate, open_source
        >>> classifier, source = Classifier.load("runs/first"), open_source("digits")
        >>> loader = Loader(source, source.samples[:100], classifier.preprocess_, classes=classifier.classes_)
        >>> evaluate(classifier.model_, loader).n
        100
    """
    return collect_predictions(model, loader, device, progress, precision, backend=backend).evaluation


def predict(
    model: nn.Module,
    loader: Loader,
    *,
    top: int = 5,
    device: torch.device | str | None = None,
    precision: torch.dtype | str = torch.float32,
    temperature: float = 1.0,
    rejector: Rejector | None = None,
    backend: str = "auto",
) -> Iterator[Prediction]:
    """One `Prediction` for each sample of the loader, in order; one that cannot be read carries an error.

    In float32, the other images of its batch change no prediction.

    Args:
        model: Maps images (n, channels, height, width) to logits (n, k).
        loader: The samples and their classes.
        top: How many classes each prediction lists, the most probable first; 1 or more.
        device: Where the model is; by default, where its parameters are.
        precision: `fp32`, `bf16`, `fp16`, or the dtype.
        temperature: Divides the logits; above 0.
        rejector: Says how unlike the training images each image is, and whether it is accepted.
        backend: What computes the network. `auto` takes OpenVINO for a network of more than 5e8 operations an image, on
            a processor, where the extra `openvino` is installed; else `torch`. A network that OpenVINO can't compute is
            computed by torch, with a warning.

    Raises:
        ConfigError: There is a rejector, and the network has no known head; or the backend does not fit the device.
        MissingExtra: OpenVINO is asked for and not installed.
        OutOfMemory: A single image does not fit.

    Example:
        >>> from imgclf import Classifier, Loader, open_source, predict
        >>> classifier, source = Classifier.load("runs/first"), open_source("digits")
        >>> loader = Loader(source, source.samples[:100], classifier.preprocess_, classes=classifier.classes_)
        >>> next(predict(classifier.model_, loader)).path
        'digits/00000'
    """
    device = device_of(model) if device is None else pick_device(device)
    precision, top = pick_precision(precision, device), whole("top", top, 1)
    k, done = len(loader.classes), 0
    for batch, outputs in _forward(model, loader, device, precision, backend, features=rejector is not None):
        rows = outputs.cpu().numpy()
        probable = softmax(rows[:, :k].astype(np.float64) / temperature)
        scores = itertools.repeat(None) if rejector is None else rejector.ood.scores(rows[:, :k], rows[:, k:])
        for index, probabilities, score in zip(batch.positions.tolist(), probable.tolist(), scores, strict=False):
            yield from (_failed(loader, i) for i in range(done, index))
            prediction = _prediction(loader.samples[index].ref, loader.classes, probabilities, top)
            yield (prediction if rejector is None or score is None else rejector.judge(prediction, float(score)))
            done = index + 1
    yield from (_failed(loader, i) for i in range(done, len(loader)))


def preview_predictions(model: nn.Module, loader: Loader) -> list[PreviewPrediction]:
    """The images of a loader that can be read, with their classes and the predicted ones."""
    previews = []
    for batch, logits in _forward(model, loader, device_of(model), torch.float32):
        pixels, classes = batch.pixels.cpu().numpy(), loader.classes
        triples = zip(pixels, batch.targets.tolist(), logits.argmax(1).tolist(), strict=True)
        previews += [PreviewPrediction(image, classes[target], classes[found]) for image, target, found in triples]
    return previews


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device


def _forward(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: torch.dtype,
    backend: str = "torch",
    features: bool = False,
) -> Generator[tuple[Batch, torch.Tensor]]:
    """Batches with their outputs on the device, float32: logits (n, k), or logits and features (n, k + d).

    With torch, the parts in which a batch goes through the model stay as small as they had to be.
    """
    model, most, flops = in_evaluation(model), loader.batch_size, math.inf
    if network := openvino.network_for(model, loader.preprocess, device, precision, backend):
        columns = None if features else len(loader.classes)
        yield from ((batch, network(batch.pixels)[:, :columns]) for batch in loader.epoch() if len(batch.targets))
        return
    model = with_features(model) if features else model
    if device.type == "cpu" and len(loader) >= MIN_TUNED_IMAGES:
        example = torch.zeros(1, loader.preprocess.channels, *loader.preprocess.size)
        flops = step_flops(model, example, loader.batch_size)
    for batch in loader.epoch():
        if not len(batch.targets):
            continue
        n = len(batch.pixels)
        compute = partial(batch_outputs, model, batch.pixels, loader.preprocess, device, precision)
        with enough_threads(flops):
            outputs, size = in_parts_that_fit(compute, min(most, n), device)
        most = min(most, size) if size < n else most
        yield batch, outputs


def batch_outputs(
    model: nn.Module,
    pixels: torch.Tensor,
    preprocess: PreprocessConfig,
    device: torch.device,
    precision: torch.dtype,
    most: int,
) -> torch.Tensor:
    """What a model makes of pixels: the one place where it is called.

    Args:
        model: A network in evaluation mode.
        pixels: uint8 (n, height, width, channels).
        preprocess: How pixels become the network's input.
        device: Where the model is.
        precision: The dtype of autocast.
        most: So many images at a time.

    Returns:
        float32 (n, k): the logits; with `with_features`, (n, k + d): the features behind them.
    """
    with torch.inference_mode(), autocast(device, precision):
        outputs = []
        for part in torch.split(pixels, most):
            images = to_input(part, preprocess, device)
            mean = torch.zeros((), device=device)
            for weight, view in weighted_views(images, preprocess.tta):
                mean = mean + weight * model(view).float()
            outputs.append(mean)
        return torch.cat(outputs)


def _prediction(path: str, classes: tuple[str, ...], probabilities: list[float], top: int) -> Prediction:
    ranked = sorted(range(len(classes)), key=lambda i: -probabilities[i])
    best = tuple((classes[i], probabilities[i]) for i in ranked[:top])
    return Prediction(path, best[0][0], best[0][1], best, None, dict(zip(classes, probabilities, strict=True)))


def _failed(loader: Loader, index: int) -> Prediction:
    ref = loader.samples[index].ref
    return Prediction(ref, None, None, error=loader.unreadable[ref])
