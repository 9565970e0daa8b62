"""What was asked for, as frozen values: pixels, model, training. Without torch, and to JSON or TOML and back.

Every value is checked when it is made; the error names the field, what was given and what is allowed.
A default of imgclf lives here and nowhere else; `None` means "the backbone's own" or "chosen from the data".
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from imgclf.core.arguments import plain
from imgclf.core.errors import ConfigError
from imgclf.core.registry import option_meant

CUSTOM = "custom"  # a pipeline of the user's own: no preset, so a config that names it is refused
T = TypeVar("T")

RESIZE_MODES = ("crop", "pad", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "onecycle")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STEPS = (
    *("resized_crop", "random_crop", "affine", "flip", "alternating_flip", "color_jitter", "erase", "trivial"),
    *("mixup", "cutmix"),
)
ON_BAD = ("skip", "error")
KEEPS = ("best", "all")
CLASS_WEIGHTS = ("none", "effective", "balanced")
CACHES = ("auto", "device", "ram", "disk", "off")
COMPILES = ("auto", "on", "off")
TTAS = ("none", "mirror", "mirror-shift")
EXPLAIN_METHODS = ("gradcam", "gradcam++", "occlusion")
DEPTHS = ("integer", "float")
DEVICE_NAME = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
MAX_SIDE = 4096
MAX_CHANNELS = 64
MAX_LEVEL = 3.5e38  # no float image holds more


def _settle(owner: Any) -> None:
    """Hold NumPy's numbers as Python's, and paths as text: a spec goes to JSON and back."""
    for item in dataclasses.fields(owner):
        value = getattr(owner, item.name)
        if not isinstance(value, str | None):
            object.__setattr__(owner, item.name, plain(value))


def _check(ok: bool, owner: object, name: str, allowed: str) -> None:
    if not ok:
        given = getattr(owner, name)
        raise ConfigError(f"{type(owner).__name__}.{name} is {given!r}; allowed: {allowed}")


def _is_int(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_real(value: object, low: float, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_size(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_int(side, 1, MAX_SIDE) for side in value)


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
        raise ConfigError(f"a time is {text!r}; allowed: a number with s, m or h, as in 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_split(text: str) -> tuple[float, float, float]:
    """`"80/10/10"` or `"0.8/0.1/0.1"` as fractions of train, valid and test that sum to 1."""
    try:
        parts = [float(part) for part in text.replace(",", "/").split("/")]
    except ValueError:
        parts = []
    total = sum(parts)
    if len(parts) != 3 or not all(math.isfinite(p) and p >= 0 for p in parts) or parts[0] <= 0:
        raise ConfigError(f"split is {text!r}; allowed: TRAIN/VALID/TEST in per cent, as in 80/10/10, train above 0")
    if not (math.isclose(total, 100, abs_tol=0.01) or math.isclose(total, 1, abs_tol=1e-4)):
        raise ConfigError(f"split is {text!r}, which sums to {total:g}; the three parts must sum to 100")
    return parts[0] / total, parts[1] / total, parts[2] / total


@dataclass(frozen=True)
class AugmentStep:
    """One augmentation as data: the name of an operation and its parameters (JSON values); see `transforms.augment`."""

    op: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _settle(self)
        _check(self.op in STEPS, self, "op", ", ".join(STEPS))
        _check(isinstance(self.params, Mapping), self, "params", "named values")


@dataclass(frozen=True)
class Levels:
    """The values of images of more than 8 bits that become 0 and 255; what lies beyond is cut.

    `kind` says of which images: those of whole numbers (`integer`) or of fractions (`float`).
    """

    kind: str
    low: float
    high: float

    def __post_init__(self) -> None:
        _settle(self)
        _check(self.kind in DEPTHS, self, "kind", ", ".join(DEPTHS))
        for name in ("low", "high"):
            _check(_is_real(getattr(self, name), -MAX_LEVEL, MAX_LEVEL), self, name, "a finite number")
        _check(self.low <= self.high, self, "high", f"at least low, {self.low!r}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" (floats)" if self.kind == "float" else "")


@dataclass(frozen=True)
class PreprocessConfig:
    """Which pixels a model sees. Sizes are (height, width) in pixels; mean and std are of values in 0…1.

    `resize_mode` says how an image of another shape gets to `size`: `crop` covers it and cuts the center, `pad` fits
    inside and fills up with the mean color, `squash` changes the aspect. `crop_pct` (as in timm) is the share of the
    resized side that is kept of the center: 1 keeps the whole, and above it there is a border. `steps` augment training
    images only. `compose` is a user's own albumentations pipeline as `A.to_dict` gives it, and takes the place of
    `steps`. `tta` "mirror" averages the logits of an image and of its mirror image, "mirror-shift" also those of both,
    moved by a pixel along the diagonal. `levels` are those of images of more than 8 bits, one for each kind that the
    training images have; images of another kind are read by the rules of `data.images.read_image`.
    """

    size: tuple[int, int] = (224, 224)
    channels: int = 3
    resize_mode: str = "crop"
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    steps: tuple[AugmentStep, ...] = ()
    compose: Mapping[str, Any] | None = None
    tta: str = "none"
    levels: tuple[Levels, ...] = ()

    def __post_init__(self) -> None:
        _settle(self)
        _check(_is_size(self.size), self, "size", f"(height, width), each 1 to {MAX_SIDE}")
        _check(_is_int(self.channels, 1, MAX_CHANNELS), self, "channels", f"1 to {MAX_CHANNELS}")
        _check(self.resize_mode in RESIZE_MODES, self, "resize_mode", ", ".join(RESIZE_MODES))
        _check(self.interpolation in INTERPOLATIONS, self, "interpolation", ", ".join(INTERPOLATIONS))
        _check(_is_real(self.crop_pct, 0.1, 2.0), self, "crop_pct", "0.1 to 2")
        for name, low in (("mean", -1e3), ("std", 1e-6)):
            values = getattr(self, name)
            _check(isinstance(values, tuple), self, name, f"one number a channel ({self.channels})")
            if len(values) == 1:
                object.__setattr__(self, name, values * self.channels)
                values = getattr(self, name)
            ok = len(values) == self.channels and all(_is_real(v, low, 1e3) for v in values)
            _check(ok, self, name, f"one number a channel ({self.channels}), {low:g} to 1000")
        steps_ok = isinstance(self.steps, tuple) and all(isinstance(step, AugmentStep) for step in self.steps)
        _check(steps_ok, self, "steps", "a tuple of Step")
        _check(self.compose is None or isinstance(self.compose, Mapping), self, "compose", "named values, or none")
        _check(self.tta in TTAS, self, "tta", ", ".join(TTAS))
        levels_ok = isinstance(self.levels, tuple) and all(isinstance(one, Levels) for one in self.levels)
        levels_ok = levels_ok and len({one.kind for one in self.levels}) == len(self.levels)
        _check(levels_ok, self, "levels", "a tuple of Levels, each of another kind")


@dataclass(frozen=True)
class ModelConfig:
    """Enough to rebuild an empty network: architecture, classes, input and options. `size` is (height, width).

    `members` above 1 are so many networks that answer together (`models/ensemble.py`).
    """

    arch: str
    classes: int
    channels: int = 3
    size: tuple[int, int] = (224, 224)
    dropout: float | None = None
    members: int = 1

    def __post_init__(self) -> None:
        _settle(self)
        _check(isinstance(self.arch, str) and bool(self.arch), self, "arch", "the name of an architecture")
        _check(_is_int(self.members, 1, 100), self, "members", "1 to 100")
        _check(_is_int(self.classes, 1, 1_000_000), self, "classes", "1 to 1,000,000")
        _check(_is_int(self.channels, 1, MAX_CHANNELS), self, "channels", f"1 to {MAX_CHANNELS}")
        _check(_is_size(self.size), self, "size", f"(height, width), each 1 to {MAX_SIDE}")
        _check(self.dropout is None or _is_real(self.dropout, 0, 0.99), self, "dropout", "0 to 0.99")


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of training. What is None is chosen from the start of the weights and the number of images.

    `probe` begins with a linear head on frozen features (`training/probe.py`), and 0 `epochs` end there; before the
    first step, once its answers on valid are known, that head is multiplied by `head_scale`. `freeze_norm`
    keeps the batch statistics of pretrained weights: a few small batches are no better a basis for them. A `batch_size`
    of 0 is the largest that fits, found by a real step. `minutes` is the time that fitting takes at most; an epoch is
    one pass over the training images, or `epoch_steps` steps. `layer_decay` is how much slower each twelfth of the
    network's depth learns than the one after it. `class_weights` are by the effective number of images
    (arXiv:1901.05555) or inverse to the number of images. `ema` is the decay of the running mean of weights that is
    judged and kept in the place of the weights themselves. `checkpoint_every` is in seconds.
    """

    probe: bool | None = None
    epochs: int | None = None
    epoch_steps: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    lr: float | None = None
    layer_decay: float | None = None
    optimizer: str = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.05
    schedule: str = "cosine"
    step_epochs: int = 10
    gamma: float = 0.1
    warmup_epochs: float | None = None
    label_smoothing: float = 0.1
    clip_norm: float = 0.0
    freeze_epochs: int = 0
    freeze_norm: bool | None = None
    patience: int = 0
    ema: float | None = None
    head_scale: float | None = None
    class_weights: str | None = None
    drop_last: bool = False
    precision: str = "auto"
    device: str = "auto"
    compile: str = "auto"
    checkpoint_every: float = 60.0
    workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _settle(self)
        _check(self.probe is None or isinstance(self.probe, bool), self, "probe", "true or false")
        _check(self.epochs is None or _is_int(self.epochs, 0, 100_000), self, "epochs", "0 (a probe alone) to 100,000")
        _check(self.epochs != 0 or self.probe is not False, self, "epochs", "1 or more, as there is no probe")
        _check(self.epoch_steps is None or _is_int(self.epoch_steps, 1), self, "epoch_steps", "1 or more")
        minutes_ok = self.minutes is None or (_is_real(self.minutes, 0, 1e6) and self.minutes > 0)
        _check(minutes_ok, self, "minutes", "above 0")
        _check(_is_int(self.batch_size, 0, 1_000_000), self, "batch_size", "1 or more, or 0 (the largest that fits)")
        _check(self.lr is None or (_is_real(self.lr, 0, 1e3) and self.lr > 0), self, "lr", "above 0, to 1000")
        decay_ok = self.layer_decay is None or (_is_real(self.layer_decay, 0, 1) and self.layer_decay > 0)
        _check(decay_ok, self, "layer_decay", "above 0, to 1 (off)")
        _check(self.optimizer in OPTIMIZERS, self, "optimizer", ", ".join(OPTIMIZERS))
        _check(_is_real(self.momentum, 0, 0.9999), self, "momentum", "0 to below 1")
        _check(isinstance(self.nesterov, bool), self, "nesterov", "true or false")
        _check(not self.nesterov or self.momentum > 0, self, "nesterov", "only with a momentum above 0")
        _check(_is_real(self.weight_decay, 0, 10), self, "weight_decay", "0 to 10")
        _check(self.schedule in SCHEDULES, self, "schedule", ", ".join(SCHEDULES))
        _check(_is_int(self.step_epochs, 1), self, "step_epochs", "1 or more")
        _check(_is_real(self.gamma, 1e-6, 1), self, "gamma", "above 0, to 1")
        _check(self.warmup_epochs is None or _is_real(self.warmup_epochs, 0), self, "warmup_epochs", "0 or more")
        _check(_is_real(self.label_smoothing, 0, 0.99), self, "label_smoothing", "0 to below 1")
        _check(_is_real(self.clip_norm, 0), self, "clip_norm", "0 (off) or more")
        _check(_is_int(self.freeze_epochs, 0), self, "freeze_epochs", "0 or more")
        _check(self.freeze_norm is None or isinstance(self.freeze_norm, bool), self, "freeze_norm", "true or false")
        _check(_is_int(self.patience, 0), self, "patience", "0 (off) or more")
        _check(self.ema is None or _is_real(self.ema, 0, 0.99999), self, "ema", "0 (off) to below 1")
        scale_ok = self.head_scale is None or (_is_real(self.head_scale, 0, 1) and self.head_scale > 0)
        _check(scale_ok, self, "head_scale", "above 0, to 1 (off)")
        weights_ok = self.class_weights is None or self.class_weights in CLASS_WEIGHTS
        _check(weights_ok, self, "class_weights", ", ".join(CLASS_WEIGHTS))
        _check(isinstance(self.drop_last, bool), self, "drop_last", "true or false")
        _check(self.precision in PRECISIONS, self, "precision", ", ".join(PRECISIONS))
        device_ok = DEVICE_NAME.fullmatch(str(self.device)) is not None
        _check(device_ok, self, "device", "auto, cpu, cuda, cuda:N, mps")
        object.__setattr__(self, "device", str(self.device))  # a torch.device, too
        _check(self.compile in COMPILES, self, "compile", ", ".join(COMPILES))
        _check(_is_real(self.checkpoint_every, 1), self, "checkpoint_every", "1 (second) or more")
        _check(self.workers is None or _is_int(self.workers, 0, 256), self, "workers", "0 to 256")
        _check(_is_int(self.seed, 0, 2**63 - 1), self, "seed", "0 to 2^63 - 1")


