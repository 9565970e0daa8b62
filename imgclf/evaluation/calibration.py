"""Calibration: whether the confidence of a model is its accuracy, and the temperature that makes it so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imgclf.core.results import Calibration, CalibrationErrors
from imgclf.evaluation.metrics import softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
STARTS = 13  # temperatures, one of which is near the best
MIN_CALIBRATION_IMAGES = 20
BINS = 15


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature with the lowest cross-entropy: temperature scaling (Guo et al. 2017, arXiv:1706.04599).

    A prior that weighs as much as one image, normal around 1 in the logarithm, keeps it from the limits where there are
    few images and every prediction is correct.

    Args:
        logits: Finite, (n, k), n at least 1.
        targets: The true class indices (n,).

    Returns:
        0.1 to 10; the logits are to be divided by it.
    """
    from scipy.optimize import minimize_scalar

    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    scores = scores - scores.max(axis=1, keepdims=True)
    own = scores[np.arange(len(truth)), truth]

    def loss(place: float) -> float:
        """The loss with its prior at exp(-place); in this logarithm it is nearly a parabola."""
        scale = math.exp(place)
        return float((np.log(np.exp(scale * scores).sum(axis=1)) - scale * own).mean()) + place**2 / (2 * len(own))

    places = np.linspace(-math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE), STARTS)
    tried = [math.inf, *map(loss, places), math.inf]
    lows = [i for i in range(STARTS) if tried[i] >= tried[i + 1] <= tried[i + 2]]  # there may be two
    bounds = [(places[max(i - 1, 0)], places[min(i + 1, STARTS - 1)]) for i in lows]
    found = [minimize_scalar(loss, bounds=pair, method="bounded", options={"xatol": 1e-7}) for pair in bounds]
    ends = [(tried[i + 1], places[i]) for i in lows]  # a search within bounds never quite reaches them
    return math.exp(-min([(one.fun, one.x) for one in found] + ends)[1])


@dataclass(frozen=True, eq=False)
class Bins:
    """Predictions in bins of equal confidence width: mean confidence and accuracy (NaN where empty), and count."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability_bins(probabilities: ArrayLike, targets: ArrayLike, bins: int = BINS) -> Bins:
    """The points of a reliability diagram.

    A confidence on the edge of two bins is in the lower one, as in Guo et al. 2017.

    Args:
        probabilities: (n, k), each row summing to 1.
        targets: The true class indices (n,).
        bins: Their number, 1 or more.
    """
    likely = np.asarray(probabilities, dtype=np.float64)
    confidence, right = likely.max(axis=1), likely.argmax(axis=1) == np.asarray(targets)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, values, bins) for values in (confidence, right.astype(np.float64)))
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
    return Bins(means[0], means[1], count)


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, bins: int = BINS) -> float:
    """The average gap between confidence and accuracy, 0…1, in bins of equal width (Guo et al. 2017).

    Args:
        probabilities: (n, k), each row summing to 1.
        targets: The true class indices (n,).
        bins: Their number, 1 or more.
    """
    found = reliability_bins(probabilities, targets, bins)
    filled = found.count > 0
    gaps = np.abs(found.confidence - found.accuracy)[filled]
    return float((gaps * found.count[filled]).sum() / found.count.sum())


def negative_log_likelihood(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """The mean of -ln p of the true class, in nats: the cross-entropy. A p below 1e-300 counts as that."""
    likely, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    own = likely[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(own, 1e-300)).mean()) + 0.0


def brier_score(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """The mean squared distance, 0…2, between the probabilities and what is true (Brier 1950, over all classes)."""
    likely, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    own = likely[np.arange(len(truth)), truth]
    return float(((likely**2).sum(axis=1) - 2 * own + 1).mean())


def calibration_errors(probabilities: ArrayLike, targets: ArrayLike) -> CalibrationErrors:
    """All three, of probabilities (n, k) and true class indices (n,)."""
    measures = (expected_calibration_error, negative_log_likelihood, brier_score)
    return CalibrationErrors(*(measure(probabilities, targets) for measure in measures))


def measure_calibration(logits: ArrayLike, targets: ArrayLike, temperature: float) -> Calibration:
    """The calibration errors at temperature 1 and at another one.

    Args:
        logits: (n, k), not divided by a temperature.
        targets: The true class indices (n,).
        temperature: Divides the logits; above 0.
    """
    scores = np.asarray(logits, dtype=np.float64)
    before = calibration_errors(softmax(scores), targets)
    after = before if temperature == 1 else calibration_errors(softmax(scores / temperature), targets)
    return Calibration(temperature, len(scores), before, after)


def choose_temperature(logits: ArrayLike, targets: ArrayLike) -> tuple[float, str]:
    """The temperature for a model file and, where it stays 1, the reason: of too few images it would be a guess."""
    n = len(np.asarray(targets))
    if n < MIN_CALIBRATION_IMAGES:
        return 1.0, f"needs {MIN_CALIBRATION_IMAGES} validation images, has {n}"
    return fit_temperature(logits, targets), ""
