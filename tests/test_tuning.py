"""Search for better settings."""

import sys

import pytest

from imgclf import Classifier
from imgclf.errors import ConfigError, MissingExtra
from imgclf.run import read_config
from imgclf.specs import Experiment, from_dict
from imgclf.tuning import tune

TINY = {"arch": "lenet", "size": [16, 16], "weights": "none", "train": {"epochs": 2, "device": "cpu", "seed": 3}}


def test_the_first_trial_is_the_usual_training_and_the_best_is_written_down(photos, in_folder):
    told = []
    result = tune(str(photos), TINY, trials=3, told=told.append)
    usual = Classifier(config=TINY).fit(photos)
    first = next(trial for trial in result.trials if trial.number == 0)
    assert first.loss == pytest.approx(usual.metrics_["valid"].loss)
    assert first.values["lr"] == usual.experiment_.train.lr
    assert [trial.number for trial in told] == [0, 1, 2]
    losses = [trial.loss for trial in result.trials if trial.loss is not None]
    assert losses == sorted(losses)
    values, source = read_config(in_folder / result.config)
    assert source == str(photos)
    best = Classifier(recipe=from_dict(Experiment, values)).fit(photos)
    assert best.metrics_["valid"].loss == pytest.approx(losses[0])


def test_a_search_goes_on_where_it_stopped(photos, in_folder):
    first = tune(str(photos), TINY, trials=2)
    told = []
    second = tune(str(photos), TINY, trials=3, told=told.append)
    assert len(told) == 1
    assert {trial.number for trial in first.trials} < {trial.number for trial in second.trials}
    assert tune(str(photos), TINY, trials=3).trials == second.trials
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == ["tune-photos.db", "tune-photos.toml"]


def test_another_network_is_another_search(photos, in_folder):
    tune(str(photos), TINY, trials=1)
    with pytest.raises(ConfigError, match="is of another network, size, split"):
        tune(str(photos), {**TINY, "size": [20, 20]}, trials=1)


def test_a_trial_that_does_badly_is_ended(photos, in_folder):
    result = tune(str(photos), {**TINY, "train": {**TINY["train"], "epochs": 4}}, trials=14)
    assert {trial.ended for trial in result.trials} >= {"complete", "pruned"}
    assert set(result.importances) == {"lr", "weight_decay", "label_smoothing", "augment", "layer_decay"}
    assert sum(result.importances.values()) == pytest.approx(1)


def test_no_trial_goes_on_when_the_time_is_up(photos, in_folder):
    endless = {**TINY, "train": {**TINY["train"], "epochs": 100_000}}
    with pytest.raises(ConfigError, match="no trial was finished"):
        tune(str(photos), endless, minutes=1 / 60)


def test_what_can_not_be_tuned(photos, in_folder, monkeypatch):
    with pytest.raises(ConfigError, match="no valid images"):
        tune(str(photos), {**TINY, "split": [0.8, 0.0, 0.2]})
    with pytest.raises(ConfigError, match="no epochs to tune"):
        tune(str(photos), {**TINY, "train": {"epochs": 0, "probe": True}})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"imgclf\[tune\]"):
        tune(str(photos), TINY)
