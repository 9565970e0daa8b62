"""What one try tells of a network that imgclf has not written: its memory format, and its last layer."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError
from imgclf.models.registry import HEAD
from imgclf.runtime.compute import CONTIGUOUS, memory_format_of

TRIED_IMAGES = 2


def prepared(network: nn.Module, spec: ModelConfig, name: str, *, new_head: bool) -> nn.Module:
    """The network with what was found out about it: `HEAD`, and `CONTIGUOUS` where it doesn't take other memory.

    Raises `ConfigError` for an output that is not one score per class of `spec`.
    """
    scores, head = _try(network, spec)
    if new_head and scores.shape[1] != spec.classes and head is not None:
        network.set_submodule(head, _resized(network.get_submodule(head), spec.classes))
        scores, head = _try(network, spec)
    if scores.shape[1] != spec.classes:
        raise ConfigError(
            f"{name} returns {scores.shape[1]} scores per image; expected {spec.classes}, one per class: give the "
            "network a parameter called classes or, for a pretrained network, set pretrained=True"
        )
    if (scores >= 0).all() and (scores.sum(1) - 1).abs().max() < 1e-4 and spec.classes > 1:
        raise ConfigError(f"{name} ends in a softmax, which slows training down: remove it, so that it returns logits")
    if head is not None:
        setattr(network, HEAD, head)
    return network


def _try(network: nn.Module, spec: ModelConfig) -> tuple[torch.Tensor, str | None]:
    """The scores (2, classes) of two black images, and the name of the linear layer or convolution that ran last.

    In channels-last memory, as it will be trained, or in contiguous memory where that alone works.
    """
    try:  # with a copy: a weight whose memory was once turned may look contiguous, and yet turn what is made of it
        return _scores(copy.deepcopy(network).to(memory_format=torch.channels_last), spec)
    except RuntimeError:
        if getattr(network, CONTIGUOUS, False):
            raise
    setattr(network, CONTIGUOUS, True)
    network.register_forward_pre_hook(_contiguous)
    return _scores(network, spec)


def _scores(network: nn.Module, spec: ModelConfig) -> tuple[torch.Tensor, str | None]:
    memory, ran = memory_format_of(network), list[str]()

    def watch(module: nn.Module, _: Any, found: Any, *, part: str) -> Any:
        if isinstance(module, nn.Linear | nn.Conv2d):
            ran.append(part)
        # As the layers of training answer, at any size and precision; these few images need not get there.
        return found.contiguous(memory_format=memory) if isinstance(found, torch.Tensor) and found.ndim == 4 else found

    weights = next(network.parameters(), torch.empty(0))
    with ExitStack() as stack:
        for part, module in network.named_modules():
            stack.callback(module.register_forward_hook(partial(watch, part=part)).remove)
        stack.enter_context(torch.no_grad())
        network.eval()
        stack.callback(network.train)
        images = torch.zeros(TRIED_IMAGES, spec.channels, *spec.size, dtype=weights.dtype, device=weights.device)
        scores: Any = network(images.contiguous(memory_format=torch.channels_last))
    if not isinstance(scores, torch.Tensor):
        raise ConfigError(f"{type(network).__name__} returns {type(scores).__name__}; expected a tensor of scores")
    if scores.ndim != 2 or len(scores) != TRIED_IMAGES:
        raise RuntimeError(f"it returns {'×'.join(map(str, scores.shape))} values for two images; expected 2×classes")
    return scores, ran[-1] if ran else None


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs with the strides of contiguous memory, also where the channels could lie either way."""
    return tuple(given.flatten().view(given.shape) if isinstance(given, torch.Tensor) else given for given in inputs)


def _resized(layer: nn.Module, classes: int) -> nn.Module:
    """A new layer like this one, for another number of classes."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, classes)
    assert isinstance(layer, nn.Conv2d)
    return nn.Conv2d(layer.in_channels, classes, layer.kernel_size, bias=layer.bias is not None)  # type: ignore[arg-type]
