"""The learning-rate range test: Smith 2017, arXiv:1506.01186."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch

from imgclf.compute import enough_threads, step_flops
from imgclf.data.loader import Batch, Loader
from imgclf.errors import ConfigError
from imgclf.inference import Progress
from imgclf.results import LrCurve
from imgclf.specs import TrainConfig
from imgclf.training.device import pick_device
from imgclf.training.loop import initial_state, set_mode
from imgclf.training.optim import set_lr
from imgclf.training.step import Rewind, learn

LOWEST, HIGHEST = 1e-7, 10.0
STEPS = 100
SMOOTHING = 0.9  # of the running mean of losses
EXPLODED = 4  # times the lowest loss
BELOW = 10  # the suggestion is so many times below the rate of the lowest loss


def find_lr(
    model: torch.nn.Module, loader: Loader, config: TrainConfig, *, progress: Progress = lambda done, n: None
) -> LrCurve:
    """Train a copy of `model` for 100 steps while the learning rate rises from 1e-7 to 10, and watch the loss.

    `loader` gives training batches, as often as needed; of `config` the optimizer and what belongs to a step count. The
    test ends where the smoothed loss is four times the lowest, or not finite. The suggestion is a tenth of the rate of
    the lowest smoothed loss (Howard & Gugger 2020): at that rate itself, some steps already do harm. The model and all
    random numbers stay as they are. Raises `ConfigError` where the first steps already diverge.
    """
    device = pick_device(config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        trial = copy.deepcopy(model)
        state = initial_state(trial, loader, config, device)
        example = torch.zeros(1, loader.recipe.channels, *loader.recipe.size, device=device)
        set_mode(trial, config, config.freeze_epochs)
        rewind, mean = Rewind(trial, device), 0.0
        rates: list[float] = []
        losses: list[float] = []
        with enough_threads(step_flops(trial, example, config.batch_size)):
            for i, batch in zip(range(STEPS), _endless(loader, state.drop_last), strict=False):
                rate = LOWEST * (HIGHEST / LOWEST) ** (i / (STEPS - 1))
                set_lr(state.optimizer, rate)
                state.sums.zero_()
                images = learn(state, batch, loader.recipe, rewind)
                loss = state.sums[0].item() / max(1, images)
                mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
                smooth = mean / (1 - SMOOTHING ** (i + 1))
                if not math.isfinite(loss) or (losses and smooth > EXPLODED * min(losses)):
                    break
                rates.append(rate)
                losses.append(smooth)
                progress(i + 1, STEPS)
    if len(losses) < STEPS // 10:
        raise ConfigError(f"the loss explodes at once, at a learning rate of {rate:.1g}: the start itself is broken")
    return LrCurve(tuple(rates), tuple(losses), rates[int(np.argmin(losses))] / BELOW)


def _endless(loader: Loader, drop_last: bool) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch, drop_last=drop_last)
        epoch += 1
