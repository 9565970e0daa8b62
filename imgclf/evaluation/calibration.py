"""How sure a model may be of its answers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

COOLEST, HOTTEST = 0.1, 10.0
ROUNDS, CLOSE = 50, 1e-9


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature, 0.1 to 10, that gives `logits` (n, k) divided by it the lowest cross-entropy with the true class
    indices `targets` (n,): temperature scaling (Guo et al. 2017, arXiv:1706.04599).

    A prior that weighs as much as one image, normal around 1 in the logarithm, keeps it from the limits where the
    images are few and every answer is right. The logits must be finite and n at least 1.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    scores = scores - scores.max(axis=1, keepdims=True)
    n, own = len(truth), scores[np.arange(len(truth)), truth]
    lowest, highest = -math.log(HOTTEST), -math.log(COOLEST)
    log_scale = 0.0  # of the inverse temperature, in which the loss is nearly a parabola: Newton's method
    for _ in range(ROUNDS):
        scale = math.exp(log_scale)
        likely = np.exp(scale * scores)
        likely /= likely.sum(axis=1, keepdims=True)
        mean = (likely * scores).sum(axis=1)
        spread = (likely * scores**2).sum(axis=1) - mean**2
        slope = scale * float((mean - own).mean()) + log_scale / n
        step = slope / (scale**2 * float(spread.mean()) + 1 / n)
        moved = min(max(log_scale - min(max(step, -1.0), 1.0), lowest), highest)
        if abs(moved - log_scale) < CLOSE:
            break
        log_scale = moved
    return math.exp(-log_scale)