@dataclass(frozen=True)
class DataConfig:
    """How data are read: where named sets lie, what happens to bad files, and a split file to follow.

    `allow_bad` is the share (0…1) of unreadable files above which training does not begin. `cache` says where decoded
    pixels are kept (`data/tiers.py`).
    """

    data_dir: str | None = None
    on_bad: str = "skip"
    allow_bad: float = 0.05
    max_pixels: int = 100_000_000
    split_file: str | None = None
    cache: str = "auto"

    def __post_init__(self) -> None:
        _settle(self)
        _check(self.on_bad in ON_BAD, self, "on_bad", ", ".join(ON_BAD))
        _check(_is_real(self.allow_bad, 0, 1), self, "allow_bad", "0 to 1")
        _check(_is_int(self.max_pixels, 1), self, "max_pixels", "1 or more")
        _check(self.cache in CACHES, self, "cache", ", ".join(CACHES))


@dataclass(frozen=True)
class ExperimentConfig:
    """All that a training run is asked to do, apart from the data: the value behind `--recipe` and `--config`.

    `None` means the architecture's own (size, channels, mean, std, fit) or what suits the data (augment; `mirror`:
    whether a mirrored image keeps its label; `recolor`: whether one with other colors does).
    `arch` "auto" is the best network whose pretrained weights are on this machine (`models.weights.pick_arch`).
    `init` is a run folder or a model file to go on from: its network and pixels, its weights, its head by class name.
    `augment` is a preset's name. `split` holds the fractions of train, valid and test; None is 0.7, 0.15 and 0.15 of
    what the data do not divide themselves. `keep="all"` saves a model file after every epoch beside the best one.
    """

    arch: str = "auto"
    weights: str = "auto"
    init: str | None = None
    dropout: float | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    resize_mode: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: str | None = None
    mirror: bool | None = None
    recolor: bool | None = None
    tta: str = "none"
    split: tuple[float, float, float] | None = None
    keep: str = "best"
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _settle(self)
        _check(isinstance(self.arch, str) and bool(self.arch), self, "arch", "the name of an architecture")
        _check(
            isinstance(self.weights, str) and bool(self.weights), self, "weights", "auto, pretrained, none, a file …"
        )
        init_ok = self.init is None or (isinstance(self.init, str) and bool(self.init))
        _check(init_ok, self, "init", "a run folder or a model file")
        _check(self.augment is None or isinstance(self.augment, str), self, "augment", "the name of a preset")
        for name in ("mirror", "recolor"):
            _check(getattr(self, name) in (None, True, False), self, name, "true or false")
        _check(
            self.resize_mode is None or self.resize_mode in RESIZE_MODES, self, "resize_mode", ", ".join(RESIZE_MODES)
        )
        size_ok = self.size is None or _is_size(self.size)
        _check(size_ok, self, "size", f"[height, width], each 1 to {MAX_SIDE}")
        ok = self.split is None or (len(self.split) == 3 and all(_is_real(f, 0, 1) for f in self.split))
        ok = ok and (self.split is None or (self.split[0] > 0 and math.isclose(sum(self.split), 1, abs_tol=1e-6)))
        _check(ok, self, "split", "three fractions that sum to 1")
        _check(self.tta in TTAS, self, "tta", ", ".join(TTAS))
        _check(self.keep in KEEPS, self, "keep", ", ".join(KEEPS))


