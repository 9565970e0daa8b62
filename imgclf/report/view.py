"""What the page of a run is made of, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from imgclf.core.config import ExperimentConfig
from imgclf.core.results import Evaluation, History
from imgclf.data.dataset import Pixels
from imgclf.evaluation.predictions import Predictions
from imgclf.models.summary import LayerRow
from imgclf.storage.run_folder import AT_WORK, RunInfo


@dataclass(frozen=True)
class Look:
    """What one look at an image found: its (height, width), its mean brightness 0…255 and, where it is to be shown, a
    small picture as a data URI; `tiny` says that its pixels are shown as squares."""

    sides: tuple[int, int]
    brightness: float
    picture: str = ""
    tiny: bool = False


@dataclass(frozen=True)
class Network:
    """The network of a run: its number of parameters and, of one member, its layers and the kernels of its first
    convolution, float32 (n, channels, height, width). All empty where the model file is missing."""

    parameters: int = 0
    layers: tuple[LayerRow, ...] = field(default=(), repr=False)
    kernels: NDArray[np.float32] | None = field(default=None, repr=False)


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

    Attributes:
        name: The name of the run folder.
        info: What its `run.json` holds.
        experiment: What its `config.toml` holds; `config` is the same as text.
        counts: Images by class (in the order of the classes) and part, as in `counts["cat"]["test"]`.
        predictions: Those for the images of `part`; None where there are none.
        looks: The images of these predictions that could be read, by ref.
        sampled: The refs of random images, for the accuracy by subgroup.
        not_shown: Why there are no pictures; "" where there are.
        commands: They reproduce the run; each with its purpose.
        start: Loss and accuracy on valid before the first epoch, where the head knew the classes.
        offline: Whether `imgclf[offline]` is installed.
        facts: Texts about the run by name.
    """

    name: str
    info: RunInfo
    experiment: ExperimentConfig
    counts: Mapping[str, Mapping[str, int]]
    history: History
    network: Network = field(default_factory=Network)
    predictions: Predictions | None = None
    part: str = "test"
    looks: Mapping[str, Look] = field(default_factory=dict, repr=False)
    sampled: frozenset[str] = field(default=frozenset(), repr=False)
    not_shown: str = ""
    samples: Samples = field(default_factory=Samples)
    config: str = ""
    commands: tuple[tuple[str, str], ...] = ()
    start: tuple[float, float] | None = None
    next_steps: NextSteps = field(default_factory=NextSteps)
    offline: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """How the run ended, in words."""
        return "not finished" if self.info.status in AT_WORK else self.info.status

    @property
    def probed(self) -> bool:
        """Whether training began with a linear probe."""
        return bool(self.experiment.train.probe)

    @property
    def weights(self) -> str:
        """Where the weights came from."""
        return str(self.info.weights["source"])

    def total(self, part: str) -> int:
        """The number of images of a part."""
        return sum(counts[part] for counts in self.counts.values())


def accuracy_interval(result: Evaluation) -> tuple[float, float]:
    """The 95% interval of the accuracy of predictions."""
    assert result.intervals is not None  # as predictions give them
    return result.intervals.accuracy
