"""The learning rate by the step: a pure function."""

from __future__ import annotations

import math

from imgclf.core.config import TrainConfig


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor of the base learning rate at a step (0-based) of the whole run.

    `step` falls by `gamma` every `step_epochs`; `cosine` goes to 0 (Loshchilov & Hutter 2017); `onecycle` rises over
    the first quarter and falls to 0 (Smith & Topin 2018). Warm-up is linear and comes before the others.
    """
    total = max(1, steps_per_epoch * epochs)
    warmup = round((config.warmup_epochs or 0) * steps_per_epoch)
    if config.schedule == "onecycle":
        warmup = max(warmup, total // 4)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match config.schedule:
        case "constant":
            return 1.0
        case "step":
            return float(config.gamma ** (step // steps_per_epoch // config.step_epochs))
        case _:
            done = (step - warmup) / max(1, total - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
