"""Thresholds for a model's confidence: how many predictions are kept, and how many of these are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.evaluation.intervals import wilson_intervals

TARGET_ERROR_RATES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
MAX_THRESHOLDS = 3


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


def risk_coverage(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Coverage and errors at each confidence that occurs, from the highest.

    Args:
        confidence: The confidence of each prediction (n,), 0…1.
        right: Whether each is correct, bool (n,).

    Returns:
        How many predictions have at least this confidence, how many of these are wrong, and the confidence; (m,) each.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], np.cumsum(~right[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(np.diff(sure) != 0, True))
    return (ends + 1).astype(np.int64), wrong[ends], sure[ends]


def suggest_thresholds(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Threshold]:
    """The lowest thresholds above which at most a target share of the predictions is wrong.

    A target is left out unless the whole 95% interval of the share lies below it.

    Args:
        confidence: The confidence of each prediction (n,), 0…1; n at least 1.
        right: Whether each is correct, bool (n,).

    Returns:
        Up to three thresholds, for the largest target error rates below the error rate of all predictions.
    """
    counts, errors, confidences = risk_coverage(confidence, right)
    n, overall = int(counts[-1]), errors[-1] / counts[-1]
    _, highest = wilson_intervals(errors, counts)
    found = []
    for target in [t for t in TARGET_ERROR_RATES if t < overall][:MAX_THRESHOLDS]:
        reached = np.flatnonzero(highest <= target)
        if len(reached):
            last = reached[-1]
            found.append(Threshold(target, float(confidences[last]), int(counts[last]), int(errors[last]), n))
    return found
