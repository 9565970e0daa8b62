"""Whether a model's confidence can be trusted: how often sure answers are right, and what giving only these brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.evaluation.calibration import reliability_bins
from imgclf.evaluation.intervals import wilson_interval, wilson_intervals
from imgclf.evaluation.predictions import Predictions

TARGETS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
SHOWN = 3


@dataclass(frozen=True)
class Bin:
    """The `n` answers with a confidence above `low`, up to `high`: their mean confidence, and how many are right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Threshold:
    """Answering only from a `confidence` on: `answered` of `n` images, `errors` of them wrong; chosen so that at most
    the share `target` is."""

    target: float
    confidence: float
    answered: int
    errors: int
    n: int

    @property
    def coverage(self) -> float:
        """The share of the images that are answered."""
        return self.answered / self.n

    @property
    def risk(self) -> float:
        """The share of the answers that are wrong."""
        return self.errors / self.answered


def filled_bins(answers: Predictions) -> list[Bin]:
    """The bins of equal width that hold any answers, from the least sure on."""
    bins = reliability_bins(answers.probabilities, answers.targets)
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
    """For each confidence that occurs, from the highest: how many images have at least that, how many of these answers
    are wrong, and the confidence itself."""
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], np.cumsum(~right[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(np.diff(sure) != 0, True))
    return (ends + 1).astype(np.int64), wrong[ends], sure[ends]


def suggest_thresholds(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], targets: Sequence[float] = TARGETS
) -> list[Threshold]:
    """The lowest thresholds with which at most a share of the answers is wrong: each of the next three targets below
    the share without one. A target is left out where the answers don't tell: the 95 % interval must lie below it."""
    answered, errors, sure = risk_coverage(confidence, right)
    n, overall = int(answered[-1]), errors[-1] / answered[-1]
    _, highest = wilson_intervals(errors, answered)
    found = []
    for target in sorted((t for t in targets if t < overall), reverse=True)[:SHOWN]:
        kept = np.flatnonzero(highest <= target)
        if len(kept):
            last = kept[-1]
            found.append(Threshold(target, float(sure[last]), int(answered[last]), int(errors[last]), n))
    return found
