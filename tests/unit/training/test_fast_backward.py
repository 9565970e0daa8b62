"""Depthwise convolutions and those over small maps: another way to the same gradients."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from imgclf.core.config import ModelConfig
from imgclf.models.build import build_model
from imgclf.training import fast_backward
from imgclf.training.fast_backward import MOST_PIXELS, FastGradients


def inputs(side, weight_shape, groups=1):
    """Images, weights and biases, the same each time, and numbers that bfloat16 holds."""
    random = torch.Generator().manual_seed(0)
    shapes = ((3, weight_shape[1] * groups, *side), weight_shape, weight_shape[:1])
    images, weight, bias = (torch.randn(shape, generator=random).bfloat16().float() for shape in shapes)
    return images.to(memory_format=torch.channels_last), weight, bias


def convolved(context, side, weight_shape, bias=False, images_too=True, **options):
    """The maps and all gradients of one convolution in bfloat16; those of the maps are twice the maps."""
    images, weight, shift = inputs(side, weight_shape, options.get("groups", 1))
    wanted = [tensor for tensor, needed in ((images, images_too), (weight, True), (shift, bias)) if needed]
    for tensor in wanted:
        tensor.requires_grad_()
    with context, torch.autocast("cpu", torch.bfloat16):
        maps = F.conv2d(images, weight, shift if bias else None, **options)
    (maps.float() ** 2).sum().backward()
    return maps, [tensor.grad for tensor in wanted]


def exact_gradients(maps, side, weight_shape, bias, images_too, **options):
    """The same gradients in float64. (torch's own of the weights, in bfloat16, are at times not even finite where a
    side of one pixel is passed in steps of two.)"""
    given = inputs(side, weight_shape, options.get("groups", 1))
    images, weight, shift = (tensor.double().requires_grad_() for tensor in given)
    F.conv2d(images, weight, shift, **options).backward(2 * maps.detach().double())
    return [t.grad for t, needed in ((images, images_too), (weight, True), (shift, bias)) if needed]


def check_gradients(side, weight_shape, **options):
    maps, grads = convolved(FastGradients(), side, weight_shape, **options)
    for found, wanted in zip(grads, exact_gradients(maps, side, weight_shape, **options), strict=True):
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


@given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    images_too=st.booleans(),
)
def test_gradients_are_right(side, kernel, stride, padding, channels, bias, images_too):
    frame = padding if isinstance(padding, tuple) else (padding, padding)
    if any(s + 2 * p < k for s, p, k in zip(side, frame, kernel, strict=True)):
        return
    options = {"bias": bias, "images_too": images_too, "stride": stride, "padding": padding}
    check_gradients(side, (*channels, *kernel), **options)


@given(
    side=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.sampled_from((2, 3, 5, 6, 8, 12, 16, 24, 32, 48)),
    bias=st.booleans(),
    images_too=st.booleans(),
)
def test_gradients_of_depthwise_convolutions_are_right(side, kernel, stride, padding, channels, bias, images_too):
    if any(s + 2 * p < k for s, p, k in zip(side, padding, kernel, strict=True)):
        return
    options = {"bias": bias, "images_too": images_too, "stride": stride, "padding": padding, "groups": channels}
    check_gradients(side, (channels, 1, *kernel), **options)


def test_a_large_gradient_is_spread_out_in_parts_to_the_same_end(monkeypatch):
    options = {"groups": 16, "stride": 2, "padding": 2}
    _, together = convolved(FastGradients(), (9, 12), (16, 1, 5, 5), **options)
    monkeypatch.setattr(fast_backward, "SPREAD_VALUES", 2 * 16 * 13 * 16)
    _, parts = convolved(FastGradients(), (9, 12), (16, 1, 5, 5), **options)
    assert all(torch.equal(one, other) for one, other in zip(together, parts, strict=True))


@pytest.mark.parametrize(
    ("side", "weight_shape", "options", "expected"),
    [
        ((7, 7), (8, 4, 3, 3), {"padding": 1}, "_SmallMaps"),
        ((8, 8), (8, 4, 3, 3), {"padding": 1}, None),
        ((14, 14), (8, 4, 3, 3), {"padding": 1, "stride": 2}, "_SmallMaps"),
        ((4, 4), (8, 4, 3, 3), {"padding": "same"}, None),
        ((4, 4), (8, 4, 3, 3), {"padding": 2, "dilation": 2}, None),
        ((4, 4), (8, 4, 3, 3), {"padding": 1, "groups": 2}, None),
        ((9, 9), (8, 1, 3, 3), {"padding": 1, "groups": 8}, "_Depthwise"),
        ((9, 9), (8, 1, 3, 3), {"padding": 3, "groups": 8}, None),
        ((9, 9), (16, 1, 3, 3), {"padding": 1, "groups": 8}, None),
        ((9, 9), (8, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 8}, None),
        ((9, 9), (8, 1, 3, 3), {"padding": "same", "groups": 8}, None),
        ((9, 9), (8, 1, 3, 3), {"padding": 1}, None),
    ],
)
def test_only_depthwise_convolutions_and_plain_ones_over_small_maps_go_another_way(
    side, weight_shape, options, expected
):
    maps, _ = convolved(FastGradients(), side, weight_shape, **options)
    known, _ = convolved(nullcontext(), side, weight_shape, **options)
    assert torch.equal(maps, known)
    name = type(maps.grad_fn).__name__
    assert name == (f"{expected}Backward" if expected else type(known.grad_fn).__name__)
    assert expected != "_SmallMaps" or maps.shape[2] * maps.shape[3] <= MOST_PIXELS


def test_what_is_not_trained_is_left_alone(monkeypatch):
    def refuse(*inputs):
        raise AssertionError("no gradient of these weights is wanted")

    monkeypatch.setattr(fast_backward._SmallMaps, "apply", refuse)
    images = torch.randn(1, 4, 5, 5, requires_grad=True)
    with FastGradients(), torch.autocast("cpu", torch.bfloat16):
        assert nn.Conv2d(4, 4, 3).requires_grad_(False)(images).requires_grad
        with torch.no_grad():
            nn.Conv2d(4, 4, 3)(images)
        with pytest.raises(AssertionError, match="no gradient"):
            nn.Conv2d(4, 4, 3)(images)


def test_a_convolution_may_be_called_in_each_way_that_torch_allows():
    images, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3, requires_grad=True)
    ways = [{}, {"stride": [2]}, {"stride": 2, "padding": (1,)}, {"padding": "same"}]
    expected = [F.conv2d(images, weight, **options) for options in ways]
    with FastGradients():
        found = [F.conv2d(input=images, weight=weight, **options) for options in ways]
        single = F.conv2d(images[0], weight)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert single.shape == (4, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050", "timm:convnext_atto", "mobilevit_xxs"])
def test_a_whole_network_learns_the_same(arch):
    torch.manual_seed(0)
    network = build_model(ModelConfig(arch, 3)).to(memory_format=torch.channels_last)
    images, found = torch.randn(8, 3, 64, 64), []
    for context in (nullcontext(), FastGradients()):
        network.zero_grad()
        torch.manual_seed(0)
        with context, torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        F.cross_entropy(logits.float(), torch.arange(8) % 3).backward()
        found.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    plain, other = found
    for name, gradient in plain.items():
        assert (other[name] - gradient).norm() <= 0.01 * gradient.norm(), name
        strides = [[x for x, n in zip(g.stride(), g.shape, strict=True) if n > 1] for g in (gradient, other[name])]
        assert strides[0] == strides[1]
