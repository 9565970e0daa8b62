"""How an evaluation looks in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli import _console as console
from imgclf.core.results import Calibration, ClassResult, Evaluation
from imgclf.core.text import first_few, percent, percent_range, plural

if TYPE_CHECKING:
    from imgclf.storage.run_list import RunEntry

MAX_CONFUSION = 12  # classes whose confusion matrix fits a terminal


def show_evaluation(result: Evaluation, title: str) -> None:
    """The figures with their intervals, the per-class table and, for few classes, the confusion matrix, to stdout."""
    console.show(title)
    ends = result.intervals
    assert ends is not None  # an epoch's evaluation has none, and is not shown here
    if (new := result.unseen) is not None:
        console.show(f"unseen images: accuracy {_accuracy(new)}, loss {new.loss:.3f}")
    console.show(f"{'' if new is None else 'all images: '}accuracy {_accuracy(result)}")
    shares = [f"balanced accuracy {percent(result.balanced_accuracy)}{_within(ends.balanced_accuracy)}"]
    if result.top5 is not None:
        shares.append(f"top-5 {percent(result.top5)}{_within(ends.top5)}")
    shares.append(f"macro-F1 {percent(result.macro_f1)}{_within(ends.macro_f1)}")
    loss = "" if ends.loss is None else f" ({ends.loss[0]:.3f}–{ends.loss[1]:.3f})"
    console.show(f"{', '.join(shares)}, loss {result.loss:.3f}{loss}")
    if result.seen == result.n:
        console.show("all of these images were used for training or validation: new images may give other results")
    if result.calibration is not None:
        console.show(_calibration(result.calibration))
    console.show()
    console.show_table(["class", "precision", "recall", "F1", "images"], map(_class_row, result.per_class))
    untested = [row.name for row in result.per_class if not row.support]
    if untested:
        console.show(f"not tested (no test images): {first_few(untested, MAX_CONFUSION)}")
    console.show()
    names = [row.name for row in result.per_class]
    if len(names) <= MAX_CONFUSION:
        matrix = [[name, *counts] for name, counts in zip(names, result.confusion_matrix(), strict=True)]
        console.show_table(["true ↓  predicted →", *names], matrix)
        console.show()


def _class_row(row: ClassResult) -> list[str | None]:
    if row.precision is None or row.recall is None or row.f1 is None:
        return [row.name, None, None, None, "0"]
    return [row.name, percent(row.precision), percent(row.recall), percent(row.f1), f"{row.support:,}"]


def _accuracy(result: Evaluation) -> str:
    """`90.7% (39 of 43), 95% interval 78.4–96.3%`."""
    assert result.intervals is not None
    share = f"{percent(result.accuracy)} ({round(result.accuracy * result.n):,} of {result.n:,})"
    return f"{share}, 95% interval {percent_range(*result.intervals.accuracy)}"


def _within(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" ({percent_range(*ends)})"


def _calibration(found: Calibration) -> str:
    """How far confidence is from accuracy and, where there is a temperature, what it was before calibration."""
    before = found.before
    if found.temperature == 1:
        return f"calibration error {percent(found.after.ece)}, Brier {found.after.brier:.3f} (not calibrated)"
    error = f"calibration error {percent(found.after.ece)} ({percent(before.ece)} before calibration)"
    return f"{error}, Brier {found.after.brier:.3f} ({before.brier:.3f})"


def figure(entry: RunEntry) -> str:
    """How good a run is, in words."""
    if entry.accuracy is None:
        return "no accuracy yet"
    return f"{percent(entry.accuracy)} of {plural(entry.n or 0, f'{entry.part} image')}"
