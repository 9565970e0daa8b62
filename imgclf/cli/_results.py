"""How an evaluation looks in a terminal."""

from __future__ import annotations

from imgclf.cli import _console as console
from imgclf.results import Evaluation

MAX_CONFUSION = 12  # classes whose confusion matrix fits a terminal


def show_evaluation(result: Evaluation, title: str) -> None:
    """Accuracy and loss, the per-class table and, for few classes, the confusion matrix, to stdout."""
    console.show(title)
    right = round(result.accuracy * result.n)
    console.show(f"accuracy {result.accuracy:.2%} ({right:,}/{result.n:,}), loss {result.loss:.4f}")
    more = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
    console.show(f"balanced accuracy {result.balanced_accuracy:.2%}, macro-F1 {result.macro_f1:.4f}{more}")
    console.show()
    rows = [
        [row.name, f"{row.precision:.1%}", f"{row.recall:.1%}", f"{row.f1:.4f}", f"{row.support:,}"]
        for row in result.per_class
    ]
    console.show_table(["class", "precision", "recall", "F1", "images"], rows)
    console.show()
    names = [row.name for row in result.per_class]
    if len(names) <= MAX_CONFUSION:
        matrix = [[name, *counts] for name, counts in zip(names, result.confusion, strict=True)]
        console.show_table(["true ↓  called →", *names], matrix)
        console.show()
