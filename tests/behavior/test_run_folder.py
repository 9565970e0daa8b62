"""What a run folder holds does not depend on whether Python or the command has trained."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import app
from imgclf.core.errors import ConfigError
from imgclf.storage.model_file import read_manifest
from imgclf.storage.run_folder import CHECKPOINT, INFO, MODEL, PREDICTIONS, REPORT, open_run, write_info
from imgclf.storage.run_list import entry_of

OPTIONS = ["--arch", "lenet", "--size", "16", "--device", "cpu", "--precision", "fp32", "--epochs", "2"]
CONFIG = {"train": {"device": "cpu", "precision": "fp32"}}
TIMES = ("created", "pid", "seconds", "train_seconds", "time", "began", "spent")


def made_twice(folder: Path, data: str) -> tuple[Path, Path]:
    """The folders of the same training, by Python and by the command."""
    Classifier("lenet", size=16, config=CONFIG).fit(data, epochs=2, runs=folder / "python", name="run")
    result = CliRunner().invoke(app, ["train", data, *OPTIONS, "--runs", str(folder / "command"), "--name", "run"])
    assert result.exit_code == 0, result.stderr
    return folder / "python" / "run", folder / "command" / "run"


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def timeless(value):
    """Plain values without those that tell of a time or a process."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    return value


def content(path: Path) -> object:
    """What a file says, but for times and the process that wrote it."""
    if path.name == "checkpoint.pt" or path.name == "checkpoint-previous.pt":
        state = torch.load(path, weights_only=True)
        return {name: tensor.numpy().tobytes() for name, tensor in state["model"].items()}
    if path.suffix == ".safetensors":
        tensors = {name: array.tobytes() for name, array in load_file(path).items()}
        return tensors, timeless(vars(read_manifest(path))) if path.name == MODEL else None
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "history.csv":
        return [line.split(",")[:6] for line in path.read_text().splitlines()]  # the seconds come after
    if path.suffix in (".toml", ".csv", ".png"):
        return path.read_bytes()
    return path.name  # the lock, and the report, which names the folder and the time


@pytest.mark.parametrize("kind", ["photos", "digits"])
def test_a_run_made_in_python_holds_what_one_made_by_the_command_holds(photos, in_folder, kind):
    python, command = (files(folder) for folder in made_twice(in_folder, str(photos) if kind == "photos" else kind))
    assert python.keys() == command.keys()
    assert {MODEL, PREDICTIONS, REPORT} < python.keys()
    assert any(name.startswith("samples/") for name in python) == (kind == "digits")
    for name, path in python.items():
        assert content(path) == content(command[name]), name
    for path in (python[REPORT], command[REPORT]):
        assert "classified correctly" in path.read_text() or "accuracy" in path.read_text().lower()


def test_with_a_run_folder_fit_tests_once(photos, in_folder, monkeypatch):
    classifier = Classifier("lenet", size=16, config=CONFIG).fit(photos, epochs=1, runs="runs")
    told = classifier.metrics_["test"]
    monkeypatch.setattr(Classifier, "predictions_of", lambda *_, **__: pytest.fail("it is tested again"))
    assert classifier.evaluate() is told
    assert open_run(classifier.run_.path).info.metrics["test"]["accuracy"] == told.accuracy
    assert read_manifest(classifier.run_.model).metrics["test"]["accuracy"] == told.accuracy


def test_without_a_run_folder_fit_neither_tests_nor_writes(photos, in_folder):
    classifier = Classifier("lenet", size=16, config=CONFIG).fit(photos, epochs=1)
    assert list(classifier.metrics_) == list(classifier.predictions_) == ["valid"]
    assert list(in_folder.iterdir()) == []
    assert classifier.evaluate().n == 9


def test_a_resumed_run_is_tested_again(photos, in_folder):
    first = Classifier("lenet", size=16, config=CONFIG).fit(photos, epochs=1, runs="runs", name="one")
    again = Classifier().resume("one", epochs=3)
    assert open_run(first.run_.path).info.metrics["test"]["loss"] == again.metrics_["test"].loss
    assert again.metrics_["test"].loss != first.metrics_["test"].loss
    with pytest.raises(ConfigError, match=r"has finished 3 epochs; train more with --epochs N$"):
        Classifier().resume("one")


def test_a_run_that_went_on_in_python_says_nothing_of_before(photos, in_folder):
    config = {"train": {"epochs": 1, "batch_size": 16}, "data": {"cache": "off"}}
    run = Classifier("lenet", size=16, config=config).fit(photos, runs="runs", name="one").run_
    write_info(run, metrics={"test": {"accuracy": 0.123, "n": 9}}, seconds=987.0)
    assert entry_of(open_run(run.path)).accuracy == 0.123
    classifier = Classifier().resume(run.path, epochs=2)
    found, test = entry_of(open_run(run.path)), classifier.metrics_["test"]
    assert found.seconds == pytest.approx(987 + classifier.run_.info.seconds, abs=0.01)
    assert (found.part, found.n, found.accuracy) == ("test", test.n, test.accuracy)


def test_the_seconds_of_a_run_that_was_killed_are_those_of_its_training(photos, in_folder):
    config = {"train": {"epochs": 1, "batch_size": 16, "device": "cpu"}, "data": {"cache": "off"}}
    run = Classifier("lenet", size=16, config=config).fit(photos, runs="runs", name="one").run_
    (run.path / INFO).write_text(json.dumps({**asdict(run.info), "seconds": None}))
    assert entry_of(open_run(run.path)).seconds is None
    state = torch.load(run.path / CHECKPOINT, weights_only=True)
    assert state["spent"] > 0
    for epochs in (2, 3):
        before = entry_of(open_run(run.path)).seconds or round(state["spent"], 3)
        classifier = Classifier().resume(run.path, epochs=epochs)
        found = entry_of(open_run(run.path))
        assert found.seconds == pytest.approx(before + classifier.run_.info.seconds, abs=0.01)
