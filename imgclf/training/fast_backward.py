"""Convolutions over small maps on a processor: the gradient of their weights as one matrix product.

In bfloat16 oneDNN's own kernels for it do 0.15 Tflop/s over maps of 2×2 pixels and 0.3 over 4×4, where those for large
maps do 0.9, as the matrix product does over any (docs/speed.md). Where steps of two pass a side of one pixel, they also
return memory that was never written (oneDNN 3.12).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from imgclf.runtime.compute import SMALL_STEP

Pair = tuple[int, int]  # (height, width)

MOST_PIXELS = 49  # of a map; over larger ones oneDNN is as quick, and the matrix would take much memory


def fast_gradients(device: torch.device, precision: torch.dtype, flops: float) -> AbstractContextManager[object]:
    """The fastest context for steps whose forward pass takes `flops` floating-point operations. The results differ only
    by the order of additions."""
    helps = device.type == "cpu" and precision is torch.bfloat16 and flops >= SMALL_STEP
    return _SmallMaps() if helps else nullcontext()


class _SmallMaps(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and torch.is_grad_enabled():
            return _convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    input: torch.Tensor,  # as torch calls it
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.conv2d`; over small maps, where the weights are trained, with the other way back."""
    plain = isinstance(input, torch.Tensor) and input.ndim == 4 and weight.requires_grad and groups == 1
    plain = plain and not isinstance(padding, str) and _pair(dilation) == (1, 1)
    step, frame = _pair(stride), _pair(padding)
    if not plain or len(step) < 2 or len(frame) < 2 or _pixels(input, weight, step, frame) > MOST_PIXELS:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    result: torch.Tensor = _Convolution.apply(input, weight, bias, step, frame)
    return result


def _pixels(images: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> int:
    """Of the map that comes out."""
    height, width = ((images.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in range(2))
    return int(height * width)


class _Convolution(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Pair, padding: Pair
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        of_images = of_bias = None
        if ctx.needs_input_grad[0]:
            options = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
            asked = (True, False, False)  # for that of the bias alone, oneDNN would compute that of the weights as well
            of_images = torch.ops.aten.convolution_backward(gradient, images, weight, None, *options, asked)[0]
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3), dtype=torch.float32)
        patches = _patches(images, gradient, weight, ctx.stride, ctx.padding)
        rows = gradient.permute(0, 2, 3, 1).reshape(len(patches), -1)
        outputs, inputs, height, width = weight.shape
        product = (rows.t() @ patches).view(outputs, height, width, inputs)
        return of_images, product.permute(0, 3, 1, 2), of_bias, None, None


def _patches(
    images: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair
) -> torch.Tensor:
    """The input patch of each pixel of the maps: a row (height · width · channels) of a kernel's size for each."""
    if any(padding):
        images = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    framed = images.permute(0, 2, 3, 1).contiguous()
    n, rows, columns, channels = framed.stride()
    shape = (len(maps), *maps.shape[2:], *weight.shape[2:], framed.shape[3])
    windows = framed.as_strided(shape, (n, rows * stride[0], columns * stride[1], rows, columns, channels))
    return windows.reshape(len(maps) * maps.shape[2] * maps.shape[3], -1)
