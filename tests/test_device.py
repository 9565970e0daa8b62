"""Which device and which precision."""

import pytest
import torch
from torch import nn

from imgclf.errors import ConfigError
from imgclf.models.build import build_model
from imgclf.specs import ModelSpec
from imgclf.training import device as module
from imgclf.training.device import autocast, enough_threads, pick_device, pick_precision, step_flops

CPU = torch.device("cpu")


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_the_best_there_is(without_gpu, monkeypatch):
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(without_gpu, name):
    with pytest.raises(ConfigError, match=f"device is '{name}', and torch finds no .* use --device cpu or auto"):
        pick_device(name)


def test_a_device_number_too_high(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="there are 2 CUDA devices: cuda:0 to cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_computes_in_bf16_where_the_device_does(monkeypatch, has, dtype):
    monkeypatch.setattr(module, "_has_bf16", lambda device: has)
    assert pick_precision("auto", CPU) is dtype
    assert pick_precision("fp32", CPU) is torch.float32
    assert pick_precision("bf16", CPU) is torch.bfloat16


def test_half_precision_needs_cuda():
    assert pick_precision("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device, this is cpu"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_pass_runs_in_the_precision(dtype):
    with autocast(CPU, dtype):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype is dtype


def test_the_operations_of_a_step_are_counted():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    assert step_flops(linear, torch.zeros(1, 3, 2, 2), 7) == 2 * 12 * 5 * 7


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    step_flops(model, torch.ones(1, 1, 4, 4), 8)
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_small_steps_run_on_one_core_and_large_ones_on_all():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        lenet = build_model(ModelSpec("lenet", 10, 1, (28, 28)))
        with enough_threads(step_flops(lenet, torch.zeros(1, 1, 28, 28), 32)):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with enough_threads(1e12):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt), enough_threads(1):
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
