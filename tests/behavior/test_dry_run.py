"""What training would do and take."""

import ast
import os
import re

import pytest

from imgclf.estimator.settings import Request, choose_experiment
from imgclf.storage.run_folder import read_config, write_config
from imgclf.studies import dry_run as dryrun
from imgclf.studies.dry_run import LINE_WIDTH, dry_run, python_code, shortest_config
from support.command_line import done

TINY = {"arch": "lenet", "size": [16, 16], "weights": "none", "train": {"epochs": 2, "device": "cpu"}}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Steps are measured for a moment: these networks are tiny."""
    monkeypatch.setattr("imgclf.estimator.warm_start.MEASURED", 0.1)


def test_a_plan_says_what_it_takes_and_leaves_nothing_behind(photos, in_folder):
    before = sorted(in_folder.rglob("*"))
    plan = dry_run(photos, config=TINY)
    assert {"training", "test"} == plan.seconds.keys()
    assert 0 < plan.seconds["training"] < 60
    assert plan.memory > 4 * 4 * 1000
    values = {each.name: (each.value, each.reason) for each in plan.decisions}
    assert values["epochs"] == ("2", "set by you")
    assert values["size"] == ("16×16", "set by you")
    assert sorted(in_folder.rglob("*")) == before


def test_the_command_shows_the_plan_and_leaves_nothing_behind(photos, in_folder):
    options = ["--arch", "lenet", "--size", "16", "--epochs", "2", "--device", "cpu"]
    shown = done("train", photos, *options, "--dry-run").stdout
    assert re.search(r"epochs +2 +set by you", shown)
    assert re.search(r"time: +about .* after the images are checked \(training .*, test .*\)", shown)
    assert re.search(r"memory: about [0-9.]+ [kM]i?B for a step", shown)
    assert "in Python:\n    " in shown
    assert list(in_folder.iterdir()) == []


def test_a_plan_names_the_recipe_that_set_a_value(photos):
    plan = dry_run(photos, config={"train": {"lr": 0.01, "device": "cpu"}}, recipe="lab10-4")
    reasons = {each.name: each.reason for each in plan.decisions}
    assert reasons["size"] == reasons["epochs"] == "recipe lab10-4"
    assert reasons["lr"] == "set by you"


def test_a_plan_for_a_time(photos):
    config = {**TINY, "train": {"minutes": 0.2, "device": "cpu"}}
    plan = dry_run(photos, config=config)
    assert 0 < plan.seconds["training"] <= 12


def trained(code):
    """The classifier that a piece of Python trains."""
    scope = {}
    exec(code, scope)
    return scope["classifier"]


def test_the_python_of_a_plan_trains(photos, in_folder, capsys):
    code = dry_run(photos, config={**TINY, "data": {}}, runs="mine", name="second", track=["tensorboard=logs"]).python
    classifier = trained(code)
    assert len(classifier.history_) == 2
    assert str(classifier.run_.path) == "mine/second"
    assert list(in_folder.glob("logs/second*"))
    assert capsys.readouterr().out == f"{classifier.evaluate().accuracy}\n"
    assert "data" not in code.replace(str(photos), "")


def test_the_python_of_an_ensemble_trains_all_of_it(photos, in_folder):
    two = dry_run(photos, config=TINY, members=2, name="both")
    classifier = trained(two.python)
    assert classifier.model_config_.members == 2
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == ["both", "both-member-1", "both-member-2"]


@pytest.mark.parametrize(
    "data", ['a "b" \\n', os.fsdecode(b"caf\xe9"), "a\u2028b", "tab\t\x7f", "\U000f0000", "größe 😀"]
)
def test_the_python_names_any_folder_in_printable_text(data):
    line = python_code(data, {}).encode().decode().splitlines()[-1]
    assert line.isprintable()
    assert ast.literal_eval(line.removeprefix("classifier.fit(").partition(", runs=")[0]) == data


def test_an_ensemble_takes_as_many_times_as_long(photos, monkeypatch):
    monkeypatch.setattr(
        dryrun, "_measure", lambda plan, *_: (plan.experiment.train, (), {"training": 2.0, "test": 1.0})
    )
    assert dry_run(photos, config=TINY, members=3).seconds == {"training": 6.0, "test": 3.0}


def test_without_a_test_part_nothing_is_tested(photos, in_folder):
    code = dry_run(photos, config={**TINY, "split": [0.8, 0.2, 0.0]}).python
    assert "evaluate" not in code
    trained(code)


def test_the_python_leaves_out_what_changes_nothing():
    changes = {"arch": "auto", "resize_mode": "pad", "keep": "best", "train": {"lr": 0.1, "momentum": 0.9}, "data": {}}
    assert shortest_config(changes, None, None) == {"resize_mode": "pad", "train": {"lr": 0.1}}
    assert shortest_config({"train": {"epochs": 50, "minutes": 1}}, "d0", None) == {
        "train": {"epochs": 50, "minutes": 1}
    }
    assert shortest_config({"train": {"momentum": 0.0, "nesterov": False}}, None, None) == {"train": {"momentum": 0.0}}


@pytest.mark.parametrize("recipe", ["digits", "d0", "lab10-4"])
def test_the_python_of_a_config_says_the_same_in_short(recipe, in_folder):
    """A config holds every value, also those of the recipe that suits the data by itself."""
    asked = choose_experiment(Request(recipe, {"arch": "lenet", "train": {"lr": 0.03}}))
    write_config(in_folder / "all.toml", asked, "digits")
    values, _ = read_config(in_folder / "all.toml")
    short = shortest_config(values, None, "digits")
    assert choose_experiment(Request(changes=short), "digits") == choose_experiment(Request(changes=values), "digits")
    if recipe == "digits":
        assert short == {"train": {"lr": 0.03}}
    assert max(map(len, python_code("digits", short, name="n" * 30, track=["tensorboard"]).splitlines())) <= LINE_WIDTH
