"""Events of studies that train more than once; `TrialEnded` is in `tune.py`, with `Trial`."""

from __future__ import annotations

from dataclasses import dataclass

from imgclf.core.results import CurvePoint, Evaluation
from imgclf.training.events import Event


@dataclass(frozen=True)
class NextTraining(Event):
    """One of several trainings begins: its number from 1, of `total`."""

    number: int
    total: int


@dataclass(frozen=True)
class EnsembleValidated(Event):
    """How each member does on valid, and last how they do together."""

    results: tuple[Evaluation, ...]


@dataclass(frozen=True)
class TrainingsPlanned(Event):
    """How many trainings a learning curve takes, and about how many seconds their steps."""

    count: int
    seconds: float


@dataclass(frozen=True)
class CurvePointMeasured(Event):
    """The accuracy for one number of training images is known."""

    point: CurvePoint
