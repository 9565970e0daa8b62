"""Weights & Biases: offline, unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from imgclf.tracking.backend import MetricLogger, Pictures, Session, import_package

PROJECT = "imgclf"


class WandB(MetricLogger):
    """Logs to `project`, by default to WANDB_PROJECT or imgclf; its files are in the run folder or in WANDB_DIR."""

    name = "wandb"

    def __init__(self, project: str | None = None) -> None:
        self._wandb = import_package("wandb", "wandb", "Weights & Biases runs")
        self._project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._mode = os.environ.get("WANDB_MODE") or "offline"

    def location(self, session: Session) -> str:
        """The mode, the project, and the folder of its files."""
        return f"{self._mode}, project {self._project}, files in {os.path.join(self._folder(session), 'wandb')}"

    def _folder(self, session: Session) -> str:
        return os.environ.get("WANDB_DIR") or str(session.folder or ".")

    def open(self, session: Session) -> None:
        """The run of this key, new or resumed."""
        self._run = self._wandb.init(
            project=self._project,
            name=session.name,
            id=session.key,
            resume="allow" if self._mode == "online" else None,
            mode=self._mode,
            dir=self._folder(session),
            config=dict(session.settings),
            settings=self._wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """Between the epochs."""
        self._run.log({"epoch": epoch, "step_loss": loss, "step_lr": lr})

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """One row."""
        self._run.log({"epoch": epoch, **values})

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Under names of their own, as `valid_loss` is that of the epochs."""
        self._run.summary.update({f"kept_{name}": value for name, value in values.items()})

    def log_picture(self, name: str, pixels: Any) -> None:
        """Under its name."""
        self._run.log({name: self._wandb.Image(pixels)})

    def batch(self, pictures: Pictures) -> None:
        """Log the images one by one, with captions."""
        pairs = zip(pictures.images, pictures.captions, strict=True)
        self._run.log({pictures.name: [self._wandb.Image(pixels, caption=caption) for pixels, caption in pairs]})

    def close(self, ended: str) -> None:
        """Set how the run ended."""
        self._run.summary["ended"] = ended
        self._run.finish(exit_code=1 if ended == "failed" else 0)
