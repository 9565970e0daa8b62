"""What was asked for, as frozen values: pixels, model, training. Without torch, and to JSON or TOML and back.

Every value is checked when it is made; the error names the field, what was given and what is allowed. Bounds, choices,
default and help text of a field stand here, and nowhere else: checks, command line, JSON schema and docs come from it.
A default of None means "the backbone's own" or "chosen from the data".
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from imgclf.core.arguments import plain
from imgclf.core.errors import ConfigError
from imgclf.core.options import Option, option, option_fields, require_field
from imgclf.core.registry import name_meant

CUSTOM = "custom"  # a pipeline of the user's own: no preset, so a config that names it is refused
TABLES = {"ExperimentConfig": "", "DataConfig": " in [data]", "TrainConfig": " in [train]"}  # of a config file
T = TypeVar("T")

RESIZE_MODES = ("crop", "pad", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "onecycle")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BACKENDS = ("auto", "torch", "openvino")
STEPS = (
    *("resized_crop", "random_crop", "affine", "flip", "alternating_flip", "color_jitter", "erase", "trivial"),
    *("mixup", "cutmix"),
)
CACHES = ("auto", "device", "ram", "disk", "off")
EXPLAIN_METHODS = ("gradcam", "gradcam++", "occlusion")
DEPTHS = ("integer", "float")
DEVICE_NAME = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
MAX_SIDE = 4096
MAX_LEVEL = 3.5e38  # no float image holds more
DATA, MODEL, TRAINING, OUTPUT = PANELS = ("Data", "Model and pixels", "Training", "Output")
_data, _model, _training, _output = (partial(option, panel=panel) for panel in PANELS)


class Checked:
    """A config whose fields are checked when it is made.

    It holds NumPy's numbers as Python's, and paths as text: a config goes to JSON and back.
    """

    def __post_init__(self: Any) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name, each in option_fields(self.__class__).items():
            require_field(each.accepts(getattr(self, name)), self, name, each.allowed)


def parse_size(text: str) -> tuple[int, int]:
    """`"64"` or `"64x128"` (height × width) as (height, width) in pixels."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip().lower())
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ConfigError(f"size is {text!r}; allowed: N or HxW in pixels, 1 to {MAX_SIDE}, as in 224 or 64x128")
    return height, width


def parse_duration(text: str) -> float:
    """`"90"`, `"90s"`, `"10m"` or `"2h"` as seconds."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not match:
        raise ConfigError(f"checkpoint_every is {text!r}; allowed: a number with s, m or h, as in 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_split(text: str) -> tuple[float, float, float]:
    """`"80/10/10"` or `"0.8/0.1/0.1"` as fractions of train, valid and test that sum to 1."""
    try:
        parts = [float(part) for part in text.replace(",", "/").split("/")]
    except ValueError:
        parts = []
    total = sum(parts)
    if len(parts) != 3 or not all(math.isfinite(p) and p >= 0 for p in parts) or parts[0] <= 0:
        raise ConfigError(f"split is {text!r}; allowed: TRAIN/VALID/TEST in percent, as in 80/10/10, train above 0")
    if not (math.isclose(total, 100, abs_tol=0.01) or math.isclose(total, 1, abs_tol=1e-4)):
        raise ConfigError(f"split is {text!r}, which sums to {total:g}; the three parts must sum to 100")
    return parts[0] / total, parts[1] / total, parts[2] / total


def parse_share(text: str) -> float:
    """`"10%"`, `"10"` or `"0.1"` as 0.1."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise ConfigError(f"allow_unreadable is {text!r}; allowed: percent or a fraction, as in 10% or 0.1") from None
    return number / 100 if text.endswith("%") or number >= 1 else number


def parse_batch_size(text: str) -> int:
    """`"64"` as 64, `"auto"` as 0."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"batch_size is {text!r}; allowed: a number of images, or auto")
    return int(text)


def parse_stages(text: str) -> int | None:
    """`"3"` as 3, `"auto"` as None."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) > 11:
        raise ConfigError(f"freeze_stages is {text!r}; allowed: 0 to 11, or auto")
    return int(text)


# What several configs have.
_ARCH = Option(allowed="the name of an architecture")
_SIZE = Option(ge=1, le=MAX_SIDE, allowed=f"(height, width) in pixels, each 1 to {MAX_SIDE}", parse=parse_size)
_CHANNELS = Option(ge=1, le=64)
_DROPOUT = Option(ge=0, lt=1)
_RESIZE_MODE = Option(choices=RESIZE_MODES)
_MEAN = Option(ge=-1000, le=1000, allowed="one number per channel, -1000 to 1000")
_STD = Option(ge=1e-6, le=1000, allowed="one number per channel, above 0, to 1000")
_TTA = Option(choices=("none", "mirror", "mirror-shift"))
_LEVEL = Option(ge=-MAX_LEVEL, le=MAX_LEVEL, allowed="a number that is finite")


