"""How an evaluation looks in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli import _console as console
from imgclf.core.results import Calibration, ClassResult, Evaluation
from imgclf.core.text import percent, plural

if TYPE_CHECKING:
    from imgclf.storage.run_list import RunEntry

MAX_CONFUSION = 12  # classes whose confusion matrix fits a terminal


def show_evaluation(result: Evaluation, title: str) -> None:
    """The figures with their intervals, the per-class table and, for few classes, the confusion matrix, to stdout."""
    console.show(title)
    right, ends = round(result.accuracy * result.n), result.intervals
    assert ends is not None  # an epoch's evaluation has none, and is not shown here
    interval = f", 95 % interval {_range(ends.accuracy, 100, 1)}"
    console.show(f"accuracy {result.accuracy:.2%} ({right:,}/{result.n:,}){interval}")
    shares = [f"balanced accuracy {result.balanced_accuracy:.2%}{_within(ends.balanced_accuracy, 100, 1)}"]
    if result.top5 is not None:
        shares.append(f"top-5 {result.top5:.2%}{_within(ends.top5, 100, 1)}")
    f1, loss = _within(ends.macro_f1, 1, 3), _within(ends.loss, 1, 3)
    console.show(f"{', '.join(shares)}, macro-F1 {result.macro_f1:.4f}{f1}, loss {result.loss:.4f}{loss}")
    if result.seen:
        console.show(_seen(result))
    if result.calibration is not None:
        console.show(_calibration(result.calibration))
    console.show()
    console.show_table(["class", "precision", "recall", "F1", "images"], map(_class_row, result.per_class))
    untested = [row.name for row in result.per_class if not row.support]
    if untested:
        more = f" and {len(untested) - MAX_CONFUSION:,} more" if len(untested) > MAX_CONFUSION else ""
        console.show(f"not tested, as there are no images of them: {', '.join(untested[:MAX_CONFUSION])}{more}")
    console.show()
    names = [row.name for row in result.per_class]
    if len(names) <= MAX_CONFUSION:
        matrix = [[name, *counts] for name, counts in zip(names, result.confusion_matrix(), strict=True)]
        console.show_table(["true ↓  called →", *names], matrix)
        console.show()


def _class_row(row: ClassResult) -> list[str | None]:
    if row.precision is None or row.recall is None or row.f1 is None:
        return [row.name, None, None, None, "0"]
    return [row.name, f"{row.precision:.1%}", f"{row.recall:.1%}", f"{row.f1:.4f}", f"{row.support:,}"]


def _seen(result: Evaluation) -> str:
    """How many of the images training saw, and the accuracy without these."""
    new = result.unseen
    if new is None:
        return "all of these images were trained or validated on: the figures say nothing about new ones"
    assert new.intervals is not None
    right = f"{new.accuracy:.2%} ({round(new.accuracy * new.n):,}/{new.n:,})"
    interval = f", 95 % interval {_range(new.intervals.accuracy, 100, 1)}"
    were, them = ("image was", "it") if result.seen == 1 else ("images were", "them")
    saw = f"{result.seen:,} {were} trained or validated on"
    return f"{saw}; without {them}: accuracy {right}{interval}, loss {new.loss:.4f}"


def _within(ends: tuple[float, float] | None, scale: float, digits: int) -> str:
    return "" if ends is None else f" ({_range(ends, scale, digits)})"


def _range(ends: tuple[float, float], scale: float, digits: int) -> str:
    low, high = ends
    return f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"


def _calibration(found: Calibration) -> str:
    """How far confidence is from accuracy and, where there is a temperature, what it was without."""
    before = found.before
    line = f"calibration error {found.after.ece:.2%}, Brier {found.after.brier:.4f}"
    if found.temperature == 1:
        return line
    return f"{line} (at temperature {found.temperature:.2f}; without it {before.ece:.2%}, {before.brier:.4f})"


def figure(entry: RunEntry) -> str:
    """How good a run is, in words."""
    if entry.accuracy is None:
        return "no figure yet"
    return f"{percent(entry.accuracy)} of {plural(entry.n or 0, f'{entry.part} image')}"
