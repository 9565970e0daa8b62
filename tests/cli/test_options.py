"""Options of the command line: made from the fields of the configs, and answers to what users of other tools type."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from imgclf.cli import app
from imgclf.cli._options import TrainingOptions
from imgclf.core.config import DataConfig, ExperimentConfig, TrainConfig, from_dict
from imgclf.core.errors import ConfigError
from imgclf.core.options import option_fields
from imgclf.transforms.presets import PRESETS

COMMANDS = typer.main.get_command(app).commands
OPTIONS = {param.name: param for param in COMMANDS["train"].params}
FIELDS = {
    name: each
    for kind in (ExperimentConfig, DataConfig, TrainConfig)
    for name, each in option_fields(kind).items()
    if each.option.panel
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_with_a_panel_is_an_option_of_train_that_says_what_it_takes(name):
    param, option = OPTIONS[name], FIELDS[name].option
    assert param.rich_help_panel == option.panel
    assert param.help.startswith(option.described())
    assert all(choice in param.help for choice in option.choices)


@pytest.mark.parametrize(
    ("typed", "place", "name", "value"),
    [
        ({"epochs": 3}, "train", "epochs", 3),
        ({"batch_size": "auto"}, "train", "batch_size", 0),
        ({"checkpoint_every": "10m"}, "train", "checkpoint_every", 600.0),
        ({"freeze_norm": False}, "train", "freeze_norm", False),
        ({"freeze_stages": "2"}, "train", "freeze_stages", 2),
        ({"allow_unreadable": "10%"}, "data", "allow_unreadable", 0.1),
        ({"size": "64x32"}, "", "size", (64, 32)),
        ({"split": "80/10/10"}, "", "split", (0.8, 0.1, 0.1)),
    ],
)
def test_a_typed_option_gets_into_its_table_of_the_config(typed, place, name, value):
    changes = TrainingOptions(typed).changes()
    assert (changes[place] if place else changes)[name] == value
    found = from_dict(ExperimentConfig, changes)
    assert getattr(getattr(found, place) if place else found, name) == value


def test_an_option_comes_on_top_of_a_config_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("arch = 'lenet'\n[train]\nepochs = 3\nlr = 0.1\n")
    changes = TrainingOptions({"config": str(file), "epochs": 4}).changes()
    assert (changes["arch"], changes["train"]) == ("lenet", {"epochs": 4, "lr": 0.1})


@pytest.mark.parametrize(
    "typed", [{"split": "nothing.csv"}, {"batch_size": "0"}, {"freeze_stages": "12"}, {"allow_unreadable": "lots"}]
)
def test_text_that_is_no_value_is_refused(typed):
    with pytest.raises(ConfigError):
        TrainingOptions(typed).changes()


ANSWERS = [
    (("train", "x", "--out", "y"), "did you mean --runs?"),
    (("train", "x", "--output", "y"), "did you mean --runs?"),
    (("train", "x", "--batch", "8"), "did you mean --batch-size?"),
    (("train", "x", "--imgsz", "8"), "did you mean --size?"),
    (("train", "x", "--lr0", "8"), "did you mean --lr?"),
    (("train", "x", "--model", "resnet18"), "did you mean --arch?"),
    (("train", "x", "--fit", "pad"), "did you mean --resize-mode?"),
    (("train", "data=./photos"), "is written without the equals sign: imgclf train ./photos"),
    (("train", "x", "epochs=3"), "is written without the equals sign: imgclf train --epochs 3"),
    (("./my_photos",), "there is no command './my_photos'; did you mean imgclf train ./my_photos?"),
    (("digits",), "did you mean imgclf train digits?"),
    (("./a photo.JPG",), "did you mean imgclf predict './a photo.JPG'?"),
    (("eval",), "did you mean imgclf evaluate?"),
    (("trian",), "did you mean imgclf train?"),
    (("zzzz",), "No such command 'zzzz'"),
    (("train", "x", "--epochs", "three"), "'--epochs': expected a whole number; got 'three'"),
    (("train", "x", "--lr", "low"), "'--lr': expected a number; got 'low'"),
    (("train", "x", "--size", "0"), "error: --size is '0'; allowed: N or HxW in pixels"),
    (("predict", "x", "--top", "0"), "'--top': expected a number of 1 or more; got '0'"),
    (("show", "x", "-n", "201"), "'-n': expected a number of 200 or less; got '201'"),
    (("benchmark", "x", "--seconds", "0"), "'--seconds': expected a number of 0.1 or more; got '0'"),
]


@pytest.mark.parametrize(("args", "answer"), ANSWERS, ids=[" ".join(args) for args, _ in ANSWERS])
def test_what_users_of_other_tools_type_is_answered_with_what_is_meant(args, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert answer in " ".join(result.stderr.replace("│", " ").split())


def test_a_number_too_long_to_read_is_called_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", "x", "--epochs", "9" * 5000])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "exceeded maximum size" in " ".join(result.stderr.replace("│", " ").split())


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data=1").mkdir()
    result = CliRunner().invoke(app, ["train", "data=1"])
    assert "equals sign" not in result.stderr


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal_and_leaves_no_markup(name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = CliRunner().invoke(app, [name, "--help"], env={"TERMINAL_WIDTH": str(width)}).stdout
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"\[/?dim\]|\\\[", text)


def test_the_schema_is_one_object_with_every_option():
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    found = schema["properties"]
    assert {"source", *FIELDS} <= {*found, *found["train"]["properties"], *found["data"]["properties"]}
    assert found["train"]["properties"]["optimizer"]["enum"] == ["sgd", "adam", "adamw"]
    assert found["train"]["properties"]["epochs"]["maximum"] == 100_000
    assert found["augment"]["enum"] == PRESETS.names()
