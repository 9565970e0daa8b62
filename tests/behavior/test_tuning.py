"""Search for better settings."""

import json
import math
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import _tuning, app
from imgclf.core.config import ExperimentConfig, from_dict
from imgclf.core.errors import ConfigError, DataError, MissingExtra
from imgclf.core.results import EpochRecord, History
from imgclf.storage.run_folder import read_config
from imgclf.studies import tune as tuning
from imgclf.studies.events import NextTraining
from imgclf.studies.tune import Trial, TrialEnded, Tuning, tune
from imgclf.training.events import BaselineMeasured, EpochEnded, StepEnded, notify
from support.events import on


@pytest.fixture
def no_training(monkeypatch):
    """Stands in for `fit`: two epochs whose loss depends on the learning rate."""

    def fit(classifier, data, callbacks):
        loss = abs(math.log(classifier.recipe.train.lr) + 5)
        classifier.history_ = History(tuple(EpochRecord(n, loss, 0.5, loss, 0.5, 0.1, 1.0, best=True) for n in (1, 2)))
        for n in (1, 2):
            notify(callbacks, EpochEnded(SimpleNamespace(epoch=n, epochs=2, history=classifier.history_.epochs[:n])))
        return classifier

    monkeypatch.setattr(tuning.Classifier, "fit", fit)


TINY = {"arch": "lenet", "size": [16, 16], "weights": "none", "train": {"epochs": 2, "device": "cpu", "seed": 3}}


def test_the_first_trial_is_the_usual_training_and_the_best_is_written_down(photos, in_folder):
    told = []
    result = tune(str(photos), config=TINY, trials=3, callbacks=[on(TrialEnded, told.append)])
    usual = Classifier(config=TINY).fit(photos)
    first = next(trial for trial in result.trials if trial.number == 0)
    assert first.loss == pytest.approx(usual.history_.best.valid_loss)
    assert first.values["lr"] == usual.config_.train.lr
    assert first.default
    assert [event.trial.number for event in told] == [0, 1, 2]
    assert result.ended == "done"
    losses = [trial.loss for trial in result.trials if trial.loss is not None]
    assert losses == sorted(losses)
    values, source = read_config(in_folder / result.config)
    assert source == str(photos)
    best = Classifier(recipe=from_dict(ExperimentConfig, values)).fit(photos)
    assert best.history_.best.valid_loss == pytest.approx(losses[0])


PROBED = {**TINY, "train": {"epochs": 1, "probe": True, "device": "cpu", "lr": 100.0}}  # no epoch does it any good


def test_trials_know_the_start_that_training_would_keep(photos, in_folder):
    heard = []
    usual = Classifier(config=PROBED).fit(photos, callbacks=[on(BaselineMeasured, heard.append)])
    assert usual.history_.best is None
    result = tune(str(photos), config=PROBED, trials=2)
    assert all(trial.initial_kept for trial in result.trials)
    assert result.initial_loss == result.default_loss == heard[0].result.loss
    assert min(trial.loss for trial in result.trials) > result.initial_loss
    assert (result.data, result.arch) == ("photos", "lenet")
    assert tune(str(photos), config=PROBED, trials=2) == result, "a search that goes on knows it still"


def test_a_trial_that_beats_the_start_is_better_than_one_that_does_not(photos, in_folder, monkeypatch):
    """Whatever the losses are: that of an epoch that is better by chance is not what training would have."""
    outcomes = iter([("COMPLETE", 0.1), ("COMPLETE", 0.2)])

    def run(search, trial):
        tuning._suggest(trial, search.defaults)
        outcome = next(outcomes)
        trial.set_user_attr("initial_kept", outcome[1] == 0.1)
        search.study.set_user_attr("initial_loss", 0.3)
        return outcome

    monkeypatch.setattr(tuning, "_run_trial", run)
    result = tune(str(photos), config=PROBED, trials=2)
    assert [trial.loss for trial in result.trials] == [0.2, 0.1]
    assert result.default_loss == 0.3


@pytest.mark.usefixtures("no_training")
def test_without_a_probe_there_is_no_start_to_beat(photos, in_folder):
    result = tune(photos, config=TINY, trials=1)
    assert result.initial_loss is None
    assert result.default_loss == result.trials[0].loss


PROBED_TOML = "arch = 'lenet'\nsize = [16, 16]\nweights = 'none'\n[train]\nprobe = true\nlr = 100.0\nepochs = 1\n"


