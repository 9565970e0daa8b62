"""The captured step does what ordinary steps do.

The stand-in for a CUDA graph works as one does: it records the operations on tensors and repeats these on the same
memory. Python does not run again, numbers stay what they were, and what makes the host wait can't be recorded.
"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.data.loading.loader import Batch, Mix
from imgclf.training import cuda_graph as module
from imgclf.training.cuda_graph import GraphedStep, should_capture
from imgclf.training.events import CaptureFailed
from imgclf.training.optim import set_lr
from imgclf.training.step import BufferSnapshot, train_step
from support.training import state_of_training

CPU = torch.device("cpu")
RECIPE = PreprocessConfig(size=(6, 6), channels=1)
N = 8
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])
OPTIMIZERS = (
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": False},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    {"optimizer": "adam"},
    {"optimizer": "adamw"},
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Two threads wait for each other in operations as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Operations(TorchDispatchMode):
    """Keeps what is called on tensors, with the very tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


class Recorders:
    """Runs a step before it is recorded, as CUDA's warm-up does; `fail_after` as many runs it raises `error`.

    `counts` has the replays of each recording.
    """

    def __init__(self, fail_after=None, error=RuntimeError):
        self.fail_after, self.error = fail_after, error
        self.counts = []

    def __call__(self, step, device):
        self.counts.append(0)
        for _ in range(3 if self.fail_after is None else self.fail_after):
            step()
        if self.fail_after is not None:
            raise self.error("out of luck\nand more")
        with Operations() as operations:
            step()
        return partial(self.replay, len(self.counts) - 1, operations.calls)

    @torch.no_grad()
    def replay(self, index, calls):
        self.counts[index] += 1
        for function, args, kwargs, result in calls:
            for new, old in zip(tree_leaves(function(*args, **kwargs)), tree_leaves(result), strict=True):
                if isinstance(old, torch.Tensor) and new is not old:
                    old.copy_(new)


def net(dropout=0.0, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        middle = nn.BatchNorm2d(4) if norm else nn.Tanh()
        # A bias before a norm has a gradient of rounding errors alone, and Adam takes whole steps of these.
        first = nn.Conv2d(1, 4, 3, bias=not norm)
        return nn.Sequential(first, middle, nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 3))


def batch_of(n=N, seed=0, mixed=False):
    generator = torch.Generator().manual_seed(100 * seed + n)
    pixels = torch.randint(0, 256, (n, 6, 6, 1), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 3, (n,), generator=generator)
    mix = Mix(targets.roll(1), torch.rand(n, generator=generator)) if mixed else None
    return Batch(pixels, targets, torch.arange(n), mix)


state_of = partial(state_of_training, batch_size=N)


def run(state, step, batches, lrs=None):
    """Steps as the loop takes them; the images that were learnt from."""
    torch.manual_seed(1)
    snapshot = BufferSnapshot(state.model, CPU)
    images = []
    for batch, lr in zip(batches, lrs or [0.1 / (i + 1) for i in range(len(batches))], strict=True):
        set_lr(state.optimizer, lr)
        images.append(step(state, batch, RECIPE, snapshot))
    return images


def everything(state):
    """Weights, batch statistics, what the optimizer holds, and the sums."""
    tensors = {f"model {name}": tensor for name, tensor in state.model.state_dict().items()}
    for index, kept in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{name} {index}": tensor for name, tensor in kept.items()}
    return {name: tensor.clone() for name, tensor in (tensors | {"sums": state.metric_sums}).items()}


def assert_same(state, other, **tolerance):
    mine, others = everything(state), everything(other)
    assert mine.keys() == others.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], others[name], **(tolerance or {"atol": 1e-6, "rtol": 1e-5}), msg=name)


