"""The features of an image: what the last layer of a network gets, beside the logits that it makes of them."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from imgclf.core.errors import ConfigError
from imgclf.models.build import head_of
from imgclf.models.ensemble import Ensemble
from imgclf.runtime.compute import own_copy


def with_features(model: nn.Module) -> nn.Module:
    """A network that gives the logits (n, k) of `model` and, behind them in each row, its features (n, d).

    Shares the weights of `model`, which stays as it is. Raises `ConfigError` for a network without a known head.
    """
    return _WithFeatures(own_copy(model), feature_layers(model))


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


class _WithFeatures(nn.Module):
    def __init__(self, network: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.network = network
        self._layers = layers
        self._caught: dict[str, torch.Tensor] = {}
        for name in layers:
            network.get_submodule(name).register_forward_pre_hook(partial(self._catch, name))
        self.eval()

    def _catch(self, name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """A hook before a head: one vector for each image, the mean over its places where there are several."""
        given = inputs[0].detach().float()
        if isinstance(layer, nn.Conv2d):
            self._caught[name] = given.mean((2, 3))
        else:
            self._caught[name] = given.flatten(1, -2).mean(1) if given.ndim > 2 else given

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images).float()
        features = [self._caught.pop(name) for name in self._layers]
        return torch.cat([logits, *features], 1)