@dataclass(frozen=True)
class AugmentStep(Checked):
    """One augmentation as data: the name of an operation and its parameters (JSON values); see `transforms.steps`."""

    op: str = option(choices=STEPS)
    params: Mapping[str, Any] = field(default_factory=dict, metadata={"option": Option(allowed="a table")})


@dataclass(frozen=True)
class Levels(Checked):
    """The values of images of more than 8 bits that become 0 and 255; what lies beyond is cut.

    `kind` says of which images: those of whole numbers (`integer`) or of fractions (`float`).
    """

    kind: str = option(choices=DEPTHS)
    low: float = option(like=_LEVEL)
    high: float = option(like=_LEVEL)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_field(self.low <= self.high, self, "high", f"at least low, {self.low!r}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" (floats)" if self.kind == "float" else "")


@dataclass(frozen=True)
class PreprocessConfig(Checked):
    """Which pixels a model sees. Sizes are (height, width) in pixels; mean and std are of values in 0…1.

    `resize_mode` says how an image of another shape gets to `size`: `crop` covers it and cuts the center, `pad` fits
    inside and fills up with the mean color, `squash` changes the aspect. `crop_pct` (as in timm) is the share of the
    resized side that is kept of the center: 1 keeps the whole, and above it there is a border. `steps` augment training
    images only. `compose` is a user's own albumentations pipeline as `A.to_dict` gives it, and takes the place of
    `steps`. `tta` "mirror" averages the logits of an image and of its mirror image, "mirror-shift" also those of both,
    moved by a pixel along the diagonal. `levels` are those of images of more than 8 bits, one for each kind that the
    training images have; images of another kind are read by the rules of `data.images.read_image`.
    """

    size: tuple[int, int] = option((224, 224), like=_SIZE)
    channels: int = option(3, like=_CHANNELS)
    resize_mode: str = option("crop", like=_RESIZE_MODE)
    interpolation: str = option("bilinear", choices=INTERPOLATIONS)
    crop_pct: float = option(1.0, ge=0.1, le=2)
    mean: tuple[float, ...] = option((0.5,), like=_MEAN)
    std: tuple[float, ...] = option((0.5,), like=_STD)
    steps: tuple[AugmentStep, ...] = option((), allowed="a tuple of AugmentStep")
    compose: Mapping[str, Any] | None = option(None, allowed="a table, or none")
    tta: str = option("none", like=_TTA)
    levels: tuple[Levels, ...] = option((), allowed="a tuple of Levels, each of another kind")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) == 1:
                object.__setattr__(self, name, values * self.channels)
            require_field(len(values) in (1, self.channels), self, name, f"one number per channel ({self.channels})")
        distinct = len({each.kind for each in self.levels}) == len(self.levels)
        require_field(distinct, self, "levels", "a tuple of Levels, each of another kind")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Enough to rebuild an empty network: architecture, classes, input and options. `size` is (height, width).

    `members` above 1 are so many networks that answer together (`models/ensemble.py`).
    """

    arch: str = option(like=_ARCH)
    classes: int = option(ge=1, le=1_000_000)
    channels: int = option(3, like=_CHANNELS)
    size: tuple[int, int] = option((224, 224), like=_SIZE)
    dropout: float | None = option(None, like=_DROPOUT)
    members: int = option(1, ge=1, le=100)


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Every choice of training. What is None is chosen from the start of the weights and the number of images.

    `probe` begins with a linear head on frozen features (`training/linear_probe.py`), and 0 `epochs` end there; before
    the first step, once its predictions on valid are known, that head is multiplied by `head_scale`. An epoch is one
    pass over the training images, or `epoch_steps` steps.
    """

    probe: bool | None = option(None)
    epochs: int | None = _training(
        None,
        "Passes over the training images",
        "by the number of images",
        ge=0,
        le=100_000,
        special={0: "a linear probe only"},
    )
    epoch_steps: int | None = option(None, ge=1)
    minutes: float | None = _training(
        None, "Time limit for training; sets the number of epochs", "none", gt=0, le=1_000_000
    )
    batch_size: int = _training(
        32,
        "Images per step, or auto (0 in a config file): the most that fit in memory",
        ge=0,
        le=1_000_000,
        allowed="1 or more, or 0 (the largest that fits)",
        parse=parse_batch_size,
    )
    lr: float | None = _training(None, "Learning rate of the last layers", "by optimizer and weights", gt=0, le=1000)
    layer_decay: float | None = _training(
        None,
        "Layer-wise learning rate decay: factor for each twelfth of the depth, from the last layers to the first",
        "0.8 for pretrained weights with adam and adamw",
        gt=0,
        le=1,
        special={1: "off"},
    )
    optimizer: str = _training("adamw", "Optimizer", choices=OPTIMIZERS)
    momentum: float = _training(0.9, "Momentum of sgd", ge=0, lt=1)
    nesterov: bool = _training(False, "Nesterov momentum, for sgd", "off")
    weight_decay: float = _training(0.05, "Weight decay, except on norms and biases", ge=0, le=10)
    schedule: str = _training("cosine", "Learning rate schedule", choices=SCHEDULES)
    step_epochs: int = _training(10, "Epochs per step of the step schedule", ge=1)
    gamma: float = _training(0.1, "Factor of each step of the step schedule", gt=0, le=1)
    warmup_epochs: float | None = _training(
        None, "Epochs in which the learning rate rises", "a quarter of the epochs, at most 1, for cosine, else 0", ge=0
    )
    label_smoothing: float = _training(0.1, "Share of the target that is spread over the other classes", ge=0, lt=1)
    clip_norm: float = _training(0.0, "Clip the norm of the gradient to this value", ge=0, special={0: "off"})
    freeze_epochs: int = _training(0, "Epochs in which only the head is trained", ge=0)
    freeze_norm: bool | None = _training(
        None,
        "Freeze (or train) the BatchNorm statistics",
        "frozen with pretrained weights",
        flags=("--freeze-norm/--train-norm",),
    )
    freeze_stages: int | None = _training(
        None,
        "Freeze the first N of twelve parts of the depth, or auto",
        "auto",
        ge=0,
        le=11,
        special={0: "none"},
        parse=parse_stages,
    )
    patience: int = _training(0, "Stop after this many epochs without improvement", ge=0, special={0: "off"})
    ema: float | None = _training(
        None,
        "Decay of the moving average of the weights, which is what is validated and saved",
        "0.98 for pretrained weights, else 0",
        ge=0,
        lt=1,
        special={0: "off"},
    )
    head_scale: float | None = option(None, gt=0, le=1, special={1: "off"})
    class_weights: str | None = _training(
        None,
        "Give rare classes more weight",
        "effective where one class has five times as many images as another, else none",
        choices=("none", "effective", "balanced"),
    )
    drop_last: bool = option(False)
    precision: str = _training("auto", "Precision", choices=PRECISIONS)
    backend: str = _training("auto", "Inference backend", choices=BACKENDS)
    device: str = _training(
        "auto",
        "Device: auto, cpu, cuda, cuda:1 or mps",
        pattern=DEVICE_NAME.pattern,
        allowed="auto, cpu, cuda, cuda:N, mps",
    )
    fast_step: bool = _training(
        True, "Faster computation of the same gradients on a processor", "on", flags=("--fast-step/--plain-step",)
    )
    compile: str = _training("auto", "Use torch.compile or a CUDA graph", choices=("auto", "on", "off"))
    checkpoint_every: float = _output(
        60.0,
        "How often to save the training state, e.g. 90s or 10m",
        "1m",
        ge=1,
        allowed="1 or more seconds",
        parse=parse_duration,
    )
    workers: int | None = _training(
        None, "Threads that read images; does not change results", "one per core, up to 8", ge=0, le=256
    )
    seed: int = _training(
        0, "Seed of the split, the initial weights, the order and the augmentation", ge=0, le=2**63 - 1
    )

    def __post_init__(self) -> None:
        if self.device is not None:
            object.__setattr__(self, "device", str(self.device))  # a torch.device, too
        super().__post_init__()
        require_field(self.epochs != 0 or self.probe is not False, self, "epochs", "1 or more, as there is no probe")
        require_field(not self.nesterov or self.momentum > 0, self, "nesterov", "only with a momentum above 0")