def to_dict(value: Any) -> dict[str, Any]:
    """A spec as plain JSON values: tuples become lists, nested specs dictionaries."""
    plain = _plain(value)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def from_dict(kind: type[T], data: Mapping[str, Any]) -> T:
    """The spec of class `kind` from plain values; an unknown key raises `ConfigError` with close matches."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{kind.__name__} is {data!r}; allowed: named values")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            if kind is ExperimentConfig and key in TrainConfig.__dataclass_fields__:
                raise ConfigError(f"{key!r} belongs to the table [train]")
            if kind is ExperimentConfig and key in DataConfig.__dataclass_fields__:
                raise ConfigError(f"{key!r} belongs to the table [data]")
            close = option_meant(key, list(fields))
            hint = f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(fields)}"
            raise ConfigError(f"{kind.__name__} has no {key!r}; {hint}")
    values = {key: _restore(kind, key, value) for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} does not fit the values {dict(data)!r}: {error}") from None


_PARTS: dict[str, type] = {"steps": AugmentStep, "levels": Levels}  # of a recipe


def _restore(kind: type, key: str, value: Any) -> Any:
    if kind is ExperimentConfig and key in ("train", "data"):
        return from_dict(TrainConfig if key == "train" else DataConfig, value)
    if kind is PreprocessConfig and key in _PARTS and isinstance(value, list):
        return tuple(from_dict(_PARTS[key], part) for part in value)
    return tuple(value) if isinstance(value, list) else value
