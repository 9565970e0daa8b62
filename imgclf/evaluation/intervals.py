"""95% confidence intervals of the metrics of an evaluation, from the predictions alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imgclf.core.results import Intervals
from imgclf.evaluation.metrics import TOP5_ABOVE, mean_f1, mean_recall, rank_of_truth, softmax

LEVEL = 0.95
Z = 1.959963984540054  # of the normal distribution, for that level
MIN_DRAWS, MAX_DRAWS = 200, 1_000
MAX_DRAWN = 20_000_000  # images and classes in all, above which there are fewer draws
MAX_DRAWN_AT_ONCE = 2_000_000
SEED = 0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share `hits` / `n`: Wilson 1927, sound for few images and near 0 and 1."""
    low, high = wilson_intervals(np.array(hits), np.array(n))
    return float(low), float(high)


def wilson_intervals(hits: Ints, n: Ints) -> tuple[Floats, Floats]:
    """The lower and the upper ends of many such intervals, from counts (…) and numbers (…) of images."""
    share = hits / n
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low: Floats = np.where(hits == 0, 0.0, np.maximum(center - half, 0.0))
    high: Floats = np.where(hits == n, 1.0, np.minimum(center + half, 1.0))
    return low, high


def evaluation_intervals(logits: ArrayLike, targets: ArrayLike, temperature: float = 1.0) -> Intervals:
    """The 95% intervals of the metrics of an evaluation.

    Of accuracy and top-5 they are Wilson's. Of balanced accuracy and macro-F1 they hold two: that of a seeded bootstrap
    over the images, which sees nothing vary in classes of a few images that are all correct, and that of a mean of
    Wilson intervals, a class each, which takes the classes for independent. For the loss see `loss_interval`.

    Args:
        logits: (n, k), n at least 1, not divided by the temperature.
        targets: The true class indices (n,).
        temperature: Divides the logits, for the loss.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    n, k = scores.shape
    predicted = scores.argmax(axis=1)
    hits, support, called = (np.bincount(x, minlength=k) for x in (truth[predicted == truth], truth, predicted))
    likely = softmax(scores / temperature)[np.arange(n), truth]
    drawn = np.quantile(_bootstrap(truth, predicted, k), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    there = support > 0
    # A class's F1 rises with the share of hits among the images that are of the class or were called so.
    recalls = wilson_intervals(hits[there], support[there])
    overlaps = wilson_intervals(hits[there], (support + called - hits)[there])
    balanced = _mean_interval(hits[there] / support[there], *recalls)
    f1 = _mean_interval((2 * hits / np.maximum(support + called, 1))[there], *(2 * x / (1 + x) for x in overlaps))
    top5 = wilson_interval(int((rank_of_truth(scores, truth) < 5).sum()), n) if k > TOP5_ABOVE else None
    return Intervals(
        accuracy=wilson_interval(int(hits.sum()), n),
        balanced_accuracy=_both(balanced, drawn[:, 0]),
        macro_f1=_both(f1, drawn[:, 1]),
        loss=loss_interval(-np.log(np.maximum(likely, 1e-300)), k),
        top5=top5,
    )


def loss_interval(losses: Floats, classes: int) -> tuple[float, float]:
    """The 95% interval of a mean loss, log-normal, from the losses (n,) of the images.

    The images that count most are rare, so that a few hundred may hold none of them. The upper end is therefore that of
    one image more, as wrong as the worst of all or as a guess among the `classes`.
    """
    mean, more = float(losses.mean()), np.append(losses, max(float(losses.max()), math.log(classes)))
    return (_log_normal_end(losses, -Z) if mean > 0 and len(losses) > 1 else 0.0), _log_normal_end(more, Z)


def _log_normal_end(values: Floats, z: float) -> float:
    """The mean of some values, `z` standard errors of its logarithm away."""
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean * math.exp(z * error / mean) if mean > 0 else 0.0


def _mean_interval(shares: Floats, low: Floats, high: Floats) -> tuple[float, float]:
    """The interval of the mean of independent shares from that of each: Zou and Donner 2008, Statistics in Medicine
    27:1693."""
    mean, k = float(shares.mean()), len(shares)
    below, above = math.sqrt(float(((shares - low) ** 2).sum())), math.sqrt(float(((high - shares) ** 2).sum()))
    return mean - below / k, mean + above / k


def _both(one: tuple[float, float], two: Floats) -> tuple[float, float]:
    """The smallest interval that holds two."""
    return min(one[0], float(two[0])), max(one[1], float(two[1]))


def _bootstrap(truth: Ints, called: Ints, k: int) -> Floats:
    """Balanced accuracy and macro-F1 of images drawn with replacement, (2, draws)."""
    n = len(truth)
    random = np.random.default_rng(SEED)
    left = min(max(MAX_DRAWN // (n + k), MIN_DRAWS), MAX_DRAWS)
    parts = []
    while left:
        draws = min(left, max(1, MAX_DRAWN_AT_ONCE // (n + k)))
        index = random.integers(0, n, (draws, n))
        place = k * np.arange(draws)[:, None]
        of_class, as_class = truth[index] + place, called[index] + place
        counts = [
            np.bincount(cells, minlength=draws * k).reshape(draws, k)
            for cells in (of_class[of_class == as_class], of_class.ravel(), as_class.ravel())
        ]
        parts.append(np.stack([mean_recall(*counts[:2]), mean_f1(*counts)]))
        left -= draws
    return np.concatenate(parts, axis=1)
