"""Events: what training tells the outside, each a frozen value. Those of a whole `fit` are in `estimator/events.py`,
those of ensembles, searches and learning curves in `studies/`.

A callback is any function of one event. It may read the state that an event carries, and must not change it:

    def watch(event: Event) -> None:
        if isinstance(event, EpochEnded):
            print(event.record.epoch, event.record.valid_loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgclf.core.errors import ConfigError, warn_caller
from imgclf.core.results import EpochRecord, Evaluation
from imgclf.data.audit import UnreadableFile, left_out
from imgclf.data.loading.loader import Batch
from imgclf.evaluation.inference import Progress
from imgclf.runtime import distributed
from imgclf.training.state import TrainState


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings that the user should see."""
        return ()


Callback = Callable[[Event], None]


@dataclass(frozen=True)
class StateEvent(Event):
    """Something that happened to the state of training."""

    state: TrainState


@dataclass(frozen=True)
class Progressed(Event):
    """A part of a task without steps is done: `done` of `total`."""

    task: str
    done: int
    total: int


@dataclass(frozen=True)
class Warned(Event):
    """A warning that the user should see."""

    text: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """The text."""
        return (self.text,)


class TrainingStarted(StateEvent):
    """Training begins or resumes: no step is taken yet."""


@dataclass(frozen=True)
class BaselineMeasured(Event):
    """The model was validated before its first step, its head knowing the classes."""

    result: Evaluation


@dataclass(frozen=True)
class StepStarted(Event):
    """A step begins, on this batch."""

    batch: Batch


class StepEnded(StateEvent):
    """A step was taken: `state.step` of `state.steps_per_epoch`, with the running loss and accuracy."""


@dataclass(frozen=True)
class CaptureFailed(Event):
    """The step can't be captured as a CUDA graph, and is taken operation by operation."""

    reason: str


@dataclass(frozen=True)
class BatchDivided(Event):
    """A batch did not fit into the memory: from now on it is cut into parts of `micro_batch_size` images."""

    batch_size: int
    micro_batch_size: int


class EpochEnded(StateEvent):
    """An epoch was trained and validated."""

    @property
    def record(self) -> EpochRecord:
        """Loss, accuracy, learning rate and seconds of the epoch."""
        return self.state.history[-1]


@dataclass(frozen=True)
class ImagesUnreadable(Event):
    """Images couldn't be read for the first time, or had changed: the reason for each ref."""

    reasons: Mapping[str, str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Which images are left out, and why."""
        return (left_out([UnreadableFile(ref, reason) for ref, reason in self.reasons.items()]),)


class TrainingRetried(StateEvent):
    """The loss was not finite: training is back at the last good weights, with half the learning rate."""


class CheckpointSaved(StateEvent):
    """The state was written to the disk."""


class TrainingFailed(StateEvent):
    """An error ends training; `state.best` holds the best weights, if there are any."""


class TrainingEnded(StateEvent):
    """The last step was taken, and the best weights are in the model."""


def as_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Some callbacks as a tuple; `ConfigError` for anything but functions."""
    functions = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(map(callable, functions)):
        raise ConfigError(f"callbacks is {callbacks!r}; allowed: a list of functions of one event")
    return functions


class ShowsWarnings:
    """A callback that shows the warnings of events itself: where there is one, there are no Python warnings."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


def with_warnings(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """The callbacks and, unless one of them shows warnings, one that gives them as Python warnings.

    Of several processes, only the first one calls them.
    """
    callbacks = as_callbacks(callbacks)
    if not distributed.is_main():
        return ()
    shown = any(isinstance(callback, ShowsWarnings) or callback is warn_of for callback in callbacks)
    return callbacks if shown else (*callbacks, warn_of)


def warn_of(event: Event) -> None:
    """The callback that shows the warnings of events as Python warnings."""
    for text in filter(None, event.warnings):
        warn_caller(text)


def progress_of(task: str, callbacks: Sequence[Callback]) -> Progress:
    """A progress function that passes (done, total) on to the callbacks as events."""
    return lambda done, total: notify(callbacks, Progressed(task, done, total))


def notify(callbacks: Iterable[Callback], event: Event) -> None:
    """Tell every callback of an event."""
    for callback in callbacks:
        callback(event)