@dataclass(frozen=True)
class DataConfig(Checked):
    """How images are read: where named data sets are, what happens to unreadable images, and a split file to follow."""

    data_dir: str | None = _data(
        None,
        "Folder of the named data sets (mnist, fashion-mnist, cifar10); downloaded there if missing",
        "a cache folder",
        allowed="a folder",
    )
    on_unreadable: str = _data("skip", "What to do about unreadable images", choices=("skip", "error"))
    allow_unreadable: float = _data(
        0.05, "Largest share of unreadable images, e.g. 10%", "5%", ge=0, le=1, parse=parse_share
    )
    max_pixels: int = _data(100_000_000, "Largest image, in pixels", "100,000,000", ge=1)
    split_file: str | None = option(None, "A split.csv to follow", allowed="a CSV file")
    cache: str = _data("auto", "Where to keep decoded images", choices=CACHES)


@dataclass(frozen=True)
class ExperimentConfig(Checked):
    """All that a training run is asked to do, apart from the data: the value behind `--recipe` and `--config`.

    None means the architecture's own, or what suits the data. `arch` "auto" is the best network whose pretrained
    weights are on this machine (`models.weights.pick_arch`). `init` is a run folder or a model file to start from: its
    network and pixels, its weights, its head by class name. `recolor`: whether an image with other colors keeps its
    label. `split` holds the fractions of train, valid and test of what the data do not divide themselves.
    """

    arch: str = _model(
        "auto",
        "Network, see `imgclf models`; FILE.py:NAME is one of your own",
        "the best whose pretrained weights are on this machine, else resnet18",
        like=_ARCH,
    )
    weights: str = _model(
        "auto",
        "Initial weights: auto, pretrained, none, a file, a run or a hub name",
        allowed="auto, pretrained, none, a file, a run or a hub name",
    )
    init: str | None = _model(
        None,
        "Run folder or model file to start from: network, pixels, weights and classes",
        allowed="a run folder or a model file",
    )
    dropout: float | None = _model(None, "Dropout rate, if the network has dropout", "the network's own", like=_DROPOUT)
    size: tuple[int, int] | None = _model(None, "Input size: N or HxW pixels", "the network's own", like=_SIZE)
    channels: int | None = _model(
        None, "Input channels: 1 for gray, 3 for color", "those of the network or the data", like=_CHANNELS
    )
    resize_mode: str | None = _model(
        None, "How images are fitted to the input size", "as the network was trained, mostly crop", like=_RESIZE_MODE
    )
    mean: tuple[float, ...] | None = option(None, "Mean of the pixels (0 to 1), one per channel", like=_MEAN)
    std: tuple[float, ...] | None = option(
        None, "Standard deviation of the pixels (0 to 1), one per channel", like=_STD
    )
    augment: str | None = _model(
        None,
        "Augmentation of training images: none, light, standard, strong, trivial or mix",
        "light for pretrained weights, else standard",
        allowed="the name of a preset",
    )
    mirror: bool | None = _model(None, "Whether a mirrored image keeps its label", "tested on your images")
    recolor: bool | None = option(None, "Whether an image with other colors keeps its label")
    tta: str = option("none", "Test-time augmentation", like=_TTA)
    split: tuple[float, float, float] | None = _data(
        None,
        "TRAIN/VALID/TEST in percent, or a split.csv to follow",
        "70/15/15",
        ge=0,
        le=1,
        allowed="three fractions that sum to 1, the first above 0",
        parse=parse_split,
    )
    keep: str = _output("best", "Epochs whose models are saved", choices=("best", "all"))
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.split is None or (self.split[0] > 0 and math.isclose(sum(self.split), 1, abs_tol=1e-6))
        require_field(whole, self, "split", "three fractions that sum to 1, the first above 0")


