"""The fit of a learning curve: how the error falls with the number of training images, and what more would bring.

The law is error = a · n^−b + c with a, c ≥ 0 (Hestness et al. 2017, arXiv:1712.00409). Its uncertainty comes from the
held-out images, which are resampled, and from the draws of the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import Band, ClassGain, CurvePoint, Estimate, PowerLaw
from imgclf.evaluation.intervals import wilson_interval

EXPONENTS = np.linspace(0.05, 1.5, 59)
BOOTSTRAP_SAMPLES = 2000
BAND_POINTS = 33
MIN_SIZES = PARAMETERS = 3  # a law has three, so it can be fitted to three sizes or more
PERCENTILES = (2.5, 97.5)

Wrong = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HalvedClass:
    """A class, and the mistakes after training without half and three quarters of its `images`.

    `half` and `quarter` are (draws, held-out images), None with too few images; `own` marks its held-out images.
    """

    name: str
    images: int
    own: NDArray[np.bool_]
    half: Wrong | None = None
    quarter: Wrong | None = None


@dataclass(frozen=True)
class FittedLaw:
    """A law, and the laws of bootstrap samples: rows (scale, exponent, floor) in `samples`, and the weights of the
    held-out images in each (`weights`). `misfit` is the p-value of the χ² test."""

    law: PowerLaw
    samples: Numbers = field(repr=False)
    weights: Numbers = field(repr=False)
    misfit: float

    def errors(self, images: float) -> Numbers:
        """The error with this number of training images, for each of the samples."""
        scale, exponent, floor = self.samples.T
        return np.asarray(scale * images**-exponent + floor)

    def at(self, images: float) -> Estimate:
        """The accuracy with this number of training images."""
        return estimate(1 - self.law.error(images), 1 - self.errors(images))

    def gain(self, images: float) -> Estimate:
        """The gain in accuracy with twice as many training images."""
        value = self.law.error(images) - self.law.error(2 * images)
        return estimate(value, self.errors(images) - self.errors(2 * images))

    def band(self, first: float, last: float) -> Band:
        """The law between two numbers of images."""
        places = np.geomspace(first, last, BAND_POINTS)
        accuracy, low, high = zip(*(astuple(self.at(images)) for images in places), strict=True)
        return Band(tuple(places.tolist()), accuracy, low, high)


def estimate(value: float, samples: Numbers) -> Estimate:
    """A value with the interval of its samples."""
    low, high = np.percentile(samples, PERCENTILES)
    return Estimate(float(value), float(low), float(high))


def curve_point(fraction: float, images: int, wrong: Wrong) -> CurvePoint:
    """A point of the curve; `wrong` (draws, held-out images) marks the mistakes."""
    draws, n = wrong.shape
    accuracy = float(1 - wrong.mean())
    return CurvePoint(fraction, images, draws, accuracy, wilson_interval(round(accuracy * n), n))


def fit_law(images: Sequence[int], wrong: Sequence[Wrong]) -> FittedLaw:
    """Fit the law to the mean errors at some numbers of training images, the last of which are all.

    The points are weighted by their inverse variance: binomial for the held-out images, plus that of the draws. Two
    draws of a fraction f of all images share f of them, so their mean is no better than one draw of all.

    Args:
        images: The numbers of training images, rising.
        wrong: For each number, the mistakes, (draws, held-out images).
    """
    sizes, n = np.array(images, np.float64), wrong[0].shape[1]
    fractions = sizes / images[-1]
    spread = _spread(sizes, fractions, wrong)
    draws = np.array([len(rows) for rows in wrong])
    noise = spread / sizes * (fractions + (1 - fractions) / draws)
    means = np.stack([rows.mean(0) for rows in wrong])
    errors = means.mean(1)
    smoothed = (errors * n + 1) / (n + 2)
    precision = 1 / (smoothed * (1 - smoothed) / n + noise)
    from scipy.stats import chi2

    rng = np.random.default_rng(0)
    weights = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAP_SAMPLES) / n
    others = np.clip(weights @ means.T + rng.normal(0, np.sqrt(noise), (BOOTSTRAP_SAMPLES, len(sizes))), 0, 1)
    best, *samples = _least_squares(sizes, np.vstack([errors, others]), precision)
    law, freedom = PowerLaw(*map(float, best)), len(sizes) - PARAMETERS
    distance = float(sum(precision * (errors - [law.error(size) for size in sizes]) ** 2))
    misfit = float(chi2.sf(distance, freedom)) if freedom > 0 else 1.0  # three points fit any law
    return FittedLaw(law, np.stack(samples), weights, misfit)


def class_gains(classes: Sequence[HalvedClass], whole: Wrong, weights: Numbers) -> tuple[ClassGain, ...]:
    """Predict the gain from twice as many images of each class.

    Recall rises from a quarter to half of a class's images, and less from half to all. The ratio of the two gains, over
    all classes, tells how much of the last doubling the next one brings.

    Args:
        classes: The classes.
        whole: The mistakes of training with all images, (1, held-out images).
        weights: Those of a `FittedLaw`.
    """
    last: dict[str, tuple[_Step, _Step]] = {}  # for all held-out images, and for those of the class
    before = []
    for each in classes:
        if each.half is not None and each.quarter is not None and each.own.any():
            everyone = _Step(each.half, whole, np.ones_like(each.own), weights)
            last[each.name] = everyone, _Step(each.half, whole, each.own, weights)
            before.append(_Step(each.quarter, each.half, each.own, weights))
    ratio = float(_ratio(sum(own.value for _, own in last.values()), sum(step.value for step in before)))
    ratios = _ratio(sum(own.samples for _, own in last.values()), sum(step.samples for step in before))
    gains = []
    for each in classes:
        recall = float(1 - whole[:, each.own].mean()) if each.own.any() else None
        found = [estimate(step.value * ratio, step.noisy * ratios) for step in last.get(each.name, ())]
        accuracy_gain, recall_gain = found or (None, None)
        gains.append(ClassGain(each.name, each.images, recall, accuracy_gain, recall_gain))
    return tuple(gains)


def _ratio(last: Numbers | float, before: Numbers | float) -> Numbers:
    """How much of a doubling the next one brings, 0…1; all of it if nothing else is known."""
    sums, divisors = np.asarray(last, np.float64), np.asarray(before, np.float64)
    return np.clip(np.divide(sums, divisors, out=np.ones_like(sums), where=divisors > 0), 0, 1)


class _Step:
    """The gain from more training images: the share of the held-out images of a mask that becomes correct.

    `value` is measured, `samples` are bootstrap samples, and `noisy` has the noise of the draws added.
    """

    def __init__(self, fewer: Wrong, more: Wrong, of: NDArray[np.bool_], weights: Numbers) -> None:
        won = (fewer.mean(0) - more.mean(0))[of]
        shares = weights[:, of]
        counts = shares.sum(1)
        self.value = float(won.mean())
        self.samples = np.divide(shares @ won, counts, out=np.full(len(counts), self.value), where=counts > 0)
        draws = len(fewer)
        between = fewer[:, of].mean(1).var(ddof=1) * (1 + 1 / draws) if draws > 1 else 0.0
        self.noisy = self.samples + np.random.default_rng(draws).normal(0, np.sqrt(between), len(counts))


def _spread(sizes: Numbers, fractions: Numbers, wrong: Sequence[Wrong]) -> float:
    """The variance of the error between sets of training images, times their number; 0 without repeated draws.

    Draws of a fraction f of the same images show 1 − f of it."""
    found = [
        size * rows.mean(1).var(ddof=1) / (1 - fraction)
        for size, fraction, rows in zip(sizes, fractions, wrong, strict=True)
        if len(rows) > 1 and fraction < 1
    ]
    return float(np.mean(found)) if found else 0.0


def _least_squares(sizes: Numbers, errors: Numbers, precision: Numbers) -> Numbers:
    """The laws (rows: scale, exponent, floor) nearest to each row of errors (rows, sizes).

    For each exponent of a grid the other two are a linear problem; if one of them would be negative, it is 0.
    """
    unit = sizes[-1]
    powers = (sizes / unit) ** -EXPONENTS[:, None]  # (exponents, sizes)
    total = precision.sum()
    mean_power = powers @ precision / total
    mean_error = errors @ precision / total
    centered = powers - mean_power[:, None]
    slope = np.maximum((errors * precision) @ centered.T / (centered**2 @ precision), 0)
    floor = mean_error[:, None] - slope * mean_power
    through_zero = (errors * precision) @ powers.T / (powers**2 @ precision)
    slope, floor = np.where(floor < 0, through_zero, slope), np.maximum(floor, 0)
    residual = errors[:, None, :] - slope[..., None] * powers - floor[..., None]
    best = (residual**2 @ precision).argmin(1)
    rows = np.arange(len(errors))
    scale = slope[rows, best] * unit ** EXPONENTS[best]
    return np.column_stack([scale, EXPONENTS[best], floor[rows, best]])
