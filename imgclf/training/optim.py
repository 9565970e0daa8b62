"""Optimizers, parameter groups and learning-rate schedules. A schedule is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from imgclf.core.config import TrainConfig

BETA = 0.999
MANY_COPIED = 2**20  # weights from which on SGD's foreach kernels are quicker for that; those of Adam never are
DEPTHS = 12  # groups of layers that layer-wise decay tells apart, as many as a ViT-B has blocks


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a config over all parameters; norms and biases get no weight decay.

    With a `layer_decay` below 1 the groups have rates of their own: the "scale" of each says what `lr` is multiplied
    by. Fused where that is quickest: one pass over all weights of a group, in a few calls instead of many.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, scale in _lr_scales(model, config.layer_decay or 1.0):
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    options = [
        {"params": params, "weight_decay": decay, "scale": scale, "lr": lr * scale}
        for (scale, decay), params in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]
    match config.optimizer:
        case "sgd":
            kernels = {"foreach" if _copied_if_fused(model) > MANY_COPIED else "fused": True}
            sgd = torch.optim.SGD(options, lr=lr, momentum=config.momentum, nesterov=config.nesterov, **kernels)
            if config.momentum:  # so done, it can't begin with some weights later than with others
                sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in model.parameters()})
            return sgd
        case "adam":
            return torch.optim.Adam(options, lr=lr, fused=True)
        case _:
            return torch.optim.AdamW(options, lr=lr, fused=True)


def _copied_if_fused(model: nn.Module) -> int:
    """How many weights lie in channels-last order on a processor: torch's fused kernels copy them there and back."""
    return sum(p.numel() for p in model.parameters() if p.is_cpu and not p.is_contiguous())


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


def _lr_scales(model: nn.Module, decay: float) -> Iterator[tuple[nn.Parameter, float]]:
    """Every parameter with its part of the learning rate: `decay` to the power of its distance from the last layer.

    The distance is counted in twelfths of the layers that hold parameters, in the order in which they were made.
    """
    named = [(name.rpartition(".")[0], parameter) for name, parameter in model.named_parameters()]
    depth = {layer: i for i, layer in enumerate(dict.fromkeys(layer for layer, _ in named))}
    last = max(1, len(depth) - 1)
    for layer, parameter in named:
        yield parameter, decay ** round((DEPTHS - 1) * (len(depth) - 1 - depth[layer]) / last)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, each by its "scale"."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)


def class_weights(targets: Sequence[int], classes: int, kind: str | None) -> torch.Tensor | None:
    """Weights (classes,) with a mean of 1 over the images, by `kind`: None where all images count alike.

    `balanced` is inverse to the number of images of a class, `effective` to their effective number
    (1 - b^n) / (1 - b) with b = 0.999 (Cui et al. 2019, arXiv:1901.05555), which grows more slowly than n.
    """
    if kind not in ("balanced", "effective"):
        return None
    counts = torch.bincount(torch.tensor(targets), minlength=classes).clamp(min=1).double()
    weights = 1 / (counts if kind == "balanced" else 1 - BETA**counts)
    return (weights * counts.sum() / (weights * counts).sum()).float()
