"""Weights & Biases: offline, unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
from typing import Any

from imgclf.core.errors import MissingExtra
from imgclf.core.results import EpochRecord, Evaluation
from imgclf.tracking.backend import Backend, Pictures, Session, draw_confusion, epoch_figures, figures

PROJECT = "imgclf"


class WandB(Backend):
    """Logs to `project`, else to WANDB_PROJECT, else to imgclf; the files lie in the run folder, or in WANDB_DIR."""

    name = "wandb"

    def __init__(self, project: str | None = None) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtra("wandb", "Weights & Biases runs") from None
        self._wandb: Any = wandb
        self._project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._mode = os.environ.get("WANDB_MODE") or "offline"

    def where(self, session: Session) -> str:
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

    def baseline(self, result: Evaluation) -> None:
        """Epoch 0."""
        self._run.log({"epoch": 0, "valid_loss": result.loss, "valid_accuracy": result.accuracy})

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """Between the epochs."""
        self._run.log({"epoch": epoch, "step_loss": loss, "step_lr": lr})

    def epoch(self, record: EpochRecord) -> None:
        """The columns of history.csv."""
        self._run.log({"epoch": record.epoch, **epoch_figures(record)})

    def batch(self, pictures: Pictures) -> None:
        """Image by image, with captions."""
        self._run.log({pictures.name: self._images(pictures)})

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """Figures into the summary; the images, and the confusion matrix as a picture."""
        self._run.summary.update({f"kept_{name}": value for name, value in figures(result, part).items()})
        matrix = self._wandb.Image(draw_confusion(result))
        self._run.log({pictures.name: self._images(pictures), f"{part}-confusion": matrix})

    def _images(self, pictures: Pictures) -> list[Any]:
        pairs = zip(pictures.images, pictures.captions, strict=True)
        return [self._wandb.Image(pixels, caption=caption) for pixels, caption in pairs]

    def close(self, ended: str) -> None:
        """How it ended."""
        self._run.summary["ended"] = ended
        self._run.finish(exit_code=1 if ended == "failed" else 0)
