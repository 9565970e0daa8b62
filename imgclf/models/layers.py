"""What the networks that are written here share."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from torch import nn

from imgclf.core.config import ModelConfig


def stack(features: nn.Module, *hidden: nn.Module, head: nn.Module) -> nn.Sequential:
    """`features`, then the `hidden` layers where there are any, then the `head` that gives the class scores."""
    parts = [("features", features), ("hidden", nn.Sequential(*hidden)), ("head", head)]
    return nn.Sequential(OrderedDict(part for part in parts if part[0] != "hidden" or hidden))


def flat_features(features: nn.Sequential, spec: ModelConfig) -> int:
    """How many numbers `features`, which ends in a flatten, makes of one image: the 320 that D0 computes by hand.

    By hand here too: to ask the layers would load much of torch where the network has no values yet. Raises
    `RuntimeError` for the layer that has nothing left to work on, where the size of `spec` is too small.
    """
    maps, sides = spec.channels, spec.size
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            maps = layer.out_channels
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            before, sides = sides, (_side_after(layer, sides[0]), _side_after(layer, sides[1]))
            if min(sides) < 1:
                raise RuntimeError(f"{layer} leaves nothing of maps of {before[0]}×{before[1]}")
    return maps * sides[0] * sides[1]


def _side_after(layer: nn.Conv2d | nn.MaxPool2d, side: int) -> int:
    """The side of what a square window makes of maps: (W - F + 2P)/S + 1."""
    if layer.padding == "same":
        return side
    sizes: tuple[Any, Any, Any] = layer.kernel_size, layer.padding, layer.stride
    window, padding, step = (size if isinstance(size, int) else int(size[0]) for size in sizes)
    whole = math.ceil if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode else math.floor
    return whole((side - window + 2 * padding) / step) + 1


def dropout(spec: ModelConfig, default: float) -> nn.Dropout:
    """A dropout layer with the rate of `spec`, or the network's own."""
    return nn.Dropout(default if spec.dropout is None else spec.dropout)


def xavier_uniform(*layers: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for the linear and convolution layers among `layers` and inside them.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def kaiming_normal(model: nn.Module) -> None:
    """Kaiming-normal (fan out) weights for every convolution of `model`, and zero biases.

    Source: He et al., Delving deep into rectifiers, arXiv:1502.01852, section 2.2.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
