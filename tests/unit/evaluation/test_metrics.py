from __future__ import annotations

import json
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imgclf.core.errors import DataError, ImgclfError
from imgclf.evaluation.metrics import evaluate_logits, softmax


def names(k: int) -> list[str]:
    return [f"class {index}" for index in range(k)]


@st.composite
def batches(draw: st.DrawFn):
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 13))
    # few distinct values, so that ties are common
    logits = draw(hnp.arrays(np.float32, (n, k), elements=st.sampled_from([-50.0, -1.5, 0.0, 0.25, 1.0, 1e4])))
    targets = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    return logits, targets


def test_an_example_worked_by_hand():
    logits = np.log([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    result = evaluate_logits(logits, [0, 1, 1, 1], ["ant", "bee", "wasp"])

    assert result.n == 4
    assert result.loss == pytest.approx(-np.log([0.7, 0.25, 0.8, 0.2]).mean())
    assert result.accuracy == 0.5
    assert result.top5 is None
    assert result.confusion == ((0, 0, 1), (1, 0, 1), (1, 1, 1), (1, 2, 1))
    assert result.balanced_accuracy == pytest.approx((1 + 1 / 3) / 2)
    ant, bee, wasp = result.per_class
    assert (ant.name, ant.precision, ant.recall, ant.support) == ("ant", 0.5, 1.0, 1)
    assert (bee.precision, bee.recall, bee.support) == (1.0, pytest.approx(1 / 3), 3)
    assert (ant.f1, bee.f1) == (pytest.approx(2 / 3), pytest.approx(0.5))
    assert (wasp.precision, wasp.recall, wasp.f1, wasp.support, wasp.hits) == (None, None, None, 0, 0)
    assert result.macro_f1 == pytest.approx((2 / 3 + 0.5) / 2)


@given(batches())
def test_equals_scikit_learn(batch):
    from sklearn import metrics

    logits, targets = batch
    k = logits.shape[1]
    result = evaluate_logits(logits, targets, names(k))
    called, present = logits.argmax(axis=1), np.unique(targets)
    everything = metrics.precision_recall_fscore_support(targets, called, labels=range(k), zero_division=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about classes that were called and have no images
        balanced = metrics.balanced_accuracy_score(targets, called)
    assert result.accuracy == pytest.approx(metrics.accuracy_score(targets, called))
    assert result.balanced_accuracy == pytest.approx(balanced)
    assert result.macro_f1 == pytest.approx(
        metrics.f1_score(targets, called, labels=present, average="macro", zero_division=0)
    )
    ours = [(row.precision, row.recall, row.f1, row.support) for row in result.per_class if row.support]
    np.testing.assert_allclose(ours, np.transpose(everything)[present])
    matrix = result.confusion_matrix()
    assert [row.hits for row in result.per_class] == [matrix[i][i] for i in range(k)]
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(targets, called, labels=range(k)))


def test_what_an_evaluation_holds_and_writes_grows_with_the_classes_and_not_with_their_square():
    """After each epoch as well: the matrix of 4,000 classes has 16 million cells."""
    k = 4_000
    logits = np.zeros((50, k), np.float32)
    tracemalloc.start()
    result = evaluate_logits(logits, np.arange(50), names(k))
    written, most = json.dumps(result.to_dict()), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(written) < 150 * k
    assert most < 8 * logits.astype(np.float64).nbytes
    assert len(result.confusion) == 50


@given(batches())
def test_loss_and_top5_equal_torch(batch):
    import torch

    logits, targets = batch
    result = evaluate_logits(logits, targets, names(logits.shape[1]))
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits, dtype=torch.float64), torch.tensor(targets))
    assert result.loss == pytest.approx(loss.item(), rel=1e-12, abs=1e-12)
    if logits.shape[1] > 10:
        ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        assert result.top5 == pytest.approx((ranked == targets[:, None]).any(axis=1).mean())
        assert result.top5 >= result.accuracy
    else:
        assert result.top5 is None


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(batch, random):
    logits, targets = batch
    order = list(range(len(targets)))
    random.shuffle(order)
    one = evaluate_logits(logits, targets, names(logits.shape[1]))
    other = evaluate_logits(logits[order], targets[order], names(logits.shape[1]))
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert (other.accuracy, other.top5, other.per_class, other.confusion) == (
        one.accuracy,
        one.top5,
        one.per_class,
        one.confusion,
    )


def test_ties_go_to_the_first_class():
    result = evaluate_logits(np.zeros((12, 12)), range(12), names(12))
    assert result.accuracy == pytest.approx(1 / 12)
    assert result.top5 == pytest.approx(5 / 12)


def test_large_logits_do_not_overflow():
    result = evaluate_logits(np.array([[1e30, 0.0], [0.0, 800.0]], dtype=np.float32), [0, 0], names(2))
    assert result.loss == pytest.approx(400)
    perfect = evaluate_logits([[1e6, 0.0]], [0], names(2))
    assert str(perfect.loss) == "0.0"


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_softmax_is_a_distribution_that_keeps_the_order(logits):
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    for row, scores in zip(probabilities, logits, strict=True):
        assert (np.diff(row[np.argsort(scores, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_logits_are_an_error(broken):
    logits = np.array([[0.0, 1.0], [broken, 0.0]])
    with pytest.raises(ImgclfError, match="NaN or infinite"):
        evaluate_logits(logits, [0, 1], names(2))
    with pytest.raises(ImgclfError, match="NaN or infinite"):
        softmax(logits)


def test_no_images_are_an_error():
    with pytest.raises(DataError, match="no images"):
        evaluate_logits(np.zeros((0, 3)), np.zeros(0, dtype=int), names(3))
