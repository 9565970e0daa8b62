"""How sure a model may be of its answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imgclf.core.results import Calibration, CalibrationErrors
from imgclf.evaluation.metrics import softmax

COOLEST, HOTTEST = 0.1, 10.0
LOWEST, HIGHEST = -math.log(HOTTEST), -math.log(COOLEST)
MIN_CALIBRATION_IMAGES = 20  # images for a temperature
BINS = 15
STARTS, ROUNDS, CLOSE = 13, 50, 1e-9


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature, 0.1 to 10, that gives `logits` (n, k) divided by it the lowest cross-entropy with the true class
    indices `targets` (n,): temperature scaling (Guo et al. 2017, arXiv:1706.04599).

    A prior that weighs as much as one image, normal around 1 in the logarithm, keeps it from the limits where the
    images are few and every answer is right. The logits must be finite and n at least 1.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    scores = scores - scores.max(axis=1, keepdims=True)
    own = scores[np.arange(len(truth)), truth]
    # In the logarithm of the inverse temperature the loss is nearly a parabola around a minimum; there may be two.
    places = np.linspace(LOWEST, HIGHEST, STARTS).tolist()
    tried = [math.inf, *(_objective(place, scores, own)[0] for place in places), math.inf]
    lows = [place for i, place in enumerate(places) if tried[i] >= tried[i + 1] <= tried[i + 2]]
    return math.exp(-min(_descend(place, scores, own) for place in lows)[1])


def _descend(place: float, scores: NDArray[np.float64], own: NDArray[np.float64]) -> tuple[float, float]:
    """The lowest loss near a place, and where: Newton's method, with half a step where a whole one leads uphill."""
    value, step = _objective(place, scores, own)
    for _ in range(ROUNDS):
        moved = min(max(place + step, LOWEST), HIGHEST)
        if abs(moved - place) < CLOSE:
            break
        there, onwards = _objective(moved, scores, own)
        if there <= value:
            place, value, step = moved, there, onwards
        else:
            step /= 2
    return value, place


def _objective(place: float, scores: NDArray[np.float64], own: NDArray[np.float64]) -> tuple[float, float]:
    """The loss with its prior, and Newton's step, at most 1 long."""
    n, scale = len(own), math.exp(place)
    likely = np.exp(scale * scores)
    total = likely.sum(axis=1, keepdims=True)
    value = float((np.log(total[:, 0]) - scale * own).mean()) + place**2 / (2 * n)
    likely /= total
    mean = (likely * scores).sum(axis=1)
    spread = (likely * scores**2).sum(axis=1) - mean**2
    slope = scale * float((mean - own).mean()) + place / n
    step = -slope / (scale**2 * float(spread.mean()) + 1 / n)
    return value, min(max(step, -1.0), 1.0)


@dataclass(frozen=True, eq=False)
class Bins:
    """Answers by how sure they are, in bins of equal width: for each bin the mean confidence and the accuracy, NaN
    where it is empty, and how many answers it holds."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability_bins(probabilities: ArrayLike, targets: ArrayLike, bins: int = BINS) -> Bins:
    """The points of a reliability diagram, from probabilities (n, k) and the true class indices (n,).

    A confidence on the edge of two bins is in the lower one, as in Guo et al. 2017.
    """
    likely = np.asarray(probabilities, dtype=np.float64)
    confidence, right = likely.max(axis=1), likely.argmax(axis=1) == np.asarray(targets)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, values, bins) for values in (confidence, right.astype(np.float64)))
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
    return Bins(means[0], means[1], count)


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, bins: int = BINS) -> float:
    """How far confidence and accuracy are apart on the average, 0…1, in 15 bins of equal width (Guo et al. 2017)."""
    found = reliability_bins(probabilities, targets, bins)
    filled = found.count > 0
    gaps = np.abs(found.confidence - found.accuracy)[filled]
    return float((gaps * found.count[filled]).sum() / found.count.sum())


def negative_log_likelihood(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """The mean of -ln p of the true class, in nats: the cross-entropy; what is below 1e-300 counts as that."""
    likely, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    own = likely[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(own, 1e-300)).mean()) + 0.0


def brier_score(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """The mean squared distance, 0…2, between the probabilities and what is true (Brier 1950, over all classes)."""
    likely, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    own = likely[np.arange(len(truth)), truth]
    return float(((likely**2).sum(axis=1) - 2 * own + 1).mean())


def measure_sureness(probabilities: ArrayLike, targets: ArrayLike) -> CalibrationErrors:
    """All three figures of how honest probabilities are."""
    measures = (expected_calibration_error, negative_log_likelihood, brier_score)
    return CalibrationErrors(*(measure(probabilities, targets) for measure in measures))


def measure_calibration(logits: ArrayLike, targets: ArrayLike, temperature: float) -> Calibration:
    """How honest the probabilities of these images are as the network gives them, and at a temperature."""
    scores = np.asarray(logits, dtype=np.float64)
    before = measure_sureness(softmax(scores), targets)
    after = before if temperature == 1 else measure_sureness(softmax(scores / temperature), targets)
    return Calibration(temperature, len(scores), before, after)


def choose_temperature(logits: ArrayLike, targets: ArrayLike) -> tuple[float, str]:
    """The temperature for a model file and, where it stays 1, the reason: of too few images it would be a guess."""
    n = len(np.asarray(targets))
    if n < MIN_CALIBRATION_IMAGES:
        return 1.0, f"needs {MIN_CALIBRATION_IMAGES} validation images, has {n}"
    return fit_temperature(logits, targets), ""
