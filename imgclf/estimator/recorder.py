"""Writes a run folder while training goes on. A callback of training, and the only one that touches the disk."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imgclf.core.config import ExperimentConfig, to_dict
from imgclf.core.results import Evaluation
from imgclf.data.audit import Audit
from imgclf.data.dataset import Source
from imgclf.data.split import Split, brought, write_split
from imgclf.estimator.events import ProbeFitted, Tested
from imgclf.models.backbones import find_arch
from imgclf.runtime.device import machine
from imgclf.storage.model_file import Manifest, save_model, save_weights
from imgclf.storage.run_folder import (
    CONFIG,
    EVENTS,
    HISTORY,
    SPLIT,
    Run,
    append_event,
    create_run,
    stem_of,
    write_config,
    write_history,
)
from imgclf.training.ema import swapped_weights
from imgclf.training.events import (
    BaselineMeasured,
    BatchDivided,
    CaptureFailed,
    CheckpointSaved,
    EpochEnded,
    Event,
    ImagesUnreadable,
    TrainingEnded,
    TrainingFailed,
    TrainingRetried,
    TrainingStarted,
)
from imgclf.training.state import TrainState


def start_run(
    root: Path,
    name: str | None,
    manifest: Manifest,
    experiment: ExperimentConfig,
    split: Split,
    source: str | None,
    audit: Audit,
    experiment_name: str | None = None,
) -> Run:
    """A new run folder with its config and split. `source` is the data as the user named them, `experiment_name` that
    of the recipe which the experiment began with."""

    def fill(folder: Path) -> None:
        write_config(folder / CONFIG, experiment, source)
        write_split(split, folder / SPLIT)

    info = {
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "status": "running",
        "pid": os.getpid(),
        "machine": machine(),
        "source": source,
        "folder": os.getcwd(),
        "location": None if source is None else _location(audit.source),
        "data": manifest.data,
        "arch": manifest.spec.arch,
        "own_network": find_arch(manifest.spec.arch).family == "own",
        "experiment": experiment_name,
        "classes": list(manifest.classes),
        "recipe": to_dict(manifest.recipe),
        "weights": dict(manifest.weights),
        "minutes": experiment.train.minutes,
        "versions": dict(manifest.versions),
        "bad": [[bad.ref, bad.reason] for bad in audit.bad],
        "ignored": list(audit.source.ignored),
        "findings": list(audit.findings),
        "brought": list(brought(audit.source)),
    }
    stem = stem_of(manifest.data, manifest.spec.arch)
    return create_run(root, name or stem, info, exact=name is not None, fill=fill)


def _location(source: Source) -> str | None:
    """Where the images are, so that they are found from any working folder; None for a set that has a name alone."""
    if not source.location or "://" in source.location:
        return source.location or None
    return os.path.abspath(source.location)


def note_test(run: Run, part: str, result: Evaluation) -> None:
    """Add to a run's events how its model does on a part of its data."""
    figures = {"part": part, "n": result.n, "loss": result.loss, "accuracy": result.accuracy}
    append_event(run.path / EVENTS, "tested", time=_now(), **figures)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Recorder:
    """Keeps `history.csv` and `events.jsonl` of a run up to date and, with `keep="all"`, a model file of each epoch.

    The best model is written as often as the state of training is, and where an error ends training: in between, the
    state holds it.
    """

    def __init__(self, run: Run, manifest: Manifest, keep: str = "best") -> None:
        self._run = run
        self._manifest = manifest
        self._keep = keep
        self._written = -1

    def __call__(self, event: Event) -> None:
        """Take note of an event of training; others are none of its business."""
        match event:
            case ProbeFitted(probe=probe):
                self._note("probe", **asdict(probe))
            case TrainingStarted(state=state):
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
                with suppress(OSError) if failed else nullcontext():  # the first error is the one to tell
                    self._save_best(state)
            case TrainingEnded(state=state):  # once more: a run killed after its last state has not written its epoch
                write_history(self._run.path / HISTORY, state.history)
                self._note("end", epoch=state.epoch, ended=state.ended)
            case Tested(part=part, result=result):
                note_test(self._run, part, result)

    def _note(self, event: str, **values: Any) -> None:
        append_event(self._run.path / EVENTS, event, time=_now(), **values)

    def _save_epoch(self, state: TrainState) -> None:
        write_history(self._run.path / HISTORY, state.history)
        if self._keep == "all":
            folder = self._run.path / "epochs"
            folder.mkdir(exist_ok=True)
            with swapped_weights(state.model, state.mean):
                save_model(folder / f"epoch-{state.epoch:03d}.safetensors", state.model, self._manifest)

    def _save_best(self, state: TrainState) -> None:
        """Write the best model, unless it is there."""
        best = state.result().best
        epoch = best.epoch if best is not None else 0
        if not state.best or epoch == self._written:
            return
        save_weights(self._run.model, state.best, self._manifest)
        self._written = epoch
