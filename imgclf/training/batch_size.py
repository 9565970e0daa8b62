"""How many images a step takes: what batch norms need, what fits into the memory; and how many steps make an epoch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imgclf.core.config import TrainConfig
from imgclf.data.loading.loader import Loader
from imgclf.runtime import distributed
from imgclf.runtime.compute import autocast, in_parts_that_fit, memory_format_of, ran_out_of_memory
from imgclf.runtime.device import free_memory
from imgclf.runtime.random import drawing, seeded
from imgclf.training.optim import make_optimizer

MAX_PROBED = 256
MEMORY_SHARE = 0.5  # of what the machine has free: on a CPU the system ends a program that takes too much


def needs_two_images(model: nn.Module, config: TrainConfig) -> bool:
    """Whether batch norms compute their own statistics, which takes two images at least."""
    return not config.freeze_norm and has_batch_norms(model)


def has_batch_norms(model: nn.Module) -> bool:
    """Whether a network has batch norms of any kind."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def drops_last(model: nn.Module, loader: Loader, config: TrainConfig) -> bool:
    """Whether an epoch leaves out a last part of a batch: where that is asked for, or too small for batch norms."""
    processes = distributed.world_size()
    too_few = 1 if processes == 1 else 2 * processes - 1  # two for each process
    rest = len(loader) % config.batch_size
    return config.drop_last or (needs_two_images(model, config) and 0 < rest <= too_few)


def steps_per_epoch(model: nn.Module, loader: Loader, config: TrainConfig) -> int:
    """The optimizer steps of an epoch: one for each batch, at most `config.epoch_steps`."""
    return min(loader.steps(drops_last(model, loader, config)), config.epoch_steps or sys.maxsize)


def probe_batch_size(
    model: nn.Module, shape: Sequence[int], images: int, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> int:
    """The largest power of two, of at most 256 and a quarter of `images`, for which one real step fits.

    The step is taken with a copy of `model`; `shape` is that of one input (channels, height, width), `dtype` that of
    autocast. On a CPU the memory of a step is first computed from what it keeps for one image, since the system ends
    a program that takes too much instead of telling it. Leaves the random numbers as they are.
    """
    smallest = 2 if needs_two_images(model, config) else 1
    size = _power_of_two(min(MAX_PROBED, max(smallest, images // 4)))
    network = copy.deepcopy(model).to(device, memory_format=memory_format_of(model)).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, config, 1e-6)

    def step(images: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            logits = network(torch.zeros(images, *shape, device=device).contiguous(memory_format=torch.channels_last))
        logits.float().logsumexp(1).mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with drawing(seeded(config.seed, device), device):
        if device.type == "cpu":
            size = min(size, max(smallest, _power_of_two(_affordable(network, shape, dtype))))
        return in_parts_that_fit(step, size, device, smallest, too_little(device))[1]


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


def too_little(device: torch.device) -> str:
    """The message where not even single images fit."""
    return f"{device} has too little memory to train even on single images: use a smaller --size or --arch"
