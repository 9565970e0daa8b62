"""Which classes are taken for which: the order in which they stand, the pairs, and the images behind each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.evaluation.answers import Answers

Counts = NDArray[np.int64]
MOST_CLASSES = 60  # of a matrix that a person can still look at


@dataclass(frozen=True)
class Pair:
    """`count` images of class `true` were called `called`, of `support` images of that class; `back` the other way."""

    true: int
    called: int
    count: int
    support: int
    back: int


def confusion_counts(answers: Answers) -> Counts:
    """`counts[i, j]` images of class i were called j."""
    k = len(answers.classes)
    counts = np.zeros((k, k), dtype=np.int64)
    np.add.at(counts, (answers.targets, answers.predicted), 1)
    return counts


def most_confused_classes(counts: Counts, most: int = MOST_CLASSES) -> list[int]:
    """The indices, in rising order, of up to `most` classes: all of them, or those of the largest confusions."""
    k = len(counts)
    if k <= most:
        return list(range(k))
    wrong = _without_diagonal(counts)
    chosen: dict[int, None] = {}
    for cell in np.argsort(-wrong, axis=None, kind="stable"):
        i, j = divmod(int(cell), k)
        if not wrong[i, j] or len(chosen.keys() | {i, j}) > most:
            break
        chosen |= {i: None, j: None}
    filled = [*chosen, *(int(i) for i in np.argsort(-counts.sum(axis=1), kind="stable") if int(i) not in chosen)]
    return sorted(filled[:most])


def together(counts: Counts) -> list[int]:
    """An order of the classes in which those that are taken for each other are neighbours.

    Hierarchical clustering by the shares of confused images with the optimal order of its leaves (Bar-Joseph et al.
    2001). Classes without any confusion follow, as they were.
    """
    wrong = _without_diagonal(counts)
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


def confused_pairs(counts: Counts, most: int) -> list[Pair]:
    """The pairs of classes with the most confused images, the largest share first among equals."""
    wrong = _without_diagonal(counts)
    support = counts.sum(axis=1)
    shares = wrong / np.maximum(support[:, None], 1)
    rows, columns = np.nonzero(wrong)
    order = np.lexsort((-shares[rows, columns], -wrong[rows, columns]))[:most]
    return [
        Pair(int(i), int(j), int(wrong[i, j]), int(support[i]), int(wrong[j, i]))
        for i, j in zip(rows[order], columns[order], strict=True)
    ]


def surest(answers: Answers, *, right: bool, most: int | None = None) -> list[int]:
    """The positions of right or of wrong answers, the surest first."""
    chosen = np.flatnonzero((answers.predicted == answers.targets) == right)
    order = chosen[np.argsort(-answers.probabilities.max(axis=1)[chosen], kind="stable")]
    return [int(i) for i in order[:most]]


def by_cell(answers: Answers) -> dict[tuple[int, int], list[int]]:
    """The positions of the images behind each cell (true, called), the surest first."""
    cells: dict[tuple[int, int], list[int]] = {}
    places = list(zip(answers.targets.tolist(), answers.predicted.tolist(), strict=True))
    for i in np.argsort(-answers.probabilities.max(axis=1), kind="stable").tolist():
        cells.setdefault(places[i], []).append(i)
    return cells


def _without_diagonal(counts: Counts) -> Counts:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    return wrong
