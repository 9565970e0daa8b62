"""What training tells the outside: events, and the state that they carry.

A callback is any function `callback(event, subject)`. `Classifier.fit` and `train` call it with

    event      subject         when
    member     (int, int)      the training of one member of an ensemble begins: its number from 1, and how many
    equal      str             members have ended with equal weights: what is done about it
    ensemble   (Evaluation, …) how each member does on valid, and last how they do together, where they differ
    damaged    str             the newest state of a run can't be read: which one is gone on from
    source     Source          the data set was opened
    audit      Audit           every image was checked
    audited    (int, int)      images checked so far, and in all
    split      Split           train, valid and test are known
    model      Plan            the network is built, its weights are loaded, nothing is left open
    probing    (int, int)      images whose features are known so far, and in all
    probe      Probe           the linear head on frozen features is there
    choices    (Choice, …)     what was settled, and why; all that follows is training
    ready      (Run, Plan)     nothing is left open; the run is None where no run folder is written
    start      TrainState      before the first step
    baseline   Evaluation      how the model does on valid before its first step, where its head knows the classes
    batch      Batch           before every step: what it learns from
    step       TrainState      after every step: `state.step` of `state.steps_per_epoch`, running loss and accuracy
    uncaptured str             the step can't be captured as a CUDA graph: why
    memory     (int, int)      a batch did not fit: images of a planned batch, and of each part that it is now cut into
    epoch      TrainState      after every epoch: `state.history[-1]`
    lost       {ref: reason}   images that couldn't be read in this epoch, for the first time, or had changed
    retry      TrainState      the loss was not finite: back to the last good weights with half the learning rate
    checkpoint TrainState      the state was written to the disk
    failed     TrainState      an error ends training; `state.best` holds the best weights, if there are any
    end        TrainState      after the last step, the best weights being in the model
    examined   (int, int)      training images whose features are known, by which unlike images will be, and in all
    tested     Tested          how the weights that are kept do on valid
    fitted     str             `fit` has done all it does, and training ended so: nothing more comes

`imgclf.tune` calls it with what comes before training, with each `step`, and with

    trial      (int, int)      a trial begins: its number from 1, and how many there will be in all
    tried      Trial           it has ended

It may read the state, and must not change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from imgclf.core.config import TrainConfig
from imgclf.core.errors import ConfigError, warn_caller
from imgclf.core.results import EpochRecord, Evaluation, History
from imgclf.data.audit import BadFile, left_out
from imgclf.evaluation.inference import PreviewPrediction
from imgclf.runtime.random import RandomState

Callback = Callable[[str, Any], None]


Weights = dict[str, torch.Tensor]


@dataclass
class TrainState:
    """Where training stands.

    `pairs` says that a step needs two images at least, for batch norm; `lr_scale` is 1 until the loss diverges.
    `micro_batch_size` is the largest number of images that go through the network at once. `position` counts the
    batches of the epoch that are done, `sums` holds their summed loss and hits, float32 (2,) on the device. `spent` are
    the seconds before training `began` anew. `mean` is the running mean of the weights, where there is one. `best`
    holds the weights kept so far, `good` the weights, the state of the optimizer and the mean after the last whole
    epoch; both are never changed in place. `best_losses` are those of the former on the `valid` images (refs), float64
    (n,), NaN for one that couldn't be read. `lost` are the images of train and valid that couldn't be read at some
    time, with the reason. `random` is where the random numbers of training stand; torch's own generators are the
    caller's.
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
    pairs: bool
    micro_batch_size: int
    sums: torch.Tensor
    class_weights: torch.Tensor | None = None
    epoch: int = 0
    position: int = 0
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
    mean: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    best_loss: float = float("inf")
    best_losses: torch.Tensor | None = None
    valid: tuple[str, ...] = ()
    lost: dict[str, str] = field(default_factory=dict)
    good: tuple[Weights, dict[str, Any], Weights] = field(default_factory=lambda: ({}, {}, {}))
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


@dataclass(frozen=True)
class Tested:
    """How a model does on a `part` of its data, with the answers for a few images, found when somebody asks."""

    part: str
    result: Evaluation
    sample: Callable[[], Sequence[PreviewPrediction]] = field(repr=False)


def as_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Some callbacks as a tuple; `ConfigError` for what is no list of functions."""
    functions = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(map(callable, functions)):
        raise ConfigError(f"callbacks is {callbacks!r}; allowed: a list of functions of (event, subject)")
    return functions


class Shown:
    """A callback that tells the user of all that `warn_of` would: where there is one, there are no Python warnings."""

    def __call__(self, event: str, subject: Any) -> None:
        """Show one event."""


def heard(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """The callbacks and, unless one of them shows it, one that warns of what should not be missed."""
    callbacks = as_callbacks(callbacks)
    shown = any(isinstance(callback, Shown) or callback is warn_of for callback in callbacks)
    return callbacks if shown else (*callbacks, warn_of)


def warn_of(event: str, subject: Any) -> None:
    """The callback that gives what should not be missed as Python warnings."""
    match event:
        case "audit":
            texts = subject.all_findings
        case "split":
            texts = subject.findings
        case "lost":
            texts = (left_out([BadFile(ref, reason) for ref, reason in subject.items()]),)
        case "model":
            texts = (subject.weights.note,)
        case "equal" | "damaged":
            texts = (subject,)
        case _:
            texts = ()
    for text in filter(None, texts):
        warn_caller(text)


def notify(callbacks: Iterable[Callback], event: str, subject: Any) -> None:
    """Tell every callback of an event."""
    for callback in callbacks:
        callback(event, subject)
