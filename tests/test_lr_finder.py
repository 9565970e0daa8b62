"""The learning-rate range test."""

import pytest
import torch

from imgclf.data.loader import Loader
from imgclf.errors import ConfigError
from imgclf.plan import make_plan
from imgclf.specs import Experiment, TrainConfig
from imgclf.training.lr_finder import HIGHEST, LOWEST, find_lr, valley


def trial(source, **train):
    config = TrainConfig(epochs=1, lr=0.1, batch_size=8, device="cpu", precision="fp32", **train)
    plan = make_plan(Experiment(arch="lenet", weights="none", size=(16, 16), train=config), source, source.samples)
    return (
        plan.model,
        Loader(source, source.samples, plan.recipe, classes=source.classes, batch_size=8, train=True),
        config,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_is_suggested_and_everything_is_as_before(make_source, optimizer):
    model, loader, config = trial(make_source(n=24), optimizer=optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    done = []
    curve = find_lr(model, loader, config, progress=lambda *step: done.append(step))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert LOWEST < curve.suggestion < HIGHEST / 10
    assert list(curve.rates) == sorted(curve.rates)
    assert len(curve.rates) == len(curve.losses)
    assert [step for step, _ in done] == list(range(1, len(done) + 1))
    assert len(done) - 1 <= len(curve.rates) <= len(done), "a step after which the loss explodes is not on the curve"
    assert min(curve.losses) < curve.losses[0]
    assert find_lr(model, loader, config) == curve


def test_a_start_that_explodes_is_an_error(make_source):
    model, loader, config = trial(make_source())
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ConfigError, match="explodes at once"):
        find_lr(model, loader, config)


def test_the_suggestion_lies_half_way_down_the_longest_descent():
    rates = [10.0**i for i in range(-7, 2)]
    assert valley(rates, [5, 5, 4, 4.2, 3, 2, 1, 2, 6]) == 1e-3
    assert valley(rates, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 1e-7