def test_the_command_says_that_the_start_would_be_kept(photos, in_folder, monkeypatch):
    (in_folder / "probed.toml").write_text(PROBED_TOML)
    command = ["tune", str(photos), "--trials", "2", "--config", "probed.toml", "--device", "cpu"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.stderr
    assert found.stderr.count(", initial model kept") == 2
    assert re.search(
        r"best: +no trial beats the initial model \(valid loss \d.\d{4}\), which train would keep\n", found.stdout
    )
    assert "needs 6 complete trials" in found.stdout
    answer = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert answer["initial_loss"] < answer["trials"][0]["loss"]
    assert answer["trials"][0]["initial_kept"]


@pytest.mark.usefixtures("no_training")
def test_a_search_goes_on_where_it_stopped(photos, in_folder):
    first = tune(str(photos), config=TINY, trials=2)
    told = []
    second = tune(str(photos), config=TINY, trials=3, callbacks=[on(TrialEnded, told.append)])
    assert len(told) == 1
    assert len({trial.values["lr"] for trial in second.trials}) == 3  # it does not draw the same again
    assert {trial.number for trial in first.trials} < {trial.number for trial in second.trials}
    assert tune(str(photos), config=TINY, trials=3).trials == second.trials
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == ["tune-photos.db", "tune-photos.toml"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"size": [20, 20]}, "size"),
        ({"augment": "mix"}, "augment"),
        ({"train": {**TINY["train"], "epochs": 3}}, "epochs, warmup_epochs"),
        ({"split": [0.6, 0.2, 0.2]}, "images, split"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_other_settings_are_another_search(photos, in_folder, change, name):
    tune(str(photos), config=TINY, trials=1)
    with pytest.raises(ConfigError, match=rf"has trials with other settings \({name}\)"):
        tune(str(photos), config={**TINY, **change}, trials=2)


def test_a_file_that_holds_no_trials(photos, in_folder):
    (in_folder / "runs").mkdir()
    (in_folder / "runs" / "tune-photos.db").write_text("somebody's notes, which are no data base " * 10)
    with pytest.raises(ConfigError, match=r"can't use .*tune-photos.db for the trials: file is not a database"):
        tune(str(photos), config=TINY, trials=1)


@pytest.mark.usefixtures("no_training")
def test_a_name_with_signs_of_its_own(photos, in_folder):
    odd = photos.rename(photos.parent / "my.photos?#1")
    result = tune(str(odd), config=TINY, trials=1)
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == [
        "tune-my.photos-1.db",
        "tune-my.photos-1.toml",
    ]
    assert result.config == "runs/tune-my.photos-1.toml"


def test_nothing_is_written_into_the_data(photos, in_folder):
    before = sorted(photos.rglob("*"))
    with pytest.raises(DataError, match="lies inside the data"):
        tune(str(photos), config=TINY, trials=1, folder=photos / "runs")
    assert sorted(photos.rglob("*")) == before


@pytest.mark.usefixtures("no_training")
def test_a_trial_that_does_badly_is_ended_and_the_picture_says_of_what_it_is(photos, in_folder, monkeypatch):
    titles = []
    monkeypatch.setattr(_tuning, "save_importances", lambda *values: titles.append(values[2:]))
    results = []
    monkeypatch.setattr(_tuning, "_show", lambda data, result, picture: results.append(result))
    options = {"recipe": None, "trials": 14, "minutes": None, "folder": in_folder / "runs"}
    _tuning.run_search(str(photos), TINY, options, as_json=False)
    (result,) = results
    assert {trial.ended for trial in result.trials} == {"complete", "pruned"}
    assert set(result.importances) == {"lr", "weight_decay", "label_smoothing", "augment"}
    assert sum(result.importances.values()) == pytest.approx(1)
    assert titles == [("photos, lenet", sum(trial.loss is not None for trial in result.trials))]


@pytest.mark.usefixtures("no_training")
def test_the_usual_settings_are_never_cut_short(photos, in_folder, monkeypatch):
    """Also where they come late, and the pruner would end every trial."""
    import optuna

    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: True)
    result = tune(str(photos), config=TINY, trials=3)
    assert [(trial.default, trial.ended) for trial in result.trials] == [
        (True, "complete"),
        (False, "pruned"),
        (False, "pruned"),
    ]


def test_no_trial_goes_on_when_the_time_is_up(photos, in_folder):
    endless = {**TINY, "train": {**TINY["train"], "epochs": 100_000}}
    with pytest.raises(ConfigError, match="no trial finished"):
        tune(str(photos), config=endless, minutes=1 / 60)


