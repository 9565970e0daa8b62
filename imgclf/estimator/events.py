"""Events of a `fit` around those of training; the two that carry a plan stand beside it, in `plan.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from imgclf.core.results import Decision, Evaluation, Probe
from imgclf.data.audit import Audit
from imgclf.data.dataset import Source
from imgclf.data.loading.loader import Loader
from imgclf.data.split import Split
from imgclf.evaluation.inference import PreviewPrediction
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
    """`fit` has done all it does, and training ended so: nothing more comes."""

    ended: str
