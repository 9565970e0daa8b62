"""Between the plan and the first step: what the labels bear, and how much time there is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imgclf import Classifier
from imgclf.core.config import ExperimentConfig, TrainConfig
from imgclf.core.errors import ConfigError
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.estimator.warm_start import check_label_preserving, fit_to_time
from imgclf.training.events import StepEnded
from support.events import with_state
from support.plans import plan_of

EXACT = {"precision": "fp32", "device": "cpu"}
PROBED = ExperimentConfig(
    arch="lenet", weights="none", size=(16, 16), channels=3, train=TrainConfig(probe=True, **EXACT)
)


def halves(bright):
    """Images of two classes that differ in what `bright` makes of (index, class): a mask or color."""
    rng = np.random.default_rng(0)
    images = np.stack([bright(i % 2) for i in range(60)]) + rng.integers(0, 20, (60, 16, 16, 3))
    reader = ArrayReader({"all": images.astype(np.uint8)})
    samples = tuple(Sample(f"all/{i}", "ab"[i % 2], sha256=f"{i:064x}") for i in range(60))
    return Source("halves", ("a", "b"), samples, reader)


def sided(label):
    """Bright on the left or on the right: a mirrored one is of the other class."""
    image = np.zeros((16, 16, 3))
    image[:, :8] = 200 * (1 - label)
    image[:, 8:] = 200 * label
    return image


def colored(label):
    """Red or blue, equally bright in gray."""
    return np.ones((16, 16, 1)) * ((200, 0, 0) if label else (0, 0, 200))


class Sided(nn.Module):
    """Right about `sided`, whatever the colors."""

    def forward(self, x):
        left, right = x[..., :8].mean((1, 2, 3)), x[..., 8:].mean((1, 2, 3))
        return torch.stack([left, right], 1)


class Colored(nn.Module):
    """Right about `colored`, mirrored or not."""

    def forward(self, x):
        red, _, blue = x.mean((2, 3)).unbind(1)
        return torch.stack([blue, red], 1)


@pytest.mark.parametrize(
    ("picture", "model", "found"),
    [
        (sided, Sided(), {"mirror": False, "recolor": True}),
        (colored, Colored(), {"mirror": True, "recolor": False}),
    ],
)
def test_what_changes_labels_is_left_out_of_the_augmentation(picture, model, found):
    source = halves(picture)
    plan = plan_of(replace(PROBED, augment="strong"), source)
    plan = replace(plan, model=model)
    after, choices = check_label_preserving(
        plan, Loader(source, source.samples, plan.preprocess, classes=source.classes)
    )
    assert {name: getattr(after.experiment, name) for name in found} == found
    steps = {step.op: step.params for step in after.preprocess.steps}
    assert ("flip" in steps) == found["mirror"]
    assert (steps["color_jitter"]["saturation"] > 0) == found["recolor"]
    assert [choice.value for choice in choices] == ["yes" if found[choice.name] else "no" for choice in choices]


def test_a_random_operation_is_kept_from_recoloring_too():
    source = halves(colored)
    plan = replace(plan_of(replace(PROBED, augment="trivial"), source), model=Colored())
    after, _ = check_label_preserving(plan, Loader(source, source.samples, plan.preprocess, classes=source.classes))
    assert [step.params["recolor"] for step in after.preprocess.steps if step.op == "trivial"] == [False]


def test_what_was_asked_for_is_not_tried():
    source = halves(sided)
    plan = plan_of(replace(PROBED, mirror=True, recolor=False), source)
    plan = replace(plan, model=Sided())
    assert check_label_preserving(plan, Loader(source, source.samples, plan.preprocess, classes=source.classes)) == (
        plan,
        (),
    )


def test_what_is_found_is_trained_with_and_written_down(tmp_path):
    config = {"size": (16, 16), "train": {**EXACT, "probe": True}}
    classifier = Classifier("lenet", config=config).fit(halves(sided), epochs=1, runs=tmp_path)
    assert classifier.config_.mirror is False
    assert not [step for step in classifier.preprocess_.steps if step.op == "flip"]
    info = classifier.run_.info
    assert {choice["name"]: choice["value"] for choice in info.decisions}["mirror"] == "no"
    assert not [step for step in info.preprocess["steps"] if step["op"] == "flip"]
    assert "mirror = false" in (classifier.run_.path / "config.toml").read_text()


def timed(minutes, **train):
    source = halves(sided)
    experiment = replace(PROBED, train=TrainConfig(minutes=minutes, batch_size=8, **EXACT, **train))
    return plan_of(experiment, source)


def test_more_time_gives_more_epochs_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("imgclf.estimator.warm_start.seconds_a_step", lambda *_: 0.5)
    epochs = [fit_to_time(timed(minutes))[0].experiment.train.epochs for minutes in (0.05, 1, 5, 1000)]
    assert epochs == sorted(epochs)
    assert epochs[0] == 1
    assert epochs[-1] == 120
    assert fit_to_time(timed(1000, epochs=3))[0].experiment.train.epochs == 3


@pytest.mark.parametrize("minutes", [0.2, 0.33, 0.5, 0.9, 1.7])
def test_the_time_is_used(monkeypatch, minutes):
    """Also where it is one epoch and a third: two shorter ones are taken."""
    monkeypatch.setattr("imgclf.estimator.warm_start.seconds_a_step", lambda *_: 0.5)
    config = fit_to_time(timed(minutes))[0].experiment.train
    seconds = 0.5 * config.epochs * (config.epoch_steps or 8)
    assert 0.8 * 60 * minutes < seconds <= 60 * minutes


def test_an_epoch_is_cut_to_the_time(monkeypatch):
    monkeypatch.setattr("imgclf.estimator.warm_start.seconds_a_step", lambda *_: 1.0)
    plan, choice = fit_to_time(timed(5 / 60))
    config = plan.experiment.train
    assert config.epochs == 1
    assert 3 <= config.epoch_steps <= 5
    assert "of 8 steps" in choice.value


def test_no_time_is_an_error(monkeypatch):
    monkeypatch.setattr("imgclf.estimator.warm_start.seconds_a_step", lambda *_: 100.0)
    with pytest.raises(ConfigError, match="nothing of it remains for training"):
        fit_to_time(timed(0.5))


def test_training_ends_with_its_time(monkeypatch):
    monkeypatch.setattr("imgclf.estimator.warm_start.MEASURED", 0.1)
    config = {"size": (16, 16), "train": {**EXACT, "minutes": 6 / 60, "epochs": 100_000, "batch_size": 4}}
    classifier = Classifier("lenet", weights="none", config=config).fit(halves(sided))
    assert classifier.history_.ended == "done"
    assert len(classifier.history_) < 100_000
    assert classifier.config_.train.minutes < 6 / 60, "what was left for training"
    assert classifier.history_.epochs[-1].lr < 0.2 * max(record.lr for record in classifier.history_)


def test_an_epoch_of_a_few_steps():
    config = {"size": (16, 16), "train": {**EXACT, "epoch_steps": 2, "batch_size": 4}}
    steps = []
    watch = with_state(StepEnded, lambda state: steps.append((state.epoch, state.batch_index)))
    Classifier("lenet", weights="none", config=config).fit(halves(sided), epochs=3, callbacks=[watch])
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
