"""An empty network from a `ModelConfig`, and the layer of a network that knows the classes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import torch
from torch import nn

from imgclf.core.arguments import require
from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError, ImgclfError
from imgclf.models.backbones import find_arch
from imgclf.models.ensemble import assemble
from imgclf.models.registry import HEAD, Arch
from imgclf.runtime.random import unseeded_drawing

# What layers raise for an image that is too small or of a shape that they can't take.
SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)
HEAD_NAMES = ("head", "heads", "fc", "classifier")  # ours and torchvision's


def build_model(spec: ModelConfig) -> nn.Module:
    """The network that `spec` describes, with fresh weights.

    It maps images (batch, channels, height, width) to logits (batch, classes).

    Args:
        spec: Architecture, classes, channels, size and dropout.

    Raises:
        UnknownName: There is no such architecture.
        ConfigError: A size that it can't take (the message names the smallest that works), or a dropout rate for a
            network without dropout.
    """
    require("spec", spec, ModelConfig)
    arch = find_arch(spec.arch)
    try:
        return _build(arch, spec)
    except SHAPE_ERRORS as error:
        raise _size_error(arch, spec, error) from error
    except Exception as error:  # a mistake in the user's own code, of any kind
        if arch.family != "own" or isinstance(error, ImgclfError):
            raise
        raise ConfigError(f"{spec.arch} fails: {type(error).__name__}: {error}") from error


def empty_network(spec: ModelConfig) -> nn.Module:
    """The network that `spec` describes, on the meta device: names, types and shapes of its weights, but no values.

    Takes no memory, save for a network that computes with real numbers while it is built. Leaves the random state as it
    is. Raises what `build_model` raises.
    """
    arch = find_arch(spec.arch)
    with unseeded_drawing():
        if arch.family != "own":  # which is tried with real images
            try:
                with torch.device("meta"):
                    return _build(arch, spec)
            except SHAPE_ERRORS as error:
                # Only a network that never works on the meta device may take memory: a wrong size shall not.
                if _works(arch, spec, max(arch.size), "meta"):
                    raise _size_error(arch, spec, error) from error
        return build_model(spec).to("meta")


def head_of(model: nn.Module) -> nn.Module:
    """The layer that turns features into class scores: a linear layer or a 1×1 convolution, or a list of them.

    Found by structure: `get_classifier` (timm), what a try has told of a user's own network, else the last such layer
    in `head`, `heads`, `fc` or `classifier`. Raises `ConfigError` where there is none of these.
    """
    if hasattr(model, "get_classifier"):
        found: object = model.get_classifier()  # type: ignore[operator]
        if isinstance(found, tuple | list):
            return nn.ModuleList(found)
        assert isinstance(found, nn.Module)
        return found
    own = getattr(model, HEAD, None)
    if isinstance(own, str):
        return model.get_submodule(own)
    parts = dict(model.named_children())
    for name in filter(parts.__contains__, HEAD_NAMES):
        layers = [module for module in parts[name].modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if layers:
            return layers[-1]
    raise ConfigError(f"{type(model).__name__} has no layer called {', '.join(HEAD_NAMES)}; name its last layer `head`")


def _build(arch: Arch, spec: ModelConfig) -> nn.Module:
    model = assemble(arch, spec)
    if spec.size != arch.size:
        _pass_one_image(model, spec)
    parts = list(model.modules())
    if spec.dropout and not any(hasattr(part, "drop_rate") or isinstance(part, nn.Dropout) for part in parts):
        raise ConfigError(f"{spec.arch} has no dropout, and ModelConfig.dropout is {spec.dropout:g}; leave dropout out")
    return model


def _pass_one_image(model: nn.Module, spec: ModelConfig) -> None:
    """Send one black image through; evaluation mode keeps the statistics and the random state as they are."""
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, spec.channels, *spec.size))
    model.train()


def _size_error(arch: Arch, spec: ModelConfig, error: Exception) -> ConfigError:
    given = f"{spec.arch} can't take images of {spec.size[0]}x{spec.size[1]}"
    # A layer that has no pixels left raises RuntimeError; networks that need a multiple of something assert it
    # themselves, and for these there is no size from which on all work.
    smallest = _smallest_side(arch, spec) if isinstance(error, RuntimeError) else None
    if smallest is not None and min(spec.size) < smallest:
        return ConfigError(f"{given}; the smallest size that works is {smallest}")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if arch.family == "own":
        return ConfigError(f"{given} with {spec.channels} channels: {reason}; use the size that it was made for")
    return ConfigError(f"{given}: {reason}; its own size is {arch.size[0]}x{arch.size[1]}")


def _smallest_side(arch: Arch, spec: ModelConfig) -> int | None:
    """The side of the smallest square that works, by bisection; None where not even the own size does."""
    own = max(arch.size)
    device = next((device for device in ("meta", "cpu") if _works(arch, spec, own, device)), None)
    if device is None:
        return None
    return 1 + bisect_left(range(1, own), True, key=lambda side: _works(arch, spec, side, device))


def _works(arch: Arch, spec: ModelConfig, side: int, device: str) -> bool:
    """Whether a square fits; "meta" computes shapes alone and is quick, but not every network can be built on it."""
    square = replace(spec, size=(side, side))
    with unseeded_drawing(), torch.device(device):
        try:
            _pass_one_image(arch.build(square), square)
        except SHAPE_ERRORS:
            return False
    return True
