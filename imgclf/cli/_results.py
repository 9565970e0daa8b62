"""How an evaluation looks in a terminal."""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.cli import _console as console
from imgclf.results import Evaluation

if TYPE_CHECKING:
    from imgclf.data.source import Source
    from imgclf.evaluation.answers import Answers

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


def write_page(run: Path, model: Any, answers: Mapping[str, Answers], source: Source) -> Path | None:
    """Write the report of a run. Where it fails that is a warning: the result does not depend on it."""
    try:
        from imgclf.reporting import Known, write_report

        with console.progress("writing the report") as progress:
            return write_report(run, known=Known(model, answers, source), progress=progress)
    except Exception as error:
        if os.environ.get("IMGCLF_DEBUG"):
            for line in traceback.format_exc().splitlines():
                console.say(line)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        console.warn(f"the report is not written: {reason}; for another try: imgclf report {shlex.quote(str(run))}")
        return None
