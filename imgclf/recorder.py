"""Writes a run folder while training goes on. A callback of training, and the only one that touches the disk."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imgclf.bundle import Manifest, save_model
from imgclf.data.audit import Audit
from imgclf.data.split import Split, write_split
from imgclf.run import CONFIG, EVENTS, HISTORY, SPLIT, Run, append_event, create_run, write_config, write_history
from imgclf.specs import Experiment, to_dict
from imgclf.training.callbacks import TrainState


def start_run(
    root: Path,
    name: str | None,
    manifest: Manifest,
    experiment: Experiment,
    split: Split,
    source: str | None,
    audit: Audit,
) -> Run:
    """A new run folder with its config and split. `source` is the data as the user named them."""
    info = {
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "status": "running",
        "source": source,
        "location": os.path.abspath(source) if source is not None and os.path.exists(source) else None,
        "data": manifest.data,
        "arch": manifest.spec.arch,
        "classes": list(manifest.classes),
        "recipe": to_dict(manifest.recipe),
        "weights": dict(manifest.weights),
        "versions": dict(manifest.versions),
        "bad": [[bad.ref, bad.reason] for bad in audit.bad],
        "ignored": list(audit.source.ignored),
        "findings": list(audit.findings),
    }
    run = create_run(root, name or f"{manifest.data}-{manifest.spec.arch}", info, exact=name is not None)
    write_config(run.path / CONFIG, experiment, source)
    write_split(split, run.path / SPLIT)
    return run


class Recorder:
    """Keeps `history.csv` and `events.jsonl` of a run up to date and, with `keep="all"`, a model file of each epoch."""

    def __init__(self, run: Run, manifest: Manifest, keep: str = "best") -> None:
        self._run = run
        self._manifest = manifest
        self._keep = keep

    def __call__(self, event: str, subject: Any) -> None:
        """Take note of an event of training; others are none of its business."""
        if not isinstance(subject, TrainState) or event == "step":
            return
        values: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "epoch": subject.epoch}
        if event == "start":
            values |= {"device": str(subject.device), "precision": str(subject.precision).removeprefix("torch.")}
        elif event == "epoch":
            values |= asdict(subject.history[-1])
            write_history(self._run.path / HISTORY, subject.history)
            if subject.history[-1].best:  # a run that ends badly later on still leaves its best model
                save_model(self._run.model, subject.model, self._manifest)
            if self._keep == "all":
                folder = self._run.path / "epochs"
                folder.mkdir(exist_ok=True)
                save_model(folder / f"epoch-{subject.epoch:03d}.safetensors", subject.model, self._manifest)
        elif event == "retry":
            values["lr_scale"] = subject.lr_scale
        elif event == "end":
            values["ended"] = subject.ended
        append_event(self._run.path / EVENTS, event, **values)
