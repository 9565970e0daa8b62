"""The running mean of the weights (EMA), and which weights are kept: those that valid calls better, chance aside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from imgclf.training.state import TrainState, Weights

SPAN = 1 / 3  # of all steps, at most, over which the mean runs


def start_ema(state: TrainState) -> Weights:
    """The running mean before the first step; nothing where none is wanted."""
    return copied(state.model.state_dict()) if state.config.ema else {}


def update_ema(state: TrainState) -> None:
    """Let the running mean follow the weights by one step: exponentially, over the last 1 / (1 - decay) steps, and in a
    short run over a third of them, lest it be the start."""
    steps = max(1.0, SPAN * state.steps_per_epoch * state.epochs)
    decay = min(state.config.ema or 0.0, 1 - 1 / steps)
    weights = state.model.state_dict()
    moving = [name for name, tensor in weights.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([state.ema[name] for name in moving], [weights[name] for name in moving], 1 - decay)
    for name in weights.keys() - moving:
        state.ema[name].copy_(weights[name])


def copied(weights: Weights) -> Weights:
    """A copy that training does not change."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


@contextmanager
def swapped_weights(model: nn.Module, weights: Weights) -> Iterator[None]:
    """The model with these weights, if there are any, and afterwards with its own again, in the same tensors."""
    if not weights:
        yield
        return
    own = copied(model.state_dict())
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)


def is_better(state: TrainState, losses: torch.Tensor) -> bool:
    """Whether weights with these losses on the valid images, float64 (n,), take the place of the best ones.

    They are compared on the images that both have a loss of: the others (NaN), which couldn't be read, may be harder.
    That of the start they take only where the losses fell by more than the standard error of their fall: on a few
    images, some of many weights do better by chance. For the same reason those at the end of a schedule that falls to 0
    give way to an earlier epoch only where that is better by more than this.
    """
    assert state.best_losses is not None
    falls = state.best_losses - losses
    falls = falls[~falls.isnan()]
    if not len(falls):
        return False
    fall, error = float(falls.mean()), float(falls.std(correction=0)) / math.sqrt(len(falls))
    if not any(record.best for record in state.history):
        return fall > error
    ends = state.epoch + 1 == state.epochs and state.config.schedule in ("cosine", "onecycle")
    return fall > 0 or (ends and fall >= -error)
