"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from imgclf.core.config import TrainConfig

DEPTHS = 12  # stages: groups of layers that layer-wise decay tells apart, as many as a ViT-B has blocks


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a config over all parameters; norms and biases get no weight decay.

    With a `layer_decay` below 1 the groups have rates of their own: the "scale" of each says what `lr` is multiplied
    by. Fused: one pass over all weights of a group, in a few calls instead of many.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for _, parameter, distance in layers_by_depth(model):
        scale = (config.layer_decay or 1.0) ** distance
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    options = [
        {"params": params, "weight_decay": decay, "scale": scale, "lr": lr * scale}
        for (scale, decay), params in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]
    match config.optimizer:
        case "sgd":
            sgd = torch.optim.SGD(options, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
            if config.momentum:  # so done, it can't begin with some weights later than with others
                sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in model.parameters()})
            return sgd
        case "adam":
            return torch.optim.Adam(options, lr=lr, fused=True)
        case _:
            return torch.optim.AdamW(options, lr=lr, fused=True)


def layers_by_depth(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Every parameter with the name of its layer and its distance from the last layer, 0 to 11.

    The distance is counted in twelfths of the layers that hold parameters, in the order in which they were made.
    """
    named = [(name.rpartition(".")[0], parameter) for name, parameter in model.named_parameters()]
    depth = {layer: i for i, layer in enumerate(dict.fromkeys(layer for layer, _ in named))}
    last = max(1, len(depth) - 1)
    for layer, parameter in named:
        yield layer, parameter, round((DEPTHS - 1) * (len(depth) - 1 - depth[layer]) / last)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, each by its "scale"."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
