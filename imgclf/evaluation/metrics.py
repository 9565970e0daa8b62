"""How good are these logits? Loss, accuracy and the per-class figures, from arrays alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imgclf.core.errors import DataError, ImgclfError
from imgclf.core.results import ClassResult, Evaluation

TOP5_ABOVE = 10  # classes: among fewer, five guesses are no figure
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def softmax(logits: ArrayLike) -> Floats:
    """Probabilities (float64) over the last axis of `logits`; `ImgclfError` where a logit is NaN or infinite."""
    return np.exp(_log_softmax(logits))


def evaluate_logits(logits: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> Evaluation:
    """The metrics of logits.

    The predicted class has the largest logit, and is the first one where several are equal; equal logits rank by their
    index for top-5 as well. Balanced accuracy is the mean recall and macro-F1 the mean F1 over the classes that have
    images (scikit-learn's `balanced_accuracy_score`, and `f1_score` with these classes as labels). A precision with
    nothing to divide by is 0; a class without images was not tested, and has none of these metrics.

    Args:
        logits: (n, k), finite.
        targets: The true class indices (n,), 0 to k - 1.
        classes: The k names.

    Raises:
        DataError: There are no images.
        ImgclfError: A logit is NaN or infinite.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    if scores.size == 0:
        raise DataError("there are no images to evaluate; give at least one labeled image")
    log_probabilities = _log_softmax(scores)
    n, k = scores.shape
    predicted = scores.argmax(axis=1)
    cells, counts = np.unique(k * truth + predicted, return_counts=True)  # the matrix itself has k * k of them
    hits, support, called = (
        np.bincount(indices, minlength=k) for indices in (truth[truth == predicted], truth, predicted)
    )
    precision, recall = _ratio(hits, called), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + called)
    figures = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    rows = (row if row[-1] else (None, None, None, 0) for row in figures)
    return Evaluation(
        n=n,
        loss=float(0.0 - log_probabilities[np.arange(n), truth].mean()),
        accuracy=float(hits.sum() / n),
        top5=float((rank_of_truth(scores, truth) < 5).mean()) if k > TOP5_ABOVE else None,
        balanced_accuracy=float(mean_recall(hits, support)),
        macro_f1=float(mean_f1(hits, support, called)),
        per_class=tuple(ClassResult(name, *row) for name, row in zip(classes, rows, strict=True)),
        confusion=tuple(zip((cells // k).tolist(), (cells % k).tolist(), counts.tolist(), strict=True)),
    )


def _log_softmax(logits: ArrayLike) -> Floats:
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity raise an error below
        shifted = values - values.max(axis=-1, keepdims=True)
    if not np.isfinite(shifted).all():
        raise ImgclfError(
            "expected finite logits; some are NaN or infinite, so the model's weights or its input are broken: "
            "check the images with NaN or train again with a lower learning rate"
        )
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def mean_recall(hits: Ints, support: Ints) -> Floats:
    """The mean recall (…) over the classes that have images, from the numbers of correct and of all images of each
    class (…, classes)."""
    return _over_present(_ratio(hits, support), support)


def mean_f1(hits: Ints, support: Ints, called: Ints) -> Floats:
    """The mean F1 (…) over the classes that have images.

    Args:
        hits: How many images of each class (…, classes) are correct.
        support: How many there are.
        called: How many images were predicted as each class.
    """
    return _over_present(_ratio(2 * hits, support + called), support)


def _over_present(values: Floats, support: Ints) -> Floats:
    present = support > 0
    means: Floats = np.where(present, values, 0).sum(axis=-1) / present.sum(axis=-1)
    return means


def rank_of_truth(scores: Floats, truth: Ints) -> Ints:
    """How many classes come before the true one."""
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < truth[:, None]
    rank: Ints = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return rank


def _ratio(part: Ints, whole: Ints) -> Floats:
    """part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
