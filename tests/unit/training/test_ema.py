"""Which weights are kept: chance must not decide, and the running mean is what its definition says."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imgclf.training.ema import is_better, start_ema, swapped_weights, update_ema


def state_of(start, left=False, epoch=1, schedule="cosine"):
    losses = torch.tensor(start, dtype=torch.float64)
    history = [SimpleNamespace(best=False), SimpleNamespace(best=left)]
    config = SimpleNamespace(schedule=schedule)
    return SimpleNamespace(best_losses=losses, history=history, epoch=epoch, epochs=8, config=config)


def losses_of(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_fall_that_is_no_more_than_chance_leaves_the_start():
    start = [1.0, 1.0, 1.0, 1.0]
    assert not is_better(state_of(start), losses_of(0.0, 2.0, 1.9, 0.0)), "0.025 lower in the mean"
    assert is_better(state_of(start), losses_of(0.5, 1.1, 0.6, 0.5))


def test_the_same_losses_are_no_better():
    assert not is_better(state_of([0.5, 0.1]), losses_of(0.5, 0.1))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0.01, 1))
def test_what_is_better_on_every_image_by_as_much_takes_the_place_of_the_start(start, fall):
    assert is_better(state_of(start), losses_of(*start) - fall)
    assert not is_better(state_of(start), losses_of(*start) + fall)


def test_among_epochs_the_lower_loss_wins():
    state = state_of([1.0, 3.0], left=True)
    assert is_better(state, losses_of(3.9, 0.0))
    assert not is_better(state, losses_of(4.1, 0.0))


def test_losses_are_compared_on_the_images_that_both_could_read():
    state = state_of([1.0, 1.0, 9.0, math.nan], left=True)
    assert is_better(state, losses_of(0.9, 0.9, math.nan, 9.0))
    assert not is_better(state, losses_of(1.1, 1.1, math.nan, 0.0))
    assert not is_better(state, losses_of(math.nan, math.nan, math.nan, 0.0)), "none in common"


def test_the_end_of_a_schedule_gives_way_only_to_what_is_surely_better():
    best, ended = [1.0, 1.0, 1.0, 1.0], {"left": True, "epoch": 7}
    by_chance, surely = losses_of(0.0, 2.2, 1.9, 0.2), losses_of(1.1, 1.1, 1.2, 1.1)
    assert by_chance.mean() > 1
    assert is_better(state_of(best, **ended), by_chance)
    assert not is_better(state_of(best, **ended), surely)
    assert not is_better(state_of(best, left=True, epoch=6), by_chance)
    assert not is_better(state_of(best, **ended, schedule="constant"), by_chance)
    assert not is_better(state_of(best, epoch=7), by_chance), "the start is kept all the same"


def training(ema, epochs=10, steps=100):
    model = nn.BatchNorm1d(2)
    state = SimpleNamespace(model=model, config=SimpleNamespace(ema=ema), epochs=epochs, steps_per_epoch=steps)
    state.ema = start_ema(state)
    return state


def learn(state, value):
    with torch.no_grad():
        state.model.weight.fill_(value)
        state.model.num_batches_tracked.fill_(7)
    update_ema(state)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.sampled_from([0.5, 0.9]))
def test_the_mean_follows_the_weights_exponentially(values, decay):
    state, expected = training(decay), 1.0
    for value in values:
        learn(state, value)
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(state.ema["weight"], torch.full((2,), expected), rtol=1e-4, atol=1e-4)
    assert state.ema["num_batches_tracked"] == 7, "whole numbers are those of the last step"
    assert (state.model.weight == torch.tensor(values[-1])).all(), "the weights themselves go on as they are"


def test_in_a_short_run_the_mean_runs_over_a_third_of_the_steps():
    short, single = training(0.98, epochs=2, steps=3), training(0.98, epochs=1, steps=1)
    learn(short, 3.0)
    assert short.ema["weight"][0].item() == pytest.approx(1 + (3 - 1) / 2)
    learn(single, 3.0)
    assert single.ema["weight"][0].item() == 3


def test_no_mean_where_none_is_wanted():
    assert training(0.0).ema == {}
    assert training(None).ema == {}


def test_a_model_gets_its_own_weights_back_whatever_happens():
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    own, place = model.weight.detach().clone(), model.weight.data_ptr()

    def use():
        with swapped_weights(model, other.state_dict()):
            assert torch.equal(model.weight, other.weight)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert torch.equal(model.weight, own)
    assert model.weight.data_ptr() == place
