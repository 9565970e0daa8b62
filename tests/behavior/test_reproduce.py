"""A run that is trained again is compared with itself."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from imgclf import Classifier
from imgclf.core.errors import ConfigError, DataError
from imgclf.storage.model_file import load_model, save_model
from imgclf.storage.run_folder import INFO, find_run, write_info
from imgclf.studies.reproduce import Metric, Reproduction, reproduce
from support.command_line import done
from support.command_line import run as command
from support.photos import color_image, copy_of_world, save_photos

CONFIG = {"train": {"precision": "fp32", "device": "cpu", "lr": 0.003}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with photos and a small run that was tested and saved."""
    folder = tmp_path_factory.mktemp("world")
    classifier = Classifier("lenet", size=16, config=CONFIG)
    classifier.fit(save_photos(folder / "photos"), epochs=1, batch_size=16, runs=folder / "runs", name="r")
    classifier.evaluate()
    classifier.save(classifier.run_.model)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """The test runs in a copy of it."""
    monkeypatch.chdir(copy_of_world(world, tmp_path / "here"))


@pytest.fixture
def run(here):
    return find_run("r")


def test_the_same_machine_gives_the_same_bits(run):
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    result = reproduce(run.path)
    assert result.weights_equal
    assert result.reproduced
    assert result.largest_difference == 0
    assert {metric.name for metric in result.metrics} == {
        f"{a} {b}" for a in ("test", "valid") for b in ("accuracy", "loss")
    }
    assert all(metric.then == metric.now for metric in result.metrics)
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
    assert not result.reproduced or result.environment
    assert load_file(run.model).keys() == model.state_dict().keys()


def test_other_versions_are_named(run):
    model, manifest = load_model(run.model)
    older = type(manifest)(**{**vars(manifest), "versions": {**manifest.versions, "torch": "1.0"}})
    save_model(run.model, model, older)
    assert reproduce(run.path).environment["torch"][0] == "1.0"


def test_the_command_shows_what_differs(run):
    assert "weights: equal to the bit" in done("reproduce", "r").stdout
    model, manifest = load_model(run.model)
    with torch.no_grad():
        next(model.parameters()).add_(0.25)
    save_model(run.model, model, manifest)
    result = command("reproduce", "r")
    assert result.exit_code == 1
    assert "weights: different, by 0.25 at most" in result.stdout
    assert result.stdout.endswith("not reproduced\n")
    save_model(run.model, model, replace(manifest, versions={**manifest.versions, "torch": "1.0"}))
    elsewhere = done("reproduce", "r").stdout
    assert re.search(r"torch +1\.0", elsewhere)
    assert elsewhere.endswith("\nreproduced\n")


def test_a_run_that_has_not_ended_is_not_reproduced(run):
    write_info(run, status="interrupted")
    result = command("reproduce", "r")
    assert result.exit_code == 2
    assert "finish it first with imgclf train --resume runs/r" in " ".join(result.stderr.split())


def test_a_run_that_was_resumed_to_more_epochs_says_why_it_differs(run, monkeypatch):
    found = Reproduction("r", False, 0.5, (Metric("accuracy", 0.5, 0.4, 10),), {}, extended=True)
    monkeypatch.setattr("imgclf.studies.reproduce.reproduce", lambda *_, **__: found)
    shown = command("reproduce", "r").stdout
    assert "the run was resumed to more epochs than planned: training without a break differs\n" in shown


@pytest.mark.filterwarnings("ignore:1 file missing")
def test_other_images_are_refused(run):
    os.remove("photos/red/05.png")
    with pytest.raises(DataError, match="photos has changed since then: restore these images"):
        reproduce(run.path)


@pytest.mark.usefixtures("here")
def test_images_that_have_come_since_and_new_names_change_nothing():
    os.mkdir("photos/pink")
    color_image("red", 99).save("photos/pink/one.png")
    os.rename("photos/red/05.png", "photos/red/zz.png")
    assert reproduce("r").weights_equal


def test_another_start_is_refused(run):
    info = json.loads((run.path / INFO).read_text())
    info["weights"]["source"] = "from somewhere else"
    (run.path / INFO).write_text(json.dumps(info))
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
def test_metrics_agree_within_a_tolerance(name, then, now, n, agrees):
    assert Metric(name, then, now, n).agrees is agrees
