"""Temperature scaling, and which epoch is kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf import Classifier
from imgclf.evaluation.calibration import (
    brier_score,
    choose_temperature,
    expected_calibration_error,
    fit_temperature,
    measure_calibration,
    negative_log_likelihood,
    reliability_bins,
)
from imgclf.evaluation.metrics import evaluate_logits, softmax


def logits_and_targets(seed, n, k, scale):
    """Logits of a model that is right for the most part, and what is true."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, k, n)
    logits = random.normal(size=(n, k)) + 2 * np.eye(k)[targets]
    return scale * logits, targets


def objective(logits, targets, temperature):
    loss = evaluate_logits(logits / temperature, targets, [str(i) for i in range(logits.shape[1])]).loss
    return loss + math.log(temperature) ** 2 / (2 * len(targets))


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 7), st.sampled_from([0.01, 0.3, 1.0, 5.0, 300.0]))
def test_no_other_temperature_has_a_lower_loss(seed, n, k, scale):
    logits, targets = logits_and_targets(seed, n, k, scale)
    found = fit_temperature(logits, targets)
    best = objective(logits, targets, found)
    assert all(best <= objective(logits, targets, other) + 1e-6 for other in np.logspace(-1, 1, 41))


def test_the_temperature_undoes_a_scale():
    logits, targets = logits_and_targets(0, 5000, 5, 1.0)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3 * fit_temperature(logits, targets), rel=0.01)


def test_two_correct_predictions_do_not_make_certainty():
    assert fit_temperature([[1.0, 0.0], [0.0, 1.0]], [0, 1]) > 0.3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_labels_are_not_held_against_an_epoch(photos, smoothing):
    """Without smoothing the loss on valid is the plain one; with it, that of the best temperature."""
    train = {"label_smoothing": smoothing, "device": "cpu", "precision": "fp32"}
    classifier = Classifier("lenet", weights="none", config={"size": (16, 16), "train": train}).fit(photos, epochs=3)
    assert classifier.temperature_ == 1.0, "of nine valid images there is none"
    kept = next(record for record in reversed(classifier.history_.epochs) if record.best)
    plain = classifier.metrics_["valid"].loss
    if smoothing:
        assert kept.valid_loss < plain
    else:
        assert kept.valid_loss == pytest.approx(plain, rel=1e-4)


def test_two_minima_are_both_looked_at():
    """Logits that hardly differ: here Newton's method from any single place misses the lower minimum, or swings."""
    for seed, n, k, scale in ((36, 23, 3, 0.01), (472, 17, 5, 0.01), (999, 21, 2, 300.0)):
        logits, targets = logits_and_targets(seed, n, k, scale)
        best = objective(logits, targets, fit_temperature(logits, targets))
        assert all(best <= objective(logits, targets, other) + 1e-6 for other in np.logspace(-1, 1, 81))


def test_bins_by_hand():
    likely = [[0.9, 0.1], [0.92, 0.08], [0.4, 0.6], [2 / 3, 1 / 3]]
    bins = reliability_bins(likely, [0, 1, 1, 0])
    assert bins.count.sum() == 4
    filled = np.flatnonzero(bins.count).tolist()
    assert filled == [8, 9, 13]  # 0.6 is the upper edge of the ninth bin, 2/3 that of the tenth
    assert bins.confidence[filled] == pytest.approx([0.6, 2 / 3, 0.91])
    assert bins.accuracy[filled] == pytest.approx([1, 1, 0.5])
    assert np.isnan(bins.accuracy[0])
    assert expected_calibration_error(likely, [0, 1, 1, 0]) == pytest.approx((0.4 + 1 / 3 + 2 * 0.41) / 4)


@given(st.integers(0, 100), st.integers(1, 50), st.integers(2, 6))
def test_the_measures_agree_with_their_definitions(seed, n, k):
    logits, targets = logits_and_targets(seed, n, k, 1.0)
    likely = softmax(logits)
    assert negative_log_likelihood(likely, targets) == pytest.approx(evaluate_logits(logits, targets, range(k)).loss)
    assert brier_score(likely, targets) == pytest.approx(((likely - np.eye(k)[targets]) ** 2).sum(1).mean())
    assert 0 <= expected_calibration_error(likely, targets) <= 1
    assert brier_score(np.eye(k)[targets], targets) == expected_calibration_error(np.eye(k)[targets], targets) == 0


def test_a_class_that_was_ruled_out_costs_a_finite_amount():
    assert 600 < negative_log_likelihood([[1.0, 0.0]], [1]) < 800


def test_honest_probabilities_have_hardly_an_error_and_others_get_better():
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5))
    targets = np.array([random.choice(5, p=row) for row in softmax(logits)])
    honest = measure_calibration(logits, targets, 1.0)
    assert honest.before == honest.after
    assert honest.after.ece < 0.02
    mended = measure_calibration(3 * logits, targets, fit_temperature(3 * logits, targets))
    assert mended.temperature == pytest.approx(3, rel=0.05)
    assert mended.before.ece > 0.2 > 0.02 > mended.after.ece
    assert mended.before.nll > mended.after.nll == pytest.approx(honest.after.nll, abs=0.01)
    assert mended.before.brier > mended.after.brier
    assert mended.n == 20_000


def test_of_few_images_there_is_no_temperature():
    logits, targets = logits_and_targets(0, 20, 3, 1.0)
    assert choose_temperature(logits[:19], targets[:19]) == (1.0, "needs 20 validation images, has 19")
    assert choose_temperature(logits, targets) == (fit_temperature(logits, targets), "")
