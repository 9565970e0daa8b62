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
    clock = _Clock(seconds, from_epoch)
    config = replace(config, epochs=config.epochs or 1, epoch_steps=None, minutes=None, patience=0)
    with suppress(_Enough):
        train(copy.deepcopy(model), loader, None, config, callbacks=[clock], endless=True)
    return clock.rate


class _Clock:
    """Counts the images of training, and ends it when the time is over: a callback."""

    def __init__(self, seconds: float, from_epoch: int) -> None:
        self._seconds = seconds
        self._from_epoch = from_epoch
        self._steps = self._images = 0
        self._began = 0.0
        self._before = 0
        self.rate = 0.0

    def __call__(self, event: Event) -> None:
        """Take note of a step; others are none of its business."""
        if not isinstance(event, StepEnded) or event.state.epoch < self._from_epoch:
            return
        state = event.state
        new = state.images - (self._before if state.step > 1 else 0)
        self._before = state.images
        self._steps += 1
        if self._steps <= WARM_UP:
            wait(state.device)
            self._began = time.perf_counter()
            return
        self._images += new
        if time.perf_counter() - self._began > self._seconds:
            wait(state.device)
            self.rate = self._images / (time.perf_counter() - self._began)
            raise _Enough


def wait(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
