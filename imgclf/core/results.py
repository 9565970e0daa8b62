"""What came out: history, evaluation, predictions. Frozen values without torch; printing is the console's business."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


UNLIKELY = 0.01  # chance below which a learning curve's points don't follow its law
ENDED = ("done", "stopped early")  # how a run ends that comes to its end


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0…1) of train and, where there is one, of valid; the learning rate at its
    end; seconds; whether its weights are the best so far."""

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float | None
    valid_accuracy: float | None
    lr: float
    seconds: float
    best: bool


@dataclass(frozen=True)
class Decision:
    """One thing that was settled for a run: its name, the value in words, and the reason."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class LrCurve:
    """Learning rates in rising order, the smoothed training loss at each, and the rate to train with; None where no
    rate makes the loss fall."""

    rates: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    suggestion: float | None

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A linear head on frozen features: mean accuracy (0…1, ± `error`, its standard error) and loss by cross-validation
    on `images` training images, NaN where a `note` says why they were not measured; the L2 strength; seconds."""

    accuracy: float
    error: float
    loss: float
    strength: float
    images: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class History:
    """The epochs of a training run, in order, and how it ended (`done`, `stopped early`, `interrupted`)."""

    epochs: tuple[EpochRecord, ...] = ()
    ended: str = "done"

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def best(self) -> EpochRecord | None:
        """The epoch whose weights were kept; None before the first epoch has ended."""
        return next((record for record in reversed(self.epochs) if record.best), None)


