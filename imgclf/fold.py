"""Batch norms folded into the convolutions before them, for evaluation: the same function in fewer passes."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4  # of the largest logit; float32 rounding is a tenth of it


def fold_batch_norms(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """A copy of `model` for evaluation, channels-last and with its batch norms folded; `example` is an input.

    Where the network can't be traced, or the folded one answers differently on random pixels, its batch norms stay.
    """
    plain = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    if not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules()):
        return plain
    try:
        folded = _fold(plain).to(memory_format=torch.channels_last)
    except Exception:  # what a forward function may do that can't be traced has no limits
        return plain
    return folded if _agree(plain, folded, example) else plain


class _Tracer(fx.Tracer):
    """Takes batch norms with something behind them, as timm has them, as one module."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, qualified_name)


def _fold(model: nn.Module) -> fx.GraphModule:
    """Another network with the layers of `model`, but for those that are folded."""
    graph = _Tracer().trace(model)
    traced = fx.GraphModule(model, graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and _is_plain_norm(traced.get_submodule(node.target)):
            before = node.args[0]
            if before.op == "call_module" and len(before.users) == 1 and _used_once(graph, before, node):
                _merge(traced, before, node)
    traced.recompile()
    return traced


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with statistics of its own and, at most, timm's activation behind it."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    return type(module) is nn.BatchNorm2d or (hasattr(module, "drop") and hasattr(module, "act"))


def _used_once(graph: fx.Graph, *nodes: fx.Node) -> bool:
    """Whether no other node calls the modules of these: weights that are shared can't be changed for one of them."""
    return all(sum(other.target == node.target for other in graph.nodes) == 1 for node in nodes)


def _merge(traced: fx.GraphModule, before: fx.Node, node: fx.Node) -> None:
    conv, norm = traced.get_submodule(str(before.target)), traced.get_submodule(str(node.target))
    if type(conv) is not nn.Conv2d:
        return
    assert isinstance(norm, nn.BatchNorm2d)
    traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
    behind = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    traced.set_submodule(str(node.target), nn.Sequential(*behind))


def _agree(plain: nn.Module, folded: nn.Module, example: torch.Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *example.shape[1:], generator=generator).to(example.device)
    with torch.inference_mode():
        expected, found = plain(images), folded(images)
    return bool((expected - found).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))
