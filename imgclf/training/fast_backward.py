"""Convolutions on a processor in bfloat16: the same gradients by other kernels, where oneDNN's own are slow.

- Depthwise: its kernels for the gradients take 4 to 100 times as long as the forward pass (oneDNN 3.12; needless once
  a later one has kernels for them that use AVX-512, as its forward kernel `brdgmm_dw` does). The gradient of the input
  is the forward pass of the gradient, spread out by the stride, with the kernel turned around. That of a kernel larger
  than 3×3 comes from a convolution of 16 channels a group, which computes 16 times as much and yet takes a third of the
  time; its diagonal is what is asked for.
- Over small maps: the gradient of the weights as one matrix product. oneDNN's own kernels for it do 0.15 Tflop/s over
  maps of 2×2 pixels and 0.3 over 4×4, where those for large maps do 0.9, as the matrix product does over any
  (docs/speed.md). Where steps of two pass a side of one pixel, they also return memory that was never written.

In single precision oneDNN's kernels are as quick, and nothing is changed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]  # (height, width)

MOST_PIXELS = 49  # of a map; over larger ones oneDNN is as quick, and the matrix would take much memory
GROUP = 16  # channels, at most, of a group that a depthwise gradient comes from: as wide as a register of AVX-512
SMALL_KERNEL = 9  # weights: up to 3×3, oneDNN's own gradient of a depthwise kernel is quick
SPREAD_VALUES = 2**21  # of a gradient that is spread out at once: more leave the processor's cache

BACKWARD = torch.ops.aten.convolution_backward


class FastGradients(TorchFunctionMode):
    """The context for forward passes in bfloat16 on a processor. The results differ only by the order of additions and
    by the rounding of bfloat16."""

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
    """`torch.conv2d`; where the weights are trained and another way back is quicker, with that."""
    step, frame = _pair(stride), _pair(padding)
    plain = isinstance(input, torch.Tensor) and input.ndim == 4 and weight.requires_grad and len(step) == 2
    plain = plain and not isinstance(padding, str) and len(frame) == 2 and _pair(dilation) == (1, 1)
    if plain and groups == 1 and _pixels(input, weight, step, frame) <= MOST_PIXELS:
        function: Any = _SmallMaps
    elif plain and 1 < groups == input.shape[1] == len(weight) and _inside(weight, frame):
        function = _Depthwise
    else:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    result: torch.Tensor = function.apply(input, weight, bias, step, frame)
    return result


def _pixels(images: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> int:
    """Of the map that comes out."""
    height, width = ((images.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in range(2))
    return int(height * width)


def _inside(weight: torch.Tensor, padding: Pair) -> bool:
    """Whether every place of a kernel's window reaches the image."""
    return padding[0] < weight.shape[2] and padding[1] < weight.shape[3]


class _Convolution(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Pair, padding: Pair
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, bias, stride, padding, 1, images.shape[1] // weight.shape[1])


class _SmallMaps(_Convolution):
    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        of_images = of_bias = None
        if ctx.needs_input_grad[0]:
            options = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
            asked = (True, False, False)  # for that of the bias alone, oneDNN would compute that of the weights as well
            of_images = BACKWARD(gradient, images, weight, None, *options, asked)[0]
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


class _Depthwise(_Convolution):
    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images = _of_images(gradient, weight, images.shape, ctx.stride, ctx.padding)
        if any(images.shape[i + 2] < weight.shape[i + 2] + ctx.stride[i] > weight.shape[i + 2] + 1 for i in (0, 1)):
            # In bfloat16, oneDNN leaves out what of a kernel reaches no pixel: its gradient is memory never written.
            images, weight, gradient = images.float(), weight.float(), gradient.float()
        channels, _, height, width = weight.shape
        size = math.gcd(channels, GROUP) if height * width > SMALL_KERNEL else 1
        options = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), channels // size)
        asked, kernels = (False, True, ctx.needs_input_grad[2]), weight.expand(channels, size, height, width)
        _, product, of_bias = BACKWARD(gradient, images, kernels, [channels], *options, asked)
        diagonal = product.view(channels // size, size, size, height, width).diagonal(dim1=1, dim2=2)
        return of_images, diagonal.permute(0, 3, 1, 2).reshape(weight.shape), of_bias, None, None


def _of_images(
    gradient: torch.Tensor, weight: torch.Tensor, shape: torch.Size, stride: Pair, padding: Pair
) -> torch.Tensor:
    """The gradient of the images (`shape`) of a depthwise convolution."""
    turned, channels = weight.flip(2, 3), len(weight)
    frame = (weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1])
    if stride == (1, 1):
        return F.conv2d(gradient, turned, None, 1, frame, 1, channels)
    size = (shape[2] + weight.shape[2] - 1, shape[3] + weight.shape[3] - 1)
    most = max(1, SPREAD_VALUES // (size[0] * size[1] * channels))
    spread = gradient.new_zeros(min(most, shape[0]), *size, channels).permute(0, 3, 1, 2)
    rows, columns = (slice(frame[i], frame[i] + (gradient.shape[i + 2] - 1) * stride[i] + 1, stride[i]) for i in (0, 1))
    parts = []
    for part in torch.split(gradient, most):
        spread[: len(part), :, rows, columns] = part
        parts.append(F.conv2d(spread[: len(part)], turned, None, 1, 0, 1, channels))
    return torch.cat(parts)
