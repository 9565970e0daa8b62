"""What the page of a run is made of, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import Decision, Evaluation, History
from imgclf.data.dataset import Pixels
from imgclf.evaluation.predictions import Predictions
from imgclf.models.summary import LayerRow


@dataclass(frozen=True)
class Look:
    """What one look at an image found: its (height, width), its mean brightness 0…255 and, where it is to be shown, a
    small picture as a data URI; `tiny` says that its pixels are shown as squares."""

    sides: tuple[int, int]
    brightness: float
    picture: str = ""
    tiny: bool = False


@dataclass(frozen=True)
class Trained:
    """What was trained: the network, where its weights came from and how many it has (0 where it is not there), the
    pixels that it sees; of how many `members` it is made; whether it is a `probe`, a linear layer on frozen features.
    `layers` and `kernels`, float32 (n, channels, height, width) of the first convolution, are those of one member."""

    arch: str
    weights: str
    size: tuple[int, int]
    channels: int
    parameters: int = 0
    members: int = 1
    probe: bool = False
    layers: tuple[LayerRow, ...] = field(default=(), repr=False)
    kernels: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DataFacts:
    """The data of a run: its name, how many images of each class (in their order) each part holds, as
    `counts["cat"]["test"]`, what was found, and which parts the data themselves `brought`."""

    name: str
    counts: Mapping[str, Mapping[str, int]]
    findings: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    brought: tuple[str, ...] = ()

    def total(self, part: str) -> int:
        """How many images a part holds."""
        return sum(counts[part] for counts in self.counts.values())


@dataclass(frozen=True)
class Samples:
    """Training images as the model saw them, with their classes, and what was done to them in words."""

    images: tuple[Pixels, ...] = field(default=(), repr=False)
    titles: tuple[str, ...] = ()
    augmentation: str = "none"


@dataclass(frozen=True)
class NextSteps:
    """Commands for what to do next with a run, each "" where it can't run.

    They evaluate it, resume it, train it for longer, hold out a test part, or draw its learning curve. `data` is its
    data as other commands take them, `more_test` a value of `--split` that holds out more test images.
    """

    data: str = ""
    evaluate: str = ""
    resume: str = ""
    longer: str = ""
    hold_out: str = ""
    curve: str = ""
    more_test: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows.

    `predictions` are those for the images of `part`, None where there are none yet; `looks` are what was seen of these
    images, by ref; `sampled` are those of them that were drawn at random; `not_shown` says why there are no pictures,
    "" where there are. `commands` reproduce the run, each with its purpose; `facts` are named texts about the run.
    `start` is the loss and the accuracy on valid before the first epoch, where the head knew classes; `probed` says
    that this head had been fitted to frozen features. `members` are the runs that an ensemble joins, as commands take
    them; `offline` says that pretrained weights are installed.
    """

    name: str
    created: str
    status: str
    trained: Trained
    data: DataFacts
    history: History
    predictions: Predictions | None = None
    part: str = "test"
    looks: Mapping[str, Look] = field(default_factory=dict, repr=False)
    sampled: frozenset[str] = field(default=frozenset(), repr=False)
    not_shown: str = ""
    samples: Samples = field(default_factory=Samples)
    decisions: tuple[Decision, ...] = ()
    config: str = ""
    commands: tuple[tuple[str, str], ...] = ()
    start: tuple[float, float] | None = None
    probed: bool = False
    next_steps: NextSteps = field(default_factory=NextSteps)
    members: tuple[str, ...] = ()
    offline: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


def accuracy_interval(result: Evaluation) -> tuple[float, float]:
    """The 95% interval of the accuracy of predictions."""
    assert result.intervals is not None  # as predictions give them
    return result.intervals.accuracy
