"""The answers to labeled images: what they say, and their file."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import app
from imgclf.core.errors import DataError, ImgclfError
from imgclf.core.tensor_file import DTYPES, Raw, pack, read_header
from imgclf.evaluation.predictions import Predictions, read_predictions, read_score, write_predictions
from imgclf.storage.run_folder import PREDICTIONS

TINY = {"train": {"device": "cpu", "precision": "fp32"}}


def make_answers(n=6, k=3, **changes):
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
    cool, hot = make_answers(temperature=0.5), make_answers(temperature=4.0)
    assert np.array_equal(cool.predicted, hot.predicted)
    assert cool.probabilities.sum(1) == pytest.approx(np.ones(6))
    assert (cool.probabilities.max(1) > hot.probabilities.max(1)).all()
    assert cool.evaluation.accuracy == hot.evaluation.accuracy
    likely = hot.probabilities[np.arange(6), hot.targets]
    assert hot.evaluation.loss == pytest.approx(-np.log(likely).mean())


def test_the_digest_is_that_of_the_images():
    answers = make_answers()
    order = np.random.default_rng(1).permutation(6)
    shuffled = replace(
        answers,
        logits=-answers.logits[order],
        targets=answers.targets[order],
        refs=tuple(f"other-{i}" for i in order),
        contents=tuple(answers.contents[i] for i in order),
        temperature=2.0,
    )
    assert shuffled.digest == answers.digest
    for changes in (
        {"targets": (answers.targets + 1) % 3},
        {"contents": ("f" * 64, *answers.contents[1:])},
        {"classes": ("x", "y", "z")},
    ):
        assert replace(answers, **changes).digest != answers.digest
    unknown = replace(answers, contents=("",) * 6)
    assert unknown.digest != replace(unknown, refs=("x", *answers.refs[1:])).digest


@given(name=st.text(max_size=5), temperature=st.floats(0.1, 10))
def test_any_names_round_trip(tmp_path_factory, name, temperature):
    path = tmp_path_factory.getbasetemp() / "answers.safetensors"
    answers = make_answers(2, refs=(name, "\udcff"), contents=("", "0" * 64), temperature=temperature)
    write_predictions(path, answers)
    assert same(read_predictions(path), answers)
    assert read_score(path) == ((answers.predicted == answers.targets).sum(), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": np.zeros((6, 2), np.float32)},
        {"targets": np.zeros(5, np.int64)},
        {"targets": np.full(6, 3)},
        {"targets": np.full(6, -1)},
        {"contents": ()},
        {"seen": (6,)},
        {"temperature": 0.0},
        {"temperature": float("nan")},
    ],
)
def test_what_does_not_fit_is_refused(changes):
    with pytest.raises(DataError, match="expected"):
        make_answers(**changes)


def test_figures_are_given_of_all_images_and_of_those_that_training_did_not_see(tmp_path):
    answers = make_answers(seen=(1, 4))
    path = tmp_path / "answers.safetensors"
    write_predictions(path, answers)
    assert same(read_predictions(path), answers)
    all_of_them, others = make_answers().evaluation, make_answers().take([0, 2, 3, 5]).evaluation
    assert answers.evaluation == replace(all_of_them, seen=2, unseen=others)
    assert (others.n, others.seen, others.unseen) == (4, 0, None)
    assert make_answers(seen=tuple(range(6))).evaluation == replace(all_of_them, seen=6)
    assert answers.take([4, 0]).seen == (0,)


def test_broken_logits_have_no_probabilities():
    with pytest.raises(ImgclfError, match="NaN"):
        make_answers(logits=np.full((6, 3), np.nan, np.float32)).probabilities  # noqa: B018


def forged(change):
    """The bytes of a sound file with its tensors, or the texts in them, changed."""

    def forge(data):
        tensors, header = load(data), read_header(BytesIO(data))
        manifest, texts = json.loads(header.manifest), json.loads(tensors["texts"].tobytes())
        texts.update({name: manifest.pop(name) for name in ("format", "temperature")})
        change(tensors, texts)
        manifest.update({name: texts.pop(name) for name in ("format", "temperature")})
        tensors["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
        kinds = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
        raw = {
            name: Raw(kinds[str(a.dtype)], a.shape, a.reshape(-1).view(np.uint8).data) for name, a in tensors.items()
        }
        return b"".join(pack(raw, json.dumps(manifest)))

    return forge


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "no answers that can be used"),
        (lambda data: b"no", "no answers that can be used"),
        (forged(lambda tensors, texts: tensors.pop("targets")), "expected the tensors"),
        (forged(lambda tensors, texts: tensors.update(targets=np.zeros(6, np.int32))), "expected the tensors"),
        (forged(lambda tensors, texts: tensors.update(logits=np.full((6, 3), np.inf, np.float32))), "infinite"),
        (forged(lambda tensors, texts: texts.update(format=1)), "its format is 1; this version reads 3"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "its checksum does not fit its content"),
        (forged(lambda tensors, texts: texts.update(seen=["0"])), "expected the positions of the images"),
        (forged(lambda tensors, texts: texts.update(seen=[9])), "expected the images that were seen as positions"),
        (forged(lambda tensors, texts: texts.update(refs=[1] * 6)), "expected a temperature and the texts"),
        (forged(lambda tensors, texts: texts.update(refs=["a"])), "expected logits"),
        (forged(lambda tensors, texts: texts.update(temperature="1")), "expected a temperature and the texts"),
        (forged(lambda tensors, texts: texts.update(contents=["x"] * 6)), "expected each content as a sha256"),
    ],
)
def test_a_broken_file_is_named(tmp_path, damage, message):
    path = tmp_path / "answers.safetensors"
    write_predictions(path, make_answers())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path} ")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.safetensors is not there"):
        read_predictions(tmp_path / "gone.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path)


def run_cli(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def test_a_run_keeps_its_answers_to_the_test_images(photos, in_folder):
    classifier = Classifier("lenet", size=16, weights="none", config=TINY).fit(photos, epochs=1, runs="runs")
    file = classifier.run_.path / PREDICTIONS
    assert classifier.predictions_.keys() == {"valid"}
    assert not file.exists()
    result = classifier.evaluate()
    answers = classifier.predictions_["test"]
    assert same(read_predictions(file), answers)
    assert answers.evaluation == result
    assert answers.refs == tuple(sample.ref for sample in classifier.split_.samples("test"))
    assert answers.contents == tuple(sample.sha256 for sample in classifier.split_.samples("test"))
    assert classifier.predictions_["valid"].evaluation == classifier.metrics_["valid"]

    before = file.read_bytes()
    file.unlink()
    classifier.save(classifier.run_.model)
    for other in (("--part", "valid"), (photos, "--part", "test")):
        run_cli("evaluate", *other)
        assert not file.exists()
    run_cli("evaluate", "--device", "cpu")
    assert file.read_bytes() == before

    Classifier().resume(classifier.run_.path, epochs=2)
    assert not file.exists()


def test_an_image_that_became_unreadable_is_not_among_the_answers(photos, in_folder):
    classifier = Classifier("lenet", size=16, weights="none", config=TINY).fit(photos, epochs=1)
    first, *others = classifier.split_.samples("test")
    (photos / first.ref).write_bytes(b"no image")
    assert classifier.evaluate().n == len(others)
    assert classifier.predictions_["test"].refs == tuple(sample.ref for sample in others)