def both(batches, lrs=None, model=None, recorders=None, **options):
    """The state after ordinary steps, that after captured ones, and the recorders."""
    model = model or net()
    usual, graphed = state_of(copy.deepcopy(model), **options), state_of(copy.deepcopy(model), **options)
    recorders = Recorders() if recorders is None else recorders
    counts = run(usual, train_step, batches, lrs)
    assert run(graphed, GraphedStep((), recorders), batches, lrs) == counts
    return usual, graphed, recorders


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_replayed_steps_are_ordinary_steps(options, class_weights):
    usual, graphed, recorders = both([batch_of(seed=i) for i in range(6)], class_weights=class_weights, **options)
    assert_same(graphed, usual)
    assert recorders.counts == [6]
    assert graphed.metric_sums[0] > 0


@pytest.mark.parametrize("model", [net(dropout=0.5), net(norm=True), net(dropout=0.3, norm=True)])
@pytest.mark.parametrize("options", OPTIMIZERS[2:])
def test_warming_up_leaves_no_trace_in_statistics_and_random_numbers(model, options):
    usual, graphed, _ = both([batch_of(seed=i) for i in range(4)], model=model, **options)
    assert_same(graphed, usual)
    assert graphed.metric_sums[1] == usual.metric_sums[1]


@given(st.lists(st.floats(1e-4, 0.3), min_size=2, max_size=5))
@settings(max_examples=10)
def test_each_step_has_its_learning_rate(lrs):
    usual, graphed, _ = both([batch_of(seed=i) for i in range(len(lrs))], lrs, momentum=0.9)
    assert_same(graphed, usual, atol=1e-5, rtol=1e-4)
    assert [group["lr"] for group in graphed.optimizer.param_groups] == [lrs[-1]] * 2


def test_groups_may_differ_in_their_learning_rates():
    usual, graphed = state_of(net()), state_of(net())
    graphed_step = GraphedStep((), Recorders())
    for state, step in ((usual, train_step), (graphed, graphed_step)):
        snapshot = BufferSnapshot(state.model, CPU)
        for seed in range(3):
            for group, lr in zip(state.optimizer.param_groups, (0.1, 0.3 / (seed + 1)), strict=True):
                group["lr"] = lr
            step(state, batch_of(seed=seed), RECIPE, snapshot)
    assert_same(graphed, usual)


@given(st.lists(st.sampled_from([N, N, 5, 1, 0]), min_size=1, max_size=8), st.sampled_from(OPTIMIZERS))
@settings(max_examples=15)
def test_batches_of_other_sizes_take_the_ordinary_step(sizes, options):
    usual, graphed, recorders = both([batch_of(n, seed=i) for i, n in enumerate(sizes)], **options)
    assert_same(graphed, usual, atol=1e-5, rtol=1e-4)
    assert recorders.counts == ([sizes.count(N)] if N in sizes else [])


def test_blended_batches_take_the_ordinary_step():
    batches = [batch_of(seed=0), batch_of(seed=1, mixed=True), batch_of(seed=2)]
    usual, graphed, recorders = both(batches, class_weights=WEIGHTS, optimizer="adamw")
    assert_same(graphed, usual)
    assert recorders.counts == [2]


def test_a_batch_that_was_cut_for_memory_takes_the_ordinary_step():
    state, recorders = state_of(net()), Recorders()
    state.micro_batch_size = N // 2
    assert run(state, GraphedStep((), recorders), [batch_of()]) == [N]
    assert recorders.counts == []


def test_the_first_step_is_undone_before_it_is_replayed():
    """Were it not, the first replay would be the fourth step; and nothing is kept that is not in the state."""
    usual, graphed, _ = both([batch_of()], optimizer="adamw")
    steps = [float(kept["step"]) for kept in graphed.optimizer.state.values()]
    assert steps == [1.0] * len(list(graphed.model.parameters()))
    assert_same(graphed, usual)


def test_a_capture_may_come_later():
    batches = [batch_of(5), batch_of(), batch_of(seed=1)]
    usual, graphed, recorders = both(batches, model=net(dropout=0.5, norm=True), momentum=0.9)
    assert_same(graphed, usual)
    assert recorders.counts == [2]


