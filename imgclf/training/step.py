"""One optimizer step, in as many parts as the memory needs, and the largest batch whose step fits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.core.errors import OutOfMemory
from imgclf.data.loading.loader import Batch, Mix
from imgclf.runtime import distributed
from imgclf.runtime.compute import autocast, memory_format_of, ran_out_of_memory, release_memory
from imgclf.runtime.device import free_memory
from imgclf.runtime.random import drawing, random_state, seeded, set_random_state
from imgclf.training.optim import make_optimizer
from imgclf.training.state import TrainState
from imgclf.transforms.preprocess import to_input

MAX_PROBED = 256
MEMORY_SHARE = 0.5  # of what the machine has free: on a CPU the system ends a program that takes too much


class BufferSnapshot:
    """Takes a network's buffers (batch statistics) and the random numbers back to where they were before a pass."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._device = device
        self.note()

    def note(self) -> None:
        """Remember this moment."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        self._random = random_state(self._device)

    def back(self) -> None:
        """Return to the moment remembered."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        set_random_state(self._random, self._device)


def learn(state: TrainState, batch: Batch, recipe: PreprocessConfig, rewind: BufferSnapshot) -> int:
    """One optimizer step on a planned batch; adds its loss and hits to `state.sums`. Gives the number of its images.

    No step is taken where none of them could be read, or one where batch norms need two. Several processes each add
    the gradient of their share.

    Where the memory does not suffice, the batch is cut into parts of half as many images, from the same random numbers
    on, and their gradients are summed: the step is that of the whole batch, save for batch norm, which sees the parts.
    `state.micro_batch_size` remembers the size. Raises `OutOfMemory` where the smallest part does not fit.
    """
    batch = _on_device(batch, state.device)
    images, weight = _whole(state, batch)
    if images <= state.pairs:
        return 0
    rewind.note()
    while True:
        try:
            sums = accumulate(state, batch, recipe, weight)
            break
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            alone = len(batch.targets) == 0 or _largest_part(state, len(batch.targets)) <= 1 + state.pairs
            if _norms_meet(state):
                raise OutOfMemory(f"{state.device} has too little memory: use a smaller --batch-size") from error
            if alone:
                raise OutOfMemory(_too_little(state.device)) from error
        state.micro_batch_size = max(1 + state.pairs, (min(state.micro_batch_size, len(batch.targets)) + 1) // 2)
        state.optimizer.zero_grad(set_to_none=True)
        release_memory(state.device)
        rewind.back()
    try:
        distributed.sum_gradients(state.model.parameters())
        update_weights(state)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemory(_too_little(state.device)) from error
    sums[0].mul_(images)
    state.sums += sums
    return images


def _whole(state: TrainState, batch: Batch) -> tuple[int, torch.Tensor | int]:
    """The images of a batch over all processes, and what its summed loss is divided by."""
    weight = batch_weight(batch.targets, batch.mix, state.class_weights)
    if distributed.shard()[1] == 1:
        return len(batch.targets), weight
    both = torch.tensor([float(len(batch.targets)), float(weight)], device=state.device)
    images, weight = distributed.sum_over_all(both)
    return int(images), weight


def _norms_meet(state: TrainState) -> bool:
    """Whether a forward pass waits for the other processes, so that one of them can't repeat it on its own."""
    return state.pairs and state.device.type == "cuda" and distributed.shard()[1] > 1


def _on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its labels on the device; the pixels follow part by part."""
    mix = batch.mix and Mix(*(tensor.to(device, non_blocking=True) for tensor in batch.mix))
    return batch._replace(targets=batch.targets.to(device, non_blocking=True), mix=mix)


def _too_little(device: torch.device) -> str:
    return f"{device} has too little memory to train even on single images: use a smaller --size or --arch"


def accumulate(state: TrainState, batch: Batch, recipe: PreprocessConfig, whole: torch.Tensor | int) -> torch.Tensor:
    """Leave the gradient of a batch in the parameters; its part of the mean loss, and its hits, float32 (2,)."""
    state.optimizer.zero_grad(set_to_none=True)
    weight, smoothing = state.class_weights, state.config.label_smoothing
    losses, hits = [], []
    for part in split_batch(batch, state.micro_batch_size, state.pairs):
        with autocast(state.device, state.precision):
            logits = state.model(to_input(part.pixels, recipe, state.device))
        part_loss = summed_loss(logits.float(), part.targets, part.mix, weight, smoothing) / whole
        state.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
        losses.append(part_loss.detach())
        hits.append((logits.argmax(1) == part.targets).sum())
    if not losses:  # this process has no share of the batch
        return torch.zeros(2, device=state.device)
    return torch.stack([reduce(torch.add, losses), reduce(torch.add, hits)])


def update_weights(state: TrainState) -> None:
    """One step of the optimizer by the gradients that are there, clipped where the config says so."""
    if state.config.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), state.config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()


def summed_loss(
    logits: torch.Tensor, targets: torch.Tensor, mix: Mix | None, weight: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """The cross-entropy summed over images; of blended images each of the two classes counts by its share."""
    if mix is None:
        return F.cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction="sum")
    own, other = (
        F.cross_entropy(logits, classes, weight, label_smoothing=smoothing, reduction="none")
        for classes in (targets, mix.targets)
    )
    return (mix.share * own + (1 - mix.share) * other).sum()


def batch_weight(targets: torch.Tensor, mix: Mix | None, weight: torch.Tensor | None) -> torch.Tensor | int:
    """What `summed_loss` is divided by to give the mean over a batch: its images, by the weights of their classes."""
    if weight is None:
        return len(targets)
    if mix is None:
        return weight[targets].sum()
    return (mix.share * weight[targets] + (1 - mix.share) * weight[mix.targets]).sum()


def split_batch(batch: Batch, most: int, pairs: bool = False) -> Iterator[Batch]:
    """A batch in parts of at most `most` images; with `pairs` a last image alone joins the part before it."""
    n = len(batch.targets)
    if n <= most:
        if n:
            yield batch
        return
    for begin, end in _bounds(n, most, pairs):
        yield batch.part(begin, end)


def _bounds(n: int, most: int, pairs: bool) -> list[tuple[int, int]]:
    begins = list(range(0, n, most))
    if pairs and n - begins[-1] == 1:
        begins.pop()
    return list(zip(begins, [*begins[1:], n], strict=True))


def _largest_part(state: TrainState, n: int) -> int:
    return max(end - begin for begin, end in _bounds(n, min(state.micro_batch_size, n), state.pairs))


def needs_pairs(model: nn.Module, config: TrainConfig) -> bool:
    """Whether batch norms compute their own statistics, which takes two images at least."""
    return not config.freeze_norm and has_batch_norms(model)


def has_batch_norms(model: nn.Module) -> bool:
    """Whether a network has batch norms of any kind."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def probe_batch_size(
    model: nn.Module, shape: Sequence[int], images: int, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> int:
    """The largest power of two, of at most 256 and a quarter of `images`, for which one real step fits.

    The step is taken with a copy of `model`; `shape` is that of one input (channels, height, width), `dtype` that of
    autocast. On a CPU the memory of a step is first computed from what it keeps for one image, since the system ends
    a program that takes too much instead of telling it. Leaves the random numbers as they are.
    """
    smallest = 2 if needs_pairs(model, config) else 1
    size = _power_of_two(min(MAX_PROBED, max(smallest, images // 4)))
    network = copy.deepcopy(model).to(device, memory_format=memory_format_of(model)).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, config, 1e-6)
    with drawing(seeded(config.seed, device), device):
        if device.type == "cpu":
            size = min(size, max(smallest, _power_of_two(_affordable(network, shape, dtype))))
        while True:
            try:
                _trial(network, optimizer, torch.zeros(size, *shape, device=device), dtype)
                return size
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                if size <= smallest:
                    raise OutOfMemory(_too_little(device)) from error
            optimizer.zero_grad(set_to_none=True)
            release_memory(device)
            size //= 2


def _trial(network: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, dtype: torch.dtype) -> None:
    with autocast(images.device, dtype):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    logits.float().logsumexp(1).mean().backward()
    optimizer.step()
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def _affordable(network: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> int:
    """How many images' intermediate results fit in the share of the free memory that training may take."""
    try:
        weights, needed = step_memory(network, shape, dtype)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return 1
    return max(1, int((MEMORY_SHARE * free_memory() - weights) / needed))


def step_memory(network: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
    """The bytes that a step takes: for the weights, their gradients and what an optimizer keeps of them; and for each
    image of a batch. `shape` is that of one input on the network's device (channels, height, width)."""
    kept, device = 0, next(network.parameters()).device

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor), autocast(device, dtype):
        network(torch.zeros(2, *shape, device=device))
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 4 * weights, max(1, kept - weights)  # two images were weighed, and backward keeps about as much again


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`, which is 1 or more."""
    return int(1 << (number.bit_length() - 1))
