"""How fast training is: real steps of a copy of the network."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from imgclf.core.config import TrainConfig
from imgclf.data.loading.loader import Loader
from imgclf.training.events import Event, StepEnded
from imgclf.training.loop import train

WARM_UP = 3  # steps that are not counted


class _Enough(Exception):
    """Enough steps were measured."""


def train_rate(model: nn.Module, loader: Loader, config: TrainConfig, seconds: float, from_epoch: int = 0) -> float:
    """Images a second of `train`, after a few steps of warm-up; the model stays as it is."""
    config = replace(config, epochs=config.epochs or 1, epoch_steps=None, minutes=None, patience=0)
    steps = images = before = 0
    began = rate = 0.0

    def count(event: Event) -> None:
        """Count the images of the steps, and end training when the time is over."""
        nonlocal steps, images, before, began, rate
        if not isinstance(event, StepEnded) or event.state.epoch < from_epoch:
            return
        state, steps = event.state, steps + 1
        new, before = state.images - (before if state.step > 1 else 0), state.images
        if steps <= WARM_UP:
            wait(state.device)
            began = time.perf_counter()
            return
        images += new
        if time.perf_counter() - began > seconds:
            wait(state.device)
            rate = images / (time.perf_counter() - began)
            raise _Enough

    with suppress(_Enough):
        train(copy.deepcopy(model), loader, None, config, callbacks=[count], endless=True)
    return rate


def wait(device: torch.device) -> None:
    """Wait until an accelerator has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
