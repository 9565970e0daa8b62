"""The learning curve: the law, its interval, and what more images of a class would bring."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.results import ClassGain, Estimate, LearningCurve, PowerLaw
from imgclf.studies.scaling_law import HalvedClass, class_gains, curve_point, fit_law

SIZES = (100, 200, 400, 800, 1000)
DRAWS = (5, 5, 3, 2, 1)


def measured(law, n=400, seed=0, sizes=SIZES, draws=DRAWS):
    """What a learner that follows a law gets wrong: hard images take many training images."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)
    return [
        np.stack([np.clip(difficulty + rng.normal(0, 0.01, n), 0, 1) < law.error(size) for _ in range(count)])
        for size, count in zip(sizes, draws, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("law", [PowerLaw(2.0, 0.5, 0.05), PowerLaw(0.9, 0.25, 0.0), PowerLaw(0.0, 0.5, 0.2)])
def test_a_law_without_noise_is_found(law):
    fitted = fit_law(SIZES, measured(law, n=2_000))
    for size in (*SIZES, 2000):
        assert fitted.law.error(size) == pytest.approx(law.error(size), abs=0.02)
    assert fitted.misfit > 0.01


@pytest.mark.slow
def test_the_interval_of_the_gain_holds_the_truth_as_often_as_it_says():
    law = PowerLaw(2.0, 0.45, 0.05)
    true = law.error(1000) - law.error(2000)
    gains = [fit_law(SIZES, measured(law, seed=seed)).gain(1000) for seed in range(10)]
    assert np.mean([gain.low <= true <= gain.high for gain in gains]) >= 0.8
    assert np.mean([gain.value for gain in gains]) == pytest.approx(true, abs=0.015)


def test_where_nothing_improves_nothing_is_gained():
    wrong = [np.tile(np.arange(300) < 30, (3, 1)) for _ in SIZES]
    fitted = fit_law(SIZES, wrong)
    assert fitted.gain(1000).value == pytest.approx(0, abs=1e-3)
    assert fitted.at(1000).value == pytest.approx(0.9, abs=1e-3)
    assert fitted.at(1000).low < 0.88
    never = fit_law(SIZES, [np.zeros((2, 50), bool) for _ in SIZES])
    assert (never.law.error(10), never.gain(1000)) == (0.0, Estimate(0.0, 0.0, 0.0))


def test_points_that_follow_no_law_are_told():
    drop = (0.5, 0.5, 0.5, 0.02, 0.02)
    wrong = [np.tile(np.arange(500) < 500 * share, (1, 1)) for share in drop]
    assert fit_law(SIZES, wrong).misfit < 0.01


def test_the_same_measurement_gives_the_same_law():
    wrong = measured(PowerLaw(1.0, 0.3, 0.0))
    one, two = (fit_law(SIZES, wrong) for _ in range(2))
    assert one.law == two.law
    assert one.gain(1000) == two.gain(1000)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=5), st.integers(1, 60), st.integers(1, 3))
def test_any_measurement_gives_a_law_that_never_rises(shares, n, draws):
    rng = np.random.default_rng(0)
    sizes = [10 * 2**i for i in range(len(shares))]
    fitted = fit_law(sizes, [rng.random((draws, n)) < share for share in shares])
    assert min(fitted.law.scale, fitted.law.floor) >= 0
    band = fitted.band(sizes[0], 2 * sizes[-1])
    assert list(band.accuracy) == sorted(band.accuracy)
    assert (band.images[0], band.images[-1]) == pytest.approx((sizes[0], 2 * sizes[-1]))
    gain = fitted.gain(sizes[-1])
    assert 0 <= gain.low <= gain.high <= 1
    assert 0 <= fitted.misfit <= 1


def test_a_point_has_the_mean_of_its_draws():
    wrong = np.array([[True, False, False, False], [True, True, False, False]])
    point = curve_point(0.1, 7, wrong)
    assert (point.images, point.draws, point.accuracy) == (7, 2, 0.625)
    low, high = point.interval
    assert low < 0.625 < high


def classes_of(*lost, n=900):
    """Two classes, of whose held-out images half of the training images lose the first share, a quarter both."""
    wrong, found = np.zeros(n, bool), []
    for index, (last, before) in enumerate(lost):
        own = np.arange(n) % len(lost) == index
        rank = np.cumsum(own) / own.sum()
        half, quarter = wrong | (own & (rank <= last)), wrong | (own & (rank <= last + before))
        found.append(HalvedClass(f"class {index}", 100, own, np.stack([half] * 2), np.stack([quarter] * 2)))
    return found, wrong[None], fit_law(SIZES, measured(PowerLaw(2.0, 0.5, 0.05), n=n)).weights


def test_the_next_doubling_brings_less_as_the_last_did():
    first, second = class_gains(*classes_of((0.1, 0.2), (0.2, 0.4)))
    assert first.recall == 1.0
    assert first.recall_gain.value == pytest.approx(0.05, abs=0.003)
    assert second.recall_gain.value == pytest.approx(0.1, abs=0.003)
    assert second.accuracy_gain.value == pytest.approx(0.05, abs=0.003)
    for gain in (first.recall_gain, second.recall_gain, second.accuracy_gain):
        assert gain.significant
        assert gain.low <= gain.value <= gain.high


def test_a_doubling_is_never_taken_to_bring_more_than_the_last():
    first, _ = class_gains(*classes_of((0.2, 0.1), (0.2, 0.1)))
    assert first.recall_gain.value == pytest.approx(0.2, abs=0.003)


def test_a_class_of_which_nothing_can_be_told():
    few, whole, weights = classes_of((0.0, 0.0), (0.02, 0.1), n=60)
    nothing, little = class_gains(few, whole, weights)
    assert not nothing.recall_gain.significant
    assert not little.accuracy_gain.significant
    bare, unseen = HalvedClass("few", 3, few[0].own), replace(few[1], own=np.zeros(60, bool))
    assert class_gains([bare, unseen], whole, weights) == (
        ClassGain("few", 3, 1.0, None, None),
        ClassGain("class 1", 100, None, None, None),
    )


def test_the_value_is_json():
    fitted = fit_law(SIZES, measured(PowerLaw(2.0, 0.5, 0.05)))
    points = tuple(curve_point(0.5, 10, np.zeros((1, 5), bool)) for _ in SIZES)
    curve = LearningCurve(
        data="d",
        arch="a",
        full=False,
        held_out=400,
        points=points,
        law=fitted.law,
        doubled=fitted.at(2000),
        gain=fitted.gain(1000),
        misfit=fitted.misfit,
        classes=(ClassGain("cat", 2, 1.0, None, fitted.gain(9)),),
        seconds=1.0,
        band=fitted.band(100, 2000),
    )
    value = json.loads(json.dumps(curve.to_dict()))
    assert value["gain"].keys() == {"value", "low", "high"}
    assert value["law"].keys() == {"scale", "exponent", "floor"}
    assert len(value["band"]["images"]) == len(value["band"]["low"])
