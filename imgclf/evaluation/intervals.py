"""How far the figures of an evaluation can be trusted: 95 % intervals, from the answers alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imgclf.evaluation.metrics import TOP5_ABOVE, mean_f1, mean_recall, rank_of_truth, softmax
from imgclf.results import Intervals

LEVEL = 0.95
Z = 1.959963984540054  # of the normal distribution, for that level
DRAWS = (200, 1_000)  # fewest and most
WORK = 20_000_000  # drawn images and classes in all, above which there are fewer draws
AT_ONCE = 2_000_000
SEED = 0

Floats = NDArray[np.float64]


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share `hits` / `n`: Wilson 1927, sound for few images and near 0 and 1."""
    share = hits / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == n else min(1.0, centre + half))


def evaluation_intervals(logits: ArrayLike, targets: ArrayLike, temperature: float = 1.0) -> Intervals:
    """The 95 % intervals of accuracy and top-5 (Wilson) and of balanced accuracy, macro-F1 and loss (percentiles of a
    seeded bootstrap over the images).

    Where every answer is right the bootstrap has nothing to vary: balanced accuracy and macro-F1 get the interval of
    accuracy. Takes `logits` (n, k) and the true class indices `targets` (n,), n at least 1.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    n, k = scores.shape
    called = scores.argmax(axis=1)
    right = int((called == truth).sum())
    likely = softmax(scores / temperature)[np.arange(n), truth]
    losses = -np.log(np.maximum(likely, 1e-300))
    accuracy = wilson_interval(right, n)
    drawn = _bootstrap(truth, called, losses, k)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    balanced, f1, loss = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    if right == n:
        balanced = f1 = accuracy
    top5 = wilson_interval(int((rank_of_truth(scores, truth) < 5).sum()), n) if k > TOP5_ABOVE else None
    return Intervals(accuracy, balanced, f1, loss, top5)


def _bootstrap(truth: NDArray[np.int64], called: NDArray[np.int64], losses: Floats, k: int) -> Floats:
    """Balanced accuracy, macro-F1 and loss of images drawn with replacement, (3, draws)."""
    n = len(truth)
    random = np.random.default_rng(SEED)
    left = min(max(WORK // (n + k), DRAWS[0]), DRAWS[1])
    parts = []
    while left:
        draws = min(left, max(1, AT_ONCE // (n + k)))
        index = random.integers(0, n, (draws, n))
        place = k * np.arange(draws)[:, None]
        of_class, as_class = truth[index] + place, called[index] + place
        counts = [
            np.bincount(cells, minlength=draws * k).reshape(draws, k)
            for cells in (of_class[of_class == as_class], of_class.ravel(), as_class.ravel())
        ]
        parts.append(np.stack([mean_recall(*counts[:2]), mean_f1(*counts), losses[index].mean(axis=1)]))
        left -= draws
    return np.concatenate(parts, axis=1)
