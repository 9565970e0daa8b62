"""A network as a table of layers: what each makes of its input, by which formula, with how many parameters.

The side of a convolution's or a pooling's output is (W - F + 2P)/S + 1, rounded down: W the input's side, F the
filter's, P the padding on each side, S the stride. A dilation D stretches the filter to D(F - 1) + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgclf.runtime.compute import own_copy


@dataclass(frozen=True)
class LayerRow:
    """One call of one layer. `shape` is its output without the batch: (channels, height, width) or (features,).

    `formula` is how the sides come about, "" where the layer has no window. `params` counts each weight once, at the
    first call of its layer. A layer that is never called itself, because another one uses its weights, has no shape.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    formula: str
    params: int


def layer_table(model: nn.Module, size: tuple[int, int], channels: int) -> tuple[LayerRow, ...]:
    """The layers of `model` in the order in which an image of `size` (height, width) passes them; then the uncalled.

    The `params` of all rows sum up to those of the model.
    """
    rows: list[LayerRow] = []
    counted: set[nn.Parameter] = set()
    model = own_copy(model)  # for hooks of its own
    names = {module: name for name, module in model.named_modules()}

    def new_weights(module: nn.Module) -> int:
        new = [p for p in module.parameters(recurse=isinstance(module, nn.MultiheadAttention)) if p not in counted]
        counted.update(new)
        return sum(p.numel() for p in new)

    def record(module: nn.Module, inputs: tuple[object, ...], output: Any) -> None:
        parts = [output] if isinstance(output, Tensor) else output.values() if isinstance(output, dict) else output
        result = next(part for part in parts if isinstance(part, Tensor))
        given = inputs[0] if inputs else None
        formula = _formula(module, given, result) if isinstance(given, Tensor) else ""
        shape = tuple(result.shape[1:])
        rows.append(LayerRow(names[module], type(module).__name__, shape, formula, new_weights(module)))

    for module in filter(_is_layer, names):
        module.register_forward_hook(record)
    with torch.no_grad():
        model(next(model.parameters()).new_zeros(1, channels, *size))
    uncalled = [(name, type(module).__name__, new_weights(module)) for module, name in names.items()]
    return tuple(rows + [LayerRow(name, kind, (), "", params) for name, kind, params in uncalled if params])


def _is_layer(module: nn.Module) -> bool:
    """Leaves, and modules that own weights beside their children, such as the class token of a ViT."""
    if isinstance(module, nn.Identity):
        return False
    is_leaf = next(module.children(), None) is None
    return is_leaf or next(module.parameters(recurse=False), None) is not None


def _formula(module: nn.Module, given: Tensor, output: Tensor) -> str:
    """The formula of a layer with a window; "" for all others."""
    if type(module) not in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d):  # subclasses may pad in their own ways
        return ""
    height, width = (_axis_formula(module, axis, given.shape[axis - 2], output.shape[axis - 2]) for axis in (0, 1))
    return height if height == width else f"H: {height}, W: {width}"


def _axis_formula(module: nn.Module, axis: int, given: int, side: int) -> str:
    """`(28 - 5 + 2*0)/1 + 1 = 24`; where the division has a rest, how it is rounded."""
    size, stride, dilation = (_along(getattr(module, name, 1), axis) for name in ("kernel_size", "stride", "dilation"))
    span, padding = dilation * (size - 1) + 1, module.padding
    both_ends = {"same": span - 1, "valid": 0}[padding] if isinstance(padding, str) else 2 * _along(padding, axis)
    filter_text = str(size) if dilation == 1 else f"({dilation}*({size} - 1) + 1)"
    padding_text = str(both_ends) if both_ends % 2 else f"2*{both_ends // 2}"
    quotient = f"({given} - {filter_text} + {padding_text})/{stride}"
    if (given - span + both_ends) % stride:
        quotient = f"{'ceil' if getattr(module, 'ceil_mode', False) else 'floor'}({quotient})"
    return f"{quotient} + 1 = {side}"


def _along(value: object, axis: int) -> int:
    """One number stands for both axes."""
    number = value[axis] if isinstance(value, tuple) else value
    assert isinstance(number, int)
    return number
