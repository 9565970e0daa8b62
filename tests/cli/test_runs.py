"""`imgclf runs` and `imgclf compare`: what they answer, where, and how they end."""

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imgclf import Classifier
from imgclf.cli._results import figure
from imgclf.cli._training import warn_of_worse
from imgclf.data.split import read_split
from imgclf.evaluation.predictions import read_predictions, write_predictions
from imgclf.storage.run_folder import PREDICTIONS, list_runs, open_run
from imgclf.storage.run_list import RunEntry
from support.command_line import answer, done, run
from support.photos import color_image, copy_of_world, save_photos

TINY = ("--arch", "lenet", "--size", "16", "--epochs", "1", "--precision", "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A working folder with two runs on the same photos and one on digits."""
    root = tmp_path_factory.mktemp("world")
    save_photos(root / "photos")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLF_CACHE", str(root / "cache"))
        patch.chdir(root)
        done("train", "photos", *TINY, "--name", "first")
        done("train", "photos", *TINY, "--name", "second", "--epochs", "12", "--augment", "none")
        done("train", "digits", "--epochs", "1")
    signal.signal(signal.SIGTERM, before)
    return root


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of that folder, as the working folder."""
    root = copy_of_world(world, tmp_path / "here", "cache")
    monkeypatch.chdir(root)
    return root


def test_the_list(here):
    found = answer("runs")["runs"]
    assert [(row["name"], row["data"], row["arch"], row["recipe"]) for row in found] == [
        ("first", "photos", "lenet", None),
        ("second", "photos", "lenet", None),
        ("digits-lenet-1", "digits", "lenet", "digits"),
    ]
    assert [row["default"] for row in found] == [False, False, True]
    assert [row["n"] for row in found] == [9, 9, 270]
    for row in found:
        low, high = row["interval"]
        assert low <= row["accuracy"] <= high
        assert row["seconds"] > 0
        assert row["size"] == (here / row["path"] / "model.safetensors").stat().st_size


def test_the_table_marks_what_predict_takes(here):
    result = done("runs")
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert [line.startswith("*") for line in lines] == [False, False, False, True]
    assert "* default model: newest finished run" in result.stderr
    assert "*" not in done("runs", "--filter", "first").stdout


def test_a_pinned_run_is_what_commands_take(here):
    assert done("use", "first").stdout.startswith("default: runs/first (pinned by `imgclf use`; ")
    assert answer("use")["default"]["name"] == "first"
    assert [row["name"] for row in answer("runs")["runs"] if row["pinned"]] == ["first"]
    assert "* default model: pinned" in done("runs").stderr
    assert (
        "model: runs/first/model.safetensors (lenet, 3 classes: blue, green, red; pinned by `imgclf use`)\n"
        in done("evaluate").stderr
    )
    shutil.rmtree("runs/first")
    for command in (("use",), ("evaluate",), ("predict", "photos/red/00.png"), ("report",)):
        result = run(*command)
        assert result.exit_code == 2, command
        assert "the pinned run runs/first no longer has a model file" in result.stderr
    assert "no run is the default: the pinned run" in done("runs").stderr
    assert run("use", "second", "--clear").exit_code == 2
    assert answer("use", "--clear")["default"]["name"] == "digits-lenet-1"
    shutil.rmtree("runs")
    assert done("use", "--clear").stdout == "default: none: there is no finished run with an accuracy\n"


def test_a_run_called_like_a_folder_of_images_is_found_by_every_command(here):
    shutil.move("runs/second", "runs/photos")
    assert answer("evaluate", "--model", "photos")["n"] == answer("compare", "first", "photos")["n"] == 9
    assert done("report", "photos").stdout == "runs/photos/report.html\n"
    assert Classifier.load("photos").run_.path.samefile("runs/photos")
    assert "has finished 12 epochs" in run("train", "--resume", "photos").stderr
    shutil.move("runs/first", "elsewhere")
    assert answer("train", "--config", "elsewhere", "--name", "same")["epochs"] == 1
    assert answer("reproduce", "same")["weights_equal"]


def test_an_interrupt_of_the_test_is_honest_and_the_run_goes_on_to_its_end(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("imgclf.estimator.fit.test", lambda *_: signal.raise_signal(signal.SIGINT))
        result = run("train", "photos", *TINY, "--name", "cut")
    assert result.exit_code == 130
    assert result.stderr.endswith("interrupted; go on with: imgclf train --resume runs/cut\n")
    assert "error" not in result.stderr
    assert open_run(here / "runs" / "cut").info.status == "interrupted"
    assert answer("use")["default"]["name"] == "digits-lenet-1"
    summary = answer("train", "--resume", "cut")
    assert (summary["epochs"], summary["test"]["n"]) == (1, 9)
    assert Path(summary["report"]).is_file()
    assert open_run(here / "runs" / "cut").info.status == "done"
    assert answer("use")["default"]["name"] == "cut"


def test_a_worse_run_does_not_become_the_default_unsaid(capsys):
    def entry(name, accuracy, **more):
        basic = {"number": 1, "status": "done", "arch": "lenet", "recipe": None, "created": None}
        return RunEntry(f"runs/{name}", data="photos", part="test", n=50, accuracy=accuracy, **basic, **more)

    for before, after in ((None, entry("a", 0.5)), (entry("a", 0.5), None), (entry("a", 0.5), entry("b", 0.5))):
        warn_of_worse(before, after)
    assert capsys.readouterr().err == ""
    warn_of_worse(entry("a", 0.97), entry("b", 0.86))
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "! the default is now runs/b (86.0% of 50 test images), before: runs/a (97.0% of 50 test images); to keep that "
        "one: imgclf use a"
    )


def test_a_run_that_was_not_tested_has_no_accuracy_yet():
    assert figure(RunEntry("runs/a", 1, "done", "photos", "lenet", None, None)) == "no accuracy yet"


def test_sorted_and_filtered(here):
    names = [row["name"] for row in answer("runs", "--sort", "accuracy", "--filter", "data=photos")["runs"]]
    assert names == ["second", "first"]
    assert [row["name"] for row in answer("runs", "--filter", "lenet", "--filter", "data=dig*")["runs"]] == [
        "digits-lenet-1"
    ]
    nothing = done("runs", "--filter", "resnet")
    assert (nothing.stdout, nothing.stderr.strip()) == ("", "no run matches the filter (3 runs)")
    wrong = run("runs", "--sort", "beauty")
    assert (wrong.exit_code, wrong.stdout) == (2, "")


def test_no_runs_yet(in_folder):
    result = done("runs")
    assert result.stdout == ""
    assert "train one" in result.stderr
    assert answer("runs") == {"runs": []}
    assert run("runs", "--runs", "nowhere").exit_code == 2


def test_a_broken_run_is_named_and_the_others_are_listed(here):
    (here / "runs" / "first" / "run.json").write_text("?")
    result = done("runs")
    assert "first" not in result.stdout
    assert "1 run left out" in result.stderr
    assert "runs/first" in result.stderr


def test_two_runs_compared(here):
    found = answer("compare", "first", "runs/second")
    assert found["n"] == 9
    assert found["difference"] == pytest.approx(found["b"]["accuracy"] - found["a"]["accuracy"])
    assert found["only_b"] == len(found["fixed"])
    assert found["settings"]["train.epochs"] == [1, 12]
    assert found["environment"] == {}
    for change in found["fixed"]:
        assert (here / "photos" / change["path"]).is_file()
        assert change["b"] == change["true"] != change["a"]
    text = done("compare", "first", "second").stdout
    assert "train.epochs" in text
    assert f"only b is correct: {len(found['fixed'])} images" in text


def test_a_picture_of_what_changed(here):
    found = answer("compare", "first", "second", "--picture", "changed.png")
    assert found["picture"] == "changed.png"
    assert (here / "changed.png").stat().st_size > 5_000
    assert "result:  same prediction for every image, equal weights" in done("compare", "first", "first").stdout
    same = answer("compare", "first", "first", "--picture", "same.png")
    assert same["picture"] is None
    assert not (here / "same.png").exists()
    assert run("compare", "first", "second", "--picture", "notes.txt").exit_code == 2
    inside = run("compare", "first", "second", "--picture", "photos/changed.png")
    assert inside.exit_code == 2
    assert "never written to" in inside.stderr


def test_images_that_are_gone_are_named_and_the_others_are_shown(here):
    gone = here / "photos" / answer("compare", "first", "second")["fixed"][0]["path"]
    gone.unlink()
    result = done("compare", "first", "second", "--picture", "changed.png")
    assert "1 image can't be shown" in result.stderr
    assert gone.name in result.stderr
    assert (here / "changed.png").is_file()


def test_images_that_changed_since_the_test_and_others_than_the_first_few_are_not_drawn(here, monkeypatch):
    changed = here / "photos" / answer("compare", "first", "second")["fixed"][0]["path"]
    color_image("red", 77).save(changed)
    said = done("compare", "first", "second", "--picture", "changed.png").stderr
    assert f"{changed.relative_to(here / 'photos')} has changed since the test" in " ".join(said.split())
    monkeypatch.setattr(sys.modules["imgclf.cli.compare"], "MAX_PICTURED", 2)
    more = done("compare", "first", "second", "--picture", "few.png").stderr
    assert "the picture shows 1 of " in more


def test_other_data_are_refused(here):
    result = run("compare", "first", "digits-lenet-1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "have no class in common" in result.stderr
    misspelt = run("compare", "first", "secnd")
    assert misspelt.exit_code == 2
    assert "did you mean second" in misspelt.stderr


def test_a_run_without_answers_says_what_to_do(here):
    (here / "runs" / "first" / PREDICTIONS).unlink()
    result = run("compare", "first", "second")
    assert result.exit_code == 2
    assert "imgclf evaluate --model runs/first" in result.stderr
    done("evaluate", "--model", "runs/first")
    assert answer("compare", "first", "second")["n"] == 9


def test_test_images_and_classes_that_only_one_run_has_are_said(here):
    file = here / "runs" / "second" / PREDICTIONS
    both = read_predictions(file)
    write_predictions(file, replace(both.take(range(5)), classes=(*both.classes[:-1], "rose")))
    said = " ".join(run("compare", "first", "second").stderr.split())
    assert "4 test images of a left out: b was not tested on them" in said
    assert "1 class of a unknown to b: red" in said


def test_images_that_came_or_went_since_the_split_are_said(here):
    color_image("red", 88).save(here / "photos" / "red" / "new.png")
    (row, *_) = [row for row in read_split(here / "runs" / "first" / "split.csv") if row.split == "test"]
    (here / "photos" / row.ref).unlink()
    said = " ".join(done("evaluate", "--model", "first").stderr.split())
    assert "1 image left out, as the run's split does not know them: red/new.png" in said
    assert f"1 image of the run's test part is gone or changed: {row.ref}" in said


def test_the_recipe_is_kept(here):
    assert {run.path.name: run.info.recipe for run in list_runs(here / "runs")} == {
        "first": None,
        "second": None,
        "digits-lenet-1": "digits",
    }


def test_a_run_of_python_has_the_figures_that_compare_has(here):
    classifier = Classifier("lenet", size=16, config={"train": {"precision": "fp32"}})
    classifier.fit("photos", epochs=1, runs="runs", name="python").evaluate()
    listed = answer("runs", "--filter", "name=python")["runs"][0]
    compared = answer("compare", "first", "python")["b"]
    assert {name: listed[name] for name in ("part", "n", "accuracy")} == {
        "part": "test",
        "n": 9,
        "accuracy": compared["accuracy"],
    }
    assert 0 < listed["seconds"] == compared["seconds"]
