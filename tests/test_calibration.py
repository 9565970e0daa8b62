"""Temperature scaling, and which epoch is kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf import Classifier
from imgclf.evaluation.calibration import fit_temperature
from imgclf.evaluation.metrics import evaluate_logits


def answers(seed, n, k, scale):
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
    logits, targets = answers(seed, n, k, scale)
    found = fit_temperature(logits, targets)
    best = objective(logits, targets, found)
    assert all(best <= objective(logits, targets, other) + 1e-6 for other in np.logspace(-1, 1, 41))


def test_the_temperature_undoes_a_scale():
    logits, targets = answers(0, 5000, 5, 1.0)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3 * fit_temperature(logits, targets), rel=0.01)


def test_two_right_answers_do_not_make_certainty():
    assert fit_temperature([[1.0, 0.0], [0.0, 1.0]], [0, 1]) > 0.3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_labels_are_not_held_against_an_epoch(photos, smoothing):
    """Without smoothing the loss on valid is the plain one; with it, that of the best temperature."""
    train = {"label_smoothing": smoothing, "device": "cpu", "precision": "fp32"}
    classifier = Classifier("lenet", weights="none", config={"size": (16, 16), "train": train}).fit(photos, epochs=3)
    kept = next(record for record in reversed(classifier.history_.epochs) if record.best)
    plain = classifier.metrics_["valid"].loss
    if smoothing:
        assert kept.valid_loss < plain
    else:
        assert kept.valid_loss == pytest.approx(plain, rel=1e-4)
