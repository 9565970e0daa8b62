"""Several classifiers as one."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.bundle import load_model, read_manifest, save_model
from imgclf.cli import _console, app
from imgclf.ensemble import combine, fit_ensemble
from imgclf.errors import ConfigError
from imgclf.models.build import build_model
from imgclf.models.ensemble import Ensemble
from imgclf.reproduce import reproduce
from imgclf.run import open_run
from imgclf.specs import ModelSpec

TINY = {"arch": "lenet", "size": (16, 16), "weights": "none", "train": {"epochs": 2, "device": "cpu", "seed": 5}}


def test_the_probabilities_are_the_mean_of_the_members():
    spec = ModelSpec("lenet", 3, 1, (28, 28), members=3)
    model = build_model(spec).eval()
    images = torch.rand(4, 1, 28, 28)
    assert isinstance(model, Ensemble)
    expected = torch.stack([member(images).softmax(1) for member in model.members]).mean(0)
    torch.testing.assert_close(model(images).softmax(1), expected)
    assert Ensemble([torch.nn.Identity()])(torch.tensor([[1e4, -1e4]])).isfinite().all()


@pytest.fixture
def three(photos, in_folder):
    events = []
    told = lambda event, subject: events.append((event, subject))  # noqa: E731
    return fit_ensemble(str(photos), 3, TINY, runs=in_folder / "runs", callbacks=[told]), events


def test_members_differ_in_their_seed_and_share_a_split(three, photos, in_folder):
    ensemble, events = three
    members = [Classifier.load(path) for path in ensemble.run_.info["members"]]
    assert [event for event in events if event[0] == "member"] == [("member", (i, 3)) for i in (1, 2, 3)]
    assert len({member.split_.digest for member in members} | {ensemble.split_.digest}) == 1
    seeds = [open_run(member.run_.path) for member in members]
    assert len({run.path for run in seeds}) == 3
    split_file = {"split_file": str(seeds[0].path / "split.csv")}
    alone = Classifier(config={**TINY, "train": {**TINY["train"], "seed": 6}, "data": split_file})
    alone.fit(photos)
    assert torch.equal(alone.model_.head.weight, members[1].model_.head.weight)
    mean = np.mean([member.predict_proba(photos) for member in members], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba(photos), mean, atol=1e-6)


def test_an_ensemble_is_one_model_file(three, photos, tmp_path):
    ensemble, _ = three
    ensemble.save(tmp_path / "three.safetensors")
    loaded = Classifier.load(tmp_path / "three.safetensors")
    assert read_manifest(tmp_path / "three.safetensors").spec.members == 3
    np.testing.assert_allclose(loaded.predict_proba(photos), ensemble.predict_proba(photos), atol=1e-6)
    run = Classifier.load(ensemble.run_.path)
    assert run.evaluate().to_dict() == ensemble.evaluate().to_dict()


def test_trained_classifiers_are_combined(three):
    ensemble, _ = three
    loaded = [Classifier.load(path) for path in ensemble.run_.info["members"]]
    assert combine(loaded[:2]).spec_.members == 2
    assert combine(loaded).seen_ == loaded[0].seen_


def test_what_is_not_alike_is_not_combined(photos):
    first = Classifier(config=TINY).fit(photos)
    second = Classifier(config={**TINY, "size": (20, 20)}).fit(photos)
    with pytest.raises(ConfigError, match="an ensemble needs equal networks"):
        combine([first, second])


@pytest.mark.parametrize("members", [0, 1, 101])
def test_an_ensemble_has_several_members(photos, in_folder, members):
    with pytest.raises(ConfigError, match="2 to 100 members"):
        fit_ensemble(str(photos), members, TINY, runs=in_folder / "runs")


def test_an_interrupted_member_ends_it_and_those_before_stay(photos, in_folder):
    def interrupt(event, subject):
        if event == "step" and subject.epoch == 1 and len(list((in_folder / "runs").iterdir())) == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    last = fit_ensemble(str(photos), 3, TINY, runs=in_folder / "runs", callbacks=[interrupt])
    assert last.history_.ended == "interrupted"
    assert sorted(path.name for path in (in_folder / "runs").iterdir()) == ["photos-lenet-1", "photos-lenet-2"]


def test_a_model_file_without_members_is_a_single_network(photos, tmp_path):
    classifier = Classifier(config=TINY).fit(photos)
    path = tmp_path / "model.safetensors"
    manifest = classifier.manifest_
    save_model(path, classifier.model_, manifest)
    import imgclf.bundle as bundle

    values = json.loads(bundle._to_json(manifest))
    del values["spec"]["members"]
    assert bundle._parse_manifest(values).spec.members == 1
    assert load_model(path)[1].spec.members == 1


def test_an_ensemble_is_not_trained_again_as_one(three):
    ensemble, _ = three
    for again in (Classifier().resume, Classifier().repeat, reproduce):
        with pytest.raises(ConfigError, match=r"is an ensemble.*name one of its members: .*, .*, "):
            again(ensemble.run_.path)


def test_what_is_better_is_said_of_each_member_alone(photos, in_folder, monkeypatch):
    monkeypatch.setattr(_console, "catch_termination", lambda: None)  # it would outlive the test
    arguments = "--ensemble 2 --arch lenet --size 16 --epochs 1 --weights none --device cpu"
    said = CliRunner().invoke(app, ["train", str(photos), *arguments.split()]).stderr
    assert said.count("member ") == 2
    assert "\u2192" not in said, "each first epoch is better than none"