def to_dict(value: Any) -> dict[str, Any]:
    """A spec as plain JSON values: tuples become lists, nested specs dictionaries."""
    return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def from_dict(kind: type[T], data: Mapping[str, Any]) -> T:
    """The spec of class `kind` from plain values; an unknown key raises `ConfigError` with close matches."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{kind.__name__} is {data!r}; allowed: a table")
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in hints:
            for table, inner in hints.items():
                if dataclasses.is_dataclass(inner) and key in inner.__dataclass_fields__:
                    raise ConfigError(f"option {key!r} belongs in the table [{table}]")
            close = name_meant(key, list(hints))
            hint = f"did you mean {' or '.join(close)}?" if close else f"available: {', '.join(hints)}"
            where = TABLES.get(kind.__name__, f" of {kind.__name__}")
            raise ConfigError(f"unknown option {key!r}{where}; {hint}")
    try:
        return kind(**{key: _restore(hints[key], value) for key, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} does not fit the values {dict(data)!r}: {error}") from None


def _restore(kind: Any, value: Any) -> Any:
    if hasattr(kind, "__dataclass_fields__"):
        return from_dict(kind, value)
    if not isinstance(value, list):
        return value
    part, *_ = typing.get_args(kind) or [None]
    return tuple(_restore(part, each) for each in value)
