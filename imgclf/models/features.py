"""The features of an image: what the last layer of a network gets, beside the logits that it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from imgclf.errors import ConfigError
from imgclf.models.build import head_of
from imgclf.models.ensemble import Ensemble


class Tapped(nn.Module):
    """A network that answers with its logits (n, k) and, behind them in each row, its features (n, d)."""

    def __init__(self, network: nn.Module, heads: list[str]) -> None:
        super().__init__()
        self.network = network
        self._heads = heads
        self._caught: dict[str, torch.Tensor] = {}

    def catch(self, name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """A hook before a head: one vector for each image, the mean over its places where there are several."""
        given = inputs[0].detach().float()
        if isinstance(layer, nn.Conv2d):
            self._caught[name] = given.mean((2, 3))
        else:
            self._caught[name] = given.flatten(1, -2).mean(1) if given.ndim > 2 else given

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, …) to (n, k + d), float32."""
        logits = self.network(images).float()
        features = [self._caught.pop(name) for name in self._heads]
        return torch.cat([logits, *features], 1)


def feature_layers(model: nn.Module) -> list[str]:
    """The names of the layers whose input are the features: one, or one for each member of an ensemble.

    Raises `ConfigError` for a network without a known head.
    """
    networks = list(model.members) if isinstance(model, Ensemble) else [model]
    heads = [_first_layer(head_of(network)) for network in networks]
    return [next(name for name, module in model.named_modules() if module is head) for head in heads]


def _first_layer(head: nn.Module) -> nn.Module:
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            return module
    raise ConfigError(f"the head of this network is a {type(head).__name__}, without a linear layer or a convolution")


@contextmanager
def tapped(network: nn.Module, layers: list[str]) -> Iterator[Tapped]:
    """A network, or one made of it that has the same names, with its features; `layers` are `feature_layers`."""
    tap = Tapped(network, layers)
    hooks = []
    for name in layers:
        layer = network.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(lambda layer, inputs, name=name: tap.catch(name, layer, inputs)))
    try:
        yield tap
    finally:
        for hook in hooks:
            hook.remove()
