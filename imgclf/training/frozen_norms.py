"""Batch norms of frozen statistics, computed within the convolutions before them while a processor trains.

Such a norm multiplies and shifts each channel by what its convolution could have multiplied and shifted its weights by:
that spares a pass over the maps there and two back. The network itself stays as it is.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from imgclf.runtime.compute import in_evaluation

FOLDED = "imgclf_folded"  # the attribute of maps that are normed already


class _Norm(NamedTuple):
    mean: torch.Tensor
    variance: torch.Tensor
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    eps: float


def folded_norms(model: nn.Module, example: torch.Tensor) -> AbstractContextManager[object]:
    """The context for the steps of a network whose batch norms keep their statistics; `example` is an input of one
    image. Passes without gradients compute as ever."""
    pairs = _Pairs()
    with torch.no_grad(), pairs:
        in_evaluation(model)(example)
    norms = pairs.found()
    return _Folded(norms) if norms else nullcontext()


class _Pairs(TorchFunctionMode):
    """Watches a forward pass for convolutions whose maps go into a batch norm, and nowhere else."""

    def __init__(self) -> None:
        self._maps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by their id: what came out, by which weights
        self._readers: dict[torch.Tensor, list[_Norm | None]] = {}  # of what a convolution of such weights gives
        self._calls: Counter[torch.Tensor] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor | tuple | list):  # not a look at a shape
            reader = _norm(*args, **kwargs) if func is F.batch_norm else None
            for given in {id(leaf) for leaf in tree_leaves((args, kwargs))} & self._maps.keys():
                self._readers[self._maps[given][1]].append(reader)
        if func is torch.conv2d:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self._calls[weight] += 1
            self._readers.setdefault(weight, [])
            self._maps[id(result)] = result, weight
        return result

    def found(self) -> dict[torch.Tensor, _Norm]:
        """The norm after each convolution, by its weights."""
        alone = {weight: readers[0] for weight, readers in self._readers.items() if len(readers) == 1}
        return {weight: norm for weight, norm in alone.items() if norm is not None and self._calls[weight] == 1}


def _norm(
    input: torch.Tensor,  # as torch calls it
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Norm | None:
    """What `F.batch_norm` does; None where it takes the statistics of its input."""
    if training or running_mean is None or running_var is None:
        return None
    return _Norm(running_mean, running_var, weight, bias, eps)


class _Folded(TorchFunctionMode):
    def __init__(self, norms: dict[torch.Tensor, _Norm]) -> None:
        self._norms = norms

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled():
            return self._convolution(*args, **kwargs)
        if func is F.batch_norm and hasattr(args[0], FOLDED):
            delattr(args[0], FOLDED)  # an activation in place may give these same maps to another norm
            return args[0]
        return func(*args, **kwargs)

    def _convolution(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        norm = self._norms.get(weight)
        if norm is None:
            return torch.conv2d(input, weight, bias, *args, **kwargs)
        factor = (norm.variance + norm.eps).rsqrt()
        factor = factor if norm.scale is None else norm.scale * factor
        shift = -norm.mean if bias is None else bias - norm.mean
        shift = shift * factor if norm.shift is None else norm.shift + shift * factor
        maps = torch.conv2d(input, weight * factor.view(-1, 1, 1, 1), shift, *args, **kwargs)
        setattr(maps, FOLDED, True)
        return maps
