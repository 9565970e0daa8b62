"""Several classifiers as one."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import app
from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError
from imgclf.models.build import build_model
from imgclf.models.ensemble import Ensemble
from imgclf.runtime import distributed
from imgclf.storage.model_file import read_manifest, save_model
from imgclf.storage.run_folder import open_run, read_config
from imgclf.studies.ensemble import combine, fit_ensemble
from imgclf.studies.events import NextTraining
from imgclf.studies.reproduce import reproduce
from imgclf.training.events import StepEnded, Warned
from support.events import on
from support.photos import save_photos

TINY = {"arch": "lenet", "size": (16, 16), "weights": "none", "train": {"epochs": 2, "device": "cpu", "seed": 5}}


def test_the_probabilities_are_the_mean_of_the_members():
    spec = ModelConfig("lenet", 3, 1, (28, 28), members=3)
    model = build_model(spec).eval()
    images = torch.rand(4, 1, 28, 28)
    assert isinstance(model, Ensemble)
    expected = torch.stack([member(images).softmax(1) for member in model.members]).mean(0)
    torch.testing.assert_close(model(images).softmax(1), expected)
    assert Ensemble([torch.nn.Identity()])(torch.tensor([[1e4, -1e4]])).isfinite().all()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """An ensemble of three, the events of its training, and the folder of its photos."""
    folder, events = tmp_path_factory.mktemp("three"), []
    photos = save_photos(folder / "photos")
    return fit_ensemble(str(photos), 3, config=TINY, runs=folder / "runs", callbacks=[events.append]), events, photos


def test_members_are_called_after_their_ensemble(photos, in_folder):
    fit_ensemble(str(photos), 2, config=TINY, runs="runs", name="ens")
    names = ["ens", "ens-member-1", "ens-member-2"]
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == names
    shutil.rmtree("runs/ens")
    shutil.rmtree("runs/ens-member-1")
    with pytest.raises(ConfigError, match="ens-member-2 already exists"):
        fit_ensemble(str(photos), 2, config=TINY, runs="runs", name="ens")
    assert not (in_folder / "runs" / "ens-member-1").exists(), "nothing is trained before"


def test_the_config_of_an_ensemble_says_how_all_of_it_is_trained_again(three, in_folder):
    ensemble, _, photos = three
    config = ensemble.run_.path / "config.toml"
    first, second = config.read_text().splitlines()[:2]
    assert first.startswith("# The network with seed 5 of this ensemble of 3.")
    assert second == "# --ensemble 3 to train all of them."
    again = fit_ensemble(str(photos), 3, config=read_config(config)[0], runs="again")
    weights, others = ensemble.model_.state_dict(), again.model_.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_of_members_that_kept_the_same_start_one_is_saved(photos, in_folder):
    Classifier(config=TINY).fit(photos, epochs=20, runs="runs", name="start")
    kept = {"init": "runs/start", "train": {"epochs": 1, "lr": 100.0, "device": "cpu"}}  # no epoch does any good
    with pytest.warns(UserWarning, match="all 2 members kept the initial model"):
        one = fit_ensemble(str(photos), 2, config=kept, runs="runs", name="ens")
    first = Classifier.load("runs/ens-member-1")
    saved = Classifier.load("runs/ens")
    assert one.model_config_.members == saved.model_config_.members == 1
    assert open_run(in_folder / "runs" / "ens").info.members == ("runs/ens-member-1",)
    assert saved.run_.model.stat().st_size < 1.1 * first.run_.model.stat().st_size
    np.testing.assert_array_equal(saved.predict_proba(photos), first.predict_proba(photos))


def test_of_equal_members_among_others_one_is_joined(photos, in_folder, monkeypatch):
    fit, told = Classifier.fit, []

    def with_two_seeds(self, data, **options):
        train = self.config["train"]
        self.config = {**self.config, "train": {**train, "seed": min(train["seed"], 6)}}
        return fit(self, data, **options)

    monkeypatch.setattr(Classifier, "fit", with_two_seeds)
    listen = on(Warned, lambda event: told.append(event.text))
    with pytest.warns(UserWarning, match="2 of 3 members kept the initial model"):
        joined = fit_ensemble(str(photos), 3, config=TINY, runs="runs", callbacks=[listen])
    assert joined.model_config_.members == 2
    assert told == ["2 of 3 members kept the initial model: only one of these equal networks is used"]


def test_members_differ_in_their_seed_and_share_a_split(three):
    ensemble, events, photos = three
    members = [Classifier.load(path) for path in ensemble.run_.info.members]
    assert [event for event in events if isinstance(event, NextTraining)] == [NextTraining(i, 3) for i in (1, 2, 3)]
    assert len({member.split_.digest for member in members} | {ensemble.split_.digest}) == 1
    seeds = [open_run(member.run_.path) for member in members]
    assert len({run.path for run in seeds}) == 3
    split_file = {"split_file": str(seeds[0].path / "split.csv")}
    alone = Classifier(config={**TINY, "train": {**TINY["train"], "seed": 6}, "data": split_file})
    alone.fit(photos)
    assert torch.equal(alone.model_.head.weight, members[1].model_.head.weight)
    mean = np.mean([member.predict_proba(photos) for member in members], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba(photos), mean, atol=1e-6)


def test_an_ensemble_is_one_model_file(three, tmp_path):
    ensemble, _, photos = three
    ensemble.save(tmp_path / "three.safetensors")
    loaded = Classifier.load(tmp_path / "three.safetensors")
    assert read_manifest(tmp_path / "three.safetensors").model.members == 3
    np.testing.assert_allclose(loaded.predict_proba(photos), ensemble.predict_proba(photos), atol=1e-6)
    run = Classifier.load(ensemble.run_.path)
    assert run.evaluate().to_dict() == ensemble.evaluate().to_dict()


def test_trained_classifiers_are_combined(three):
    ensemble, *_ = three
    loaded = [Classifier.load(path) for path in ensemble.run_.info.members]
    assert combine(loaded[:2]).model_config_.members == 2
    assert combine(loaded).seen_ == loaded[0].seen_


def test_what_is_not_alike_is_not_combined(photos):
    first = Classifier(config=TINY).fit(photos)
    second = Classifier(config={**TINY, "size": (20, 20)}).fit(photos)
    with pytest.raises(ConfigError, match="an ensemble needs equal networks"):
        combine([first, second])


@pytest.mark.parametrize("members", [0, 1, 101])
def test_an_ensemble_has_several_members(photos, in_folder, members):
    with pytest.raises(ConfigError, match=f"members is {members}; allowed: 2 to 100 networks"):
        fit_ensemble(str(photos), members, config=TINY, runs=in_folder / "runs")


def test_an_interrupted_member_ends_it_and_those_before_stay(photos, in_folder):
    def interrupt(event):
        if isinstance(event, StepEnded) and event.state.epoch == 1 and len(list((in_folder / "runs").iterdir())) == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    last = fit_ensemble(str(photos), 3, config=TINY, runs=in_folder / "runs", callbacks=[interrupt])
    assert last.history_.ended == "interrupted"
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == ["photos-lenet-1", "photos-lenet-2"]


def test_of_one_it_is_a_copy_that_claims_the_same(photos, tmp_path):
    classifier = Classifier(config=TINY).fit(photos)
    calibration = {"temperature": 2.5, "images": 30, "note": ""}
    save_model(tmp_path, classifier.model_, replace(classifier.manifest_, calibration=calibration))
    loaded = Classifier.load(tmp_path)
    for one in (loaded, classifier):
        copied = combine([one])
        assert copied.temperature_ == one.temperature_
        assert copied.manifest_.calibration == one.manifest_.calibration
        assert copied.metrics_ == one.metrics_
        assert np.array_equal(copied.predict_proba(photos), one.predict_proba(photos))
        copied.model_.head.weight.data.zero_()
        assert one.model_.head.weight.any()
    with pytest.raises(ConfigError, match="no classifiers to combine"):
        combine([])


def test_an_ensemble_is_not_trained_again_as_one(three):
    ensemble, *_ = three
    for again in (Classifier().resume, Classifier().repeat, reproduce):
        with pytest.raises(ConfigError, match=r"is an ensemble.*name one of its members: .*, .*, "):
            again(ensemble.run_.path)


def test_what_is_better_is_said_of_each_member_alone(photos, in_folder, monkeypatch):
    arguments = "--ensemble 2 --arch lenet --size 16 --epochs 1 --weights none --device cpu"
    said = CliRunner().invoke(app, ["train", str(photos), *arguments.split()]).stderr
    assert said.count("\nmember 2 of 2\n") == 1
    for once in ("data: ", "split: ", "\nmodel: ", "cache: ", "  augment  ", "member 1      "):
        assert said.count(once) == 1, once
    assert "       the same images and network, seed 1\n" in said
    assert re.search(r"\n +together +\d+\.\d% correct, loss \d\.\d{3}\n", said)
    assert "\u2192" not in said, "each first epoch is better than none"


@pytest.mark.parametrize("members", [0, -2, 1, 101])
@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_number_that_is_no_ensemble_is_refused_at_once(in_folder, members, more):
    found = CliRunner().invoke(app, ["train", "no such folder", "--ensemble", str(members), *more])
    assert found.exit_code == 2
    assert found.stderr == f"error: --ensemble is {members}; allowed: 2 to 100 networks\n"


def test_several_processes_train_no_ensemble(photos, monkeypatch):
    monkeypatch.setattr(distributed, "shard", lambda: (0, 2))
    with pytest.raises(ConfigError, match="trained by one process"):
        fit_ensemble(photos, 2, config={}, runs="runs")
