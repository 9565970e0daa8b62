"""Which classes are taken for which: the order in which they stand, the pairs, and the images behind each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import Evaluation
from imgclf.evaluation.predictions import Predictions

MAX_CLASSES = 60  # of a matrix that a person can still look at


@dataclass(frozen=True)
class Pair:
    """`count` of the `support` images of class `true` were predicted as `predicted`; `back` the other way."""

    true: int
    predicted: int
    count: int
    support: int
    back: int


def most_confused_classes(result: Evaluation, most: int = MAX_CLASSES) -> list[int]:
    """The indices, in rising order, of up to `most` classes: all of them, or those of the largest confusions."""
    k = len(result.per_class)
    if k <= most:
        return list(range(k))
    chosen: dict[int, None] = {}
    for i, j, _ in sorted(_wrong(result), key=lambda cell: -cell[2]):
        if len(chosen.keys() | {i, j}) > most:
            break
        chosen |= {i: None, j: None}
    largest = sorted(range(k), key=lambda i: -result.per_class[i].support)
    return sorted([*chosen, *(i for i in largest if i not in chosen)][:most])


def together(counts: NDArray[np.int64]) -> list[int]:
    """An order of the classes in which those that are taken for each other are neighbors.

    Hierarchical clustering by the shares of confused images with the optimal order of its leaves (Bar-Joseph et al.
    2001). Classes without any confusion follow, as they were.
    """
    wrong = counts - np.diag(np.diag(counts))
    mixed = np.flatnonzero(wrong.sum(axis=0) + wrong.sum(axis=1))
    rest = [i for i in range(len(counts)) if i not in set(mixed.tolist())]
    if len(mixed) < 3:
        return [*mixed.tolist(), *rest]
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    shares = (wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(mixed, mixed)]
    closeness = shares + shares.T
    distance = 1 - closeness / closeness.max()
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    order = leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))
    if order[0] > order[-1]:  # either direction is as good: the one that begins like the classes
        order = order[::-1]
    return [*mixed[order].tolist(), *rest]


def confused_pairs(result: Evaluation, most: int) -> list[Pair]:
    """The pairs of classes with the most confused images, the largest share first among equals."""
    counts = {(i, j): count for i, j, count in _wrong(result)}
    pairs = [Pair(i, j, n, result.per_class[i].support, counts.get((j, i), 0)) for (i, j), n in counts.items()]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.count / pair.support))[:most]


def most_confident(predictions: Predictions, *, right: bool, most: int | None = None) -> list[int]:
    """The positions of correct or of wrong predictions, the most confident first.

    Args:
        predictions: All predictions.
        right: Whether to take the correct ones.
        most: At most this many; by default, all.
    """
    chosen = np.flatnonzero((predictions.predicted == predictions.targets) == right)
    order = chosen[np.argsort(-predictions.probabilities.max(axis=1)[chosen], kind="stable")]
    return [int(i) for i in order[:most]]


def by_cell(predictions: Predictions) -> dict[tuple[int, int], list[int]]:
    """The positions of the images behind each cell (true, predicted), the most confident first."""
    cells: dict[tuple[int, int], list[int]] = {}
    places = list(zip(predictions.targets.tolist(), predictions.predicted.tolist(), strict=True))
    for i in np.argsort(-predictions.probabilities.max(axis=1), kind="stable").tolist():
        cells.setdefault(places[i], []).append(i)
    return cells


def _wrong(result: Evaluation) -> list[tuple[int, int, int]]:
    """The cells of the confusion matrix beside its diagonal."""
    return [cell for cell in result.confusion if cell[0] != cell[1]]
