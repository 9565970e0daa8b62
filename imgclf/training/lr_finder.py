"""The learning-rate range test: Smith 2017, arXiv:1506.01186."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import chain, count, islice

import torch

from imgclf.core.arguments import require
from imgclf.core.config import TrainConfig
from imgclf.core.errors import ConfigError
from imgclf.core.results import LrCurve
from imgclf.data.loading.loader import Loader
from imgclf.evaluation.inference import Progress
from imgclf.runtime.compute import enough_threads, step_flops
from imgclf.runtime.device import pick_device
from imgclf.runtime.random import drawing
from imgclf.training.acceleration import fast_steps
from imgclf.training.linear_probe import soften_head
from imgclf.training.loop import initial_state, set_mode
from imgclf.training.optim import set_lr
from imgclf.training.state import TrainState
from imgclf.training.step import BufferSnapshot, train_step

LOWEST, HIGHEST = 1e-7, 10.0
STEPS = 100
SMOOTHING = 0.9  # of the running mean of losses
EXPLODED = 4  # times the lowest loss
FALLEN = 0.75  # of the way from the first loss to the lowest
NEAR = 0.9  # times the first loss: where the lowest is above that, there is no descent to speak of
FEWEST = STEPS // 10  # steps that a curve needs: before them the rate is still below 1e-6


def find_lr(
    model: torch.nn.Module, loader: Loader, config: TrainConfig, *, progress: Progress = lambda done, n: None
) -> LrCurve:
    """Train a copy of `model` for 100 steps while the learning rate rises from 1e-7 to 10, and watch the loss.

    The test ends where the smoothed loss is four times the lowest, or not finite; `suggest_lr` is asked then. The model
    and all random numbers stay as they are.

    Args:
        loader: gives training batches, as often as needed.
        config: its optimizer and what belongs to a step count.
        progress: called with the steps done and their number.

    Raises:
        ConfigError: where the first steps already diverge, or there are no epochs.
    """
    require("config", config, TrainConfig)
    require("loader", loader, Loader)
    if config.epochs == 0:
        raise ConfigError("epochs is 0, and a probe alone has no learning rate to find: ask for 1 or more")
    device = pick_device(config.device)
    trial = copy.deepcopy(model)
    state = initial_state(trial, loader, config, device)
    soften_head(trial, model.state_dict(), config.head_scale or 1.0)
    example = torch.zeros(1, loader.preprocess.channels, *loader.preprocess.size, device=device)
    set_mode(trial, config, 0)
    flops = step_flops(trial, example, config.batch_size)
    with enough_threads(flops), fast_steps(trial, example, config, state.precision, flops):
        rates, losses = _rise(state, loader, progress)
    if len(losses) < FEWEST:
        raise ConfigError(
            f"the loss explodes at once, after {len(losses)} of {STEPS} steps and below a learning rate of 1e-6: "
            "the start itself is broken; try other --weights"
        )
    return LrCurve(tuple(rates), tuple(losses), suggest_lr(rates, losses))


def suggest_lr(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the loss has fallen by three quarters of its whole fall; None where it hardly falls.

    Near the foot some steps already do harm, and the smoothed loss lags behind, so that the fall itself was at lower
    rates; far up, training would be slow.
    """
    lowest = min(losses)
    if lowest > NEAR * losses[0]:
        return None
    aim = losses[0] - FALLEN * (losses[0] - lowest)
    return next(rate for rate, loss in zip(rates, losses, strict=True) if loss <= aim)


def _rise(state: TrainState, loader: Loader, progress: Progress) -> tuple[list[float], list[float]]:
    """The rates that were tried, and the smoothed loss at each."""
    rates: list[float] = []
    losses: list[float] = []
    snapshot, mean = BufferSnapshot(state.model, state.device), 0.0
    batches = chain.from_iterable(loader.epoch(epoch, drop_last=state.drop_last) for epoch in count())
    for i, batch in enumerate(islice(batches, STEPS)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (i / (STEPS - 1))
        set_lr(state.optimizer, rate)
        state.metric_sums.zero_()
        with drawing(state.random, state.device):
            images = train_step(state, batch, loader.preprocess, snapshot)
        progress(i + 1, STEPS)
        if images == 0:  # none of the batch could be read: no step was taken
            continue
        loss = state.metric_sums[0].item() / images
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING ** (len(losses) + 1))
        if not math.isfinite(loss) or (losses and smooth > EXPLODED * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    return rates, losses
