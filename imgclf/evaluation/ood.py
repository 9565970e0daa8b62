"""Out-of-distribution detection: a score for each image, and the threshold that rejects a chosen share of known ones.

The score is the distance of an image's features to the nearest ones of training images (Sun et al. 2022,
arXiv:2204.06507) and, where the energy of its logits speaks against it as well, that (Liu et al. 2020,
arXiv:2010.03759).
The threshold is a quantile on images that were not trained on (split conformal prediction: Vovk et al. 2005).
docs/probabilities.md has the measurements behind this choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.arguments import plain
from imgclf.core.errors import ConfigError
from imgclf.core.results import Prediction
from imgclf.runtime.random import unseeded_drawing

MAX_TRAIN_IMAGES = 2_000  # of training, whose features are kept
MAX_SCORES = 10_000  # of validation
DIRECTIONS = 64
MAX_BASIS_VALUES = 500_000  # of the basis, 2 MB
MIN_VALID_IMAGES = 20
NEIGHBORS = 5
OVERSAMPLED_DIRECTIONS, POWER_ITERATIONS = 16, 2  # of the randomized decomposition
MIN_LENGTH, MIN_SPREAD, UNUSED_SPREAD = 1e-12, 1e-5, 1e30
SEED = 0

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OodDetector:
    """Scores how unlike the training images an image is; all arrays are float32.

    Features are scaled to length 1; of them count the `basis` (d, q) of main directions around their `center` (d,), and
    the squared length of what lies outside of these. `points` (m, q) and `rest` (m,) are those of training images,
    `scale` (4,) the mean and the spread of the distance and of the energy on validation images, `valid` their scores in
    rising order.
    """

    center: Floats
    basis: Floats
    points: Floats
    rest: Floats
    scale: Floats
    valid: Floats

    def scores(self, logits: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float64]:
        """How unlike the training images each image is, (n,): around 0 for validation images, in units of their spread.

        Takes logits (n, k), not divided by a temperature, and features (n, d).
        """
        mean, spread, usual, width = self.scale.astype(np.float64).tolist()
        doubt = (_energy(logits) - usual) / width
        # Certainty excuses nothing: networks are sure of much that they have never seen.
        scores: NDArray[np.float64] = (self._distances(features) - mean) / spread + np.maximum(doubt, 0)
        return scores

    def threshold(self, share: float) -> float:
        """The score above which at most this share (0…1) of images of the kind of the validation images lies.

        Raises:
            ConfigError: The share is not between 0 and 1, or too small for the number of validation images.
        """
        n, share = len(self.valid), plain(share)
        if not isinstance(share, float) or not 0 < share < 1:
            raise ConfigError(f"reject is {share!r}; allowed: a share between 0 and 1, e.g. 0.05")
        rank = math.ceil((n + 1) * (1 - share) - 1e-9)
        if rank > n:
            raise ConfigError(
                f"reject {share:g} needs at least {math.ceil(1 / share) - 1:,} validation images (this model has "
                f"{n:,}); the smallest possible value is {math.ceil(1e4 / (n + 1)) / 1e4:g}"
            )
        return float(self.valid[rank - 1])

    def arrays(self) -> dict[str, Floats]:
        """The arrays by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @cached_property
    def _squares(self) -> NDArray[np.float64]:
        points = self.points.astype(np.float64)
        squares: NDArray[np.float64] = (points**2).sum(axis=1) + self.rest
        return squares

    def _distances(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The mean distance to the nearest points. What lies outside of the directions counts as if at right angles."""
        places, rest = _project(features, self.center, self.basis)
        own = (places**2).sum(axis=1) + rest
        squares = own[:, None] + self._squares - 2 * places @ self.points.T.astype(np.float64)
        nearest = np.partition(squares, min(NEIGHBORS, len(self.points)) - 1, axis=1)[:, :NEIGHBORS]
        distances: NDArray[np.float64] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
        return distances


@dataclass(frozen=True)
class Rejector:
    """A detector, and the share (0…1) of images of the known classes that it may reject."""

    ood: OodDetector
    share: float

    def __post_init__(self) -> None:
        _ = self.threshold  # refuses a share before any image is read

    @cached_property
    def threshold(self) -> float:
        """The largest score that is accepted; `ConfigError` for a share that can't be had."""
        return self.ood.threshold(self.share)

    def judge(self, prediction: Prediction, score: float) -> Prediction:
        """The prediction with its score, and whether it is accepted."""
        return replace(prediction, unknown_score=score, accepted=score <= self.threshold)


def fit_ood(train: NDArray[np.float32], logits: NDArray[np.float32], features: NDArray[np.float32]) -> OodDetector:
    """A detector from features of training images, and logits and features of images that were not trained on.

    Args:
        train: Features of training images (m, d).
        logits: Of validation images (n, k), n at least 20.
        features: Of the same validation images (n, d).

    Raises:
        ConfigError: There are too few validation images, or too many features to keep.
    """
    if len(features) < MIN_VALID_IMAGES:
        raise ConfigError(f"needs {MIN_VALID_IMAGES} validation images, has {len(features)}")
    if train.shape[1] > MAX_BASIS_VALUES:
        raise ConfigError(
            f"the network has {train.shape[1]:,} features; unknown-image detection takes up to {MAX_BASIS_VALUES:,}"
        )
    directions = min(DIRECTIONS, MAX_BASIS_VALUES // train.shape[1], *train.shape)
    center = _unit(train).mean(axis=0)
    basis = _main_directions(_unit(train) - center, directions)
    blank_scale, no_scores = np.array([0, 1, 0, 1]), np.zeros(1)
    parts = (center, basis, *_project(train, center, basis), blank_scale, no_scores)
    blank = OodDetector(*(part.astype(np.float32) for part in parts))
    distances, energies = blank._distances(features), _energy(logits)
    width = energies.std() if energies.std() > MIN_SPREAD else UNUSED_SPREAD  # the logits of an ensemble have no energy
    scale = np.array([distances.mean(), max(distances.std(), MIN_SPREAD), energies.mean(), width], np.float32)
    fitted = replace(blank, scale=scale)
    scores = np.sort(fitted.scores(logits, features))
    if len(scores) > MAX_SCORES:
        scores = scores[np.linspace(0, len(scores) - 1, MAX_SCORES).round().astype(np.int64)]
    return replace(fitted, valid=scores.astype(np.float32))


def choose_evenly(targets: NDArray[np.int64], most: int = MAX_TRAIN_IMAGES) -> NDArray[np.int64]:
    """The positions, rising, of up to `most` images: as many of each class as there are, or as of the others."""
    order = np.argsort(targets, kind="stable")
    random = np.random.default_rng(SEED)
    place = np.empty(len(targets), np.int64)  # of each image among those of its class, in a random order
    for one_class in np.split(order, np.cumsum(np.bincount(targets))[:-1]):
        place[one_class] = random.permutation(len(one_class))
    return np.sort(np.argsort(place, kind="stable")[:most])


def _energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Minus the logarithm of the sum of the exponentials: high where no class gets a high logit."""
    return -torch.from_numpy(logits).double().logsumexp(1).numpy()


def _unit(features: NDArray[np.float32]) -> NDArray[np.float64]:
    values = features.astype(np.float64)
    unit: NDArray[np.float64] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), MIN_LENGTH)
    return unit


def _project(
    features: NDArray[np.float32], center: NDArray[Any], basis: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features in the main directions, (n, q), and the squared length of what is left, (n,)."""
    around = _unit(features) - center
    places = around @ basis.astype(np.float64)
    return places, np.maximum((around**2).sum(axis=1) - (places**2).sum(axis=1), 0)


def _main_directions(points: NDArray[np.float64], q: int) -> NDArray[np.float64]:
    """An orthonormal basis (d, q) of the directions in which points (m, d) vary most, nearly."""
    wide = min(q + OVERSAMPLED_DIRECTIONS, *points.shape)
    with unseeded_drawing():
        return torch.svd_lowrank(torch.from_numpy(points), wide, POWER_ITERATIONS)[2][:, :q].numpy()
