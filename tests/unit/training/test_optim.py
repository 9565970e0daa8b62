"""Optimizers, parameter groups and learning-rate schedules."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imgclf.core.config import SCHEDULES, TrainConfig
from imgclf.training.loss import class_weights
from imgclf.training.optim import make_optimizer, set_lr
from imgclf.training.schedule import lr_factor


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_an_optimizer_takes_every_parameter_once(name, kind):
    model = net()
    optimizer = make_optimizer(model, TrainConfig(optimizer=name), 0.25)
    assert type(optimizer) is kind
    taken = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_norms_and_biases_are_not_decayed():
    model = net()
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.3), 0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {"0.weight": 0.3, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.3, "3.bias": 0}


def test_sgd_has_the_momentum_of_the_config():
    config = TrainConfig(optimizer="sgd", momentum=0.5, nesterov=True)
    for group in make_optimizer(net(), config, 0.1).param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.5, True)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_may_join_later(momentum):
    """What was frozen at first has its first step as if it were the first of all."""
    model, fresh = net(), net()
    fresh.load_state_dict(model.state_dict())
    config = TrainConfig(optimizer="sgd", momentum=momentum, weight_decay=0.0)
    optimizer = make_optimizer(model, config, 0.1)
    model[3](torch.ones(1, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model[0](torch.ones(1, 1, 4, 4)).sum().backward()
    optimizer.step()
    plain = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=momentum)
    fresh[0](torch.ones(1, 1, 4, 4)).sum().backward()
    plain.step()
    torch.testing.assert_close(model[0].weight, fresh[0].weight)


def test_a_model_without_matrices_has_one_group():
    assert len(make_optimizer(nn.BatchNorm2d(3), TrainConfig(), 0.1).param_groups) == 1


def test_the_rate_is_set_for_every_group():
    optimizer = make_optimizer(net(), TrainConfig(), 0.1)
    set_lr(optimizer, 0.7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.7]


def factors(steps=10, epochs=8, **options):
    config = TrainConfig(**options)
    return [lr_factor(config, step, steps, epochs) for step in range(steps * epochs)]


def test_constant():
    assert set(factors(schedule="constant")) == {1.0}


def test_step_falls_by_gamma_every_few_epochs():
    values = factors(schedule="step", step_epochs=3, gamma=0.5)
    assert values == [1.0] * 30 + [0.5] * 30 + [0.25] * 20


def test_cosine_goes_from_one_over_a_half_to_nearly_nothing():
    values = factors(schedule="cosine")
    assert values[0] == 1
    assert values[40] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.001
    assert values == sorted(values, reverse=True)


def test_onecycle_rises_over_the_first_quarter_and_falls_to_nearly_nothing():
    values = factors(schedule="onecycle")
    assert values[0] < 0.05
    assert max(values) == values[20] == 1
    assert values[:21] == sorted(values[:21])
    assert values[20:] == sorted(values[20:], reverse=True)
    assert 0 < values[-1] < 0.001


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_warm_up_rises_in_a_line_and_comes_first(schedule):
    values = factors(schedule=schedule, warmup_epochs=1.5)
    rises = [after - before for before, after in pairwise(values[:16])]
    assert rises == pytest.approx([1 / 16] * 15)
    assert values[15] == 1


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0, 5),
    st.integers(1, 10),
    st.floats(1e-6, 1),
)
def test_every_factor_is_above_nothing_and_at_most_one(schedule, steps, epochs, warmup, step_epochs, gamma):
    values = factors(steps, epochs, schedule=schedule, warmup_epochs=warmup, step_epochs=step_epochs, gamma=gamma)
    assert all(0 < value <= 1 for value in values)


def test_rare_classes_weigh_more():
    weights = class_weights([0] * 6 + [1] * 3 + [2], 3, "balanced")
    assert weights[1] == 2 * weights[0]
    assert weights[2] == pytest.approx(6 * weights[0])
    assert weights[torch.tensor([0] * 6 + [1] * 3 + [2])].mean() == pytest.approx(1)
    assert torch.allclose(class_weights([0, 1, 0, 1], 2, "balanced"), torch.ones(2))
    assert class_weights([0, 0], 2, "balanced").isfinite().all(), "a class without images"


def test_the_effective_number_weighs_rare_classes_less_than_their_share():
    targets = [0] * 5000 + [1] * 500 + [2] * 5
    effective, balanced = (class_weights(targets, 3, kind) for kind in ("effective", "balanced"))
    assert 1 < effective[1] / effective[0] < balanced[1] / balanced[0]
    assert effective[2] / effective[1] == pytest.approx((1 - 0.999**500) / (1 - 0.999**5), rel=1e-5)
    assert effective[torch.tensor(targets)].mean() == pytest.approx(1)
    assert class_weights(targets, 3, "none") is None


def test_layers_near_the_input_learn_more_slowly():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(24)))
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5), 0.1)
    set_lr(optimizer, 0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = [rates[id(layer.weight)] for layer in model]
    assert found == sorted(found)
    assert found[-1] == 0.2
    assert found[0] == pytest.approx(0.2 * 0.5**11)
    assert [rates[id(layer.bias)] for layer in model] == found
    assert len(optimizer.param_groups) == 24, "twelve depths, with and without decay"


def test_sgd_learns_the_same_however_the_weights_lie():
    plain = nn.Conv2d(512, 256, 3)
    turned = nn.Conv2d(512, 256, 3)
    turned.load_state_dict(plain.state_dict())
    turned.to(memory_format=torch.channels_last)
    config = TrainConfig(optimizer="sgd", momentum=0.9, weight_decay=0.1)
    optimizers = [make_optimizer(model, config, 0.1) for model in (plain, turned)]
    for _ in range(3):
        gradient = torch.randn_like(plain.weight)
        for model, optimizer in zip((plain, turned), optimizers, strict=True):
            model.weight.grad = torch.empty_like(model.weight).copy_(gradient)  # as backward leaves it
            optimizer.step()
    torch.testing.assert_close(turned.weight, plain.weight)
