"""The learning curve: how the error falls with the number of training images, and what more of them would bring.

The law is error = a · n^−b + c with a, c ≥ 0 (Hestness et al. 2017, arXiv:1712.00409). Its uncertainty comes from the
held-out images, which are resampled, and from the choice of the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import Band, ClassGain, CurvePoint, Estimate, PowerLaw
from imgclf.evaluation.intervals import wilson_interval

EXPONENTS = np.linspace(0.05, 1.5, 59)
SAMPLES = 2000  # of the bootstrap
SMOOTHNESS = 33  # places at which the law is drawn
PARAMETERS = FEWEST = 3  # of a law, and so the fewest sizes that it can be fitted to
CONFIDENCE = 95

Wrong = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HalvedClass:
    """A class and what was called something else, (draws, held-out images), after training with half and with a quarter
    of its `images`, None where these are too few; `own` says which of the held-out images are of it."""

    name: str
    images: int
    own: NDArray[np.bool_]
    half: Wrong | None = None
    quarter: Wrong | None = None


@dataclass(frozen=True)
class FittedLaw:
    """A law, and what other held-out and training images might have made of it: one row (scale, exponent, floor) of
    `samples` for each, with the held-out images that it counts (`weights`, one row each)."""

    law: PowerLaw
    samples: Numbers = field(repr=False)
    weights: Numbers = field(repr=False)
    misfit: float

    def errors(self, images: float) -> Numbers:
        """The error after so many training images by each of the samples."""
        scale, exponent, floor = self.samples.T
        return np.asarray(scale * images**-exponent + floor)

    def at(self, images: float) -> Estimate:
        """The accuracy after so many training images."""
        return estimate(1 - self.law.error(images), 1 - self.errors(images))

    def gain(self, images: float) -> Estimate:
        """How much more accuracy twice as many training images would bring."""
        value = self.law.error(images) - self.law.error(2 * images)
        return estimate(value, self.errors(images) - self.errors(2 * images))

    def band(self, first: float, last: float) -> Band:
        """The law between two numbers of images."""
        places = np.geomspace(first, last, SMOOTHNESS)
        found = [self.at(images) for images in places]
        return Band(
            tuple(places.tolist()),
            tuple(place.value for place in found),
            tuple(place.low for place in found),
            tuple(place.high for place in found),
        )


def estimate(value: float, samples: Numbers) -> Estimate:
    """A figure with the interval that samples of it tell."""
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(samples, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high))


def curve_point(fraction: float, images: int, wrong: Wrong) -> CurvePoint:
    """A point of the curve; `wrong` (draws, held-out images) says which of them were called something else."""
    draws, n = wrong.shape
    accuracy = float(1 - wrong.mean())
    return CurvePoint(fraction, images, draws, accuracy, wilson_interval(round(accuracy * n), n))


def fit_law(images: Sequence[int], wrong: Sequence[Wrong], total: int | None = None, seed: int = 0) -> FittedLaw:
    """The law through the mean errors at some numbers of training images out of `total`.

    `wrong` holds for each number which of the held-out images were called something else, (draws, held-out images).
    Points are weighted by their variance: binomial for the held-out images, and that of the draws. Two draws of the
    fraction f of all images have f of them in common, so that their mean is no better than one of all images is.
    """
    sizes, n = np.array(images, np.float64), wrong[0].shape[1]
    fractions = sizes / (total or images[-1])
    spread = _spread(sizes, fractions, wrong)
    draws = np.array([len(rows) for rows in wrong])
    noise = spread / sizes * (fractions + (1 - fractions) / draws)
    means = np.stack([rows.mean(0) for rows in wrong])
    errors = means.mean(1)
    smoothed = (errors * n + 1) / (n + 2)
    precision = 1 / (smoothed * (1 - smoothed) / n + noise)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), SAMPLES) / n
    others = np.clip(weights @ means.T + rng.normal(0, np.sqrt(noise), (SAMPLES, len(sizes))), 0, 1)
    best, *samples = _least_squares(sizes, np.vstack([errors, others]), precision)
    law = PowerLaw(*map(float, best))
    distance = float(sum(precision * (errors - [law.error(size) for size in sizes]) ** 2))
    return FittedLaw(law, np.stack(samples), weights, _misfit(distance, len(sizes) - PARAMETERS))


def class_gains(classes: Sequence[HalvedClass], whole: Wrong, weights: Numbers) -> tuple[ClassGain, ...]:
    """What twice as many images of each class would bring; `whole` (1, held-out images) is what all get wrong.

    From a quarter to half of a class's images its recall rises, and less from half to all of them. By the ratio of the
    two, over all classes, the next doubling brings less than the last one. `weights` are those of a `FittedLaw`.
    """
    halved = [each for each in classes if each.half is not None and each.own.any()]
    last = {each.name: _Step(each.half, whole, each.own, weights) for each in halved if each.half is not None}
    before = [_Step(each.quarter, each.half, each.own, weights) for each in halved if each.quarter is not None]
    ratio = _ratio(sum(step.value for step in last.values()), sum(step.value for step in before))
    ratios = _ratio(sum(step.samples for step in last.values()), sum(step.samples for step in before))
    gains = []
    for each in classes:
        recall = float(1 - whole[:, each.own].mean()) if each.own.any() else None
        gain = ClassGain(each.name, each.images, recall, None, None)
        if each.name in last and each.half is not None:
            own, everyone = last[each.name], _Step(each.half, whole, np.ones_like(each.own), weights)
            gain = replace(
                gain,
                accuracy_gain=estimate(everyone.value * float(ratio), everyone.noisy * ratios),
                recall_gain=estimate(own.value * float(ratio), own.noisy * ratios),
            )
        gains.append(gain)
    return tuple(gains)


def _ratio(last: Numbers | float, before: Numbers | float) -> Numbers:
    """How much of a doubling the next one brings, 0…1; all of it where nothing else is known."""
    sums, divisors = np.asarray(last, np.float64), np.asarray(before, np.float64)
    return np.clip(np.divide(sums, divisors, out=np.ones_like(sums), where=divisors > 0), 0, 1)


class _Step:
    """What more images bring to the held-out ones of a mask: the share that is right then and was wrong before.

    `value` is measured, `samples` are what other held-out images would say, `noisy` what other draws might say as well.
    """

    def __init__(self, fewer: Wrong, more: Wrong | None, of: NDArray[np.bool_], weights: Numbers) -> None:
        assert more is not None
        won = (fewer.mean(0) - more.mean(0))[of]
        shares = weights[:, of]
        counts = shares.sum(1)
        self.value = float(won.mean())
        self.samples = np.divide(shares @ won, counts, out=np.full(len(counts), self.value), where=counts > 0)
        draws = len(fewer)
        between = fewer[:, of].mean(1).var(ddof=1) * (1 + 1 / draws) if draws > 1 else 0.0
        self.noisy = self.samples + np.random.default_rng(draws).normal(0, np.sqrt(between), len(counts))


def _misfit(distance: float, freedom: int) -> float:
    """How often chance makes the squared distance, in standard deviations, at least as large; 1 where any law fits."""
    from scipy.stats import chi2

    return float(chi2.sf(distance, freedom)) if freedom > 0 else 1.0


def _spread(sizes: Numbers, fractions: Numbers, wrong: Sequence[Wrong]) -> float:
    """The variance of the error from one set of training images to another, times their number; 0 where no fraction was
    drawn more than once. Among draws of a fraction f of the same images 1 − f of it is seen."""
    found = [
        size * rows.mean(1).var(ddof=1) / (1 - fraction)
        for size, fraction, rows in zip(sizes, fractions, wrong, strict=True)
        if len(rows) > 1 and fraction < 1
    ]
    return float(np.mean(found)) if found else 0.0


def _least_squares(sizes: Numbers, errors: Numbers, precision: Numbers) -> Numbers:
    """The laws (rows: scale, exponent, floor) nearest to each row of errors (rows, sizes).

    For each exponent of a grid the other two are a linear problem; where one of them would be negative it is 0.
    """
    unit = sizes[-1]
    powers = (sizes / unit) ** -EXPONENTS[:, None]  # (exponents, sizes)
    total = precision.sum()
    mean_power = powers @ precision / total
    mean_error = errors @ precision / total
    centerd = powers - mean_power[:, None]
    slope = (errors * precision) @ centerd.T / (centerd**2 @ precision)
    slope = np.maximum(slope, 0)
    floor = mean_error[:, None] - slope * mean_power
    through_zero = (errors * precision) @ powers.T / (powers**2 @ precision)
    slope, floor = np.where(floor < 0, through_zero, slope), np.maximum(floor, 0)
    residual = errors[:, None, :] - slope[..., None] * powers - floor[..., None]
    best = (residual**2 @ precision).argmin(1)
    rows = np.arange(len(errors))
    scale = slope[rows, best] * unit ** EXPONENTS[best]
    return np.column_stack([scale, EXPONENTS[best], floor[rows, best]])
