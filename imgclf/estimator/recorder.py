"""Writes the run folder during training: a callback, and the only one that writes files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imgclf.core.config import to_dict
from imgclf.core.errors import ImgclfError
from imgclf.core.files import write_text
from imgclf.core.results import Evaluation, History
from imgclf.data.dataset import Source
from imgclf.data.sources.folder import FileReader
from imgclf.data.split import Split, brought, pack_contents, write_split
from imgclf.data.write import save_samples
from imgclf.estimator.calibrate import Calibrated
from imgclf.estimator.events import ProbeFitted, ReportFailed, ReportWritten, Tested
from imgclf.estimator.plan import Plan
from imgclf.estimator.settings import Request
from imgclf.estimator.warm_start import Start
from imgclf.evaluation.ood import OodDetector
from imgclf.evaluation.predictions import Predictions, write_predictions
from imgclf.models.backbones import find_arch
from imgclf.report.advice import before_use
from imgclf.report.collect import Known, gather
from imgclf.report.page import render
from imgclf.runtime import distributed
from imgclf.runtime.device import machine
from imgclf.storage.model_file import Manifest, save_model, save_weights
from imgclf.storage.run_folder import (
    CHECKPOINT,
    CONFIG,
    EVENTS,
    HISTORY,
    PREDICTIONS,
    REPORT,
    SAMPLES,
    SPLIT,
    Run,
    RunInfo,
    append_event,
    create_run,
    held,
    open_run,
    read_config,
    spent_seconds,
    stem_of,
    write_config,
    write_history,
    write_info,
)
from imgclf.training.ema import swapped_weights
from imgclf.training.events import (
    BaselineMeasured,
    BatchDivided,
    Callback,
    CaptureFailed,
    CheckpointSaved,
    EpochEnded,
    Event,
    ImagesUnreadable,
    TrainingEnded,
    TrainingFailed,
    TrainingRetried,
    TrainingStarted,
    notify,
    progress_of,
    with_warnings,
)
from imgclf.training.state import TrainState


@dataclass(frozen=True)
class FitResult:
    """The result of a fit: the start (plan, probe, decisions), the history, the manifest of the model file, the
    unknown-image detector (`ood`), the predictions for valid and test, and the images that became unreadable."""

    start: Start
    history: History
    manifest: Manifest
    ood: OodDetector | None
    predictions: Mapping[str, Predictions]
    unreadable: Mapping[str, str]
    run: Run | None = None


def start_run(request: Request, plan: Plan, data: str | os.PathLike[str] | Source) -> Recorder | None:
    """The recorder of a new run folder with its config and split, or of the run to resume; None where no run folder is
    asked for or another process writes it."""
    if not distributed.is_main():
        return None
    if request.resume and request.run is not None:
        return Recorder(_reopen(request.run, request.state, plan), plan)
    if request.runs is None:
        return None
    named = None if isinstance(data, Source) else os.fspath(data)

    def fill(folder: Path) -> None:
        write_config(folder / CONFIG, plan.experiment, named)
        write_split(plan.split, folder / SPLIT)

    name = request.name or stem_of(plan.source.name, plan.spec.arch)
    run = create_run(request.runs, name, _first_info(plan, named), exact=request.name is not None, fill=fill)
    return Recorder(run, plan)


def _first_info(plan: Plan, named: str | None) -> RunInfo:
    """The first content of `run.json`."""
    audit, source = plan.audit, plan.source
    return RunInfo(
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        status="running",
        pid=os.getpid(),
        machine=machine(),
        versions=dict(manifest_of(plan).versions),
        folder=os.getcwd(),
        source=named,
        location=None if named is None else _location(source),
        data=source.name,
        classes=source.classes,
        given_parts=brought(source),
        unreadable=tuple((bad.ref, bad.reason) for bad in audit.unreadable),
        skipped=tuple(source.skipped),
        findings=audit.findings,
        recipe=plan.base,
        minutes=plan.experiment.train.minutes,
        arch=plan.spec.arch,
        own_network=find_arch(plan.spec.arch).family == "own",
        preprocess=to_dict(plan.preprocess),
        weights=asdict(plan.weights),
    )


def _reopen(run: Run, state: Mapping[str, Any] | None, plan: Plan) -> Run:
    """A run to resume: its earlier result is removed."""
    values, named = read_config(run.path / CONFIG)
    planned, extended = values["train"].get("epochs"), run.info.extended
    if plan.experiment.train.epochs != planned:
        write_config(run.path / CONFIG, plan.experiment, named)
        extended = (*extended, planned)
    before = max(spent_seconds(run) or 0.0, 0.0 if state is None else state["spent"])
    ours = {"status": "running", "pid": os.getpid(), "extended": extended, "seconds_before": round(before, 3)}
    return write_info(run, **ours, seconds=None, train_seconds=None, metrics=None)


def manifest_of(plan: Plan, predictions: Mapping[str, Predictions] | None = None) -> Manifest:
    """The manifest of a plan's model file, with the metrics of the predictions by part."""
    split, known = plan.split, predictions or {}
    return Manifest(
        plan.spec,
        plan.source.classes,
        plan.preprocess,
        weights=asdict(plan.weights),
        metrics=figures({part: one.evaluation for part, one in known.items()}, split),
        data=plan.source.name,
        seen=pack_contents((*split.samples("train"), *split.samples("valid"))),
    )


