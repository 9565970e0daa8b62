"""The state of training: changed by the loop, carried by the events, and saved in the checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from imgclf.core.config import TrainConfig
from imgclf.core.results import EpochRecord, History
from imgclf.runtime.random import RandomState

Weights = dict[str, torch.Tensor]


@dataclass
class TrainState:
    """The state of training.

    `needs_two_images`: a step needs two images at least, for batch norm. `lr_scale` is 1 until the loss diverges.
    `micro_batch_size` is the largest number of images that go through the network at once. `batch_index` counts the
    batches of the epoch that are done, `metric_sums` holds their summed loss and hits, float32 (2,) on the device.
    `spent` are the seconds before training `began` anew. `ema` is the running mean of the weights, where there is one.
    `best` holds the weights kept so far, `last_good` the weights, the state of the optimizer and the running mean after
    the last whole epoch; both are never changed in place. `best_losses` are the losses of the former on the `valid`
    images (refs), float64 (n,), NaN for an unreadable one. `unreadable` are the images of train and valid that couldn't
    be read at some time, with the reason. `random` is where the random numbers of training stand; torch's own
    generators are the caller's.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: TrainConfig
    device: torch.device
    precision: torch.dtype
    epochs: int
    steps_per_epoch: int
    drop_last: bool
    needs_two_images: bool
    micro_batch_size: int
    metric_sums: torch.Tensor
    class_weights: torch.Tensor | None = None
    epoch: int = 0
    batch_index: int = 0
    step: int = 0
    images: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    lr: float = 0.0
    lr_scale: float = 1.0
    retries: int = 0
    random: RandomState = field(default_factory=dict)
    history: list[EpochRecord] = field(default_factory=list)
    spent: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    ema: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    best_loss: float = float("inf")
    best_losses: torch.Tensor | None = None
    valid: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    last_good: tuple[Weights, dict[str, Any], Weights] = field(default_factory=lambda: ({}, {}, {}))
    ended: str = "done"

    def seconds(self) -> float:
        """How long training has taken so far, with what came before it was resumed."""
        return self.spent + time.perf_counter() - self.began

    def time_used(self) -> float:
        """The part of the config's `minutes` that is used; 0 where there is no limit."""
        return 0.0 if self.config.minutes is None else self.seconds() / (60 * self.config.minutes)

    def result(self) -> History:
        """The history so far as a value."""
        return History(tuple(self.history), self.ended)
