"""The command line: what it answers with, where, and how it ends."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console

import imgclf
from imgclf.__main__ import main as entry_point
from imgclf.cli import COLLECT_AFTER, app
from imgclf.cli import _console as console
from imgclf.cli._console import say_list, show_table
from imgclf.cli._inputs import expand
from imgclf.cli._results import show_evaluation
from imgclf.cli._streams import Stream
from imgclf.cli._training import TrainView
from imgclf.core.config import TrainConfig
from imgclf.core.errors import DataError
from imgclf.core.registry import CALLED_ELSEWHERE
from imgclf.core.results import EpochRecord, History, Prediction
from imgclf.core.text import plural
from imgclf.data.sources.folder import FileReader
from imgclf.data.sources.inputs import InputReader
from imgclf.data.split import read_split
from imgclf.evaluation.intervals import evaluation_intervals
from imgclf.evaluation.metrics import evaluate_logits
from imgclf.evaluation.predictions import Predictions
from imgclf.storage.model_file import load_model, read_manifest
from imgclf.studies.dry_run import DryRun
from imgclf.training.events import StepEnded, TrainingEnded
from support.command_line import answer, done, run
from support.photos import COLORS, color_image, contents, copy_of_world

CHOSEN = "model: runs/{}/model.safetensors (lenet, 3 classes: blue, green, red; newest finished run)\n"
TINY = ("--arch", "lenet", "--size", "16", "--epochs", "2", "--batch-size", "16", "--precision", "fp32")
EVALUATION_KEYS = {
    *("n", "loss", "accuracy", "top5", "balanced_accuracy", "macro_f1"),
    *("per_class", "confusion", "intervals", "calibration"),
}


def rows(*args, stdin=None):
    return [json.loads(line) for line in done("predict", *args, "--json", stdin=stdin).stdout.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _signals():
    """`train` handles SIGTERM; the tests of other files must not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_command_seldom_looks_for_garbage_and_not_at_its_end():
    code = (
        "import atexit, gc, sys; sys.argv = ['imgclf', '--version'];"
        "atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0));"
        "from imgclf.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == f"imgclf {imgclf.__version__}\n{COLLECT_AFTER} True\n"


def test_training_answers_with_one_json_line(world):
    root, result = world
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    summary = json.loads(line)
    assert set(summary) >= {"run", "model", "arch", "classes", "epochs", "seconds", "valid", "test"}
    assert summary["run"] == "runs/photos-lenet-1"
    assert summary["model"] == "runs/photos-lenet-1/model.safetensors"
    assert (root / summary["model"]).is_file()
    assert (summary["arch"], summary["classes"], summary["epochs"]) == ("lenet", ["blue", "green", "red"], 12)
    assert set(summary["seconds"]) >= {"total", "train"}
    assert set(summary["valid"]) >= EVALUATION_KEYS
    assert summary["test"]["n"] == 9
    assert summary["test"]["accuracy"] == 1.0


def test_progress_is_on_stderr(world):
    _, result = world
    lines = result.stderr.splitlines()
    assert "data:  photos: 60 images, 3 classes (blue, green, red)" in lines
    assert "split: train 42, valid 9, test 9" in lines
    table = lines[next(i for i, line in enumerate(lines) if line.startswith(" epoch")) + 1 :]
    assert [int(line[:6]) for line in table[:12]] == list(range(1, 13))
    assert table[0].endswith("  saved")
    assert max(map(len, table[:12])) <= 80
    assert "\x1b" not in result.stderr


def test_without_json_the_result_is_a_report_for_people(here):
    result = done("train", "photos", *TINY, "--epochs", "8", "--augment", "none", "--name", "mine")
    assert "test: 9 images held out" in result.stdout
    assert "run:   runs/mine " in result.stdout
    assert "model: runs/mine/model.safetensors\ndefault: this run (newest finished run)\n" in result.stdout
    *_, last = result.stdout.splitlines()
    assert last.startswith("next:  imgclf predict photos/")
    assert "kept:  epoch " in result.stderr
    assert "kept:  epoch " not in result.stdout
    done(*last.split()[2:])


def test_the_files_of_a_run(world):
    folder = world[0] / "runs" / "photos-lenet-1"
    found = {path.name for path in folder.iterdir()}
    assert found - {"checkpoint-previous.pt"} == {  # which is there if the state was written twice
        *("model.safetensors", "config.toml", "split.csv", "history.csv", "events.jsonl", "run.json"),
        *("checkpoint.pt", ".lock", "predictions.safetensors", "report.html"),
    }
    summary = json.loads(world[1].stdout)
    assert summary.pop("report") == str(Path("runs", "photos-lenet-1", "report.html"))
    info = json.loads((folder / "run.json").read_text())
    assert info["metrics"] == {part: summary[part] for part in ("valid", "test")}
    assert {"total": info["seconds"], "train": info["train_seconds"]} == summary["seconds"]
    told = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    assert {event["part"]: event["accuracy"] for event in told if event["event"] == "tested"} == {
        part: summary[part]["accuracy"] for part in ("valid", "test")
    }
    metrics = read_manifest(folder).metrics
    assert {part: metrics[part]["loss"] for part in metrics} == {
        part: summary[part]["loss"] for part in ("valid", "test")
    }


def test_evaluate_gives_the_test_result_of_training(here, world):
    result = answer("evaluate")
    assert set(result) >= EVALUATION_KEYS
    assert result == json.loads(world[1].stdout)["test"]
    assert result["top5"] is None
    assert set(result["per_class"][0]) == {"class", "precision", "recall", "f1", "support"}
    totals = [sum(result["confusion"][row["class"]].values()) for row in result["per_class"]]
    assert totals == [row["support"] for row in result["per_class"]] == [3, 3, 3]


def test_evaluate_other_images(here):
    for name in ("red", "green"):
        (here / "more" / name).mkdir(parents=True)
        color_image(name, 50).save(here / "more" / name / "a.png")
    assert answer("evaluate", "more")["n"] == 2
    assert answer("evaluate", "photos")["n"] == 9
    assert answer("evaluate", "photos", "--part", "all")["n"] == 60
    shown = done("evaluate", "photos", "--model", "runs/photos-lenet-1")
    assert "51 images left out" in shown.stderr
    assert "photos: 9 images\naccuracy 100.0% (9 of 9)" in shown.stdout
    assert "true ↓  predicted →" in shown.stdout


def test_values_far_beyond_those_of_training_are_said(here):
    for name in ("red", "green"):
        (here / "deep" / name).mkdir(parents=True)
        values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000 + len(name)
        Image.fromarray(values).save(here / "deep" / name / "a.png")
    for command in ("evaluate", "predict"):
        far = "! 2 images hold values of 3 to 63005, but training saw 0 to 255: predictions may be wrong\n"
        assert far in done(command, "deep").stderr
        assert "training saw" not in done(command, "photos").stderr


def test_predict_takes_files_folders_globs_and_lists(here):
    folder = [f"photos/red/{index:02d}.png" for index in range(20)]
    assert [row["path"] for row in rows("photos/red")] == folder
    assert [row["path"] for row in rows("photos/red/1*.png")] == folder[10:]
    (here / "photos" / "red" / "a*b.png").write_bytes((here / "photos" / "red" / "00.png").read_bytes())
    assert [row["path"] for row in rows("photos/red/a*b.png")] == ["photos/red/a*b.png"]
    assert [row["path"] for row in rows("photos/blue/00.png", "photos/red/01.png")] == [
        "photos/blue/00.png",
        "photos/red/01.png",
    ]
    assert [row["path"] for row in rows("-", stdin="photos/red/03.png\r\n\nphotos/blue/04.png")] == [
        "photos/red/03.png",
        "photos/blue/04.png",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_on_stdin_may_begin_with_a_mark(encoding, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é 1.png\r\n\r\n2.png".encode(encoding))))
    assert list(expand(["a.png", "-", "b.png"])) == ["a.png", "é 1.png", "2.png", "b.png"]


def test_globs_and_lists_come_in_natural_order(tmp_path, monkeypatch, capsys):
    names = ["IMG_2.png", "IMG_10.png", "IMG_100.png"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert list(expand(["*.png"])) == names
    with pytest.raises(DataError, match=r"no file matches '\*\.gif'"):
        list(expand(["*.gif"]))
    say_list([*names[::-1], "img_3.png", "x", "y"])
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [*names, "img_3.png", "x", "…"]


def test_the_rows_of_predict(here):
    (row,) = rows("photos/red/00.png")
    assert set(row) >= {"path", "label", "confidence", "top", "error"}
    assert (row["label"], row["error"]) == ("red", None)
    assert row["top"][0] == {"label": "red", "confidence": row["confidence"]}
    assert len(row["top"]) == 3
    (row,) = rows("photos/red/00.png", "--top", "2")
    assert len(row["top"]) == 2


def test_evaluate_says_that_images_are_those_of_training_or_validation(here):
    valid = [sample for sample in read_split(Path("runs/photos-lenet-1/split.csv")) if sample.split == "valid"]
    for sample in valid:
        Path("elsewhere", sample.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("photos", sample.ref), Path("elsewhere", sample.label))
    result = run("evaluate", "elsewhere")
    assert result.exit_code == 2
    assert "nothing to test on but validation images of this model; --part all uses them anyway" in result.stderr
    told = done("evaluate", "elsewhere", "--part", "all").stderr
    assert f"{len(valid)} of {len(valid)} images are training or validation images of this model" in told


def test_predict_shows_a_table_and_says_which_model(here):
    result = done("predict", "photos/red/00.png")
    assert result.stderr == CHOSEN.format("photos-lenet-1")
    header, line = result.stdout.splitlines()
    assert header.split() == ["image", "class", "confidence", "runners-up"]
    assert line.split()[:2] == ["photos/red/00.png", "red"]
    header, line = done("predict", "photos/red/00.png", "--top", "1").stdout.splitlines()
    assert header.split() == ["image", "class", "confidence"]
    assert len(line.split()) == 3


def test_a_bad_image_is_a_row_and_the_others_are_predicted(here):
    (here / "bad.png").write_bytes(b"no image")
    result = run("predict", "photos/red/00.png", "bad.png", "gone.png", "photos/blue/00.png", "--json")
    assert result.exit_code == 1
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["label"] for row in answers] == ["red", None, None, "blue"]
    assert [row["error"] is None for row in answers] == [True, False, False, True]
    assert answers[1]["top"] == []
    assert "2 of 4 inputs could not be read" in result.stderr
    table = run("predict", "bad.png", "photos/red/00.png")
    assert table.exit_code == 1
    assert len(table.stdout.splitlines()) == 3


def test_predictions_as_a_table_file(here):
    (here / "bad.png").write_bytes(b"no image")
    shutil.copy(here / "photos" / "red" / "00.png", here / "=cmd|'-C calc'!A0.png")
    result = run("predict", "=cmd|'-C calc'!A0.png", "bad.png", "--csv", "out.csv", "--top", "9")
    assert result.exit_code == 1
    assert result.stdout == ""
    header, good, bad = csv.reader(io.StringIO((here / "out.csv").read_text()))
    assert header == ["path", "label", "confidence", "label2", "confidence2", "label3", "confidence3", "error"]
    assert good[:2] == ["'=cmd|'-C calc'!A0.png", "red"]
    assert good[-1] == ""
    assert bad[:-1] == ["bad.png", *[""] * 6]
    assert bad[-1]


def test_two_trainings_get_two_names_and_the_newest_is_used(here):
    summary = answer("train", "photos", *TINY)
    assert summary["run"] == "runs/photos-lenet-2"
    assert done("predict", "photos/red/00.png").stderr == CHOSEN.format("photos-lenet-2")
    older = rows("photos/red/00.png", "--model", "runs/photos-lenet-1")
    assert older != rows("photos/red/00.png")


def test_training_goes_on(here):
    summary = answer("train", "--resume", "runs/photos-lenet-1", "--epochs", "13")
    assert (summary["run"], summary["epochs"]) == ("runs/photos-lenet-1", 13)
    assert [path.name for path in (here / "runs").iterdir()] == ["photos-lenet-1"]


def test_a_damaged_state_is_named_where_training_goes_on_from_the_one_before(here):
    (here / "runs" / "photos-lenet-1" / "checkpoint.pt").write_bytes(b"PK")
    said = done("train", "--resume", "runs/photos-lenet-1", "--epochs", "13").stderr
    assert "! runs/photos-lenet-1/checkpoint.pt is damaged" in said
    assert "continuing after epoch 1\n" in said


def test_training_by_a_config_does_it_again(here):
    summary = answer("train", "--config", "runs/photos-lenet-1/config.toml", "--runs", "again", "--name", "second")
    assert summary["run"] == "again/second"
    first, _ = load_model("runs/photos-lenet-1")
    second, _ = load_model("again/second")
    assert all((one == two).all() for one, two in zip(first.parameters(), second.parameters(), strict=True))
    changed = answer("train", "--config", "runs/photos-lenet-1/config.toml", "--epochs", "1", "--nesterov")
    assert changed["epochs"] == 1


def test_a_split_is_followed(here):
    before = Path("runs/photos-lenet-1/split.csv")
    color_image("red", 60).save(here / "photos" / "red" / "new.png")
    answer("train", "photos", *TINY, "--seed", "7", "--split", before)
    now = {row.ref: row.split for row in read_split("runs/photos-lenet-2/split.csv")}
    assert {ref: split for ref, split in now.items() if ref != "red/new.png"} == {
        row.ref: row.split for row in read_split(before)
    }
    assert now["red/new.png"] in ("train", "valid", "test")
    answer("train", "photos", *TINY, "--split", "50/25/25")
    shares = [row.split for row in read_split("runs/photos-lenet-3/split.csv")]
    assert shares.count("train") == 31


def test_a_few_bad_images_are_left_out_and_named(here):
    (here / "photos" / "red" / "bad.png").write_bytes(b"no image")
    result = done("train", "photos", *TINY)
    assert "! 1 image can't be read and will be left out:" in result.stderr
    assert "red/bad.png: " in result.stderr
    said = done("evaluate", "photos", "--part", "all").stderr
    assert "! 1 image could not be read, left out of the metrics:" in said
    for index in range(9):
        (here / "photos" / "red" / f"bad{index}.png").write_bytes(b"no image")
    assert done("train", "photos", *TINY, "--allow-unreadable", "20%").exit_code == 0


def test_models_by_name(in_folder):
    listed = answer("models", "small_resnet")
    assert [set(model) for model in listed] == [{"name", "params", "size", "channels", "weights"}] * len(listed)
    assert "small_resnet18" in {model["name"] for model in listed}
    (lenet,) = answer("models", "lenet")
    assert lenet == {"name": "lenet", "params": 44426, "size": [28, 28], "channels": 1, "weights": None}
    assert len(answer("models")) > 1000
    assert "(28 - 5 + 2*0)/1 + 1 = 24" in done("models", "lenet").stdout
    assert "input 3×32×48" in done("models", "lenet", "--size", "32x48", "--channels", "3").stdout
    table = done("models", "small_vgg*")
    assert table.stdout.splitlines()[0].split() == ["name", "parameters", "size", "channels", "pretrained", "weights"]
    assert table.stderr.endswith("networks\n")
    assert list(in_folder.iterdir()) == []


def test_pictures_to_look_at(here):
    (here / "mine").mkdir()
    for args, name in (
        (("photos",), "photos.png"),
        (("photos", "--augmented", "--size", "16", "-n", "5"), "photos-augmented.png"),
        (("--channels", "photos/red/00.png"), "00-channels.png"),
        (("photos", "--out", "mine/grid.png", "-n", "2"), "mine/grid.png"),
    ):
        assert done("show", *args).stdout == f"{name}\n"
        with Image.open(here / name) as picture:
            assert min(picture.size) > 100


def test_a_prepared_copy(here):
    (here / "photos" / "red" / "bad.png").write_bytes(b"no image")
    before = contents(here / "photos")
    result = run("prepare", "photos", "out", "--size", "8x12", "--format", "png")
    assert result.exit_code == 1
    assert result.stdout == "60 images of 8×12 in out\n"
    assert "! 1 image can't be read and will be left out:\n" in result.stderr
    assert "red/bad.png: " in result.stderr
    assert contents(here / "photos") == before
    assert {path.relative_to("out").parts[0] for path in Path("out").rglob("*.png")} == set(COLORS)
    with Image.open("out/red/00.png") as image:
        assert image.size == (12, 8)
    assert answer("evaluate", "out")["n"] == 60


@pytest.fixture(scope="module")
def odd_folder(world, tmp_path_factory):
    """Data that cannot be used, in several ways."""
    root = copy_of_world(world.root, tmp_path_factory.mktemp("odd") / "here")
    (root / "one" / "red").mkdir(parents=True)
    for name in ("a", "b"):
        shutil.copy(root / "photos/red/00.png", root / f"one/red/{name}.png")
    for name, count in (("broken", 4), ("nearly", 1)):
        shutil.copytree(root / "photos", root / name)
        for index in range(count):
            (root / name / "red" / f"{index:02d}.png").write_bytes(b"no image")
    (root / "empty").mkdir()
    (root / "wrong.toml").write_text("archs = 'lenet'\n")
    (root / "bad.safetensors").write_bytes(b"this is no model file at all")
    return root


@pytest.fixture
def odd(odd_folder, monkeypatch):
    monkeypatch.chdir(odd_folder)
    return odd_folder


WRONG_USE = [
    (("train",), "there is nothing to train on"),
    (("train", "digit"), "did you mean digits?"),
    (("train", "photos/red/00.png"), "is a file; expected a folder"),
    (("train", "photos/red"), "expected one sub-folder of images per class"),
    (("train", "one"), "at least 2 classes are needed"),
    (("train", "broken", *TINY), "--allow-unreadable 7%"),
    (("train", "nearly", *TINY, "--on-unreadable", "error"), "red/00.png"),
    (("train", "photos", "--arch", "lennet"), "did you mean lenet"),
    (("train", "photos", *TINY, "--optimizer", "sdg"), "allowed: sgd, adam, adamw"),
    (("train", "photos", *TINY, "--epochs", "0"), "0 epochs are a probe alone"),
    (("train", "photos", *TINY, "--epochs", "many"), "expected a whole number; got 'many'"),
    (("train", "photos", *TINY, "--size", "0x3"), "size is '0x3'"),
    (("train", "photos", *TINY, "--split", "50/40"), "allowed: TRAIN/VALID/TEST"),
    (("train", "photos", *TINY, "--split", "nothing.csv"), "there is no such file"),
    (("train", "photos", *TINY, "--allow-unreadable", "lots"), "as in 10% or 0.1"),
    (("train", "photos", *TINY, "--dropout", "2"), "dropout is 2.0"),
    (("train", "photos", *TINY, "--device", "cuda:99"), "device is 'cuda:99'"),
    (("train", "photos", *TINY, "--weights", "pretrained"), "lenet"),
    (("train", "photos", *TINY, "--recipe", "digit"), "did you mean digits"),
    (("train", "photos", *TINY, "--config", "nothing.toml"), "nothing.toml cannot be read"),
    (("train", "photos", *TINY, "--config", "wrong.toml"), "unknown option 'archs'; did you mean arch"),
    (("train", "photos", *TINY, "--name", "photos-lenet-1"), "already exists; choose another --name"),
    (("train", "photos", *TINY, "--name", "a/b"), "allowed: the name of a folder"),
    (("train", "--resume", "photos"), "is not a run folder"),
    (("train", "--resume", "runs/photos-lenet-1", "--lr", "1", "--nesterov"), "not --lr, --nesterov"),
    (("train", "photos", "--resume", "runs/photos-lenet-1"), "not DATA"),
    (("evaluate", "--part", "dev"), "part is 'dev'"),
    (("evaluate", "one", "--part", "test"), "has no images in its part 'test'"),
    (("predict", "photos", "--model", "bad.safetensors"), "is not a safetensors file"),
    (("predict", "photos", "--device", "cuda:99"), "device is 'cuda:99'"),
    (("predict", "-"), "no images to predict"),
    (("predict", "photos", "--top", "0"), "top"),
    (("models", "lennet"), "did you mean lenet"),
    (("models", "timm:nothing"), "nothing"),
    (("show", "photos", "--channels", "photos/red/00.png"), "either DATA or --channels"),
    (("show", "--channels", "wrong.toml"), "wrong.toml"),
    (("prepare", "photos", "empty"), "already exists"),
    (("prepare", "photos", "photos/inside"), "never written to"),
    (("prepare", "photos", "out", "--format", "gif"), "--format is 'gif'; allowed: jpg, png"),
    (("prepare", "photos", "out", "--resize-mode", "stretch"), "allowed: crop, pad, squash"),
]


@pytest.mark.parametrize(("args", "message"), WRONG_USE, ids=[" ".join((args[0], *args[-2:])) for args, _ in WRONG_USE])
def test_wrong_use_ends_with_2_and_changes_nothing(odd, args, message):
    before = contents(odd)
    result = run(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert contents(odd) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "photos", "--val", "x"), "No such option: --val; did you mean --split?"),
        (("train", "--data", "photos"), "No such option: --data; DATA goes without one: imgclf train DATA"),
        (("predict", "a.png", "--weights", "x"), "--weights; did you mean --model?"),
        (("cache", "list", "--jsn"), "--jsn; did you mean --json?"),
    ],
)
def test_an_option_that_there_is_not_is_answered_with_the_one_that_is_meant(in_folder, args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_only_options_that_there_are_are_meant():
    commands = typer.main.get_command(app).commands.values()
    there = {param.opts[0] for command in commands for param in command.params} | {"DATA", "IMAGES"}
    assert {ours if ours.isupper() else f"--{ours}" for ours in CALLED_ELSEWHERE} <= there


IMAGE = "photos/red/00.png"
LONG = 300 * "x"
PLACES = [
    (("predict", IMAGE, "--csv", "notes.csv"), "notes.csv already exists"),
    (("predict", IMAGE, "--csv", "folder.csv"), "'folder.csv', a folder"),
    (("predict", IMAGE, "--csv", "notes.csv/a.csv"), "notes.csv: Not a directory"),
    (("predict", IMAGE, "--csv", f"{LONG}.csv"), "File name too long"),
    (("predict", IMAGE, "--csv", "none/x/a.csv"), "there is no folder 'none/x': make it, or name another place"),
    (("predict", IMAGE, "--csv", "photos/a.csv"), "lies inside the data"),
    (("predict", "other/one/00.png", "--csv", "other/a.csv"), "lies inside the data"),
    (("predict", "other/one", "--csv", "other/one/a.csv"), "lies inside the data"),
    (("explain", "other/one/00.png", "--out", "other/maps"), "other/maps lies inside the data"),
    (("explain", IMAGE, "--out", "notes.csv/new"), "Not a directory"),
    (("show", "photos", "--out", "none/a.png"), "there is no folder 'none'"),
    (("show", "photos", "--out", "old.png"), "old.png already exists"),
    (("show", "photos", "--out", "photos"), "lies inside the data"),
    (("show", "--channels", "other/one/00.png", "--out", "other/one"), "lies inside the data"),
    (("show", "--channels", "old.png", "--out", "old.png", "--force"), "lies inside the data"),
    (("find-lr", "photos", "--out", "old.png"), "old.png already exists"),
    (("find-lr", "photos", "--out", "notes.csv/a.png"), "Not a directory"),
    (("learning-curve", "photos", "--out", "old.png"), "old.png already exists"),
    (("learning-curve", "photos", "--out", "photos/a.png"), "lies inside the data"),
    (("compare", *2 * ("photos-lenet-1",), "--picture", "old.png"), "old.png already exists"),
    (("compare", *2 * ("photos-lenet-1",), "--picture", "photos/a.png"), "lies inside the data"),
    (("compare", *2 * ("photos-lenet-1",), "--picture", "none/a.png"), "there is no folder 'none'"),
    (("report", "photos-lenet-1", "--out", "none/a.html"), "there is no folder 'none'"),
    (("report", "photos-lenet-1", "--out", "old.html"), "old.html already exists"),
    (("report", "photos-lenet-1", "--out", "photos/a.html"), "lies inside the data"),
    (("train", "photos", "--runs", "notes.csv"), "notes.csv: Not a directory"),
    (("train", "photos", "--name", LONG), "has 300 bytes"),
    (("train", "photos", "--track", "tensorboard=photos/log"), "photos/log lies inside the data"),
    (("tune", "photos", "--runs", "notes.csv/runs"), "Not a directory"),
    (("tune", "photos", "--runs", "photos"), "lies inside the data"),
    (("prepare", "photos", "notes.csv/out"), "Not a directory"),
    (("prepare", "photos", "notes.csv"), "already exists"),
]


@pytest.fixture(scope="module")
def taken_folder(world, tmp_path_factory):
    """Files that are in the way of commands."""
    root = copy_of_world(world.root, tmp_path_factory.mktemp("taken") / "here")
    for name in ("notes.csv", "old.png", "old.html"):
        (root / name).write_text("mine")
    (root / "folder.csv").mkdir()
    for name in ("one", "two"):
        shutil.copytree(root / "photos/red", root / "other" / name)
    return root


@pytest.fixture
def taken(taken_folder, monkeypatch):
    """That folder; the commands are not to look at any image."""
    monkeypatch.chdir(taken_folder)

    def look(self, *_):
        raise AssertionError("the work began")

    for reader, method in itertools.product((FileReader, InputReader), ("open", "digest")):
        monkeypatch.setattr(reader, method, look)
    return taken_folder


@pytest.mark.parametrize(("args", "message"), PLACES, ids=[" ".join((a[0], *a[-2:]))[:60] for a, _ in PLACES])
def test_a_place_that_is_taken_or_none_is_refused_before_the_work(taken, args, message):
    before = contents(taken)
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert contents(taken) == before


def test_a_labels_file_that_was_trained_on_is_never_replaced(here):
    images = sorted(Path("photos").rglob("*.png"))
    Path("labels.csv").write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in images))
    before = Path("labels.csv").read_bytes()
    info = Path("runs/photos-lenet-1/run.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "source": "labels.csv"}))
    assert run("predict", IMAGE, "--csv", "labels.csv", "--force").exit_code == 2
    assert run("show", "labels.csv", "--out", IMAGE, "--force").exit_code == 2
    assert Path("labels.csv").read_bytes() == before


def test_a_file_is_replaced_by_force_alone_and_a_name_that_was_not_given_is_a_free_one(here):
    Path("photos.png").write_text("mine")
    assert done("show", "photos/red/..", "-n", "1").stdout == "photos-2.png\n"
    assert Path("photos.png").read_text() == "mine"
    done("show", "photos", "-n", "1", "--out", "photos.png", "--force")
    with Image.open("photos.png") as picture:
        assert picture.format == "PNG"
    Path("out.csv").write_text("mine")
    done("predict", IMAGE, "--csv", "out.csv", "--force")
    assert Path("out.csv").read_text().startswith("path,label")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_without_any_run_the_next_step_is_said(in_folder, command):
    result = run(command, *(["x.png"] if command == "predict" else []))
    assert result.exit_code == 2
    assert "train one (imgclf train DATA), or name a run or a model file" in result.stderr
    assert list(in_folder.iterdir()) == []


def test_a_class_that_the_model_does_not_know(here):
    shutil.copytree("photos/red", "more/purple")
    result = run("evaluate", "more")
    assert result.exit_code == 2
    assert "the model knows blue, green, red; the data have " in result.stderr
    assert "purple" in result.stderr


def test_training_that_diverges_ends_with_4_and_saves_no_broken_model(here):
    wild = ("--optimizer", "sgd", "--lr", "1000", "--momentum", "0.99", "--schedule", "constant", "--epochs", "30")
    result = run("train", "photos", *TINY, *wild)
    assert result.exit_code == 4
    assert result.stderr.count("back to the last good weights, learning rate halved") == 3
    assert "use a lower --lr" in result.stderr
    assert result.stdout == ""
    assert not Path("runs/photos-lenet-2/model.safetensors").exists()
    assert done("predict", "photos/red/00.png").stderr == CHOSEN.format("photos-lenet-1")


def test_names_are_shown_and_never_obeyed(in_folder):
    names = {"[bold]b": "blue", "=1+1": "green", "a\x1b[31m\nred": "red"}
    for name, color in names.items():
        (in_folder / "[odd]" / name).mkdir(parents=True)
        for index in range(8):
            color_image(color, index).save(in_folder / "[odd]" / name / f"[red]{index}\n\x1b[2J.png")
    result = done("train", "[odd]", *TINY)
    assert "(=1+1, [bold]b, a\\x1b[31m\\nred)" in result.stderr
    outputs = [result, done("evaluate", "[odd]", "--part", "all")]
    assert "\na\\x1b[31m\\nred " in outputs[1].stdout
    outputs.append(done("predict", "[odd]"))
    assert "/[red]0\\n\\x1b[2J.png" in outputs[2].stdout
    outputs.append(run("predict", "\x1b[1mgone\n.png"))
    assert "no file matches '\\x1b[1mgone\\n.png'" in outputs[3].stderr
    outputs.append(run("train", "\x1b[1mgone"))
    assert "x1b[1mgone" in outputs[4].stderr
    for output in outputs:
        assert "\x1b" not in output.stdout + output.stderr
    assert {row["label"] for row in rows("[odd]")} <= set(names)
    (written,) = Path("runs").glob("*/split.csv")
    cells = [row[1] for row in csv.reader(io.StringIO(written.read_text(encoding="utf-8")))]
    assert set(cells) == {"label", "'=1+1", "[bold]b", "a\x1b[31m\nred"}


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "PYTHONPATH": str(Path(imgclf.__file__).parent.parent), "IMGCLF_CACHE": str(tmp_path / "c")}


