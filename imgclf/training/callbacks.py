"""What training tells the outside: events, and the state that they carry.

A callback is any function `callback(event, subject)`. `Classifier.fit` and `train` call it with

    event      subject         when
    source     Source          the data set was opened
    audit      Audit           every image was checked
    audited    (int, int)      images checked so far, and in all
    split      Split           train, valid and test are known
    model      Plan            the network is built, its weights are loaded, nothing is left open
    start      TrainState      before the first step
    step       TrainState      after every step: `state.step` of `state.steps_per_epoch`, running loss and accuracy
    epoch      TrainState      after every epoch: `state.history[-1]`
    retry      TrainState      the loss was not finite: back to the last good weights with half the learning rate
    end        TrainState      after the last step, the best weights being in the model

It may read the state, and must not change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from imgclf.results import EpochRecord, History
from imgclf.specs import TrainConfig

Callback = Callable[[str, Any], None]


@dataclass
class TrainState:
    """Where training stands. `best` holds the weights kept so far; `pairs` says that a step needs two
    images at least, for batch norm; `lr_scale` is 1 until the loss diverges."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    device: torch.device
    precision: torch.dtype
    epochs: int
    steps_per_epoch: int
    drop_last: bool
    pairs: bool
    epoch: int = 0
    step: int = 0
    images: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    lr: float = 0.0
    lr_scale: float = 1.0
    retries: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_loss: float = float("inf")
    ended: str = "done"

    def result(self) -> History:
        """The history so far as a value."""
        return History(tuple(self.history), self.ended)


def notify(callbacks: Iterable[Callback], event: str, subject: Any) -> None:
    """Tell every callback of an event."""
    for callback in callbacks:
        callback(event, subject)
