"""Which weights are kept: chance must not decide, and a mean is a mean."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgclf.training.keep import beats_best, mean_with_best


def state_of(start, mean_of=(0,), best_loss=None):
    losses = None if start is None else torch.tensor(start, dtype=torch.float64)
    best_loss = float(losses.mean()) if best_loss is None else best_loss
    return SimpleNamespace(start_losses=losses, mean_of=mean_of, best_loss=best_loss)


def losses_of(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_fall_that_is_no_more_than_chance_leaves_the_start():
    start = [1.0, 1.0, 1.0, 1.0]
    assert not beats_best(state_of(start), losses_of(0.0, 2.0, 1.9, 0.0)), "0.025 lower in the mean"
    assert beats_best(state_of(start), losses_of(0.5, 1.1, 0.6, 0.5))


def test_the_same_losses_are_no_better():
    assert not beats_best(state_of([0.5, 0.1]), losses_of(0.5, 0.1))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0.01, 1))
def test_what_is_better_on_every_image_by_as_much_takes_the_place_of_the_start(start, fall):
    assert beats_best(state_of(start), losses_of(*start) - fall)
    assert not beats_best(state_of(start), losses_of(*start) + fall)


@pytest.mark.parametrize("state", [state_of([1.0, 3.0], (2,)), state_of(None, (0,), 2.0), state_of([9.0], (0,), 2.0)])
def test_among_epochs_the_lower_loss_wins(state):
    """And where the losses of the start are not known, or not of the same images."""
    assert beats_best(state, losses_of(3.9, 0.0))
    assert not beats_best(state, losses_of(4.1, 0.0))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_a_mean_that_grows_is_the_mean_of_all(values):
    best = {"weight": torch.tensor([values[0]]), "count": torch.tensor(0)}
    for i, value in enumerate(values[1:], 1):
        own = {"weight": torch.tensor([value]), "count": torch.tensor(i)}
        best = mean_with_best(SimpleNamespace(best=best, good=(own, {}), mean_of=tuple(range(i))))
    assert best["weight"].item() == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert best["count"].item() == len(values) - 1, "whole numbers are those of the last"