def figures(metrics: Mapping[str, Evaluation], split: Split) -> dict[str, dict[str, Any]]:
    """Results as a model file holds them: with the digest of the split that they were measured on, and without the
    confusion matrix, whose size grows with the square of the classes."""
    plain = {part: result.to_dict() for part, result in metrics.items()}
    for values in plain.values():
        values["split"] = split.digest
        for one in filter(None, (values, values["unseen"])):
            del one["confusion"]
    return plain


def _location(source: Source) -> str | None:
    """The absolute location of the images; None for a named data set."""
    if not source.location or "://" in source.location:
        return source.location or None
    return os.path.abspath(source.location)


def write_result(run: Run, plan: Plan, predictions: Mapping[str, Predictions], **facts: Any) -> Run:
    """Write the result of a plan into its run folder: the predictions for the test images, if they are among the
    `predictions` by part; some images to try the model on, of data that are no files; and, into `run.json`, the metrics
    with more `facts`."""
    if "test" in predictions:
        write_predictions(run.path / PREDICTIONS, predictions["test"])
    if not isinstance(plan.source.reader, FileReader):
        held_out = next(filter(None, map(plan.split.samples, ("test", "valid", "train"))))
        save_samples(plan.source.at_levels(plan.preprocess.levels), held_out, run.path / SAMPLES)
    return write_info(run, metrics={part: known.evaluation.to_dict() for part, known in predictions.items()}, **facts)


def write_page(run: Run, known: Known, callbacks: Sequence[Callback]) -> None:
    """Write the report of a run, and tell of it. Where that fails it is a warning: the result does not depend on it."""
    callbacks = with_warnings(callbacks)
    try:
        data = gather(open_run(run.path), known, progress_of("writing the report", callbacks))
        write_text(run.path / REPORT, render(data))
    except (Exception, KeyboardInterrupt) as error:
        notify(callbacks, ReportFailed(run.path, error))
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        notify(callbacks, ReportWritten(run.path / REPORT, before_use(data)))