@dataclass(frozen=True)
class ClassResult:
    """Precision, recall and F1 (0…1) of one class, and how many images of it there were: of none, it was not tested,
    and the figures are None."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int

    @property
    def hits(self) -> int:
        """How many of its images are right."""
        return round((self.recall or 0.0) * self.support)


@dataclass(frozen=True)
class CalibrationErrors:
    """How honest probabilities are: the expected calibration error (0…1), the mean negative log-likelihood in nats and
    the Brier score (0…2). Lower is better."""

    ece: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Calibration:
    """What a temperature does to the probabilities of `n` images: `before` as the network gives them, `after` as
    `predict` does. On the validation images, which the temperature was fitted on, this flatters."""

    temperature: float
    n: int
    before: CalibrationErrors
    after: CalibrationErrors


@dataclass(frozen=True)
class Intervals:
    """Where the figures of an evaluation may lie, (low, high) for each, with a confidence of 95 %."""

    accuracy: tuple[float, float]
    balanced_accuracy: tuple[float, float]
    macro_f1: tuple[float, float]
    loss: tuple[float, float]
    top5: tuple[float, float] | None = None


@dataclass(frozen=True)
class Evaluation:
    """How a model did on `n` labeled images. `confusion` holds the cells of the confusion matrix that are not 0, in
    rising order: (true class, predicted class, count), with indices into `per_class`.

    `loss` is the mean cross-entropy in nats, that of a `Classifier` at its temperature; `top5` is None where there are
    at most 10 classes. `balanced_accuracy` is the mean recall and `macro_f1` the mean F1 over the classes that have
    images. The figures of an epoch have no `intervals` and no `calibration`. `seen` of the images were trained or
    validated on as well (the same file, or one with equal pixels), and `unseen` are the figures without these: None
    where nothing was seen, or all.
    """

    n: int
    loss: float
    accuracy: float
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    per_class: tuple[ClassResult, ...] = field(repr=False)
    confusion: tuple[tuple[int, int, int], ...] = field(repr=False)
    intervals: Intervals | None = field(default=None, repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    seen: int = 0
    unseen: Evaluation | None = field(default=None, repr=False)

    def confusion_matrix(self, chosen: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Counts (k, k), a row for each true class and a column for each predicted one: of all classes or of those
        `chosen` by their index, in that order."""
        import numpy as np

        chosen = range(len(self.per_class)) if chosen is None else chosen
        place = {index: position for position, index in enumerate(chosen)}
        counts = np.zeros((len(place), len(place)), dtype=np.int64)
        for true, predicted, count in self.confusion:
            if true in place and predicted in place:
                counts[place[true], place[predicted]] = count
        return counts

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        values = asdict(replace(self, confusion=(), unseen=None))
        values["unseen"] = None if self.unseen is None else self.unseen.to_dict()
        names = [row.name for row in self.per_class]
        cells: dict[str, dict[str, int]] = {}
        for true, predicted, count in self.confusion:
            cells.setdefault(names[true], {})[names[predicted]] = count
        values["confusion"] = cells
        values["per_class"] = [{"class": row.pop("name"), **row} for row in values["per_class"]]
        if self.intervals is not None:
            values["intervals"] = {name: ends and list(ends) for name, ends in values["intervals"].items()}
        return values


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: `label` and `confidence` (0…1), the `top` classes, or an `error` and no label.

    `probabilities` maps every class to its probability; it is empty where there is an error. `unknown_score` says how
    unlike the training images it is, and `accepted` whether it may be one of the classes; None where nothing was asked.
    """

    path: str
    label: str | None
    confidence: float | None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict, repr=False)
    unknown_score: float | None = None
    accepted: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form: one object a line."""
        top = [{"label": label, "confidence": confidence} for label, confidence in self.top]
        names = ("path", "label", "confidence", "top", "unknown_score", "accepted", "error")
        return {name: top if name == "top" else getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where in one image a class is: `label`, with its probability `confidence` (0…1); or an `error` and no label.

    `pixels` is what the model saw, uint8 (height, width, channels), and `heat` says of each of these pixels how much it
    speaks for the class, float32 (height, width) from 0 to 1. It is 0 everywhere where nothing speaks for it. `cells`
    is the (height, width) of the feature maps that it was made of; None for a method without these.
    """

    path: str
    label: str | None
    confidence: float | None
    method: str
    heat: NDArray[np.float32] | None = field(default=None, repr=False)
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)
    cells: tuple[int, int] | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form, without the pixels and the heat."""
        names = ("path", "label", "confidence", "method", "error")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves no doubt about the sign."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class CurvePoint:
    """The mean accuracy (0…1) over `draws` of `images` training images, a `fraction` of all; the `interval` is that of
    the held-out images."""

    fraction: float
    images: int
    draws: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class PowerLaw:
    """The error (0…1) after n training images: `scale` · n^−`exponent` + `floor`."""

    scale: float
    exponent: float
    floor: float

    def error(self, images: float) -> float:
        """The error after so many training images."""
        return float(self.scale * images**-self.exponent + self.floor)


@dataclass(frozen=True)
class Band:
    """The fit as a line: numbers of images, and the accuracy there with the ends of its 95% interval."""

    images: tuple[float, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class ClassGain:
    """The predicted gain with twice as many images of one class: in overall accuracy, and in the recall of the class.

    `recall` is that with its `images` training images. None where it was not measured.
    """

    name: str
    images: int
    recall: float | None
    accuracy_gain: Estimate | None
    recall_gain: Estimate | None


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy on held-out images by the number of training images.

    Attributes:
        full: Whether the network itself was trained each time, not a linear head on frozen features.
        held_out: The number of held-out images.
        points: The measured accuracies.
        law: The fit.
        doubled: The predicted accuracy with twice as many images.
        gain: The predicted gain.
        misfit: The p-value of the fit (χ² test); if it is low, the prediction is not reliable.
        classes: The gain of each class.
        band: The fit as a line, up to twice as many images.
    """

    data: str
    arch: str
    full: bool
    held_out: int
    points: tuple[CurvePoint, ...]
    law: PowerLaw
    doubled: Estimate
    gain: Estimate
    misfit: float
    classes: tuple[ClassGain, ...]
    seconds: float
    band: Band = field(repr=False)

    @property
    def reliable(self) -> bool:
        """Whether the points follow the fit well enough to predict with it."""
        return self.misfit >= UNLIKELY

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)
