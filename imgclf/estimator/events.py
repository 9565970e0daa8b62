"""Events of a `fit` around those of training; the two that carry a plan stand beside it, in `plan.py`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imgclf.core.results import Decision, Evaluation, Probe
from imgclf.data.audit import Audit
from imgclf.data.dataset import Source
from imgclf.data.loading.loader import Loader
from imgclf.data.split import Split
from imgclf.evaluation.inference import PreviewPrediction
from imgclf.report.advice import Advice
from imgclf.training.events import Event


@dataclass(frozen=True)
class SourceOpened(Event):
    """The data set was opened."""

    source: Source


@dataclass(frozen=True)
class ImagesChecked(Event):
    """Every image was checked."""

    audit: Audit

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong about the images."""
        return self.audit.all_findings


@dataclass(frozen=True)
class DataSplit(Event):
    """Train, valid and test are known."""

    split: Split

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong about the split."""
        return self.split.findings


@dataclass(frozen=True)
class LoaderMade(Event):
    """The training images can be read."""

    loader: Loader


@dataclass(frozen=True)
class ProbeFitted(Event):
    """The linear head on frozen features is fitted."""

    probe: Probe


@dataclass(frozen=True)
class DecisionsMade(Event):
    """What was decided before the first step, and why."""

    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Tested(Event):
    """The weights that are kept were tested on a `part` of the data; `sample` gives the answers for a few images."""

    part: str
    result: Evaluation
    sample: Callable[[], Sequence[PreviewPrediction]] = field(repr=False)


@dataclass(frozen=True)
class FitEnded(Event):
    """Training, which ended so, and the test are done and written: only the report may follow."""

    ended: str


@dataclass(frozen=True)
class ReportWritten(Event):
    """The report of the run is there; `advice` is what to do before the model is used, if anything."""

    path: Path
    advice: Advice | None


@dataclass(frozen=True)
class ReportFailed(Event):
    """The report of the run in a folder could not be written, which changes nothing about the result."""

    folder: Path
    error: BaseException

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why, and how to try again."""
        reason = next(iter(str(self.error).splitlines()), type(self.error).__name__)
        reason = "interrupted" if isinstance(self.error, KeyboardInterrupt) else reason
        again = f"imgclf report {shlex.quote(str(self.folder))}"
        return (f"the report is not written: {reason}; for another try: {again}",)