def test_no_gradient_is_left_for_the_recorded_backward_to_write_into():
    state, grads = state_of(net()), []

    def capture(step, device):
        step()
        grads.extend(parameter.grad for parameter in state.model.parameters())
        return step

    run(state, train_step, [batch_of(5)])
    run(state, GraphedStep((), capture), [batch_of()])
    assert grads == [None] * 4


@pytest.mark.parametrize("options", OPTIMIZERS[3:])
def test_an_optimizer_is_told_of_a_capture_in_it_and_only_there(monkeypatch, options):
    """Adam warns where it is told of one and there is none, and raises where there is one that it is not told of."""
    capturing, told = [False], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    state = state_of(net(), **options)
    state.optimizer.register_step_pre_hook(
        lambda optimizer, *_: told.append([group["capturable"] for group in optimizer.param_groups])
    )
    # What the flag changes needs CUDA, so the step itself is left out.
    monkeypatch.setattr(type(state.optimizer), "step", torch.optim.Optimizer.profile_hook_step(lambda self: None))

    def capture(step, device):
        step()
        capturing[0] = True
        step()
        capturing[0] = False
        return step

    run(state, GraphedStep((), capture), [batch_of()])
    assert told == [[False] * 2, [True] * 2, [False] * 2]


def test_what_is_saved_holds_numbers():
    for options in OPTIMIZERS:
        usual, graphed, _ = both([batch_of()], **options)
        assert graphed.optimizer.state_dict()["param_groups"] == usual.optimizer.state_dict()["param_groups"]


def test_the_batch_is_copied():
    state, step = state_of(net()), GraphedStep((), Recorders())
    batches = [batch_of(seed=i) for i in range(2)]
    before = [(batch.pixels.clone(), batch.targets.clone()) for batch in batches]
    run(state, step, batches)
    for batch, (pixels, targets) in zip(batches, before, strict=True):
        assert torch.equal(batch.pixels, pixels)
        assert torch.equal(batch.targets, targets)


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_retry_is_recorded_anew(options):
    """It loads an optimizer's state, which then lies in other tensors."""
    usual, graphed, recorders = state_of(net(), **options), state_of(net(), **options), Recorders()
    for state, step in ((usual, train_step), (graphed, GraphedStep((), recorders))):
        run(state, step, [batch_of(seed=0), batch_of(seed=1)])
        weights, known = copy.deepcopy(state.model.state_dict()), copy.deepcopy(state.optimizer.state_dict())
        run(state, step, [batch_of(seed=2)])
        state.model.load_state_dict(weights)
        state.optimizer.load_state_dict(known)
        state.retries += 1
        run(state, step, [batch_of(seed=3), batch_of(seed=4)])
    assert_same(graphed, usual)
    assert recorders.counts == [3, 2]


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_thawed_weights_are_recorded_anew(options):
    usual = state_of(net(), freeze_epochs=1, **options)
    graphed, recorders = state_of(net(), freeze_epochs=1, **options), Recorders()
    for state, step in ((usual, train_step), (graphed, GraphedStep((), recorders))):
        for state.epoch in (0, 1):
            state.model[0].requires_grad_(state.epoch == 1)
            run(state, step, [batch_of(seed=10 * state.epoch + i) for i in range(2)])
    assert_same(graphed, usual)
    assert recorders.counts == [2, 2]
    assert not torch.equal(graphed.model[0].weight, net()[0].weight)


@pytest.mark.parametrize(
    ("fail_after", "error"), [(0, MemoryError), (1, torch.OutOfMemoryError), (3, torch.AcceleratorError)]
)
@pytest.mark.parametrize("options", OPTIMIZERS[2:])
def test_a_failed_capture_ends_capturing_and_changes_nothing(options, error, fail_after):
    told = []
    model, batches = net(dropout=0.5, norm=True), [batch_of(seed=i) for i in range(4)]
    usual, graphed = state_of(copy.deepcopy(model), **options), state_of(model, **options)
    recorders = Recorders(fail_after=fail_after, error=error)
    step = GraphedStep([told.append], recorders)
    for _ in range(2):
        assert run(graphed, step, batches) == run(usual, train_step, batches)
        graphed.retries += 1
    assert_same(graphed, usual, atol=0, rtol=0)
    assert told == [CaptureFailed(f"{error.__name__}: out of luck")]
    assert recorders.counts == [0]


