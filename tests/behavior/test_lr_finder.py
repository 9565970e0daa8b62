"""The learning-rate range test."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from imgclf import Classifier
from imgclf.cli import app
from imgclf.core.config import ExperimentConfig, PreprocessConfig, TrainConfig
from imgclf.core.errors import ConfigError
from imgclf.core.results import LrCurve
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.estimator.settings import Request
from imgclf.estimator.warm_start import plan_start
from imgclf.training.events import TrainingStarted
from imgclf.training.lr_finder import HIGHEST, LOWEST, STEPS, find_lr, suggest_lr
from support.events import with_state
from support.plans import plan_of


def trial(source, **train):
    config = TrainConfig(epochs=1, lr=0.1, batch_size=8, device="cpu", precision="fp32", **train)
    plan = plan_of(ExperimentConfig(arch="lenet", weights="none", size=(16, 16), train=config), source)
    return plan.model, plan.train_loader, config


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_is_suggested_and_everything_is_as_before(make_source, optimizer):
    model, loader, config = trial(make_source(n=24), optimizer=optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    done = []
    curve = find_lr(model, loader, config, progress=lambda *step: done.append(step))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert LOWEST < curve.suggestion < HIGHEST / 10
    assert list(curve.rates) == sorted(curve.rates)
    assert len(curve.rates) == len(curve.losses)
    assert [step for step, _ in done] == list(range(1, len(done) + 1))
    assert len(done) - 1 <= len(curve.rates) <= len(done), "a step after which the loss explodes is not on the curve"
    assert min(curve.losses) < curve.losses[0]
    assert find_lr(model, loader, config) == curve


def test_after_an_interrupt_everything_is_as_before(make_source):
    model, loader, config = trial(make_source(n=24))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def interrupt(done, n):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_lr(model, loader, config, progress=interrupt)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_suggestion_for_a_convex_problem_descends_and_does_not_diverge():
    """Logistic regression on two bright or dark pixels: plain gradient steps at that rate must learn it."""
    values = np.where(np.arange(64) % 2, 200, 55).astype(np.uint8)[:, None, None, None]
    reader = ArrayReader({"all": values})
    samples = tuple(Sample(f"all/{i:05d}", "ab"[i % 2], sha256=f"{i:064x}") for i in range(64))
    source = Source("convex", ("a", "b"), samples, reader)
    recipe = PreprocessConfig(size=(1, 1), channels=1, mean=(0.5,), std=(0.3,))
    loader = Loader(source, samples, recipe, classes=source.classes, batch_size=16, train=True)
    config = TrainConfig(epochs=1, lr=1.0, batch_size=16, device="cpu", precision="fp32", optimizer="sgd", momentum=0.0)
    config = replace(config, weight_decay=0.0, label_smoothing=0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    suggestion = find_lr(model, loader, config).suggestion
    images = torch.tensor([[-0.95], [0.95]]).repeat(8, 1)
    targets = torch.tensor([0, 1]).repeat(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=suggestion)
    losses = []
    for _ in range(100):
        loss = nn.functional.cross_entropy(model[1](images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_the_suggestion_is_near_the_foot_of_the_fall_and_not_on_the_flat_before_it():
    rates = [10.0**power for power in range(9)]
    assert suggest_lr(rates, [5.0, 4.999, 4.998, 4.0, 3.0, 2.0, 1.0, 6.0, 9.0]) == 1e5
    assert suggest_lr(rates, [5.0, 5.0, 5.0, 4.0, 4.5, 3.0, 1.0, 6.0, 9.0]) == 1e6


def test_nothing_is_suggested_where_no_rate_makes_the_loss_fall():
    assert suggest_lr([1.0, 10.0, 100.0], [1.0, 0.95, 2.0]) is None


def test_a_start_that_explodes_is_an_error(make_source):
    model, loader, config = trial(make_source())
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ConfigError, match="explodes at once"):
        find_lr(model, loader, config)


def test_few_images_are_seen_again_and_again(make_source):
    model, loader, config = trial(make_source(n=3))
    assert len(loader) == 9
    assert len(find_lr(model, loader, config).rates) > STEPS // 2


def test_a_probe_alone_has_no_rate(make_source):
    model, loader, config = trial(make_source(n=3))
    with pytest.raises(ConfigError, match="epochs is 0"):
        find_lr(model, loader, replace(config, epochs=0, probe=True))


@pytest.mark.parametrize("probe", [False, True])
def test_it_starts_where_training_starts(photos, probe):
    """The same weights, also of the head of a probe, the same pixels and the same first batch."""
    changes = {"arch": "lenet", "weights": "none", "size": [16, 16]}
    changes["train"] = {"epochs": 1, "probe": probe, "device": "cpu", "minutes": 0.5}
    first = {}

    note = with_state(TrainingStarted, lambda state: first.update(weights=copy.deepcopy(state.model.state_dict())))
    classifier = Classifier(config={**changes, "train": {**changes["train"], "minutes": None}})
    classifier.fit(photos, callbacks=[note])
    start = plan_start(Request(changes=changes), str(photos), [])
    loader, weights = start.plan.train_loader, start.plan.model.state_dict()
    assert first["weights"].keys() == weights.keys()
    assert all(torch.equal(first["weights"][name], tensor) for name, tensor in weights.items())
    assert loader.preprocess == classifier.preprocess_
    theirs = classifier.loader(classifier.source_, classifier.split_.samples("train"), train=True)
    assert torch.equal(next(iter(loader.epoch(0))).pixels, next(iter(theirs.epoch(0))).pixels)
    assert (start.probe is not None) == probe


def test_the_command_shows_that_it_goes_on_and_what_training_would_use(photos, in_folder, monkeypatch):
    arguments = ["--arch", "lenet", "--size", "16", "--weights", "none", "--device", "cpu"]
    found = CliRunner().invoke(app, ["find-lr", str(photos), *arguments])
    assert found.exit_code == 0, found.stderr
    assert "       20 of 100 steps\n       40 of 100 steps\n" in found.stderr
    assert "(train would use 0.002)\n" in found.stdout


def test_the_command_says_where_no_rate_is_better_than_the_default(photos, in_folder, monkeypatch):
    curve = LrCurve((0.001, 0.01, 0.1), (1.0, 0.99, 2.0), None)
    monkeypatch.setattr("imgclf.training.lr_finder.find_lr", lambda *_, **__: curve)
    arguments = ["--arch", "lenet", "--size", "16", "--weights", "none", "--device", "cpu"]
    found = CliRunner().invoke(app, ["find-lr", str(photos), *arguments])
    assert found.exit_code == 0, found.stderr
    assert "no learning rate lowers the loss much in so few steps: keep the default, 0.002" in found.stderr
    assert "suggested" not in found.stdout
    assert "--lr" not in found.stdout
    assert (in_folder / "find-lr.png").is_file()
