"""A run that is trained again is compared with itself."""

import json

import pytest
import torch
from safetensors.torch import load_file

from imgclf import Classifier
from imgclf.core.errors import ConfigError, DataError
from imgclf.storage.model_file import load_model, save_model
from imgclf.storage.run_folder import INFO, open_run
from imgclf.studies.reproduce import Figure, reproduce
from support.photos import color_image

CONFIG = {"train": {"precision": "fp32", "device": "cpu", "lr": 0.003}}


@pytest.fixture
def run(photos, in_folder):
    """A small run that was tested and saved."""
    classifier = Classifier("lenet", size=16, config=CONFIG).fit(photos, epochs=2, batch_size=16, runs="runs", name="r")
    classifier.evaluate()
    classifier.save(classifier.run_.model)
    return classifier.run_


def facts_of(run):
    """Nothing about the machine is known to be different."""
    return json.loads((run.path / INFO).read_text())


def test_the_same_machine_gives_the_same_bits(run):
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    result = reproduce(run.path)
    assert result.weights_equal
    assert result.reproduced
    assert result.largest_difference == 0
    assert {figure.name for figure in result.figures} == {
        f"{a} {b}" for a in ("test", "valid") for b in ("accuracy", "loss")
    }
    assert all(figure.then == figure.now for figure in result.figures)
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    assert json.loads(json.dumps(result.to_dict()))["reproduced"] is True


def test_what_a_time_allowed_is_done_again_in_any_time(photos, in_folder, monkeypatch):
    monkeypatch.setattr("imgclf.estimator.warm_start.MEASURED", 0.05)
    config = {"train": {**CONFIG["train"], "minutes": 1.0}}
    classifier = Classifier("lenet", size=16, config=config).fit(photos, epochs=2, batch_size=16, runs="runs", name="r")
    monkeypatch.setattr("imgclf.estimator.warm_start.fit_to_time", lambda *_: pytest.fail("the time is measured again"))
    assert reproduce(classifier.run_.path).weights_equal


def test_other_weights_are_seen(run):
    model, manifest = load_model(run.model)
    with torch.no_grad():
        next(model.parameters()).add_(0.25)
    save_model(run.model, model, manifest)
    result = reproduce(run.path)
    assert not result.weights_equal
    assert result.largest_difference == pytest.approx(0.25, abs=1e-6)
    assert not result.reproduced or result.different
    assert load_file(run.model).keys() == model.state_dict().keys()


def test_other_versions_are_named(run):
    model, manifest = load_model(run.model)
    older = type(manifest)(**{**vars(manifest), "versions": {**manifest.versions, "torch": "1.0"}})
    save_model(run.model, model, older)
    assert reproduce(run.path).different["torch"][0] == "1.0"


@pytest.mark.filterwarnings("ignore:1 of the files is gone")
def test_other_images_are_refused(run, photos):
    next(photos.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="photos is not what it was: put these images back"):
        reproduce(run.path)


def test_images_that_have_come_since_and_new_names_change_nothing(run, photos):
    (photos / "pink").mkdir()
    color_image("red", 99).save(photos / "pink" / "one.png")
    (photos / "red" / "05.png").rename(photos / "red" / "zz.png")
    assert reproduce("r").weights_equal


def test_another_start_is_refused(run):
    info = facts_of(run)
    info["weights"]["source"] = "from somewhere else"
    (run.path / INFO).write_text(json.dumps(info))
    assert open_run(run.path).info["weights"]["source"] == "from somewhere else"
    with pytest.raises(ConfigError, match="started from somewhere else, and now it would start from scratch"):
        reproduce(run.path)


@pytest.mark.parametrize(
    ("name", "then", "now", "n", "agrees"),
    [
        ("test accuracy", 0.9, 0.885, 1000, True),
        ("test accuracy", 0.9, 0.87, 1000, False),
        ("test accuracy", 0.9, 0.7, 10, True),
        ("test loss", 1.0, 1.09, 10, True),
        ("test loss", 1.0, 1.2, 10, False),
        ("test loss", 0.001, 0.009, 10, True),
    ],
)
def test_figures_agree_within_a_tolerance(name, then, now, n, agrees):
    assert Figure(name, then, now, n).agrees is agrees
