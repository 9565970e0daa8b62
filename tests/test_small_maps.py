"""Convolutions over small maps: another way to the same gradients."""

from contextlib import nullcontext

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from imgclf.training.small_maps import MOST_PIXELS, quick_gradients

CPU, LARGE = torch.device("cpu"), 1e12


def quick():
    return quick_gradients(CPU, torch.bfloat16, LARGE)


def convolved(context, side, weight_shape, bias=False, images_too=True, **options):
    """The maps and all gradients of one convolution in bfloat16, from the same numbers each time."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(3, weight_shape[1] * options.get("groups", 1), *side, generator=random)
    images = images.to(memory_format=torch.channels_last).requires_grad_(images_too)
    weight = torch.randn(weight_shape, generator=random, requires_grad=True)
    shift = torch.randn(weight_shape[0], generator=random, requires_grad=True) if bias else None
    with context, torch.autocast("cpu", torch.bfloat16):
        maps = F.conv2d(images, weight, shift, **options)
    (maps.float() ** 2).sum().backward()
    return maps, [tensor.grad for tensor in (images, weight, shift) if tensor is not None and tensor.requires_grad]


@settings(max_examples=60, deadline=None)
@given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    images_too=st.booleans(),
)
def test_gradients_are_those_of_torch(side, kernel, stride, padding, channels, bias, images_too):
    frame = padding if isinstance(padding, tuple) else (padding, padding)
    if any(s + 2 * p < k for s, p, k in zip(side, frame, kernel, strict=True)):
        return
    options = {"bias": bias, "images_too": images_too, "stride": stride, "padding": padding}
    maps, grads = convolved(quick(), side, (*channels, *kernel), **options)
    known, expected = convolved(nullcontext(), side, (*channels, *kernel), **options)
    assert torch.equal(maps, known)
    for found, wanted in zip(grads, expected, strict=True):
        assert found.dtype is wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("side", "options", "expected"),
    [
        ((7, 7), {"padding": 1}, True),
        ((8, 8), {"padding": 1}, False),
        ((14, 14), {"padding": 1, "stride": 2}, True),
        ((4, 4), {"padding": "same"}, False),
        ((4, 4), {"padding": 2, "dilation": 2}, False),
        ((4, 4), {"padding": 1, "groups": 2}, False),
    ],
)
def test_only_plain_convolutions_over_small_maps_go_another_way(side, options, expected):
    maps, _ = convolved(quick(), side, (8, 4, 3, 3), **options)
    known, _ = convolved(nullcontext(), side, (8, 4, 3, 3), **options)
    assert torch.equal(maps, known)
    assert (type(maps.grad_fn) is not type(known.grad_fn)) is expected
    assert not expected or maps.shape[2] * maps.shape[3] <= MOST_PIXELS


def test_what_is_not_trained_or_takes_few_steps_is_left_alone():
    layer = nn.Conv2d(4, 4, 3).requires_grad_(False)
    with quick(), torch.autocast("cpu", torch.bfloat16):
        assert not layer(torch.randn(1, 4, 5, 5)).requires_grad
        with torch.no_grad():
            assert not nn.Conv2d(4, 4, 3)(torch.randn(1, 4, 5, 5)).requires_grad
    for device, precision, flops in [
        (torch.device("cuda"), torch.bfloat16, LARGE),
        (CPU, torch.float32, LARGE),
        (CPU, torch.bfloat16, 1e6),
    ]:
        assert isinstance(quick_gradients(device, precision, flops), nullcontext)


def test_a_whole_network_learns_the_same():
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=3).to(memory_format=torch.channels_last)
    images, found = torch.randn(8, 3, 64, 64), []
    for context in (nullcontext(), quick()):
        network.zero_grad()
        with context, torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        F.cross_entropy(logits.float(), torch.arange(8) % 3).backward()
        found.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    plain, other = found
    for name, gradient in plain.items():
        assert (other[name] - gradient).norm() <= 0.01 * gradient.norm(), name
        assert other[name].stride() == gradient.stride()
