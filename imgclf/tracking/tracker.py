"""Follow training where it can be seen: a callback that hands plain copies of its events to sinks.

Each sink works on a thread of its own. One that is dead, slow or raises costs one warning and is left alone for the
rest of the run; training neither waits for it nor sees it.
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
from imgclf.data.dataset import Source
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

SHOWN = 20  # images of a batch, and of a sample
EVERY = 1.0  # seconds between looks within an epoch
SHARE = 0.02  # of the time of a run that a sink may cost
GRACE = 5.0  # seconds to wait for what is on its way when a run has ended, at least
MOST = 1000  # records that may wait
Say = Callable[[str], None]


def tracker(*sinks: str | Backend, warn: Say | None = None, say: Say | None = None) -> Tracker:
    """A callback of `fit` that follows training on each of the sinks: "tensorboard", "visdom", "mlflow", "wandb", the
    same with a place as in "visdom=http://host:8097", or a `Backend` of your own.

    `warn` is told of a sink that failed (without it: a Python warning), `say` of where each sink is to be seen.
    Raises `UnknownName`, `MissingExtra` where a package is not installed, and `ConfigError` for a wrong place.
    """
    found = [find_backend(sink) if isinstance(sink, str) else sink for sink in sinks]
    for sink in found:
        require("a tracker", sink, Backend)
    return Tracker(found, warn or warn_caller, say or _quiet)


def _quiet(text: str) -> None:
    pass


class Worker:
    """One sink on a thread of its own, for one run. `fault` says why it is left alone, "" while it is not."""

    def __init__(self, sink: Backend) -> None:
        self.sink = sink
        self.fault = ""
        self._jobs: Queue[tuple[str, tuple[Any, ...]] | None] = Queue(MOST + 2)
        self._thread = Thread(target=self._work, name=f"imgclf-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, method: str, *values: Any) -> None:
        """Have the sink's method called."""
        if not self.fault and self._jobs.qsize() >= MOST:
            self.fault = f"it is {MOST:,} records behind"
        if not self.fault:
            self._jobs.put_nowait((method, values))

    def end(self) -> None:
        """Nothing more comes."""
        if not self.fault:
            self._jobs.put_nowait(None)

    def wait(self, seconds: float) -> bool:
        """Wait until all is done, at most so long; whether it is."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # whatever a sink does, it ends here
            self.fault = self.fault or _reason(error)

    def _serve(self) -> None:
        """Do what comes; flush when it is due, and after that leave training alone for long enough."""
        due, noted = 0.0, False
        while not self.fault:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()) if noted else None)
            except Empty:
                began = time.monotonic()
                self.sink.flush()
                ended = time.monotonic()
                due, noted = ended + max(EVERY, (ended - began) / SHARE), False
                continue
            if job is None:
                return
            if job[0] == "close":
                self.sink.flush()
            getattr(self.sink, job[0])(*job[1])
            noted = True


class Tracker:
    """Hands what happens in training to sinks: a callback. It follows one run after the other."""

    def __init__(self, sinks: Sequence[Backend], warn: Say, say: Say) -> None:
        self._sinks = list(sinks)
        self._warn, self._say = warn, say
        self._workers: list[Worker] = []
        self._source: Source | None = None
        self._choices: tuple[Decision, ...] = ()
        self._began = 0.0
        self._shown = False
        self._due = 0.0
        self._mark = (0, 0, 0.0)  # epoch, images and summed loss at the last look
        self._loss = 0.0

    def __call__(self, event: Event) -> None:
        """Pass on one event."""
        self._pass_on(event)
        for worker in [worker for worker in self._workers if worker.fault]:
            self._workers.remove(worker)
            self._warn(f"{worker.sink.name} is not told any more: {worker.fault}")

    def _put(self, method: str, *values: Any) -> None:
        for worker in self._workers:
            worker.put(method, *values)

    def _pass_on(self, event: Event) -> None:
        match event:
            case SourceOpened(source=source):
                self._finish("failed")  # a run that began before and did not come to its end
                self._source, self._choices = source, ()
            case DecisionsMade(decisions=decisions):
                self._choices = decisions
            case RunReady(run=run, plan=plan):
                self._begin(run, plan)
            case TrainingStarted(state=state):
                self._put("start", tuple(state.history))
                self._mark, self._due = (state.epoch, 0, 0.0), 0.0
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
        """Begin a run, also for those who have failed in the one before, unless they still hang in it."""
        assert self._source is not None
        session = _session(run, plan, self._source, self._choices)
        places = [sink.location(session) for sink in self._sinks]  # a wrong one is refused before anything is written
        self._began, self._shown = time.monotonic(), False
        for sink, place in zip(self._sinks, places, strict=True):
            worker = Worker(sink)
            self._workers.append(worker)
            try:
                with torch.no_grad():
                    note = sink.prepare(session, own_copy(plan.model), _example(plan))
            except Exception as error:
                worker.end()
                worker.fault = _reason(error)
                continue
            self._say(f"{sink.name} {place}")
            if note:
                self._warn(f"{sink.name}: {note}")
        self._put("open", session)

    def _show_batch(self, batch: Batch) -> None:
        if self._shown or not self._workers or not len(batch.targets):
            return
        self._shown = True
        assert self._source is not None
        images = tuple(batch.pixels[:SHOWN].cpu().numpy().copy())
        captions = _captions(batch, self._source.classes)[:SHOWN]
        self._put("batch", Pictures("training-batch", "Training images as the model sees them", images, captions))

    def _show_step(self, state: TrainState) -> None:
        """At most once a second, and where the loss is new: on a GPU it is looked at now and then."""
        now = time.monotonic()
        if now < self._due or state.loss == self._loss or not self._workers:
            return
        epoch, images, total = self._mark if self._mark[0] == state.epoch else (state.epoch, 0, 0.0)
        loss = (state.loss * state.images - total) / (state.images - images)
        number = state.epoch * state.steps_per_epoch + state.step
        self._put("step", state.epoch + state.step / state.steps_per_epoch, number, loss, state.lr)
        self._mark, self._due, self._loss = (epoch, state.images, state.loss * state.images), now + EVERY, state.loss

    def _show_test(self, test: Tested) -> None:
        if not self._workers:
            return
        answers = test.sample()
        pictures = Pictures(
            f"{test.part}-sample",
            f"{test.part.capitalize()} images: predicted (true)",
            tuple(answer.pixels for answer in answers),
            tuple(f"{answer.predicted} ({answer.label})" for answer in answers),
            tuple(answer.predicted == answer.label for answer in answers),
        )
        self._put("tested", test.part, test.result, pictures)

    def _finish(self, ended: str) -> None:
        """Have every sink close the run; wait for them together, and not for long."""
        self._put("close", ended)
        for worker in self._workers:
            worker.end()
        patience = max(GRACE, SHARE * (time.monotonic() - self._began))
        deadline = time.monotonic() + patience
        for worker in self._workers:
            if not worker.wait(deadline - time.monotonic()):
                self._sinks.remove(worker.sink)  # its thread has it
                worker.fault = worker.fault or f"it has not taken everything within {patience:.0f} s"
        self._workers = [worker for worker in self._workers if worker.fault]


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _session(run: Run | None, plan: Plan, source: Source, choices: Sequence[Decision]) -> Session:
    """A run in plain values. Settings that are left open in the plan are those that were found out since."""
    name = stem_of(source.name, plan.spec.arch) if run is None else run.path.name
    created = secrets.token_hex(8) if run is None else f"{run.info.get('created')} {name}"
    values = to_dict(plan.experiment)
    settings = {"data": source.name, "images": len(source), "classes": len(source.classes)}
    settings |= {key: value for key, value in values.items() if key not in ("data", "train")} | values["train"]
    settings |= {choice.name: choice.value for choice in choices if settings.get(choice.name) is None}
    plain = {key: _plain(value) for key, value in settings.items() if value is not None}
    key = hashlib.sha256(created.encode()).hexdigest()[:16]
    return Session(name, None if run is None else run.path, key, plain)


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str | int | float | bool) else str(value)


def _example(plan: Plan) -> torch.Tensor:
    return torch.zeros(1, plan.recipe.channels, *plan.recipe.size, device=device_of(plan.model))


def _captions(batch: Batch, classes: Sequence[str]) -> tuple[str, ...]:
    """What the images of a batch are to be called, with the shares of those that are blended."""
    names = [classes[target] for target in batch.targets.tolist()]
    if batch.mix is None:
        return tuple(names)
    pairs = zip(names, batch.mix.targets.tolist(), batch.mix.share.tolist(), strict=True)
    return tuple(name if own == 1 else f"{own:.0%} {name}, {classes[other]}" for name, other, own in pairs)