def cut(n, end):
    """A callback that does `end` at the first step of the trial number `n`, from 1."""
    at = []

    def watch(event):
        if isinstance(event, NextTraining):
            at.append(event.number)
        if isinstance(event, StepEnded) and at == list(range(1, n + 1)):
            at.append(0)
            end()

    return watch


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_trial_that_the_time_cuts_short_comes_first_when_the_search_goes_on(photos, in_folder, monkeypatch):
    now = time.monotonic
    late = cut(2, lambda: monkeypatch.setattr(tuning.time, "monotonic", lambda: now() + 3600))
    first = tune(str(photos), config=TINY, trials=3, minutes=10, callbacks=[late])
    assert (first.ended, len(first.trials)) == ("out of time", 1)
    monkeypatch.undo()
    monkeypatch.chdir(in_folder)
    second = tune(str(photos), config=TINY, trials=3)
    assert (second.ended, len(second.trials)) == ("done", 3)


def test_the_usual_settings_come_even_after_an_interrupt(photos, in_folder):
    with pytest.raises(KeyboardInterrupt):
        tune(str(photos), config=TINY, trials=2, callbacks=[cut(1, interrupt)])
    (only,) = tune(str(photos), config=TINY, trials=1).trials
    assert only.default


def test_an_interrupt_ends_the_search_with_what_was_found(photos, in_folder):
    told = []
    result = tune(str(photos), config=TINY, trials=4, callbacks=[cut(2, interrupt), on(NextTraining, told.append)])
    assert told == [NextTraining(1, 4), NextTraining(2, 4)]
    assert (result.ended, len(result.trials)) == ("interrupted", 1)
    assert (in_folder / result.config).is_file()
    assert len(tune(str(photos), config=TINY, trials=2).trials) == 2


@pytest.mark.usefixtures("no_training")
def test_no_trial_begins_that_would_not_fit(photos, in_folder, monkeypatch):
    tune(str(photos), config=TINY, trials=1)
    monkeypatch.setattr(tuning, "_expected_seconds", lambda study: 120.0)
    result = tune(str(photos), config=TINY, trials=2, minutes=1)
    assert (result.ended, len(result.trials)) == ("out of time", 1)


def search(ended="done", trials=1, importances=(), default=False):
    values = {"lr": 0.01, "augment": "light"}
    found = [Trial(n, "complete", 0.5 + n / 10, values, default=default) for n in range(trials)]
    return Tuning("photos", "lenet", tuple(found), None, dict(importances), "runs/tune-photos.toml", ended)


def test_an_interrupted_search_is_shown_and_ends_with_the_code_of_interrupts(photos, in_folder, monkeypatch):
    monkeypatch.setattr(_tuning, "tune", lambda *_, **__: search("interrupted", default=True))
    found = CliRunner().invoke(app, ["tune", str(photos)])
    assert found.exit_code == 130
    assert "interrupted; the same command resumes the search" in found.stderr
    assert "best:       the default settings: no trial is better\n" in found.stdout


@pytest.mark.parametrize(("importances", "shown"), [({"lr": 0.9, "augment": 0.1}, "lr 90%, augment 10%"), ({}, None)])
def test_the_command_says_which_settings_matter(photos, in_folder, monkeypatch, importances, shown):
    (in_folder / "runs").mkdir()
    monkeypatch.setattr(_tuning, "tune", lambda *_, **__: search(trials=6, importances=importances))
    found = CliRunner().invoke(app, ["tune", str(photos)])
    assert found.exit_code == 0, found.stderr
    assert (f"importance: {shown}\npicture:    runs/tune-photos.png\n" in found.stdout) == bool(shown)
    assert (in_folder / "runs" / "tune-photos.png").is_file() == bool(shown)
    assert "complete trials" not in found.stdout


def test_a_result_without_its_search_is_not_replaced(photos, in_folder):
    (in_folder / "runs").mkdir()
    (in_folder / "runs" / "tune-photos.toml").write_text("kept")
    with pytest.raises(ConfigError, match="already exists, and there is no search to resume"):
        tune(str(photos), config=TINY)
    assert (in_folder / "runs" / "tune-photos.toml").read_text() == "kept"


@pytest.mark.usefixtures("no_training")
def test_an_error_in_a_trial_ends_the_search_with_it(photos, in_folder, monkeypatch):
    def fit(*_, **__):
        raise DataError("the disk is gone")

    monkeypatch.setattr(tuning.Classifier, "fit", fit)
    with pytest.raises(DataError, match="the disk is gone"):
        tune(str(photos), config=TINY, trials=2)


def test_what_can_not_be_tuned(photos, in_folder, monkeypatch):
    with pytest.raises(ConfigError, match="no validation images"):
        tune(str(photos), config={**TINY, "split": [0.8, 0.0, 0.2]})
    with pytest.raises(ConfigError, match="no epochs to tune"):
        tune(str(photos), config={**TINY, "train": {"epochs": 0, "probe": True}})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"imgclf\[tune\]"):
        tune(str(photos), config=TINY)
