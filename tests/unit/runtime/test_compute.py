"""How a network computes: its precision, its threads, its memory, and a lack of it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from imgclf.core.config import ModelConfig
from imgclf.models.build import build_model
from imgclf.runtime.compute import (
    all_finite,
    autocast,
    enough_threads,
    in_evaluation,
    own_copy,
    ran_out_of_memory,
    release_memory,
    step_flops,
)
from imgclf.runtime.random import drawing, seeded

CPU = torch.device("cpu")


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


@pytest.fixture
def two_threads():
    """torch computes with two threads, here and in threads that begin."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_elsewhere():
    with ThreadPoolExecutor(1) as other:
        return other.submit(torch.get_num_threads).result()


def test_small_steps_run_on_one_core_and_large_ones_on_all(two_threads):
    lenet = build_model(ModelConfig("lenet", 10, 1, (28, 28)))
    with enough_threads(step_flops(lenet, torch.zeros(1, 1, 28, 28), 32)):
        assert (torch.get_num_threads(), threads_elsewhere()) == (1, 2)
    assert torch.get_num_threads() == 2
    with enough_threads(1e12):
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyboardInterrupt), enough_threads(1):
        raise KeyboardInterrupt
    assert (torch.get_num_threads(), threads_elsewhere()) == (2, 2)


def test_drawing_goes_on_from_a_seed_and_leaves_the_generators_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    before, state = torch.get_rng_state(), seeded(3, CPU)
    found = []
    for _ in range(2):
        with drawing(state, CPU):
            found.append(torch.rand(2))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat(found), expected)


def test_threads_that_draw_take_turns():
    def draw(seed):
        state, numbers = seeded(seed, CPU), []
        for _ in range(50):
            with drawing(state, CPU):
                numbers += [torch.rand(2), torch.rand(2)]
        return torch.cat(numbers)

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(draw, range(4)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_counting_operations_hooks_no_module_of_others():
    class Looking(nn.Linear):
        def forward(self, images):
            hooks.append(len(_global_forward_pre_hooks) + len(_global_forward_hooks))
            return super().forward(images)

    hooks = []
    with torch.inference_mode():
        assert step_flops(Looking(3, 5), torch.zeros(1, 3), 7) == 2 * 3 * 5 * 7
    assert hooks == [0]


class Tangled(nn.Module):
    """Reaches its layers by ways that torch knows nothing of."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9)
        self.layers = [self.first, {"norm": (self.norm, self.drop)}]
        self.forward = self.through

    def through(self, images):
        self.asked = self
        return self.layers[1]["norm"][1](self.layers[1]["norm"][0](self.layers[0](images)))


def test_a_copy_of_ones_own_shares_the_weights_and_nothing_else():
    model = Tangled().train()
    model.drop.eval()
    images, before = torch.rand(5, 3), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    copied, seen = own_copy(model), []
    copied.first.register_forward_hook(lambda *call: seen.append(call))
    assert torch.equal(copied(images), copied(images)), "dropout and batch statistics are off"
    assert len(seen) == 2
    assert not model.first._forward_hooks
    assert copied.asked is copied
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(one is other for one, other in zip(model.parameters(), copied.parameters(), strict=True))
    with torch.no_grad():
        model.first.weight.zero_()
    assert (copied.first.weight == 0).all()
    assert in_evaluation(copied) is copied
    assert not in_evaluation(model).training


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error):
    assert ran_out_of_memory(error)
    release_memory(CPU)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("9"), OSError()]
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not ran_out_of_memory(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_value_that_is_not_finite_is_found_and_large_ones_are_not_taken_for_it(dtype):
    cpu, large = torch.device("cpu"), torch.finfo(dtype).max
    sound = [torch.full((3, 4), large, dtype=dtype), torch.tensor([large, -large], dtype=dtype), torch.arange(3)]
    sound += [torch.zeros(0, dtype=dtype), torch.tensor(True)]
    assert all_finite(sound, cpu)
    assert all_finite([], cpu)
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not all_finite([*sound, torch.tensor([1, value, -value], dtype=dtype)], cpu)
