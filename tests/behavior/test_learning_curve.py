"""Trainings on growing parts of the images: `learning_curve` and `imgclf learning-curve`."""

import itertools
import json
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import app
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.results import ClassGain, Estimate, LearningCurve
from imgclf.data.dataset import Sample
from imgclf.models.registry import ARCHS, Arch
from imgclf.models.weights import WeightsUsed
from imgclf.studies import learning_curve as learning
from imgclf.studies.events import CurvePointMeasured
from imgclf.studies.learning_curve import DRAWS, draw_parts, learning_curve
from imgclf.studies.scaling_law import curve_point, fit_law
from imgclf.training.events import Progressed

TINY = {"arch": "lenet", "weights": "none", "size": [16, 16], "train": {"epochs": 2, "device": "cpu"}}


class Pooled(nn.Module):
    """Colors of the quarters of an image, and a head."""

    def __init__(self, classes):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        return self.fc(self.pool(x))


@pytest.fixture
def pooled(monkeypatch):
    """The changes of an experiment with a network that counts as pretrained."""
    arch = Arch("pooled", lambda spec: Pooled(spec.classes), size=(16, 16), channels=3, family="own", summary="")
    monkeypatch.setitem(ARCHS._items, "pooled", arch)
    used = WeightsUsed("auto", "pretrained", "from a test")
    monkeypatch.setattr(learning, "DRAWS", {0.1: 3, 0.4: 2, 0.8: 2, 1.0: 1})
    monkeypatch.setattr(learning, "CLASS_FITS", 0)
    monkeypatch.setattr("imgclf.estimator.plan.load_weights", lambda *args: used)
    return {"arch": "pooled", "train": {"device": "cpu"}, "split": [0.6, 0.2, 0.2]}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Steps are measured for a moment: these networks are tiny."""
    monkeypatch.setattr("imgclf.estimator.warm_start.MEASURED", 0.05)


@pytest.fixture(autouse=True)
def _signals():
    """The command handles SIGTERM; the tests of other files must not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def rows(counts, groups=False):
    return [
        Sample(f"{label}/{i}", label, f"{label}{i // 3}" if groups else None, sha256=f"{label}{i}")
        for label, n in counts.items()
        for i in range(n)
    ]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.randoms())
def test_parts_are_nested_stratified_and_the_same_in_any_order(sizes, random):
    samples = rows(dict(zip("abcd", sizes, strict=False)))
    parts = draw_parts(samples, DRAWS, 0)
    largest = parts[max(parts)]
    assert len(largest[0]) == len(samples)
    fractions = list(parts)
    for smaller, larger in itertools.pairwise(fractions):
        assert len(parts[smaller][0]) < len(parts[larger][0])
        for small, large in zip(parts[smaller], parts[larger], strict=False):
            assert set(small) <= set(large)
    for fraction, draws in parts.items():
        for places in draws:
            for label, n in zip("abcd", sizes, strict=False):
                expected = min(n, max(2, round(fraction * n)))
                assert sum(samples[place].label == label for place in places) == expected
    shuffled = samples[:]
    random.shuffle(shuffled)
    again = draw_parts(shuffled, DRAWS, 0)
    for fraction, draws in parts.items():
        for one, two in zip(draws, again[fraction], strict=True):
            assert {samples[place].ref for place in one} == {shuffled[place].ref for place in two}


def test_draws_differ_and_groups_come_together():
    samples = rows({"a": 60, "b": 60}, groups=True)
    parts = draw_parts(samples, {0.1: 4, 1.0: 1}, 0)
    assert len({tuple(places) for places in parts[0.1]}) == 4
    for places in parts[0.1]:
        taken = [samples[place].group for place in places]
        assert len(set(taken)) == 4  # 6 of each class, in groups of 3
    assert draw_parts(samples, {0.1: 4}, 1)[0.1][0].tolist() != parts[0.1][0].tolist()


def test_copies_come_together_though_their_bytes_differ():
    samples = [Sample(f"{i}", "a", sha256=f"{i:02}", pixels=f"{i // 2}") for i in range(40)]
    for places in draw_parts(samples, {0.2: 4}, 0)[0.2]:
        assert len({samples[place].pixels for place in places}) == 4


def test_a_curve_from_frozen_features(photos, pooled):
    heard = []
    curve = learning_curve(photos, config=pooled, callbacks=[heard.append])
    assert (curve.data, curve.arch, curve.full, curve.held_out) == ("photos", "pooled", False, 24)
    assert [point.images for point in curve.points] == [6, 15, 30, 36]
    assert [point.draws for point in curve.points] == [3, 2, 2, 1]
    assert curve.points[-1].accuracy == 1.0  # colors are easy
    assert 0 <= curve.gain.low <= curve.gain.value <= curve.gain.high
    assert [(row.name, row.images, row.recall) for row in curve.classes] == [
        ("blue", 12, 1.0),
        ("green", 12, 1.0),
        ("red", 12, 1.0),
    ]
    assert not any(row.accuracy_gain.significant for row in curve.classes)
    assert [event.point for event in heard if isinstance(event, CurvePointMeasured)] == list(curve.points)
    heads = [event for event in heard if isinstance(event, Progressed) and event.task == "fitting heads"]
    assert heads == [Progressed("fitting heads", number + 1, 8) for number in range(8)]
    again = learning_curve(photos, config=pooled)
    assert (again.points, again.law, again.classes) == (curve.points, curve.law, curve.classes)


def test_each_part_weighs_the_classes_alike(photos, pooled, monkeypatch):
    seen = []
    fit = learning.fit_logistic

    def watched(features, labels, classes, prior, weight, strengths, units):
        seen.append((labels.bincount(minlength=classes) * weight).tolist())
        assert len(units) == len(set(units.tolist())) == len(labels)
        return fit(features, labels, classes, prior, weight, strengths, units)

    monkeypatch.setattr(learning, "fit_logistic", watched)
    learning_curve(photos, config=pooled)
    for counts in seen:
        assert counts == pytest.approx([counts[0]] * 3)


