"""Random numbers of torch that no other thread sees: states by the kind of device, drawn from in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

RandomState = dict[str, torch.Tensor]  # of each generator, by the kind of its device

_drawing = threading.RLock()  # torch has one generator a device, for all threads


def seeded(seed: int, device: torch.device) -> RandomState:
    """The random numbers that begin at a seed, on the processor and on `device`."""
    devices = {"cpu": torch.device("cpu"), device.type: device}
    return {kind: torch.Generator(where).manual_seed(seed).get_state() for kind, where in devices.items()}


@contextmanager
def drawing(state: RandomState, device: torch.device) -> Iterator[None]:
    """Draw random numbers from `state`, which advances; torch's own generators stay where they are.

    Threads take turns, so that each draws what it would draw alone.
    """
    with _drawing:
        before = random_state(device)
        set_random_state(state, device)
        try:
            yield
        finally:
            state.update(random_state(device))
            set_random_state(before, device)


def unseeded_drawing() -> AbstractContextManager[None]:
    """`drawing` for numbers that do not matter, such as weights that others take the place of at once."""
    processor = torch.device("cpu")
    return drawing(seeded(0, processor), processor)


def random_state(device: torch.device) -> RandomState:
    """The state of torch's random numbers, on the CPU and on an accelerator."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Restore a `random_state`, except for devices that are not used now."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