def test_the_module_is_the_command(environment, in_folder):
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 60}
    version = subprocess.run([sys.executable, "-m", "imgclf", "--version"], **options)
    assert (version.returncode, version.stdout) == (0, f"imgclf {imgclf.__version__}\n")
    wrong = subprocess.run([sys.executable, "-m", "imgclf", "models", "lennet"], **options)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no architecture is called 'lennet'")
    debug = subprocess.run([sys.executable, "-m", "imgclf", "--debug", "models", "lennet"], **options)
    assert debug.returncode != 0
    assert debug.stderr.startswith("Traceback")
    assert "UnknownName" in debug.stderr


def shown_on(stdout, stderr, *args):
    """The exit code of a command with these streams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as end:
            app([str(arg) for arg in args])
    return end.value.code


@pytest.fixture
def terminal():
    """A file that is a terminal."""
    screen, file = os.openpty()
    reader = Thread(target=_drain, args=(screen,))
    reader.start()
    with os.fdopen(file, "w") as shown:
        yield shown
    reader.join()
    os.close(screen)


def _drain(screen):
    with suppress(OSError):  # the end of a terminal
        while os.read(screen, 4096):
            pass


@pytest.mark.parametrize(
    ("command", "count"),
    [
        (("predict", "photos/red"), 20),
        (("explain", "photos/red/00.png", "photos/red/01.png"), 2),
        (("train", "photos", *TINY, "--dry-run"), 1),
    ],
    ids=["predict", "explain", "train"],
)
def test_results_are_on_stdout_where_stderr_is_a_terminal(here, terminal, monkeypatch, command, count):
    plan = DryRun(decisions=(), seconds={}, memory=0, python="")
    monkeypatch.setattr("imgclf.cli._training.dry_run", lambda *_, **__: plan)  # which takes its time
    results = io.StringIO()
    assert shown_on(results, terminal, *command, "--json") == 0
    assert len([json.loads(line) for line in results.getvalue().splitlines()]) == count


class Screen(io.StringIO):
    """A terminal to read."""

    def isatty(self):
        return True


def on_narrow_terminal(monkeypatch, header, rows):
    """The lines of a table on a terminal of 60 columns."""
    screen = Screen()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "60")
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", screen)
        show_table(header, rows)
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()]


def test_a_table_that_is_wider_than_the_terminal_is_shown_in_parts(monkeypatch):
    names = [f"a-long-class-{number}" for number in range(5)]
    lines = on_narrow_terminal(monkeypatch, ["true", *names], [[name, *range(5)] for name in names])
    assert max(map(len, lines)) <= 60
    parts = [part.splitlines() for part in "\n".join(lines).split("\n\n")]
    assert [part[0].split() for part in parts] == [["true", *names[:2]], ["true", *names[2:4]], ["true", names[4]]]
    assert [part[5].split() for part in parts] == [[names[4], *pair] for pair in ("01", "23", "4")]


def test_no_part_of_a_table_is_wider_than_the_terminal(monkeypatch):
    header = ["run", "accuracy", "95% interval", "of", "seconds", "MB"]
    row = ["a-run-of-ten", "100.0%", "82.4–100.0", "18 test", "15", "13.7"]
    lines = on_narrow_terminal(monkeypatch, header, [row])
    assert max(map(len, lines)) <= 60
    assert " ".join(lines[-1].split()) == " ".join(row)


def test_a_reason_goes_on_below_itself_on_a_terminal_and_stays_one_line_elsewhere(monkeypatch, capsys):
    reason = "a crop would cut too much: width by height is 2.00, which is wide"
    for terminal, count in ((True, 3), (False, 1)):
        shown = Console(stderr=True, width=40, force_terminal=terminal, color_system=None)
        monkeypatch.setattr(console, "err", lambda shown=shown: shown)
        console.say_beside("fit  squash  ", reason)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == count
        assert lines[0].startswith("fit  squash  a crop")
        assert " ".join(line[13:] for line in lines) == reason


def test_a_table_folds_sentences_between_words_and_a_path_that_is_wider_than_the_terminal(monkeypatch):
    text = "nothing of this long sentence is broken within a word of it, however narrow"
    lines = on_narrow_terminal(monkeypatch, ["choice", "reason"], [["size", text]])
    assert " ".join(line[8:] for line in lines[1:]) == text
    folded = on_narrow_terminal(monkeypatch, ["image", "class"], [["folder/" * 15, "red"]])
    assert "".join(folded).count("/") == 15


def test_colors_that_are_forced_draw_no_bar_into_a_log(here, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = done("predict", "photos/red", "--json")
    assert len(result.stdout.splitlines()) == 20
    assert "predicting" not in result.stderr


def test_a_full_log_ends_no_training_and_fails_what_only_answers(here):
    codes = {}
    for args in (("train", "photos", *TINY, "--name", "full"), ("report", "runs/full"), ("runs", "--json")):
        with open("/dev/full", "w") as log:
            codes[args[0]] = shown_on(Stream(log), Stream(log), *args)
    assert codes == {"train": 0, "report": 0, "runs": 1}
    assert {"report.html", "model.safetensors", "predictions.safetensors"} <= set(os.listdir("runs/full"))


def test_a_reader_that_has_seen_enough_ends_the_predictions_quietly(here, monkeypatch):
    predicted = []

    def predict_each(self, images, top, reject):
        for number in range(1000):
            predicted.append(number)
            yield Prediction(str(number), "red", 1.0)

    monkeypatch.setattr("imgclf.estimator.classifier.Classifier.predict_each", predict_each)
    reader, writer = os.pipe()
    os.close(reader)
    stderr = io.StringIO()
    with os.fdopen(writer, "w") as pipe:
        assert shown_on(Stream(pipe), stderr, "predict", "photos", "--json") == 0
    assert len(predicted) < 10
    assert stderr.getvalue() == CHOSEN.format("photos-lenet-1")


# A shell that starts tests in the background has SIGINT ignored, and Python would leave it so.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from imgclf.cli import main; main()"


@pytest.fixture
def interrupted(here, environment):
    """Ends `imgclf train` by a signal after its second epoch, for each of two signals at once."""
    processes = {
        number: subprocess.Popen(
            [sys.executable, "-c", START, "train", "photos", *TINY, "--epochs", "100000", "--name", number.name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    results = {}
    for number, process in processes.items():
        until = time.monotonic() + 60
        history = here / "runs" / number.name / "history.csv"
        while not (history.exists() and len(history.read_text().splitlines()) > 2) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
    for number, process in processes.items():
        stdout, stderr = process.communicate(timeout=60)
        results[number] = (process.returncode, stdout, stderr)
    return results


def test_what_was_learnt_is_kept_when_training_is_interrupted(interrupted, here):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        returncode, stdout, stderr = interrupted[number]
        assert returncode == code, stderr
        assert f"go on with: imgclf train --resume runs/{number.name}" in stderr
        assert "Traceback" not in stderr
        assert f"model: runs/{number.name}/model.safetensors" in stdout
        assert answer("evaluate", "--model", f"runs/{number.name}")["n"] == 9
    epochs = len(Path("runs/SIGINT/history.csv").read_text().splitlines()) - 1
    summary = answer("train", "--resume", "runs/SIGINT", "--epochs", epochs + 1)
    assert summary["epochs"] == epochs + 1


def test_a_folder_without_images_is_a_row_and_the_others_are_predicted(here):
    (here / "empty").mkdir()
    result = run("predict", "empty", "./photos//red/00.png", "--json")
    assert result.exit_code == 1
    empty, red = map(json.loads, result.stdout.splitlines())
    assert (empty["path"], empty["label"], empty["error"]) == ("empty", None, "contains no images")
    assert (red["path"], red["label"]) == ("./photos//red/00.png", "red")
    assert "1 of 2 inputs could not be read" in result.stderr


def test_predict_refuses_images_of_too_many_pixels(here):
    result = run("predict", "photos/red/00.png", "--max-pixels", "767", "--json")
    assert result.exit_code == 1
    assert "more than the limit" in json.loads(result.stdout)["error"]
    assert rows("photos/red/00.png", "--max-pixels", "768")[0]["label"] == "red"


def test_predictions_as_json_are_not_kept_in_memory(here, monkeypatch):
    known, alive = [], []

    def predict_each(self, images, top, reject):
        for index in range(50):
            prediction = Prediction(f"{index}.png", "red", 0.5, (("red", 0.5),), None, {"red": 0.5})
            known.append(weakref.ref(prediction))
            alive.append(sum(reference() is not None for reference in known))
            yield prediction
            del prediction

    monkeypatch.setattr("imgclf.estimator.classifier.Classifier.predict_each", predict_each)
    assert len(rows("photos")) == 50
    assert max(alive) <= 2


def grid(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_show_names_bad_images_and_shows_others_in_their_place(here):
    for index in range(12):
        (here / "photos" / "red" / f"{index:02d}.png").write_bytes(b"no image")
    shutil.copytree("photos", "good")
    for path in Path("good/red").iterdir():
        if path.read_bytes() == b"no image":
            path.unlink()
    for options in (("-n", "48"), ("-n", "48", "--augmented", "--arch", "lenet")):
        result = done("show", "photos", *options, "--out", "bad.png", "--force")
        assert "! 12 images can't be read and will be left out:\n" in result.stderr
        assert "red/0" in result.stderr
        assert "… and 7 more" in result.stderr
        assert done("show", "good", *options, "--out", "good.png", "--force").stderr == ""
        assert grid("bad.png").shape == grid("good.png").shape


def test_without_any_readable_image_nothing_is_written(here):
    for path in (here / "photos").rglob("*.png"):
        path.write_bytes(b"no image")
    for args in (("show", "photos"), ("prepare", "photos", "out")):
        result = run(*args)
        assert result.exit_code == 2
        assert "none of the images can be read" in result.stderr
        assert "… and 55 more" in result.stderr
    assert not Path("out").exists()
    assert not Path("photos.png").exists()


def test_prepare_writes_what_can_be_read_and_names_five_of_the_rest(here):
    for index in range(12):
        (here / "photos" / "red" / f"{index:02d}.png").write_bytes(b"no image")
    result = run("prepare", "photos", "out", "--size", "8")
    assert result.exit_code == 1
    assert result.stdout == "48 images of 8×8 in out\n"
    assert result.stderr.count("not an image") == 5
    assert "… and 7 more" in result.stderr


def test_prepared_digits_lie_in_their_class_folders(in_folder):
    done("prepare", "digits", "out", "--size", "8", "--format", "png")
    assert {len(path.relative_to("out").parts) for path in Path("out").rglob("*.png")} == {2}
    assert sorted(path.name for path in Path("out").iterdir()) == list("0123456789")


@pytest.mark.parametrize(
    ("losses", "how"),
    [
        ((0.3, 0.4), "both epochs of fine-tuning were worse"),
        ((0.2, 0.4), "no epoch of fine-tuning was significantly better"),
        ((0.3,), "the only epoch of fine-tuning was worse"),
        ((), "no epoch has ended"),
    ],
)
@pytest.mark.parametrize(
    ("probed", "ended", "name", "todo"),
    [
        (True, "stopped early", "the linear probe", "--recipe probe is enough here"),
        (False, "stopped early", "the initial model", "keep the initial model"),
        (True, "done", "the linear probe", "{} may be too few: try imgclf train DATA --epochs 8"),
    ],
)
def test_a_kept_initial_model_says_how_the_epochs_did_and_what_next(capsys, losses, how, probed, ended, name, todo):
    history = History(tuple(EpochRecord(i, 0.5, 0.8, loss, 0.8, 0.1, 1.0, False) for i, loss in enumerate(losses, 1)))
    kept = {
        "best": {"head": 0},
        "best_loss": 0.25,
        "epochs": 2,
        "ended": ended,
        "config": TrainConfig(probe=probed, patience=1),
    }
    TrainView()(TrainingEnded(SimpleNamespace(result=lambda: history, **kept)))
    *_, kept, advice = filter(None, capsys.readouterr().err.splitlines())
    assert kept == f"kept:  {name} (valid loss 0.2500): {how}"
    assert advice.startswith(f"       {todo.format(plural(len(losses), 'epoch'))}")


def test_after_an_interrupt_no_advice_is_drawn_from_what_was_not_tried(capsys):
    kept = {"best": {"head": 0}, "best_loss": 0.25, "epochs": 2, "ended": "interrupted", "config": TrainConfig()}
    TrainView()(TrainingEnded(SimpleNamespace(result=lambda: History(()), **kept)))
    assert capsys.readouterr().err == "kept:  the initial model (valid loss 0.2500): no epoch has ended\n\n"


def test_the_time_left_is_that_of_the_whole_training(monkeypatch):
    """In the first epoch by its steps, later by whole epochs, which hold the valid images too."""
    view, clock = TrainView(), SimpleNamespace(now=100.0)
    monkeypatch.setattr("imgclf.cli._training.time.perf_counter", lambda: clock.now)
    record = EpochRecord(1, 0.5, 0.8, 0.5, 0.8, 0.1, 60.0, True)
    state = SimpleNamespace(epoch=0, epochs=10, step=5, steps_per_epoch=20, history=[], images=160, loss=0.5)
    view._began, clock.now = 100.0, 110.0
    left = []
    for epoch, step, history in ((0, 5, []), (1, 10, [record]), (9, 15, [record])):
        view(StepEnded(SimpleNamespace(**{**vars(state), "epoch": epoch, "step": step, "history": history})))
        left.append(view.progress.tasks[0].fields["left"])
    assert left == ["0:06:30 left", "0:08:30 left", "0:00:15 left"]


def test_figures_are_shown_of_all_test_images_and_without_those_that_training_saw(capsys):
    logits, targets = np.eye(3, dtype=np.float32)[[0, 2, 0, 0]], np.array([0, 2, 0, 1])
    answers = Predictions(logits, targets, tuple("wxyz"), ("",) * 4, ("ant", "bee", "wasp"))
    for seen, line in (
        ((), None),
        (
            (0, 1),
            "test\nunseen images: accuracy 50.0% (1 of 2), 95% interval 9.5–90.5%, loss 1.051\n"
            "all images: accuracy 75.0%",
        ),
        ((2,), "test\nunseen images: accuracy 66.7% (2 of 3)"),
        ((0, 1, 2, 3), "all of these images were used for training or validation: new images may give other results"),
    ):
        show_evaluation(replace(answers, seen=seen).evaluation, "test")
        out = capsys.readouterr().out
        assert "accuracy 75.0% (3 of 4)" in out
        assert line is None or line in out
        assert ("used for training or validation" in out) == (len(seen) == 4)


def test_of_many_classes_the_top_five_count_and_the_confusion_is_not_shown(capsys):
    logits = np.eye(13, dtype=np.float32)
    show_evaluation(Predictions(logits, np.arange(13), ("",) * 13, ("",) * 13, tuple("abcdefghijklm")).evaluation, "t")
    out = capsys.readouterr().out
    assert "top-5 100.0%" in out
    assert "predicted" not in out


def test_a_class_without_test_images_is_shown_as_not_tested(capsys):
    logits, targets = np.eye(3)[[0, 2, 0]], np.array([0, 2, 0])
    result = evaluate_logits(logits, targets, ["ant", "bee", "wasp"])
    show_evaluation(replace(result, intervals=evaluation_intervals(logits, targets)), "test")
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split() for line in lines if line.startswith("bee")) == ["bee", "–", "–", "–", "0"]
    assert "not tested (no test images): bee" in lines
    assert result.to_dict()["per_class"][1] == {
        "class": "bee",
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }


def test_of_several_processes_one_works_where_the_work_is_not_shared(photos, in_folder, monkeypatch):
    for rank in "0", "1":
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        result = run("prepare", photos, f"out-{rank}", "--size", "8")
        assert result.exit_code == 0
        assert ("60 images" in result.stdout) == Path(f"out-{rank}").exists() == (rank == "0")
    assert result.output == ""


@pytest.fixture
def signals(monkeypatch):
    """Handlers of signals, and what is known of those that came, are as before after the test."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    monkeypatch.setattr(console.Interruption, "asked", False)
    monkeypatch.setattr(console.Interruption, "code", 130)
    yield numbers
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def leave_by(error, number):
    """What a command does that a signal ends: it leaves by the interrupt, or by what typer makes of it elsewhere."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise error from None


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(130)], ids=["interrupt", "exit"])
def test_a_signal_ends_any_command_with_its_code_and_cleanly(signals, name, error):
    number = getattr(signal, name)
    with pytest.raises(SystemExit) as end, console.signals_end_cleanly():
        leave_by(error, number)
    assert end.value.code == 128 + number
    assert [signal.getsignal(heard) for heard in signals] == [signal.SIG_DFL] * 3


def test_a_signal_leaves_no_cursor_hidden_whenever_it_comes(signals, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    console.err().show_cursor(False)
    with pytest.raises(SystemExit), console.signals_end_cleanly():
        leave_by(KeyboardInterrupt(), signal.SIGTERM)
    assert screen.getvalue() == "\x1b[?25l\x1b[?25h"


def test_a_command_that_fails_ends_with_its_own_code(signals):
    with pytest.raises(SystemExit) as end, console.signals_end_cleanly():
        leave_by(SystemExit(1), signal.SIGTERM)
    assert end.value.code == 1


def test_a_signal_that_is_ignored_stays_so_for_every_command(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with console.signals_end_cleanly():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_an_import_makes_of_an_interrupt_is_no_bug(signals, capsys):
    def command():
        signal.raise_signal(signal.SIGTERM)

    def importing():
        try:
            command()
        except KeyboardInterrupt:
            raise ImportError("numpy.core failed to import") from None

    for work in (command, importing):
        with console.signals_end_cleanly(), pytest.raises(typer.Exit) as end:
            console.guarded(work)()
        assert end.value.exit_code == 143
    assert capsys.readouterr().err == "interrupted\ninterrupted\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 3, "the device has too little memory for this: use a smaller"),
        (ZeroDivisionError("by zero"), 1, "this is a bug in imgclf: ZeroDivisionError: by zero"),
    ],
)
def test_an_unforeseen_error_is_a_lack_of_memory_or_a_bug(capsys, error, code, said):
    def command():
        raise error

    with pytest.raises(typer.Exit) as end:
        console.guarded(command)()
    assert end.value.exit_code == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_interrupt_before_the_command_line_is_loaded_has_no_traceback(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("imgclf.cli.main", interrupt)
    with pytest.raises(SystemExit) as end:
        entry_point()
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_prepare_says_that_eight_bits_are_left_only_of_files_that_it_writes_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(["deep/a/1.png", "deep/b/2.png", "tiff/a/1.tif", "tiff/b/2.tif"]):
        Path(name).parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 4000 + i, np.uint16)).save(name)
    said = "images of more than 8 bits are written with 8"
    told = [
        said in run("prepare", *args).stderr
        for args in (("deep", "copied", "--shards"), ("tiff", "anew", "--shards"), ("deep", "small", "--size", "8"))
    ]
    assert told == [False, True, True]
