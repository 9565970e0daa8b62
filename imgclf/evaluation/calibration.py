"""How sure a model may be of its answers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

COOLEST, HOTTEST = 0.1, 10.0
LOWEST, HIGHEST = -math.log(HOTTEST), -math.log(COOLEST)
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
