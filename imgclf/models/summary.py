"""A network as a table of layers: what each makes of its input, by which formula, with how many parameters.

The side of a convolution's or a pooling's output is (W - F + 2P)/S + 1, rounded down: W the input's side, F the
filter's, P the padding on each side, S the stride. A dilation D stretches the filter to D(F - 1) + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Window:
    """How a convolution or a pooling slides along one axis; `padding` is the sum of both ends."""

    size: int
    stride: int
    padding: int
    dilation: int = 1
    ceil: bool = False

    def side(self, given: int) -> int:
        """The side that comes out of a side of `given`, as PyTorch computes it."""
        span = given - self.dilation * (self.size - 1) - 1 + self.padding
        side = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        if self.ceil and (side - 1) * self.stride >= given + self.padding // 2:
            side -= 1  # a window that would start in the padding behind the image is left out
        return side

    def formula(self, given: int) -> str:
        """`(28 - 5 + 2*0)/1 + 1 = 24`; where the division has a rest, how it is rounded."""
        filter_text = str(self.size) if self.dilation == 1 else f"({self.dilation}*({self.size} - 1) + 1)"
        padding = f"2*{self.padding // 2}" if self.padding % 2 == 0 else str(self.padding)
        quotient = f"({given} - {filter_text} + {padding})/{self.stride}"
        if (given - self.dilation * (self.size - 1) - 1 + self.padding) % self.stride:
            quotient = f"{'ceil' if self.ceil else 'floor'}({quotient})"
        return f"{quotient} + 1 = {self.side(given)}"


def layer_table(model: nn.Module, size: tuple[int, int], channels: int) -> tuple[LayerRow, ...]:
    """The layers of `model` in the order in which an image of `size` (height, width) passes them; then the uncalled.

    The `params` of all rows sum up to those of the model. Raises `AssertionError` where a formula and the real tensor
    differ, which would be a bug of this function.
    """
    rows: list[LayerRow] = []
    counted: set[nn.Parameter] = set()
    model = own_copy(model)  # for hooks of its own
    names = {module: name for name, module in model.named_modules()}

    def new_weights(module: nn.Module) -> int:
        new = [p for p in module.parameters(recurse=isinstance(module, nn.MultiheadAttention)) if p not in counted]
        counted.update(new)
        return sum(p.numel() for p in new)

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        result = output if isinstance(output, Tensor) else next(p for p in _parts(output) if isinstance(p, Tensor))
        given = inputs[0] if inputs else None
        formula = _formula(module, names[module], given, result) if isinstance(given, Tensor) else ""
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


def _parts(output: object) -> Iterator[object]:
    if isinstance(output, dict):
        yield from output.values()
    elif isinstance(output, tuple | list):
        yield from output


def _formula(module: nn.Module, name: str, given: Tensor, output: Tensor) -> str:
    """The formula of a layer with a window, verified against what came out; "" for all others."""
    if type(module) not in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d):  # subclasses may pad in their own ways
        return ""
    windows = [_window(module, axis) for axis in (0, 1)]
    sides = given.shape[-2:]
    computed = tuple(window.side(side) for window, side in zip(windows, sides, strict=True))
    if computed != tuple(output.shape[-2:]):
        raise AssertionError(f"{name}: the formula gives {computed}, the layer gives {tuple(output.shape[-2:])}")
    height, width = (window.formula(side) for window, side in zip(windows, sides, strict=True))
    return height if height == width else f"H: {height}, W: {width}"


def _window(module: nn.Module, axis: int) -> Window:
    size, stride = _along(module.kernel_size, axis), _along(module.stride, axis)
    dilation = _along(getattr(module, "dilation", 1), axis)
    if module.padding == "same":
        padding = dilation * (size - 1)
    elif module.padding == "valid":
        padding = 0
    else:
        padding = 2 * _along(module.padding, axis)
    return Window(size, stride, padding, dilation, getattr(module, "ceil_mode", False))


def _along(value: object, axis: int) -> int:
    """One number stands for both axes."""
    number = value[axis] if isinstance(value, tuple) else value
    assert isinstance(number, int)
    return number
