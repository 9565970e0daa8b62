"""The intervals of an evaluation's figures."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.evaluation.intervals import _bootstrap, evaluation_intervals, wilson_interval
from imgclf.evaluation.metrics import evaluate_logits


def logits_and_targets(seed, n, k, strength=2.0):
    random = np.random.default_rng(seed)
    targets = random.integers(0, k, n)
    return random.normal(size=(n, k)) + strength * np.eye(k)[targets], targets


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)],
)
def test_wilson_as_published(hits, n, low, high):
    """The first two and the third are the examples of Newcombe 1998, table I."""
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_holds_the_share(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored = wilson_interval(n - hits, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


@given(seed=st.integers(0, 100), n=st.integers(1, 60), k=st.integers(2, 12))
def test_every_interval_has_an_order_and_its_figure_in_reach(seed, n, k):
    logits, targets = logits_and_targets(seed, n, k)
    found = evaluation_intervals(logits, targets)
    result = evaluate_logits(logits, targets, [str(i) for i in range(k)])
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss", "top5"):
        ends = getattr(found, name)
        assert (ends is None) == (name == "top5" and k <= 10)
        assert ends is None or ends[0] <= getattr(result, name) <= ends[1]
    assert found == evaluation_intervals(logits, targets)


def test_draws_are_scored_as_scikit_learn_does():
    from sklearn.metrics import balanced_accuracy_score, f1_score

    logits, targets = logits_and_targets(0, 40, 4)
    called = logits.argmax(1)
    drawn = _bootstrap(targets, called, 4)
    index = np.random.default_rng(0).integers(0, 40, (1000, 40))
    for draw in (0, 1, 999):
        truth, said = targets[index[draw]], called[index[draw]]
        labels = np.unique(truth)
        assert drawn[0, draw] == pytest.approx(balanced_accuracy_score(truth, said))
        assert drawn[1, draw] == pytest.approx(f1_score(truth, said, average="macro", labels=labels))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "margins", "noise"),
    [
        ([33] * 3, (1.5, 1.5), 1.0),
        ([10] * 10, (8.0, 8.0), 2.0),  # 98 % right: the loss is that of a few images
        ([3] * 20, (4.0, 6.0), 1.6),
        ([200, 3, 3, 2, 4], (4.0, 5.0), 1.6),  # balanced accuracy is that of a few images
    ],
)
def test_they_hold_the_truth_nineteen_times_in_twenty(counts, margins, noise):
    """Of 80 samples; the limit is three standard errors."""
    random = np.random.default_rng(5)
    names = [str(label) for label in range(len(counts))]

    def draw(times):
        targets = np.repeat(np.arange(len(counts)), np.array(counts) * times)
        scores = random.normal(0, noise, (len(targets), len(counts)))
        scores[np.arange(len(targets)), targets] += np.linspace(*margins, len(counts))[targets]
        return scores, targets

    truth = evaluate_logits(*draw(50_000 // sum(counts)), names)
    held = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "loss"), 0)
    for _ in range(80):
        found = evaluation_intervals(*draw(1))
        for name in held:
            low, high = getattr(found, name)
            held[name] += low <= getattr(truth, name) <= high
    assert all(count > 0.87 * 80 for count in held.values()), held


def test_where_every_prediction_is_correct_nothing_is_certain():
    found = evaluation_intervals(10 * np.eye(3)[[0, 1, 2] * 5], np.array([0, 1, 2] * 5))
    assert [interval[1] for interval in (found.accuracy, found.balanced_accuracy, found.macro_f1)] == [1.0] * 3
    assert 0.79 < found.accuracy[0] < 0.8
    assert 0.74 < found.balanced_accuracy[0] < 0.76  # three intervals of 5 of 5: 0.57 to 1, and their mean
    assert 0.83 < found.macro_f1[0] < 0.85
    assert found.loss[0] < 1e-4
    assert found.loss[1] > 0.1  # the next image may be wrong


def test_a_class_without_images_has_no_part_in_them():
    logits, targets = logits_and_targets(3, 40, 2)
    more = np.insert(logits, 2, -9.0, axis=1)
    assert (
        evaluation_intervals(more, targets).balanced_accuracy == evaluation_intervals(logits, targets).balanced_accuracy
    )
    assert evaluation_intervals(more, targets).macro_f1 == evaluation_intervals(logits, targets).macro_f1


def test_the_loss_is_that_of_the_temperature():
    logits, targets = logits_and_targets(2, 500, 3)
    for temperature in (0.5, 2.0):
        low, high = evaluation_intervals(logits, targets, temperature).loss
        assert low < evaluate_logits(logits / temperature, targets, "abc").loss < high


def test_many_images_and_classes_are_quick():
    logits, targets = logits_and_targets(0, 5_000, 300)
    began = time.perf_counter()
    found = evaluation_intervals(logits, targets)
    assert time.perf_counter() - began < 20  # a fraction of a second, on a machine with nothing else to do
    assert found.top5[1] - found.top5[0] < 0.03
