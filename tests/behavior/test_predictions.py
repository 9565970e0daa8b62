"""The predictions for labeled images, and their file."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import app
from imgclf.core.errors import DataError, ImgclfError
from imgclf.evaluation.predictions import Predictions, read_predictions, read_score, write_predictions
from imgclf.storage.run_folder import PREDICTIONS

TINY = {"train": {"device": "cpu", "precision": "fp32"}}


def make_predictions(n=6, k=3, **changes):
    random = np.random.default_rng(0)
    values = {
        "logits": random.normal(size=(n, k)).astype(np.float32),
        "targets": random.integers(0, k, n),
        "refs": tuple(f"{i}.png" for i in range(n)),
        "contents": tuple(f"{i:064x}" for i in range(n)),
        "classes": tuple("abcdefgh"[:k]),
    }
    return Predictions(**(values | changes))


def same(one, two):
    arrays = np.array_equal(one.logits, two.logits) and np.array_equal(one.targets, two.targets)
    return arrays and all(
        getattr(one, f) == getattr(two, f) for f in ("refs", "contents", "classes", "temperature", "seen")
    )


def test_the_temperature_changes_how_sure_and_not_what():
    cool, hot = make_predictions(temperature=0.5), make_predictions(temperature=4.0)
    assert np.array_equal(cool.predicted, hot.predicted)
    assert cool.probabilities.sum(1) == pytest.approx(np.ones(6))
    assert (cool.probabilities.max(1) > hot.probabilities.max(1)).all()
    assert cool.evaluation.accuracy == hot.evaluation.accuracy
    likely = hot.probabilities[np.arange(6), hot.targets]
    assert hot.evaluation.loss == pytest.approx(-np.log(likely).mean())


def test_the_digest_is_that_of_the_images():
    predictions = make_predictions()
    order = np.random.default_rng(1).permutation(6)
    shuffled = replace(
        predictions,
        logits=-predictions.logits[order],
        targets=predictions.targets[order],
        refs=tuple(f"other-{i}" for i in order),
        contents=tuple(predictions.contents[i] for i in order),
        temperature=2.0,
    )
    assert shuffled.digest == predictions.digest
    for changes in (
        {"targets": (predictions.targets + 1) % 3},
        {"contents": ("f" * 64, *predictions.contents[1:])},
        {"classes": ("x", "y", "z")},
    ):
        assert replace(predictions, **changes).digest != predictions.digest
    unknown = replace(predictions, contents=("",) * 6)
    assert unknown.digest != replace(unknown, refs=("x", *predictions.refs[1:])).digest


@given(name=st.text(max_size=5), temperature=st.floats(0.1, 10))
def test_any_names_round_trip(tmp_path_factory, name, temperature):
    path = tmp_path_factory.getbasetemp() / "predictions.safetensors"
    predictions = make_predictions(2, refs=(name, "\udcff"), contents=("", "0" * 64), temperature=temperature)
    write_predictions(path, predictions)
    assert same(read_predictions(path), predictions)
    assert read_score(path) == ((predictions.predicted == predictions.targets).sum(), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": np.zeros((6, 2), np.float32)},
        {"targets": np.zeros(5, np.int64)},
        {"targets": np.full(6, 3)},
        {"targets": np.full(6, -1)},
        {"targets": np.zeros(6)},
        {"contents": ()},
        {"seen": (6,)},
        {"temperature": 0.0},
        {"temperature": float("nan")},
    ],
)
def test_what_does_not_fit_is_refused(changes):
    with pytest.raises(DataError, match="expected"):
        make_predictions(**changes)


def test_figures_are_given_of_all_images_and_of_those_that_training_did_not_see(tmp_path):
    predictions = make_predictions(seen=(1, 4))
    path = tmp_path / "predictions.safetensors"
    write_predictions(path, predictions)
    assert same(read_predictions(path), predictions)
    all_of_them, others = make_predictions().evaluation, make_predictions().take([0, 2, 3, 5]).evaluation
    assert predictions.evaluation == replace(all_of_them, seen=2, unseen=others)
    assert (others.n, others.seen, others.unseen) == (4, 0, None)
    assert make_predictions(seen=tuple(range(6))).evaluation == replace(all_of_them, seen=6)
    assert predictions.take([4, 0]).seen == (0,)


def test_broken_logits_have_no_probabilities():
    with pytest.raises(ImgclfError, match="NaN"):
        make_predictions(logits=np.full((6, 3), np.nan, np.float32)).probabilities  # noqa: B018


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "can't be used: truncated"),
        (lambda data: b"no", "can't be used: truncated"),
        (lambda data: data.replace(b'\\"format\\": 4', b'\\"format\\": 1'), "its format is 1; this version reads 4"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "its checksum does not match its content"),
        (lambda data: data.replace(b"temperature", b"temperatuse"), "its checksum does not match its content"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = tmp_path / "predictions.safetensors"
    write_predictions(path, make_predictions())
    before = path.read_bytes()
    assert damage(before) != before
    path.write_bytes(damage(before))
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path} ")


def test_a_score_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "predictions.safetensors"
    write_predictions(path, make_predictions())
    path.write_bytes(path.read_bytes().replace(b"correct", b"correkt"))
    with pytest.raises(DataError, match=r"predictions\.safetensors can't be used: 'correct'"):
        read_score(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.safetensors not found"):
        read_predictions(tmp_path / "gone.safetensors")
    with pytest.raises(DataError, match="can't be read"):
        read_predictions(tmp_path)


def run_cli(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def test_a_run_keeps_its_predictions_for_the_test_images(photos, in_folder):
    classifier = Classifier("lenet", size=16, weights="none", config=TINY).fit(photos, epochs=1, runs="runs")
    file = classifier.run_.path / PREDICTIONS
    assert classifier.predictions_.keys() == {"valid", "test"}
    result = classifier.evaluate()
    predictions = classifier.predictions_["test"]
    assert same(read_predictions(file), predictions)
    assert predictions.evaluation == result
    assert predictions.refs == tuple(sample.ref for sample in classifier.split_.samples("test"))
    assert predictions.contents == tuple(sample.sha256 for sample in classifier.split_.samples("test"))
    assert classifier.predictions_["valid"].evaluation == classifier.metrics_["valid"]

    before = file.read_bytes()
    file.unlink()
    classifier.save(classifier.run_.model)
    for other in (("--part", "valid"), (photos, "--part", "test")):
        run_cli("evaluate", *other)
        assert not file.exists()
    run_cli("evaluate", "--device", "cpu")
    assert file.read_bytes() == before

    longer = Classifier().resume(classifier.run_.path, epochs=2)
    assert file.read_bytes() != before
    assert same(read_predictions(file), longer.predictions_["test"])


def test_an_image_that_became_unreadable_has_no_prediction(photos, in_folder):
    classifier = Classifier("lenet", size=16, weights="none", config=TINY).fit(photos, epochs=1)
    first, *others = classifier.split_.samples("test")
    (photos / first.ref).write_bytes(b"no image")
    assert classifier.evaluate().n == len(others)
    assert classifier.predictions_["test"].refs == tuple(sample.ref for sample in others)
