"""The whole optimizer step as one CUDA graph, for networks whose steps are mostly the launching of small kernels.

Follows "Whole-network capture" in PyTorch's notes on CUDA semantics (docs.pytorch.org/docs/stable/notes/cuda.html):
the step runs a few times on a side stream, is captured there, and is replayed for each batch, which is copied into the
tensors that it was captured with. All that it reads and writes must stay where it was: pixels, labels, learning rates,
weights, the optimizer's state, batch statistics and running sums. Random numbers advance as in ordinary steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.data.loading.loader import Batch
from imgclf.runtime import distributed
from imgclf.training.acceleration import launch_bound
from imgclf.training.events import Callback, CaptureFailed, notify
from imgclf.training.loss import batch_weight
from imgclf.training.state import TrainState
from imgclf.training.step import BufferSnapshot, accumulate_gradients, train_step

WARM_UPS = 3

Capture = Callable[[Callable[[], None], torch.device], Callable[[], None]]  # as `cuda_capture`


def should_capture(
    config: TrainConfig, model: nn.Module, device: torch.device, precision: torch.dtype, flops: float
) -> bool:
    """Whether to capture steps, `flops` being the floating-point operations of a batch's forward pass.

    Unless `compile` is `off`, on CUDA, in one process, without fp16 (its scaler asks the device) and clipping, and
    where a step computes for less time than its launches take: others gain little, and a graph keeps all it computes.
    A network with drop-out is captured only where `compile` is `on`: some versions of torch lose count of its random
    numbers where a capture fails.
    """
    drops = any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules())
    wanted = config.compile == "on" or (config.compile == "auto" and not drops)
    wanted = wanted and launch_bound(device, flops)
    return wanted and precision is not torch.float16 and not config.clip_norm and distributed.world_size() == 1


def cuda_capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Run `step` a few times, then record it without running it; gives what replays it. May raise RuntimeError."""
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    # Back to `here` in any case: the context of a capture that fails doesn't leave its stream.
    with torch.cuda.device(device), torch.cuda.stream(here):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(here)
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step()
        finally:
            here.wait_stream(side)
        # Only this thread's calls are watched: the loader's threads go on allocating and copying.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
    return graph.replay


class GraphedStep:
    """`train_step`, replayed for batches of the planned size; other sizes and blended ones take ordinary steps.

    Where capturing fails, callbacks get `CaptureFailed`, and all steps from this one on are ordinary.
    """

    def __init__(self, callbacks: Sequence[Callback], capture: Capture = cuda_capture) -> None:
        self._callbacks = callbacks
        self._capture = capture
        self._failed = False
        self._key: tuple[object, ...] = ()
        self._replay: Callable[[Batch], None] | None = None

    def __call__(self, state: TrainState, batch: Batch, preprocess: PreprocessConfig, snapshot: BufferSnapshot) -> int:
        """One optimizer step, as `train_step` takes it. Gives the number of the batch's images."""
        images = len(batch.targets)
        if images == state.config.batch_size <= state.micro_batch_size and batch.mix is None and not self._failed:
            # A retry replaces tensors, and weights thaw after the first epochs.
            key = (batch.pixels.shape, preprocess, state.retries, state.epoch < state.config.freeze_epochs)
            if key != self._key:
                self._key = key
                self._replay = None  # gives its memory back before the next one takes its own
                try:
                    self._replay = _recorded(self._capture, state, batch, preprocess, snapshot)
                except (RuntimeError, MemoryError) as error:
                    self._failed = True
                    notify(self._callbacks, CaptureFailed(f"{type(error).__name__}: {error}".partition("\n")[0]))
            if self._replay is not None:
                self._replay(batch)
                return images
        return train_step(state, batch, preprocess, snapshot)


def _recorded(
    capture: Capture, state: TrainState, batch: Batch, preprocess: PreprocessConfig, snapshot: BufferSnapshot
) -> Callable[[Batch], None]:
    """A function that takes a step on a batch of the same size; the state stays as it is."""
    pixels, targets = (tensor.to(state.device, copy=True) for tensor in (batch.pixels, batch.targets))
    static = batch._replace(pixels=pixels, targets=targets)
    lrs = [torch.zeros((), device=state.device) for _ in state.optimizer.param_groups]
    counts = state.metric_sums.new_tensor([len(targets), 1])

    def step() -> None:
        sums = accumulate_gradients(state, static, preprocess, batch_weight(targets, None, state.class_weights))
        with _capturable(state.optimizer, lrs):
            state.optimizer.step()  # neither scaled nor clipped: such steps are not captured
        state.metric_sums += sums * counts
        state.optimizer.zero_grad(set_to_none=True)  # backward, when recorded, makes its own in the graph's pool

    def replay(batch: Batch) -> None:
        pixels.copy_(batch.pixels, non_blocking=True)
        targets.copy_(batch.targets, non_blocking=True)
        for lr, group in zip(lrs, state.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
        run()

    with _undone(state, snapshot):
        run = capture(step, state.device)
    return replay


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer, lrs: Sequence[torch.Tensor]) -> Iterator[None]:
    """The optimizer reads its learning rates from tensors; outside, and where they are saved, they stay numbers.

    It is marked as capturable during the capture only: in the runs before it, Adam would warn.
    """
    groups = optimizer.param_groups
    marked = {"capturable": torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()}
    optimizer.param_groups = [{**group, **marked, "lr": lr} for group, lr in zip(groups, lrs, strict=True)]
    try:
        yield
    finally:
        optimizer.param_groups = groups


@contextmanager
def _undone(state: TrainState, snapshot: BufferSnapshot) -> Iterator[None]:
    """Take back, in place, what steps do to the weights, the optimizer, the sums, buffers and random numbers."""

    def changed() -> list[torch.Tensor]:
        known = [tensor for kept in state.optimizer.state.values() for tensor in kept.values()]
        return [*state.model.parameters(), *known, state.metric_sums]

    snapshot.take()
    before = {tensor: tensor.detach().clone() for tensor in changed()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in changed():  # what an optimizer has made begins as zeros
                tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()
        snapshot.restore()
