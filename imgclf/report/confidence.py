"""Whether a model's confidence can be trusted, and thresholds for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.evaluation.calibration import reliability_bins
from imgclf.evaluation.intervals import wilson_interval, wilson_intervals
from imgclf.evaluation.predictions import Predictions

TARGET_ERROR_RATES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
MAX_THRESHOLDS = 3


@dataclass(frozen=True)
class Bin:
    """The `n` predictions with a confidence above `low`, up to `high`: their mean confidence and their accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Threshold:
    """Keeping only predictions with at least this `confidence`: `kept` of `n` images, `errors` of them wrong, at most
    the share `target`."""

    target: float
    confidence: float
    kept: int
    errors: int
    n: int

    @property
    def coverage(self) -> float:
        """The share of the images that are kept."""
        return self.kept / self.n

    @property
    def risk(self) -> float:
        """The share of these that are wrong."""
        return self.errors / self.kept


def filled_bins(predictions: Predictions) -> list[Bin]:
    """The bins of equal width that hold any predictions, from the least confident on."""
    bins = reliability_bins(predictions.probabilities, predictions.targets)
    width = 1 / len(bins.count)
    found = []
    for index in np.flatnonzero(bins.count).tolist():
        n, accuracy = int(bins.count[index]), float(bins.accuracy[index])
        interval = wilson_interval(round(accuracy * n), n)
        confidence = float(bins.confidence[index])
        found.append(Bin(index * width, (index + 1) * width, n, confidence, accuracy, interval))
    return found


def risk_coverage(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """For each confidence that occurs, from the highest: how many predictions have at least that, how many of these are
    wrong, and the confidence itself."""
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], np.cumsum(~right[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(np.diff(sure) != 0, True))
    return (ends + 1).astype(np.int64), wrong[ends], sure[ends]


def suggest_thresholds(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], targets: Sequence[float] = TARGET_ERROR_RATES
) -> list[Threshold]:
    """The lowest thresholds above which at most a target share of the predictions is wrong.

    Three targets, the next below the share of all. The whole 95% interval must lie below a target, else it is left out.
    """
    counts, errors, confidences = risk_coverage(confidence, right)
    n, overall = int(counts[-1]), errors[-1] / counts[-1]
    _, highest = wilson_intervals(errors, counts)
    found = []
    for target in sorted((t for t in targets if t < overall), reverse=True)[:MAX_THRESHOLDS]:
        reached = np.flatnonzero(highest <= target)
        if len(reached):
            last = reached[-1]
            found.append(Threshold(target, float(confidences[last]), int(counts[last]), int(errors[last]), n))
    return found
