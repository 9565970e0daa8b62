"""Batch norms that are folded change no answer."""

import pytest
import torch
from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.models.build import build_model
from imgclf.models.fuse import fuse_conv_bn


def randomized(model):
    """The model with batch statistics as training leaves them, away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.7, 1.3, generator=generator)
                module.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def probabilities(model, images):
    with torch.inference_mode():
        return model(images).softmax(1)


@pytest.mark.parametrize(
    ("arch", "side", "left"),
    [
        ("resnet18", 64, 0),
        ("vgg16_cifar_lab", 32, None),
        ("resnet50_cifar_lab", 32, None),
        ("timm:efficientnet_b0", 64, 0),
        ("timm:mobilenetv3_small_100", 64, 0),
        ("densenet121", 64, None),
        ("lenet", 28, 0),
    ],
)
def test_the_answers_stay_the_same(arch, side, left):
    torch.manual_seed(0)
    model = randomized(build_model(ModelConfig(arch, 7, 3, (side, side))))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(4, 3, side, side)
    folded = fuse_conv_bn(model, images[:1])
    assert (probabilities(folded, images) - probabilities(model, images)).abs().max() <= 1e-5
    assert left is None or norms(folded) == left
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert norms(model) == 0 or norms(folded) < norms(model) or arch.endswith("_lab")


class Own(nn.Module):
    """A network whose forward function is written by its user."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self._forward = forward

    def forward(self, images):
        return self.head(self._forward(self, images).mean((2, 3)))


def plain(net, images):
    return net.norm(net.conv(images))


def branching(net, images):
    maps = net.conv(images)
    return net.norm(maps) + maps


def twice(net, images):
    return net.norm(net.conv(images)) + net.conv(images)


def by_brightness(net, images):
    maps = net.conv(images)
    return net.norm(maps) if images.mean() < 5 else maps


@pytest.mark.parametrize(("forward", "left"), [(plain, 0), (branching, 1), (twice, 1), (by_brightness, 1)])
def test_only_what_may_be_folded_is(forward, left):
    torch.manual_seed(0)
    model = randomized(Own(forward))
    images = torch.randn(5, 1, 8, 8)
    folded = fuse_conv_bn(model, images[:1])
    assert norms(folded) == left
    for each in (images, images + 10):
        torch.testing.assert_close(folded(each), model(each), atol=1e-5, rtol=1e-5)


def test_a_network_that_needs_its_batch_norms_is_left_alone():
    def with_its_mean(net, images):
        return plain(net, images) + net.norm.running_mean.sum()

    model = randomized(Own(with_its_mean))
    folded = fuse_conv_bn(model, torch.zeros(1, 1, 8, 8))
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(folded(images), model(images))
    assert norms(folded) == 1


def test_folding_changes_nothing_for_other_threads():
    calls = nn.Module.__call__, nn.Module.__getattr__
    seen = []

    def looking(net, images):
        seen.append((nn.Module.__call__, nn.Module.__getattr__) == calls)
        return plain(net, images)

    model = randomized(Own(looking))
    assert norms(fuse_conv_bn(model, torch.zeros(1, 1, 8, 8))) == 0
    assert seen
    assert all(seen)


def test_a_copy_is_made_in_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten()).train()
    folded = fuse_conv_bn(model, torch.zeros(1, 1, 4, 4))
    assert not folded.training
    assert model.training
    assert norms(folded) == 0
