"""Optimizers, parameter groups and learning-rate schedules. A schedule is a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from imgclf.specs import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a config over all parameters; norms and biases get no weight decay.

    Fused: one pass over all weights, in a few calls instead of many.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    match config.optimizer:
        case "sgd":
            sgd = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
            if config.momentum:  # fused, it can't begin with some weights later than with others
                sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in model.parameters()})
            return sgd
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=True)
        case _:
            return torch.optim.AdamW(groups, lr=lr, fused=True)


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the base learning rate is multiplied by at a step (0-based) of the whole run.

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


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def class_weights(targets: list[int], classes: int) -> torch.Tensor:
    """Weights (classes,) inversely proportional to the number of images, with a mean of 1 over the images."""
    counts = torch.bincount(torch.tensor(targets), minlength=classes).clamp(min=1)
    return counts.sum() / (classes * counts.float())
