"""Convolutions over small maps on a processor: the gradient of their weights as one matrix product.

In bfloat16 oneDNN's own kernels for it do 0.15 Tflop/s over maps of 2×2 pixels and 0.3 over 4×4, where those for large
maps do 0.9, as the matrix product does over any (docs/speed.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.amp import custom_bwd, custom_fwd
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from imgclf.compute import SMALL_STEP

MOST_PIXELS = 49  # of a map; over larger ones oneDNN is as quick, and the matrix would take much memory


def quick_gradients(device: torch.device, precision: torch.dtype, flops: float) -> AbstractContextManager[object]:
    """The context in which steps of so many floating-point operations are taken quickest. Their results are the same,
    but for the order of additions."""
    slow = device.type == "cpu" and precision is torch.bfloat16 and flops >= SMALL_STEP
    return _SmallMaps() if slow else nullcontext()


class _SmallMaps(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and torch.is_grad_enabled() and isinstance(args[0], torch.Tensor):
            return _convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.conv2d`, in whichever way is quicker."""
    usual = isinstance(padding, str) or _pair(dilation) != (1, 1) or groups > 1 or not weight.requires_grad
    if usual or images.ndim < 4 or _pixels(images, weight, _pair(stride), _pair(padding)) > MOST_PIXELS:
        return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)
    result: torch.Tensor = _Convolution.apply(images, weight, bias, _pair(stride), _pair(padding))
    return result


def _pixels(images: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> int:
    """Of the map that comes out."""
    height, width = ((images.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in range(2))
    return int(height * width)


class _Convolution(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.bias = stride, padding, None if bias is None else list(bias.shape)
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        images, weight = ctx.saved_tensors
        of_images, _, of_bias, *_ = ctx.needs_input_grad
        own = torch.ops.aten.convolution_backward(
            gradient,
            images,
            weight,
            ctx.bias,
            ctx.stride,
            ctx.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (of_images, False, of_bias),
        )
        patches = _patches(images, gradient, weight, ctx.stride, ctx.padding)
        rows = gradient.permute(0, 2, 3, 1).reshape(len(patches), -1)
        outputs, inputs, height, width = weight.shape
        product = (rows.t() @ patches).view(outputs, height, width, inputs)
        return own[0], product.permute(0, 3, 1, 2), own[2], None, None


def _patches(
    images: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """What each pixel of the maps was computed from: a row (height · width · channels) of a kernel's size for each."""
    framed = F.pad(images, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1).contiguous()
    n, rows, columns, channels = framed.stride()
    shape = (len(maps), *maps.shape[2:], *weight.shape[2:], images.shape[1])
    windows = framed.as_strided(shape, (n, rows * stride[0], columns * stride[1], rows, columns, channels))
    return windows.reshape(len(maps) * maps.shape[2] * maps.shape[3], -1)