class Asking(nn.Sequential):
    """A network that looks at its numbers."""

    def forward(self, images):
        return super().forward(images) * (1.0 if images.max().item() > 0 else 0.0)


def test_a_step_that_waits_for_the_device_is_not_captured():
    told = []
    usual, graphed = (state_of(Asking(net()), optimizer="adamw") for _ in range(2))
    batches = [batch_of(seed=i) for i in range(3)]
    run(usual, train_step, batches)
    run(graphed, GraphedStep([told.append], Recorders()), batches)
    assert_same(graphed, usual, atol=0, rtol=0)
    assert told == [CaptureFailed("RuntimeError: operation not permitted when stream is capturing")]


def test_an_interrupt_during_the_capture_leaves_the_state_whole():
    state, recorders = state_of(net(), optimizer="adamw"), Recorders(fail_after=2, error=KeyboardInterrupt)
    run(state, train_step, [batch_of()])
    before = everything(state)
    with pytest.raises(KeyboardInterrupt):
        run(state, GraphedStep((), recorders), [batch_of()])
    for name, tensor in everything(state).items():
        assert torch.equal(tensor, before[name]), name
    assert all(isinstance(group["lr"], float) for group in state.optimizer.param_groups)


def test_an_error_of_the_network_is_raised_by_the_ordinary_step():
    state = state_of(nn.Sequential(nn.Flatten(), nn.Linear(35, 3)))
    told = []
    with pytest.raises(RuntimeError, match="shapes"):
        run(state, GraphedStep([told.append], Recorders()), [batch_of()])
    assert [type(event) for event in told] == [CaptureFailed]


ON = TrainConfig(compile="on", epochs=1, lr=0.1, batch_size=N)
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("change", "device", "precision", "flops", "expected"),
    [
        ({}, CUDA, torch.bfloat16, 1e9, True),
        ({}, CUDA, torch.float32, 1e9, True),
        ({}, CPU, torch.bfloat16, 1e9, False),
        ({}, CUDA, torch.float16, 1e9, False),
        ({}, CUDA, torch.bfloat16, 1e11, False),
        ({"clip_norm": 1.0}, CUDA, torch.bfloat16, 1e9, False),
        ({"compile": "auto"}, CUDA, torch.bfloat16, 1e9, True),
        ({"compile": "off"}, CUDA, torch.bfloat16, 1e9, False),
    ],
)
def test_which_steps_are_captured(change, device, precision, flops, expected):
    assert should_capture(replace(ON, **change), net(), device, precision, flops) is expected


def test_one_of_several_processes_does_not_capture(monkeypatch):
    monkeypatch.setattr(module.distributed, "world_size", lambda: 2)
    assert not should_capture(ON, net(), CUDA, torch.bfloat16, 1e9)


@pytest.mark.parametrize(("choice", "expected"), [("on", True), ("auto", False), ("off", False)])
def test_a_network_with_drop_out_is_captured_when_asked(choice, expected):
    assert should_capture(replace(ON, compile=choice), net(dropout=0.5), CUDA, torch.float32, 1e9) is expected


@pytest.mark.cuda
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_cuda_graph_takes_ordinary_steps(options):
    states = []
    for step in (train_step, GraphedStep([lambda event: pytest.fail(str(event))])):
        model = net(norm=True).to(CUDA)
        state = replace(state_of(model, **options), device=CUDA, metric_sums=torch.zeros(2, device=CUDA))
        state.scaler = torch.amp.GradScaler("cuda", enabled=False)
        snapshot = BufferSnapshot(model, CUDA)
        for seed, n in enumerate((N, N, 5, N)):
            set_lr(state.optimizer, 0.1 / (seed + 1))
            assert step(state, batch_of(n, seed), RECIPE, snapshot) == n
        states.append(state)
    assert_same(*states, atol=1e-4, rtol=1e-3)
