"""Batch norms folded into the convolutions before them, for evaluation: the same function in fewer passes.

What may be folded is seen from one pass of a copy of the network. (`torch.fx` would trace it, but changes `nn.Module`
itself meanwhile, for all threads.)
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from imgclf.runtime.compute import memory_format_of

TOLERANCE = 1e-4  # of the largest logit; float32 rounding is a tenth of it
# How Python gets at values: where a network does, it may go another way for other images.
READERS = {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__", "equal", "allclose"}

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


def fuse_conv_bn(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """A copy of `model` for evaluation, in its memory format and with its batch norms folded; `example` is an input.

    Where the way through the network depends on the image, or the folded one answers differently on random pixels, its
    batch norms stay.
    """
    network = _copied(model)
    pairs = _find_pairs(network, example)
    if not pairs:
        return network
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *example.shape[1:], generator=generator).to(example.device)
    with torch.inference_mode():
        expected = network(images)
    _fold(network, pairs)
    return network if _agrees(network, images, expected) else _copied(model)


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().to(memory_format=memory_format_of(model))


def _find_pairs(network: nn.Module, example: torch.Tensor) -> list[Pair]:
    """The convolutions and batch norms of which, in a pass, one takes what the other gives, and nothing else does."""
    if not any(map(_is_plain_norm, network.modules())):
        return []
    watch = _Watch()
    with watch.hooked(network), torch.no_grad(), watch:
        network(example)
    return [] if watch.reads else watch.pairs()


class _Watch(TorchFunctionMode):
    """Watches one pass: what convolutions give, where that goes, and whether the network looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = False
        self._calls: Counter[nn.Module] = Counter()
        self._given: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # the tensor stays alive, and so its id its own
        self._uses: Counter[int] = Counter()
        self._taken: list[tuple[int, nn.BatchNorm2d]] = []

    @contextmanager
    def hooked(self, network: nn.Module) -> Iterator[None]:
        """The hooks on the convolutions and batch norms are there within."""
        handles = []
        for module in network.modules():
            if type(module) is nn.Conv2d:
                handles.append(module.register_forward_hook(self._note_given))
            elif isinstance(module, nn.BatchNorm2d) and _is_plain_norm(module):
                handles.append(module.register_forward_pre_hook(self._note_taken))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def pairs(self) -> list[Pair]:
        """What may be folded. Weights that are used twice can't be changed for one of the uses."""
        found = [(self._given[index][0], norm) for index, norm in self._taken if self._uses[index] == 1]
        return [pair for pair in found if all(self._calls[module] == 1 for module in pair)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.reads = self.reads or getattr(func, "__name__", "") in READERS
        if isinstance(result, torch.Tensor | list | tuple):  # else it asks for a shape or the like
            self._uses.update(id(tensor) for tensor in _tensors((*args, *kwargs.values())) if id(tensor) in self._given)
        return result

    def _note_given(self, conv: nn.Conv2d, inputs: object, output: torch.Tensor) -> None:
        self._calls[conv] += 1
        self._given[id(output)] = (conv, output)

    def _note_taken(self, norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        self._calls[norm] += 1
        if id(inputs[0]) in self._given:
            self._taken.append((id(inputs[0]), norm))


def _tensors(values: tuple[object, ...]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(tuple(value))


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with statistics of its own and, at most, timm's activation behind it."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    return type(module) is nn.BatchNorm2d or (hasattr(module, "drop") and hasattr(module, "act"))


def _fold(network: nn.Module, pairs: list[Pair]) -> None:
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        folded = fuse_conv_bn_eval(conv, norm).to(memory_format=memory_format_of(network))
        network.set_submodule(names[conv], folded)
        behind = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
        network.set_submodule(names[norm], nn.Sequential(*behind))


def _agrees(network: nn.Module, images: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        with torch.inference_mode():
            found = network(images)
    except Exception:  # what a forward function may ask of its batch norms has no limits
        return False
    return bool((expected - found).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))
