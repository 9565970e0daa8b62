"""The stand-in refuses what a GPU refuses, and computes what the processor computes."""

import copy

import pytest
import torch
from torch import nn

from support import standin_device


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def images(n=4):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_two_devices_do_not_meet(standin):
    model = net().to(standin)
    with pytest.raises(RuntimeError, match="same device"):
        model(images())
    with pytest.raises(RuntimeError, match="same device"):
        images().to(standin) + images()
    assert (images().to(standin) * torch.tensor(2.0)).device.type == "cuda"  # a number may come from anywhere
    assert images().to(standin)[torch.tensor([0, 2])].shape == (2, 1, 6, 6)


def test_what_lies_there_is_no_array(standin):
    with pytest.raises(TypeError, match="numpy"):
        images().to(standin).numpy()
    assert images().to(standin).cpu().numpy().shape == (4, 1, 6, 6)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_is_that_of_the_processor(standin, make):
    ends = []
    for device in ("cpu", standin):
        model = net().to(device)
        optimizer = make(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            model(images().to(device)).square().sum().backward()
            optimizer.step()
        assert {tensor.device.type for tensor in model.state_dict().values()} == {device}
        ends.append([tensor.cpu() for tensor in copy.deepcopy(model).state_dict().values()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


def test_what_metal_lacks(metal):
    assert images().to(metal).device == torch.device("mps", 0)
    for make in (lambda: images().to(metal).double(), lambda: torch.zeros(2, dtype=torch.float64, device=metal)):
        with pytest.raises(TypeError, match="float64"):
            make()
    with pytest.raises(NotImplementedError, match="mode"):
        torch.mode(images().to(metal))
    assert not images().to(metal).is_cuda


def test_waits_are_counted(standin):
    tensor = torch.ones(3, device=standin)
    (tensor * 2).sum().add_(1)
    assert standin_device.waits == []
    assert (tensor.sum().item(), tensor.tolist(), bool(tensor.any())) == (3, [1, 1, 1], True)
    tensor[tensor > 0].cpu()
    assert len(standin_device.waits) == 5


def test_a_capture_is_done_again_on_the_same_memory(standin):
    given, total = torch.ones(3, device=standin), torch.zeros((), device=standin)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = given * 2 + torch.zeros(3, device=standin)
        total += found.sum()
    given.fill_(5)
    graph.replay()
    assert (found.tolist(), total.item()) == ([10, 10, 10], 36)
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        total.item()