class Recorder:
    """Writes a run folder during training: nothing else touches the disk.

    As a callback it keeps `history.csv` and `events.jsonl` up to date and, with `keep="all"`, a model file of each
    epoch. The best model is written as often as the state of training is, and where an error ends training: in between,
    the state holds it.
    """

    def __init__(self, run: Run, plan: Plan) -> None:
        self.run = run
        self._plan = plan
        self._first_epoch: int | None = None  # once training has started
        self._written = -1

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lock the run folder, and record in it the error or interrupt that ends the work; after an interrupt before
        anything was saved, remove it."""
        with held(self.run):
            try:
                yield
            except KeyboardInterrupt:
                if (self.run.path / CHECKPOINT).exists() or self.run.model.exists():
                    self._record_end(status="interrupted")
                else:
                    shutil.rmtree(self.run.path)
                raise
            except Exception as error:
                self._record_end(status="failed", error=f"{type(error).__name__}: {error}")
                raise

    def begin(self, start: Start) -> None:
        """Record the decisions before the first step, and the settings that follow from them."""
        self._plan = start.plan
        write_config(self.run.path / CONFIG, start.plan.experiment, self.run.info.source)
        decisions = tuple(asdict(decision) for decision in start.decisions)
        self.run = write_info(self.run, preprocess=to_dict(start.plan.preprocess), decisions=decisions)

    def keep(self, calibrated: Calibrated) -> None:
        """Write the trained model, before it is tested, which may take long."""
        (self.run.path / PREDICTIONS).unlink(missing_ok=True)  # of the model before, in a resumed run
        manifest = calibrated.within(manifest_of(self._plan, calibrated.predictions))
        save_model(self.run.model, self._plan.model, manifest, calibrated.ood)
        self.run = write_info(self.run, status="testing")

    def finish(self, learnt: FitResult, seconds: float) -> Run:
        """Write the result of a fit, which took this many seconds."""
        if "test" in learnt.predictions:
            save_model(self.run.model, self._plan.model, learnt.manifest, learnt.ood)
        ours = learnt.history.epochs[self._first_epoch :]
        return write_result(
            self.run,
            self._plan,
            learnt.predictions,
            status=learnt.history.ended,
            epochs=len(learnt.history),
            seconds=round(seconds, 3),
            train_seconds=round(sum(record.seconds for record in ours), 3),
            unreadable_later=tuple(learnt.unreadable.items()),
        )

    def _record_end(self, **facts: Any) -> None:
        with suppress(OSError, ImgclfError):  # the error that ended the work is raised
            if self._first_epoch is not None:
                facts["unreadable_later"] = tuple(self._plan.unreadable.items())
            write_info(open_run(self.run.path), **facts)

    def __call__(self, event: Event) -> None:
        """Record an event of training; others are ignored."""
        match event:
            case ProbeFitted(probe=probe):
                self._note("probe", **asdict(probe))
            case TrainingStarted(state=state):
                self._first_epoch = state.epoch
                precision = str(state.precision).removeprefix("torch.")
                self._note("start", epoch=state.epoch, device=str(state.device), precision=precision)
            case BaselineMeasured(result=result):
                self._note("baseline", loss=result.loss, accuracy=result.accuracy)
            case CaptureFailed(reason=reason):
                self._note("uncaptured", reason=reason)
            case BatchDivided(batch_size=planned, micro_batch_size=part):
                self._note("memory", planned=planned, part=part)
            case EpochEnded(state=state):
                self._save_epoch(state)
                self._note("epoch", **asdict(event.record))
            case ImagesUnreadable(reasons=reasons):
                self._note("lost", images=[*map(list, reasons.items())])
            case TrainingRetried(state=state):
                self._note("retry", epoch=state.epoch, lr_scale=state.lr_scale)
            case CheckpointSaved(state=state) | TrainingFailed(state=state):
                failed = isinstance(event, TrainingFailed)
                with suppress(OSError) if failed else nullcontext():  # the first error is raised
                    self._save_best(state)
            case TrainingEnded(state=state):  # once more: a run killed after its last state has not written its epoch
                write_history(self.run.path / HISTORY, state.history)
                self._note("end", epoch=state.epoch, ended=state.ended)
            case Tested(part=part, result=result):
                self._note("tested", part=part, n=result.n, loss=result.loss, accuracy=result.accuracy)

    def _note(self, event: str, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        append_event(self.run.path / EVENTS, event, time=now, **values)

    def _save_epoch(self, state: TrainState) -> None:
        write_history(self.run.path / HISTORY, state.history)
        if self._plan.experiment.keep == "all":
            folder = self.run.path / "epochs"
            folder.mkdir(exist_ok=True)
            with swapped_weights(state.model, state.ema):
                save_model(folder / f"epoch-{state.epoch:03d}.safetensors", state.model, manifest_of(self._plan))

    def _save_best(self, state: TrainState) -> None:
        """Write the best model, unless it is written already."""
        best = state.result().best
        epoch = best.epoch if best is not None else 0
        if state.best and epoch != self._written:
            save_weights(self.run.model, state.best, manifest_of(self._plan))
            self._written = epoch
