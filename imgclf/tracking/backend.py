"""The interface of a tracker's backend. It gets plain values, copied from training, and may take its time with them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.core.errors import MissingExtra
from imgclf.core.results import EpochRecord, Evaluation

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from imgclf.data.dataset import Pixels

MAX_CONFUSION_CLASSES = 100  # in a confusion matrix that can still be read
CORRECT_COLOR, WRONG_COLOR, PLAIN_COLOR = (0, 120, 0), (190, 0, 0), (40, 40, 40)


@dataclass(frozen=True)
class Session:
    """One run: its name, its folder if it has one, a `key` that stays the same on resume, and its settings."""

    name: str
    folder: Path | None
    key: str
    settings: Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Pictures:
    """Images uint8 (height, width, 1 or 3) with captions; `correct` tells which of them the model classified correctly.

    `name` is for tags and files, `title` for people.
    """

    name: str
    title: str
    images: tuple[Pixels, ...] = field(repr=False)
    captions: tuple[str, ...]
    correct: tuple[bool, ...] = ()

    def draw(self) -> Pixels:
        """All images in one picture, uint8 (height, width, 3)."""
        from imgclf.plots.grids import draw_grid

        colors = [CORRECT_COLOR if correct else WRONG_COLOR for correct in self.correct]
        return draw_grid(self.images, self.captions, colors or [PLAIN_COLOR])


class Backend:
    """Follows runs, one after the other. A subclass implements `location` and overrides the methods that it needs.

    The tracker calls everything but `location` and `prepare` on a thread of its own. A call may fail or hang: the
    backend then gets no more calls in this run. `start`, `step` and `epoch` should only store their values: `flush`
    follows within a second or, after a flush that took long, within fifty times its duration.
    """

    name = "backend"

    def location(self, session: Session) -> str:
        """Where the run will be shown, for the user to read.

        Raises:
            ConfigError: It can't be shown there.
        """
        raise NotImplementedError

    def prepare(self, session: Session, model: nn.Module, example: torch.Tensor) -> str:
        """Look at the model before training begins.

        Args:
            session: The run.
            model: The network in evaluation mode, which must not be changed.
            example: An input of it, float32 (1, channels, height, width).

        Returns:
            A warning, "" for none.
        """
        return ""

    def open(self, session: Session) -> None:
        """A run begins or is resumed."""

    def start(self, history: Sequence[EpochRecord]) -> None:
        """The first step follows; `history` holds the epochs before a resume."""

    def baseline(self, result: Evaluation) -> None:
        """The validation result before the first step."""

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """A report within an epoch.

        Args:
            epoch: Epochs trained, with a fraction.
            number: Steps trained, of all epochs.
            loss: The mean training loss since the last report.
            lr: The learning rate.
        """

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""

    def batch(self, pictures: Pictures) -> None:
        """The first training images as the model sees them."""

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """The final weights were tested.

        Args:
            part: "valid" or "test".
            result: The metrics on it.
            pictures: A few of its images with their predictions.
        """

    def flush(self) -> None:
        """Send what was stored."""

    def close(self, ended: str) -> None:
        """The run has ended: `done`, `stopped early`, `interrupted` or `failed`."""


class MetricLogger(Backend):
    """A backend that logs numbers by name and epoch, and pictures by name; a subclass overrides the ways to log."""

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the metrics of an epoch, by the column names of `history.csv`; epoch 0 is before training."""

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Log metrics of the final weights, `test_accuracy` and so on."""

    def log_picture(self, name: str, pixels: Pixels) -> None:
        """Log one picture, uint8 (height, width, 3)."""

    def baseline(self, result: Evaluation) -> None:
        """Log it as epoch 0."""
        self.log_metrics({"valid_loss": result.loss, "valid_accuracy": result.accuracy}, 0)

    def epoch(self, record: EpochRecord) -> None:
        """Log the metrics of the epoch."""
        values = {name: float(value) for name, value in asdict(record).items() if value is not None}
        self.log_metrics({name: value for name, value in values.items() if name not in ("epoch", "best")}, record.epoch)

    def batch(self, pictures: Pictures) -> None:
        """Log the images as one picture."""
        self.log_picture(pictures.name, pictures.draw())

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """Log the metrics, the images with their predictions, and the confusion matrix."""
        names = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
        self.log_summary({f"{part}_{name}": float(getattr(result, name)) for name in names})
        self.batch(pictures)
        self.log_picture(f"{part}-confusion", draw_confusion(result))


def import_package(module: str, extra: str, purpose: str) -> Any:
    """The package behind a backend.

    Args:
        module: The name to import.
        extra: The extra of imgclf that installs it.
        purpose: What it is needed for, in words.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(extra, purpose) from None


def readable_confusion(result: Evaluation) -> tuple[tuple[str, ...], NDArray[np.int64], str]:
    """The classes of a confusion matrix, its counts, and a note: of many classes only the most confused ones."""
    from imgclf.report.confusion import most_confused_classes

    names = tuple(row.name for row in result.per_class)
    if len(names) <= MAX_CONFUSION_CLASSES:
        return names, result.confusion_matrix(), ""
    chosen = most_confused_classes(result, MAX_CONFUSION_CLASSES)
    note = f", the {MAX_CONFUSION_CLASSES} most confused of {len(names):,} classes"
    return tuple(names[i] for i in chosen), result.confusion_matrix(chosen), note


def draw_confusion(result: Evaluation) -> Pixels:
    """A confusion matrix as a picture, uint8 (height, width, 3)."""
    from imgclf.plots.grids import draw_matrix

    names, counts, _ = readable_confusion(result)
    return draw_matrix(counts, names)
