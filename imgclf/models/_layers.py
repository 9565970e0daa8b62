"""What the networks that are written here share."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from imgclf.specs import ModelSpec


def stack(features: nn.Module, *hidden: nn.Module, head: nn.Module) -> nn.Sequential:
    """`features`, then the `hidden` layers where there are any, then the `head` that gives the class scores."""
    parts = [("features", features), ("hidden", nn.Sequential(*hidden)), ("head", head)]
    return nn.Sequential(OrderedDict(part for part in parts if part[0] != "hidden" or hidden))


def flat_features(features: nn.Sequential, spec: ModelSpec) -> int:
    """How many numbers `features`, which ends in a flatten, makes of one image: the 320 that D0 computes by hand.

    Raises `RuntimeError` (from the layer that has nothing left to work on) where the size of `spec` is too small.
    """
    training = features.training
    features.eval()  # a batch norm would count the empty image otherwise
    with torch.no_grad():
        flat: int = features(torch.zeros(1, spec.channels, *spec.size)).shape[1]
    features.train(training)
    return flat


def dropout(spec: ModelSpec, default: float) -> nn.Dropout:
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
