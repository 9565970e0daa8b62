"""Batch norms of frozen statistics, folded into the convolutions before them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from imgclf.core.config import ModelConfig
from imgclf.models.build import build_model
from imgclf.training.frozen_norms import folded_norms

EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained_statistics(network):
    """The network in training, with frozen batch norms whose statistics and weights are not those of the start."""
    random = torch.Generator().manual_seed(0)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            for tensor, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2)):
                tensor.uniform_(low, high, generator=random)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)
                nn.init.uniform_(module.bias, -1, 1, generator=random)
    return network


class Calls:
    """Counts the batch norms that are computed."""

    def __init__(self, monkeypatch):
        self.norms, usual = 0, torch.batch_norm

        def counted(*args):
            self.norms += 1
            return usual(*args)

        monkeypatch.setattr(torch, "batch_norm", counted)


def learned(network, context):
    """The logits and gradients of a step in double precision."""
    network.zero_grad()
    torch.manual_seed(0)
    with context:
        logits = network(EXAMPLE.repeat(4, 1, 1, 1).double() + torch.arange(4.0).view(4, 1, 1, 1))
    F.cross_entropy(logits, torch.arange(4) % 3).backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "left"),
    [("resnet18", 0), ("mobilenetv3_small_050", 0), ("tf_efficientnet_lite0", 0), ("timm:densenet121", 62)],
)
def test_a_network_learns_the_same_without_a_pass_over_its_norms(arch, left, monkeypatch):
    torch.manual_seed(0)
    network = trained_statistics(build_model(ModelConfig(arch, 3, size=(32, 32)))).double()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logits, gradients = learned(network, nullcontext())
    calls = Calls(monkeypatch)
    context = folded_norms(network, EXAMPLE.double())
    calls.norms = 0
    found_logits, found = learned(network, context)
    assert calls.norms == left
    torch.testing.assert_close(found_logits, logits)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9 + 1e-6 * float(gradient.abs().max()))
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def test_passes_without_gradients_compute_as_ever():
    network = trained_statistics(build_model(ModelConfig("resnet18", 3, size=(32, 32))))
    with torch.no_grad():
        expected = network.eval()(EXAMPLE)
        with folded_norms(network, EXAMPLE):
            assert torch.equal(network(EXAMPLE), expected)


class Two(nn.Module):
    """Two convolutions and norms, joined in different ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.first, self.second = way, nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.other, self.head = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.Linear(3, 3)

    def forward(self, images):
        maps = self.first(images)
        match self.way:
            case "norms after each other":
                maps = self.other(self.norm(maps).relu_())
            case "a norm of the same maps in place":
                maps = self.other(F.relu(self.norm(maps), inplace=True))
            case "maps that something else reads":
                maps = self.norm(maps) + maps
            case "an activation between":
                maps = self.norm(maps.relu())
            case "a convolution used twice":
                maps = self.norm(self.first(maps))
            case "a norm used twice":
                maps = self.norm(self.second(self.norm(maps)))
            case "both at once":
                second = self.second(images)
                maps = self.norm(maps) + self.other(second)
        return self.head(maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("norms after each other", 1),
        ("a norm of the same maps in place", 1),
        ("maps that something else reads", 1),
        ("an activation between", 1),
        ("a convolution used twice", 1),
        ("a norm used twice", 0),
        ("both at once", 0),
        ("no norm", 0),
    ],
)
def test_only_a_norm_that_alone_reads_a_convolution_is_folded(way, left, monkeypatch):
    torch.manual_seed(0)
    network = trained_statistics(Two(way)).double()
    calls = Calls(monkeypatch)
    logits = network(EXAMPLE.double())
    context = folded_norms(network, EXAMPLE.double())
    calls.norms = 0
    with context:
        found = network(EXAMPLE.double())
    assert calls.norms == left
    torch.testing.assert_close(found, logits)


def test_a_norm_that_takes_the_statistics_of_its_batch_stays():
    network = Two("a norm used twice")
    network.norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert isinstance(folded_norms(network, EXAMPLE), nullcontext)
