"""What a tracker is told: plain values, copied from training, so that it may take its time with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.core.results import EpochRecord, Evaluation

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from imgclf.data.dataset import Pixels

MOST_CLASSES = 100  # of a confusion matrix that can be looked at
RIGHT, WRONG, NEUTRAL = (0, 120, 0), (190, 0, 0), (40, 40, 40)


@dataclass(frozen=True)
class Session:
    """One run: its name, its folder if it has one, a `key` that is the same when it is resumed, and its settings."""

    name: str
    folder: Path | None
    key: str
    settings: Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Pictures:
    """Images uint8 (height, width, 1 or 3) under their captions; `right` says of each whether the model knew it.

    `name` is for tags and files, `title` for people.
    """

    name: str
    title: str
    images: tuple[Pixels, ...] = field(repr=False)
    captions: tuple[str, ...]
    right: tuple[bool, ...] = ()

    def draw(self) -> Pixels:
        """All of them as one picture, uint8 (height, width, 3)."""
        from imgclf.plots.figures import draw_grid

        return draw_grid(self.images, self.captions, [RIGHT if r else WRONG for r in self.right] or [NEUTRAL])


class Backend:
    """Follows runs, one after the other. A subclass says where it does and overrides what it has a use for.

    All but `where` and `prepare` is called on a thread of the tracker's own, and may fail or hang: then this sink is
    left alone for the rest of the run. `start`, `step` and `epoch` should only take note: `flush` follows within a
    second or, where that takes long, within fifty times as much.
    """

    name = "sink"

    def where(self, session: Session) -> str:
        """Where the run will be found, in words; `ConfigError` where there is no place for it."""
        raise NotImplementedError

    def prepare(self, session: Session, model: nn.Module, example: torch.Tensor) -> str:
        """A look at the model, which is in the mode of evaluation, before training begins; it must stay as it is.

        Gives what to warn of, "" for nothing.
        """
        return ""

    def open(self, session: Session) -> None:
        """A run begins, or goes on."""

    def start(self, history: Sequence[EpochRecord]) -> None:
        """The first step comes now; `history` are the epochs of a run that goes on."""

    def baseline(self, result: Evaluation) -> None:
        """How the model does on valid before its first step."""

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """The mean training loss since the last such call; `epoch` counts parts of epochs too, `number` all steps."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""

    def batch(self, pictures: Pictures) -> None:
        """Training images as the model sees them."""

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """How the weights that are kept do on the part "valid" or "test", with a few of its images."""

    def flush(self) -> None:
        """Pass on what was noted."""

    def close(self, ended: str) -> None:
        """The run has ended: `done`, `stopped early`, `interrupted` or `failed`."""


def figures(result: Evaluation, part: str) -> dict[str, float]:
    """The figures of an evaluation that are told, as `test_accuracy` and so on."""
    names = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
    return {f"{part}_{name}": float(getattr(result, name)) for name in names}


def epoch_figures(record: EpochRecord) -> dict[str, float]:
    """The figures of an epoch that are told, by the names that `history.csv` gives them."""
    names = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr", "seconds")
    values: dict[str, Any] = {name: getattr(record, name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None}


def shown_confusion(result: Evaluation) -> tuple[tuple[str, ...], NDArray[np.int64], str]:
    """The classes of a confusion matrix, its counts, and a note: of many classes those with the most mistakes."""
    names = tuple(row.name for row in result.per_class)
    if len(names) <= MOST_CLASSES:
        return names, result.confusion_matrix(), ""
    mistakes: Counter[int] = Counter()
    for true, predicted, count in result.confusion:
        if true != predicted:
            mistakes.update({true: count, predicted: count})
    chosen = sorted(sorted(range(len(names)), key=lambda index: -mistakes[index])[:MOST_CLASSES])
    note = f", the {MOST_CLASSES} of {len(names):,} classes with the most mistakes"
    return tuple(names[i] for i in chosen), result.confusion_matrix(chosen), note


def draw_confusion(result: Evaluation) -> Pixels:
    """A confusion matrix as a picture, uint8 (height, width, 3)."""
    from imgclf.plots.figures import draw_matrix

    names, counts, _ = shown_confusion(result)
    return draw_matrix(counts, names)


def settings_text(settings: Mapping[str, object]) -> str:
    """The settings as a table in Markdown."""
    rows = [f"| {key} | {_cell(value)} |" for key, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
