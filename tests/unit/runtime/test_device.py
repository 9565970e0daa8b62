"""Which device and which precision."""

import pytest
import torch
from torch import nn

from imgclf.core.errors import ConfigError
from imgclf.runtime import device as runtime_device
from imgclf.runtime.device import pick_device, pick_precision, precision_name
from imgclf.training.acceleration import compiled, should_compile, tuned

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
    monkeypatch.setattr(runtime_device, "_has_bf16", lambda device: has)
    assert pick_precision("auto", CPU) is dtype
    assert pick_precision("fp32", CPU) is torch.float32
    assert pick_precision("bf16", CPU) is torch.bfloat16


def test_half_precision_needs_cuda():
    assert pick_precision("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device, this is cpu"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_has_the_name_that_a_config_gives_it(name):
    assert precision_name(pick_precision(name, CPU)) == name
    assert precision_name(torch.float16) == "fp16"


@pytest.mark.parametrize(
    ("kind", "flops", "compiles"), [("cuda", 1e18, True), ("cuda", 1e15, False), ("cpu", 1e20, False)]
)
def test_compiling_pays_on_cuda_and_for_long_runs(kind, flops, compiles):
    device = torch.device(kind)
    assert should_compile("auto", device, flops) is compiles
    assert should_compile("on", device, flops) is True
    assert should_compile("off", device, flops) is False


@pytest.mark.slow
def test_a_network_is_compiled_in_place_and_only_for_a_while():
    model = nn.Linear(2, 2)
    names = list(model.state_dict())
    with compiled(model):
        assert model._compiled_call_impl is not None
        assert list(model.state_dict()) == names
    assert model._compiled_call_impl is None


def test_tuning_a_cpu_changes_nothing():
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    with tuned(CPU):
        assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == before


def test_tuning_cuda_ends_with_the_training():
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    with tuned(torch.device("cuda")):
        assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == (True, "high")
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == before


def test_two_trainings_at_once_take_their_tuning_back_in_any_order():
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    first, second = tuned(torch.device("cuda")), tuned(torch.device("cuda"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == (True, "high")
    second.__exit__(None, None, None)
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == before
