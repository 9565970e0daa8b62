"""One optimizer step, in as many parts as the memory needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import pairwise

import torch
from torch import nn

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import OutOfMemory
from imgclf.data.loading.loader import Batch, Mix
from imgclf.runtime import distributed
from imgclf.runtime.compute import autocast, ran_out_of_memory, release_memory
from imgclf.runtime.random import random_state, set_random_state
from imgclf.training.batch_size import too_little
from imgclf.training.loss import batch_weight, summed_loss
from imgclf.training.state import TrainState
from imgclf.transforms.preprocess import to_input


class BufferSnapshot:
    """Takes a network's buffers (batch statistics) and the random numbers back to where they were before a pass."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._device = device
        self.take()

    def take(self) -> None:
        """Remember this moment."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        self._random = random_state(self._device)

    def restore(self) -> None:
        """Return to the moment remembered."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        set_random_state(self._random, self._device)


def train_step(state: TrainState, batch: Batch, preprocess: PreprocessConfig, snapshot: BufferSnapshot) -> int:
    """Take one optimizer step on a planned batch; gives the number of its images, over all processes.

    The loss and the hits are added to `state.metric_sums`. No step is taken where no image could be read, or a single
    one where batch norms need two. Several processes each add the gradient of their share.

    Where the memory does not suffice, the batch is cut into parts of half as many images, from the same random numbers
    on, and their gradients are summed: the step is that of the whole batch, save for batch norm, which sees the parts.
    `state.micro_batch_size` remembers the size.

    Raises:
        OutOfMemory: where the smallest part does not fit.
    """
    mix = batch.mix and Mix(*(tensor.to(state.device, non_blocking=True) for tensor in batch.mix))
    batch = batch._replace(targets=batch.targets.to(state.device, non_blocking=True), mix=mix)  # the pixels follow
    images, weight = _of_all_processes(state, batch)
    if images <= state.needs_two_images:
        return 0
    snapshot.take()
    while True:
        try:
            metric_sums = accumulate_gradients(state, batch, preprocess, weight)
            break
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            _halve_parts(state, len(batch.targets), error)
        state.optimizer.zero_grad(set_to_none=True)
        release_memory(state.device)
        snapshot.restore()
    try:
        distributed.sum_gradients(state.model.parameters())
        if state.config.clip_norm:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), state.config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemory(too_little(state.device)) from error
    metric_sums[0].mul_(images)
    state.metric_sums += metric_sums
    return images


def _of_all_processes(state: TrainState, batch: Batch) -> tuple[int, torch.Tensor | int]:
    """The images of a batch over all processes, and the divisor of its summed loss."""
    weight = batch_weight(batch.targets, batch.mix, state.class_weights)
    if distributed.world_size() == 1:
        return len(batch.targets), weight
    both = torch.tensor([float(len(batch.targets)), float(weight)], device=state.device)
    images, weight = distributed.sum_over_all(both)
    return int(images), weight


def accumulate_gradients(
    state: TrainState, batch: Batch, preprocess: PreprocessConfig, weight: torch.Tensor | int
) -> torch.Tensor:
    """Leave the gradient of a batch in the parameters; gives its part of the mean loss, and its hits, float32 (2,).

    `weight` is the divisor of the summed loss.
    """
    state.optimizer.zero_grad(set_to_none=True)
    class_weights, smoothing = state.class_weights, state.config.label_smoothing
    losses, hits = [], []
    for part in split_batch(batch, state.micro_batch_size, state.needs_two_images):
        with autocast(state.device, state.precision):
            logits = state.model(to_input(part.pixels, preprocess, state.device))
        part_loss = summed_loss(logits.float(), part.targets, part.mix, class_weights, smoothing) / weight
        state.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
        losses.append(part_loss.detach())
        hits.append((logits.argmax(1) == part.targets).sum())
    if not losses:  # this process has no share of the batch
        return torch.zeros(2, device=state.device)
    return torch.stack([reduce(torch.add, losses), reduce(torch.add, hits)])


def _halve_parts(state: TrainState, images: int, error: Exception) -> None:
    """Let parts of a batch be half as large from now on; `OutOfMemory` where they can't be."""
    most = min(state.micro_batch_size, images)
    if state.needs_two_images and state.device.type == "cuda" and distributed.world_size() > 1:
        # Here a forward pass waits for the other processes, so that one of them can't repeat it on its own.
        raise OutOfMemory(f"{state.device} has too little memory: use a smaller --batch-size") from error
    if most <= 1 + state.needs_two_images:
        raise OutOfMemory(too_little(state.device)) from error
    state.micro_batch_size = (most + 1) // 2


def split_batch(batch: Batch, most: int, needs_two_images: bool = False) -> Iterator[Batch]:
    """A batch in parts of at most `most` images; where a part needs two, a last one alone joins the part before it."""
    n = len(batch.targets)
    begins = list(range(0, n, most))
    if needs_two_images and len(begins) > 1 and n - begins[-1] == 1:
        begins.pop()
    return (batch.part(begin, end) for begin, end in pairwise([*begins, n]))
