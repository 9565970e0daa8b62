"""Follow training live: a callback that hands plain copies of its events to backends.

Each backend works on its own thread. A backend that hangs, is slow or raises costs one warning and is ignored for the
rest of the run; training neither waits for it nor fails.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from threading import Thread
from typing import Any

import torch

from imgclf.core.arguments import require
from imgclf.core.config import to_dict
from imgclf.core.errors import warn_caller
from imgclf.core.results import Decision
from imgclf.core.text import one_line
from imgclf.data.loading.loader import Batch
from imgclf.estimator.events import DecisionsMade, FitEnded, SourceOpened, Tested
from imgclf.estimator.plan import Plan, RunReady
from imgclf.evaluation.inference import device_of
from imgclf.runtime.compute import own_copy
from imgclf.storage.run_folder import Run, stem_of
from imgclf.tracking.backend import Backend, Pictures, Session
from imgclf.tracking.registry import find_backend
from imgclf.training.events import (
    BaselineMeasured,
    EpochEnded,
    Event,
    StepEnded,
    StepStarted,
    TrainingFailed,
    TrainingStarted,
)
from imgclf.training.state import TrainState

MAX_IMAGES = 20  # of a batch, and of a sample
STEP_SECONDS = 1.0  # between reports within an epoch, at least
MAX_TIME_SHARE = 0.02  # of the time of a run that a backend may take
CLOSE_SECONDS = 5.0  # to wait for the backends at the end of a run, at least
MAX_QUEUED = 1000  # records
Say = Callable[[str], None]


def tracker(*backends: str | Backend, warn: Say | None = None, say: Say | None = None) -> Tracker:
    """A callback of `fit` that follows training live.

    Args:
        backends: "tensorboard", "visdom", "mlflow" or "wandb"; the same with a place, as in "visdom=http://host:8097";
            or a `Backend` of your own.
        warn: Gets a message when a backend fails. The default is a Python warning.
        say: Gets a message that tells where each backend shows the run.

    Raises:
        UnknownName: There is no such tracker.
        MissingExtra: Its package is not installed.
        ConfigError: Its place is wrong.
    """
    found = [find_backend(backend) if isinstance(backend, str) else backend for backend in backends]
    for backend in found:
        require("a tracker", backend, Backend)
    return Tracker(found, warn or warn_caller, say or (lambda text: None))


class Worker:
    """A backend on a thread of its own, for one run. `fault` tells why it is ignored, "" while it is not."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.fault = ""
        self._calls: Queue[tuple[str, tuple[Any, ...]]] = Queue(MAX_QUEUED + 1)
        self._thread = Thread(target=self._work, name=f"imgclf-{backend.name}", daemon=True)
        self._thread.start()

    def put(self, method: str, *values: Any) -> None:
        """Have a method of the backend called; "close" is the last one."""
        if not self.fault and self._calls.qsize() >= MAX_QUEUED:
            self.fault = f"it is {MAX_QUEUED:,} records behind"
        if not self.fault:
            self._calls.put_nowait((method, values))

    def wait(self, seconds: float) -> bool:
        """Wait at most this long for the thread to end; returns whether it has ended."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _work(self) -> None:
        """Make the calls as they come; flush when it is due, and not again until that was a small share of the time."""
        due, stored, method = 0.0, False, ""
        try:
            while not self.fault and method != "close":
                try:
                    method, values = self._calls.get(timeout=max(0.0, due - time.monotonic()) if stored else None)
                except Empty:
                    began = time.monotonic()
                    self.backend.flush()
                    ended = time.monotonic()
                    due, stored = ended + max(STEP_SECONDS, (ended - began) / MAX_TIME_SHARE), False
                    continue
                if method == "close":
                    self.backend.flush()
                getattr(self.backend, method)(*values)
                stored = True
        except BaseException as error:  # whatever a backend does, it ends here
            self.fault = self.fault or one_line(error)


class Tracker:
    """Hands the events of training to backends: a callback. It follows one run after the other."""

    def __init__(self, backends: Sequence[Backend], warn: Say, say: Say) -> None:
        self._backends = list(backends)
        self._warn, self._say = warn, say
        self._workers: list[Worker] = []
        self._decisions: tuple[Decision, ...] = ()
        self._classes: tuple[str, ...] = ()
        self._began = 0.0
        self._batch_shown = False
        self._step_due = 0.0
        self._reported = (0, 0, 0.0)  # epoch, images and summed loss at the last report
        self._loss = 0.0

    def __call__(self, event: Event) -> None:
        """Pass on one event."""
        self._pass_on(event)
        for worker in [worker for worker in self._workers if worker.fault]:
            self._workers.remove(worker)
            self._ignore(worker.backend, worker.fault)

    def _ignore(self, backend: Backend, reason: str) -> None:
        self._warn(f"{backend.name} no longer follows this run: {reason}")

    def _put(self, method: str, *values: Any) -> None:
        for worker in self._workers:
            worker.put(method, *values)

    def _pass_on(self, event: Event) -> None:
        match event:
            case SourceOpened():
                self._finish("failed")  # an earlier run that did not reach its end
                self._decisions = ()
            case DecisionsMade(decisions=decisions):
                self._decisions = decisions
            case RunReady(run=run, plan=plan):
                self._begin(run, plan)
            case TrainingStarted(state=state):
                self._put("start", tuple(state.history))
                self._reported, self._step_due = (state.epoch, 0, 0.0), 0.0
            case BaselineMeasured(result=result):
                self._put("baseline", result)
            case StepStarted(batch=batch):
                self._show_batch(batch)
            case StepEnded(state=state):
                self._show_step(state)
            case EpochEnded(state=state):
                self._put("epoch", event.record)
                self._loss = state.loss
            case Tested():
                self._show_test(event)
            case TrainingFailed():
                self._finish("failed")
            case FitEnded(ended=ended):
                self._finish(ended)

    def _begin(self, run: Run | None, plan: Plan) -> None:
        """Begin a run, also with backends that failed in the one before, unless they still hang in it."""
        session = _session(run, plan, self._decisions)
        # A wrong place is refused before anything is written.
        places = [backend.location(session) for backend in self._backends]
        self._began, self._batch_shown, self._classes = time.monotonic(), False, plan.source.classes
        example = torch.zeros(1, plan.preprocess.channels, *plan.preprocess.size, device=device_of(plan.model))
        for backend, place in zip(self._backends, places, strict=True):
            try:
                with torch.no_grad():
                    note = backend.prepare(session, own_copy(plan.model), example)
            except Exception as error:
                self._ignore(backend, one_line(error))
                continue
            self._workers.append(Worker(backend))
            self._say(f"{backend.name} {place}")
            if note:
                self._warn(f"{backend.name}: {note}")
        self._put("open", session)

    def _show_batch(self, batch: Batch) -> None:
        if self._batch_shown or not self._workers or not len(batch.targets):
            return
        self._batch_shown = True
        images = tuple(batch.pixels[:MAX_IMAGES].cpu().numpy().copy())
        captions = _captions(batch, self._classes)[:MAX_IMAGES]
        self._put("batch", Pictures("training-batch", "Training images as the model sees them", images, captions))

    def _show_step(self, state: TrainState) -> None:
        """At most once a second, and only a new loss: on a GPU it is fetched only now and then."""
        now = time.monotonic()
        if now < self._step_due or state.loss == self._loss or not self._workers:
            return
        epoch, images, total = self._reported if self._reported[0] == state.epoch else (state.epoch, 0, 0.0)
        loss = (state.loss * state.images - total) / (state.images - images)
        number = state.epoch * state.steps_per_epoch + state.step
        self._put("step", state.epoch + state.step / state.steps_per_epoch, number, loss, state.lr)
        self._reported = (epoch, state.images, state.loss * state.images)
        self._step_due, self._loss = now + STEP_SECONDS, state.loss

    def _show_test(self, test: Tested) -> None:
        if not self._workers:
            return
        sample = test.sample()
        pictures = Pictures(
            f"{test.part}-sample",
            f"{test.part.capitalize()} images: predicted (true)",
            tuple(each.pixels for each in sample),
            tuple(f"{each.predicted} ({each.label})" for each in sample),
            tuple(each.predicted == each.label for each in sample),
        )
        self._put("tested", test.part, test.result, pictures)

    def _finish(self, ended: str) -> None:
        """Have every backend close the run; wait for all of them together, and not for long."""
        self._put("close", ended)
        seconds = max(CLOSE_SECONDS, MAX_TIME_SHARE * (time.monotonic() - self._began))
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            if not worker.wait(deadline - time.monotonic()):
                self._backends.remove(worker.backend)  # its thread still uses it
                worker.fault = worker.fault or f"it did not finish within {seconds:.0f} s"
        self._workers = [worker for worker in self._workers if worker.fault]


def _session(run: Run | None, plan: Plan, decisions: Sequence[Decision]) -> Session:
    """A run in plain values. The decisions fill in settings that the plan leaves open."""
    source, values = plan.source, to_dict(plan.experiment)
    name = stem_of(source.name, plan.spec.arch) if run is None else run.path.name
    identity = secrets.token_hex(8) if run is None else f"{run.info.created} {name}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    settings = {"data": source.name, "images": len(source), "classes": len(source.classes)}
    settings |= {name: value for name, value in values.items() if name not in ("data", "train")} | values["train"]
    settings |= {each.name: each.value for each in decisions if settings.get(each.name) is None}
    plain = {name: _plain(value) for name, value in settings.items() if value is not None}
    return Session(name, None if run is None else run.path, key, plain)


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str | int | float | bool) else str(value)


def _captions(batch: Batch, classes: Sequence[str]) -> tuple[str, ...]:
    """The class of each image of a batch, or both classes of a blended one."""
    names = [classes[target] for target in batch.targets.tolist()]
    if batch.mix is None:
        return tuple(names)
    pairs = zip(names, batch.mix.targets.tolist(), batch.mix.share.tolist(), strict=True)
    return tuple(name if own == 1 else f"{own:.0%} {name}, {classes[other]}" for name, other, own in pairs)
