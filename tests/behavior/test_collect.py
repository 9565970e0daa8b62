"""The report of a run: from its folder, its model and its images; and the commands that write it."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import imgclf.estimator.recorder
from imgclf import Classifier
from imgclf.core.config import ModelConfig
from imgclf.core.errors import DataError
from imgclf.core.results import EpochRecord, History
from imgclf.evaluation.predictions import read_predictions
from imgclf.models.build import build_model
from imgclf.models.offline import have_offline_weights
from imgclf.report.collect import Known, gather, write_report
from imgclf.report.view import NextSteps
from imgclf.storage.run_folder import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    INFO,
    MODEL,
    PREDICTIONS,
    SPLIT,
    open_run,
    read_history,
    write_history,
)
from imgclf.training.checkpoint import PREVIOUS
from support.command_line import run

TINY = {"epochs": 2, "batch_size": 16}


def tell(folder, **changes):
    """Change what the `run.json` of a run says; None takes a key away."""
    info = {**json.loads((folder / INFO).read_text()), **changes}
    gone = [key for key in changes if key != "source" and changes[key] is None]
    (folder / INFO).write_text(json.dumps({key: value for key, value in info.items() if key not in gone}))


def next_steps(folder):
    return gather(open_run(Path(folder)), Known()).next_steps


def own_network(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.size[0] * spec.size[1], spec.classes))


class ConvolutionalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.classifier(images).mean((2, 3))


def text_of(path):
    html = path.read_text(encoding="utf-8")
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", "", re.sub(r"(?s)<(script|style).*?</\1>", "", html)))


@pytest.fixture
def trained(photos, in_folder):
    """A run on 60 photos in three folders, by the command."""
    result = run("train", photos, "--arch", "lenet", "--size", 16, "--epochs", 2, "--batch-size", 16, "--name", "one")
    assert result.exit_code == 0, result.stderr
    return in_folder / "runs" / "one", result


def test_training_ends_with_a_report(trained):
    folder, result = trained
    assert f"report: {'runs'}/one/report.html" in result.stdout
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert len(html) < 8_000_000
    text = text_of(folder / "report.html")
    predictions = read_predictions(folder / PREDICTIONS)
    right = int((predictions.predicted == predictions.targets).sum())
    assert f"{right} of {len(predictions)} held-out images were classified correctly" in text
    assert "imgclf reproduce runs/one" in text
    assert "imgclf train --config runs/one/config.toml" in text
    assert "kept: epoch" in text
    assert "Kernels of the first layer" in text
    cells = json.loads(re.search(r'(?s)id="cells">(.*?)</script>', html)[1])
    assert len(cells["pictures"]) == len(predictions)
    assert {ref for rows in cells["cells"].values() for _, _, ref in rows} == set(predictions.refs)


def test_what_commands_call_the_run_and_its_data_is_known(trained, photos):
    folder, _ = trained
    data = gather(open_run(folder), Known())
    assert data.next_steps.data == shlex.quote(str(photos))
    assert (data.info.members, data.offline) == ((), have_offline_weights())
    tell(folder, source=None, members=["runs/a b", "runs/c"])
    data = gather(open_run(folder), Known())
    assert (data.next_steps, data.info.members) == (NextSteps(), ("runs/a b", "runs/c"))
    tell(folder, source="mnist", members=[])
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace("[data]", '[data]\ndata_dir = "my sets"'))
    assert next_steps(folder).data == "mnist --data-dir 'my sets'"


def test_every_command_that_is_advised_can_run(trained, in_folder):
    folder, _ = trained
    told = next_steps("runs/one")
    assert told.evaluate == "imgclf evaluate --model runs/one"
    assert told.resume == "imgclf train --resume runs/one"
    assert told.longer == "imgclf train --resume runs/one --epochs 4"
    assert told.hold_out == "imgclf train --config runs/one/config.toml --split 70/15/15"
    assert told.curve.endswith("--config runs/one/config.toml --full")
    for command in (told.curve, told.hold_out, told.evaluate, told.longer):
        result = run(*shlex.split(command)[1:])
        assert result.exit_code == 0, result.stderr
    again = open_run(in_folder / "runs" / "photos-lenet-1")
    assert (again.info.arch, again.info.preprocess["size"]) == ("lenet", [16, 16])
    assert open_run(folder).info.epochs == 4


def test_with_a_limit_of_time_longer_is_twice_what_was_asked_for(trained):
    folder, _ = trained
    assert open_run(folder).info.minutes is None
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace("[train]", "[train]\nminutes = 0.7"))
    assert next_steps(folder).longer == ""  # a run of before this was kept
    tell(folder, minutes=3.0)
    assert next_steps("runs/one").longer == "imgclf train --config runs/one/config.toml --minutes 6 --epochs 4"


def test_what_cannot_run_is_not_advised(trained):
    folder, _ = trained
    whole, config = next_steps(folder), (folder / CONFIG).read_text()
    split = (folder / SPLIT).read_text()
    (folder / SPLIT).write_text(split.replace(",test,", ",valid,"))
    assert next_steps(folder) == replace(whole, curve="")
    (folder / SPLIT).write_text(split)
    for brought, hold_out, more_test in (
        (["train", "valid"], f"imgclf train --config {folder / CONFIG} --split 82/0/18", "67/0/33"),
        (["train", "test"], "", ""),
    ):
        tell(folder, given_parts=brought)
        assert next_steps(folder) == replace(whole, hold_out=hold_out, more_test=more_test)
    tell(folder, given_parts=[])
    (folder / CONFIG).write_text(f"split = [0.6, 0.1, 0.3]\n{config}")
    assert next_steps(folder) == replace(whole, more_test="")
    (folder / CONFIG).write_text(f"init = 'runs/other'\n{config}")
    assert next_steps(folder) == replace(whole, hold_out="", more_test="")
    (folder / CONFIG).write_text(re.sub("augment = .*", 'augment = "custom"', config))
    assert next_steps(folder) == replace(whole, hold_out="", curve="", more_test="")
    (folder / CONFIG).write_text(config)
    for file in (CHECKPOINT, PREVIOUS):
        (folder / file).unlink(missing_ok=True)
    assert next_steps(folder) == replace(whole, resume="", longer="")
    tell(folder, arch="my_network")
    assert next_steps(folder) == NextSteps(whole.data)
    assert gather(open_run(folder), Known()).commands == ()


def test_the_learning_curve_needs_published_weights_and_a_linear_head(trained):
    folder, _ = trained
    linear, other = build_model(ModelConfig("lenet", 3, 3, (16, 16))), ConvolutionalHead()
    for used, head, model, possible in (
        ("pretrained", "fresh", linear, True),
        ("pretrained", "fresh", other, False),
        ("file", "fresh", linear, False),
        ("file", "whole", linear, False),
    ):
        tell(folder, weights={"asked": "auto", "used": used, "source": "somewhere", "note": None, "head": head})
        command = gather(open_run(folder), Known(model)).next_steps.curve
        assert bool(command) == possible, (used, head)
        assert "--full" not in command


def test_of_an_ensemble_no_training_goes_on_and_all_of_it_is_trained_anew(trained):
    folder, _ = trained
    tell(folder, members=["runs/a", "runs/b"])
    told = next_steps("runs/one")
    assert (told.resume, told.longer) == ("", "")
    assert told.hold_out == "imgclf train --config runs/one/config.toml --ensemble 2 --split 70/15/15"


def test_a_network_of_ones_own_is_unknown_to_commands(photos, in_folder):
    classifier = Classifier(own_network, size=8).fit(photos, runs="runs", name="mine", **TINY)
    assert next_steps(classifier.run_.path) == NextSteps(shlex.quote(str(photos)))
    text = text_of(write_report(classifier.run_.path))
    assert "--resume" not in text
    assert "reproduce runs" not in text


def test_evaluation_and_the_command_write_it_again(trained, in_folder):
    folder, _ = trained
    page = folder / "report.html"
    first = page.read_bytes()
    page.unlink()
    assert "report: runs/one/report.html" in run("evaluate").stdout
    assert page.read_bytes() == first
    page.unlink()
    result = run("report")
    assert result.stdout == "runs/one/report.html\n"
    assert "run: runs/one" in result.stderr
    assert page.read_bytes() == first
    run("report", "one", "--out", "elsewhere.htm")
    assert (in_folder / "elsewhere.htm").read_bytes() == first
    page.unlink()
    run("evaluate", "--part", "train")
    assert not page.exists()


def test_predictions_that_were_not_kept_are_made_again(trained):
    folder, _ = trained
    before = text_of(folder / "report.html")
    (folder / PREDICTIONS).unlink()
    assert text_of(write_report("runs/one")) == before


def test_without_the_images_there_are_figures_but_no_pictures(trained, photos, in_folder):
    folder, _ = trained
    shutil.move(photos, in_folder / "elsewhere")
    text = text_of(write_report(folder))
    assert "The images were not found" in text
    assert "classified correctly" in text
    assert "no picture" in text
    (folder / PREDICTIONS).unlink()
    assert "no predictions yet" in text_of(write_report(folder))


def test_an_image_that_changed_is_not_shown(trained, photos):
    folder, _ = trained
    refs = read_predictions(folder / PREDICTIONS).refs
    (photos / refs[0]).write_bytes((photos / refs[1]).read_bytes())
    assert "1 image not shown: unreadable, or changed since" in text_of(write_report(folder))


def test_without_a_test_part_it_is_about_the_valid_images(photos, in_folder):
    classifier = Classifier("lenet", size=16, config={"split": (0.6, 0.4, 0.0)}).fit(photos, runs="runs", **TINY)
    text = text_of(write_report(classifier.run_.path))
    assert "There is no test part: the metrics are measured on validation images" in text
    assert "accuracy on 24 validation images" in text


def test_a_run_that_has_not_ended_shows_what_there_is(trained):
    folder, _ = trained
    for file in (MODEL, PREDICTIONS):
        (folder / file).unlink()
    info = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**info, "status": "failed"}))
    text = text_of(write_report(folder))
    assert "no predictions yet (failed)" in text
    assert f"Resume it: imgclf train --resume {folder}" in text
    assert "kept: epoch" in text
    (folder / HISTORY).unlink()
    assert "the first epoch has not finished" in text_of(write_report(folder))


def test_a_report_that_fails_is_a_warning_and_the_run_is_kept(photos, in_folder, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr(imgclf.estimator.recorder, "render", fail)
    result = run("train", photos, "--arch", "lenet", "--size", 16, "--epochs", 1, "--name", "two")
    assert result.exit_code == 0
    assert "the report is not written: no ink" in result.stderr
    assert "Traceback" not in result.stderr
    assert "model: runs/two/model.safetensors" in result.stdout
    assert "report:" not in result.stdout
    monkeypatch.setenv("IMGCLF_DEBUG", "1")
    assert "Traceback" in run("evaluate").stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("report",), "there is no finished run with an accuracy in"),
        (("report", "nowhere"), "nowhere not found"),
        (("report", "../photos"), "is not a run folder"),
    ],
)
def test_wrong_use_of_the_command(photos, in_folder, args, said):
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_nothing_is_written_over_photos_or_into_the_data(trained, photos):
    folder, _ = trained
    result = run("report", folder, "--out", photos / "red" / "00.png")
    assert result.exit_code == 2
    assert "expected the name of a file that ends in .html" in result.stderr
    with pytest.raises(DataError, match="never written to"):
        write_report(folder, photos / "report.html")


def test_the_history_comes_back_as_it_was_written(tmp_path):
    epochs = [
        EpochRecord(1, 2.5, 0.25, None, None, 0.1, 1.5, False),
        EpochRecord(2, 1.0, 0.5, 0.75, 0.8, 0.01, 1.25, True),
    ]
    write_history(tmp_path / HISTORY, epochs)
    assert read_history(tmp_path / HISTORY) == History(tuple(epochs))
    assert read_history(tmp_path / "none.csv") == History()
    (tmp_path / HISTORY).write_text("epoch,train_loss\n1,x\n")
    with pytest.raises(DataError, match=r"history\.csv cannot be read"):
        read_history(tmp_path / HISTORY)