def test_a_class_with_few_images_is_not_halved(photos, pooled):
    for path in sorted((photos / "red").iterdir())[4:]:
        path.unlink()
    red = learning_curve(photos, config=pooled).classes[2]
    assert red.images < 8
    assert red.accuracy_gain is None


def test_a_curve_of_full_trainings(photos, monkeypatch):
    monkeypatch.setattr(learning, "FULL_DRAWS", {0.2: 2, 0.5: 1, 1.0: 1})
    trained = []
    fit = Classifier.fit

    def watched(self, data, **options):
        result = fit(self, data, **options)
        trained.append(self.split_)
        return result

    monkeypatch.setattr(Classifier, "fit", watched)
    curve = learning_curve(photos, config=TINY, full=True)
    assert curve.full
    assert [(point.images, point.draws) for point in curve.points] == [(9, 2), (21, 1), (42, 1)]
    assert curve.classes == ()
    assert curve.held_out == 9
    held = [{row.sha256 for part in ("valid", "test") for row in split.samples(part)} for split in trained]
    assert all(images == held[0] for images in held)
    assert [len(split.samples("train")) for split in trained] == [9, 9, 21, 42]
    usual = Classifier(config=TINY).fit(photos).evaluate()  # the whole part is trained as training does it
    assert curve.points[-1].accuracy == pytest.approx(usual.accuracy)
    assert not list(photos.parent.glob("runs"))


def test_without_pretrained_weights_it_says_what_to_do(photos):
    with pytest.raises(ConfigError, match=r"lenet starts from scratch.*--full"):
        learning_curve(photos, config=TINY)


def test_without_images_to_judge_by(photos, pooled):
    with pytest.raises(ConfigError, match="no held-out images"):
        learning_curve(photos, config={**pooled, "split": [1.0, 0.0, 0.0]})
    with pytest.raises(ConfigError, match="no held-out images"):
        learning_curve(photos, config={**TINY, "split": [0.7, 0.3, 0.0]}, full=True)


def test_too_few_images(photos, pooled):
    for folder in photos.iterdir():
        for path in sorted(folder.iterdir())[4:]:
            path.unlink()
    with pytest.raises(DataError, match="about ten per class"):
        learning_curve(photos, config=pooled)


def test_the_command(photos, in_folder, pooled):
    arguments = ["learning-curve", str(photos), "--arch", "pooled", "--split", "60/20/20"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["picture"] == "learning-curve.png"
    assert (in_folder / "learning-curve.png").stat().st_size > 10_000
    assert len(value["points"]) == 4
    assert "linear head on frozen features" in result.stderr
    text = CliRunner().invoke(app, [*arguments, "--out", "c.png"])
    assert text.exit_code == 0, text.stderr
    for word in ("images  accuracy", "fit:     error = ", "more:    72 images", "picture: c.png", "blue"):
        assert word in text.stdout


def test_the_command_promises_nothing_where_the_points_do_not_follow_the_fit(photos, in_folder, monkeypatch):
    rng = np.random.default_rng(0)
    wrong = [rng.random((2, 100)) < share for share in (0.5, 0.4, 0.3)]
    law = fit_law((10, 20, 40), wrong)
    points = tuple(curve_point(n / 40, n, row) for n, row in zip((10, 20, 40), wrong, strict=True))
    classes = (ClassGain("red", 20, None, Estimate(0.01, -0.01, 0.03), None),)
    curve = LearningCurve(
        *("photos", "pooled", False, 100, points, law.law, law.at(80), law.gain(40)),
        *(0.001, classes, 1.0, law.band(10, 80)),
    )
    monkeypatch.setattr(learning, "learning_curve", lambda *_, **__: curve)
    shown = CliRunner().invoke(app, ["learning-curve", str(photos)]).stdout
    assert "more:    unclear, as the points don't follow the fit\n" in shown
    assert "unclear (−1.0 to +3.0)" in shown


def test_the_command_refuses_what_it_can_not_do(photos, in_folder):
    for arguments in (["--out", "notes.txt"], ["--out", str(photos / "curve.png")], ["--arch", "lenet"]):
        result = CliRunner().invoke(app, ["learning-curve", str(photos), *arguments])
        assert (result.exit_code, result.stdout) == (2, "")
    assert list(in_folder.iterdir()) == []


def test_interrupted_training_ends_the_whole(photos, monkeypatch):
    monkeypatch.setattr(learning, "FULL_DRAWS", {0.2: 1, 0.5: 1, 1.0: 1})

    class Interrupted(Classifier):
        def fit(self, data, **options):
            result = super().fit(data, **options)
            self.history_ = type(self.history_)(self.history_.epochs, "interrupted")
            return result

    monkeypatch.setattr(learning, "Classifier", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        learning_curve(photos, config=TINY, full=True)


def test_a_picture_of_the_law(tmp_path):
    from imgclf.plots.figures import save_learning_curve

    rng = np.random.default_rng(0)
    wrong = [rng.random((2, 100)) < share for share in (0.5, 0.4, 0.3)]
    law = fit_law((10, 20, 40), wrong)
    points = tuple(curve_point(n / 40, n, row) for n, row in zip((10, 20, 40), wrong, strict=True))
    figures = {"law": law.law, "doubled": law.at(80), "gain": law.gain(40), "misfit": law.misfit}
    curve = LearningCurve("d$", "a", False, 100, points, classes=(), seconds=1.0, band=law.band(10, 80), **figures)
    save_learning_curve(curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
