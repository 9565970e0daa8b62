"""From a request to a plan: the experiment with every setting chosen, the network and its pixels."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imgclf.core.config import (
    CUSTOM,
    AugmentStep,
    ExperimentConfig,
    Levels,
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    from_dict,
)
from imgclf.core.errors import ConfigError, DataError, ModelFileError
from imgclf.core.text import printable
from imgclf.data.audit import Audit, Sizes, audit
from imgclf.data.classes import spelled_as
from imgclf.data.dataset import Sample, Source
from imgclf.data.jpeg import common_levels
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.open import open_source
from imgclf.data.split import (
    Split,
    content_key,
    follow_split,
    make_split,
    read_split,
    unpack_contents,
)
from imgclf.data.write import require_outside
from imgclf.estimator.events import DataSplit, ImagesChecked, SourceOpened
from imgclf.estimator.settings import AUTO_BATCH, Request, base_recipe, choose_experiment, experiment_on, with_train
from imgclf.evaluation.openvino import is_installed, is_large, pick_backend
from imgclf.models.backbones import find_arch
from imgclf.models.build import build_model
from imgclf.models.weights import WeightsUsed, load_weights, pick_arch
from imgclf.runtime import distributed
from imgclf.runtime.compute import step_flops
from imgclf.runtime.device import pick_device, pick_precision, precision_name
from imgclf.runtime.random import drawing, seeded
from imgclf.storage.model_file import read_manifest
from imgclf.storage.run_folder import NOT_PLACES, SPLIT, Run, require_free
from imgclf.storage.run_source import reading_options, source_of_run
from imgclf.training.acceleration import launch_bound
from imgclf.training.batch_size import has_batch_norms, probe_batch_size, steps_per_epoch
from imgclf.training.defaults import resolve_config, suited_augment, suited_resize_mode, suited_size
from imgclf.training.events import Callback, Event, notify, progress_of, with_warnings
from imgclf.training.linear_probe import linear_head
from imgclf.transforms.presets import limited, preset_steps

CPU = torch.device("cpu")
EXACT = ("teaching", "own")  # families that compute in fp32 unless asked: the documents' networks and a user's own
LOOKED_AT = 16  # images that are opened to see how many channels the data have


@dataclass(frozen=True)
class Plan:
    """A training with every setting chosen, and its data.

    `asked` is the experiment as it was asked for, `experiment` the settled one; `base` names the recipe that it began
    with. `weights` say what the `model` starts from. `audit` holds the images, `split` their parts. The loaders are
    those of training; there is none of validation where there are no valid images.
    """

    asked: ExperimentConfig
    experiment: ExperimentConfig
    base: str | None
    spec: ModelConfig
    preprocess: PreprocessConfig
    model: nn.Module
    weights: WeightsUsed
    audit: Audit
    split: Split
    train_loader: Loader
    valid_loader: Loader | None
    began: float = field(default_factory=time.perf_counter)

    @property
    def source(self) -> Source:
        """The images."""
        return self.audit.source

    @property
    def seen(self) -> frozenset[str]:
        """The contents of the images of train and valid; see `content_key`."""
        return frozenset(content_key(row) for row in self.split.rows if row.split in ("train", "valid"))

    @property
    def device(self) -> torch.device:
        """The device of training."""
        return pick_device(self.experiment.train.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of training."""
        return pick_precision(self.experiment.train.precision, self.device)

    @property
    def backend(self) -> str:
        """What computes the network where it is not trained: `torch` or `openvino`."""
        return self.experiment.train.backend

    @property
    def would_gain_from_openvino(self) -> bool:
        """Whether OpenVINO, which is not installed, would compute the network where it is not trained."""
        found = self.backend, self.device.type, is_installed()
        return found == ("torch", "cpu", False) and is_large(self.model, self.preprocess)

    @property
    def pretrained(self) -> bool:
        """Whether the model starts from trained weights."""
        return is_pretrained(self.weights)

    @property
    def knows_classes(self) -> bool:
        """Whether the head of the model is trained before the first step."""
        return bool(self.experiment.train.probe) or self.weights.head == "whole"

    @property
    def steps_per_epoch(self) -> int:
        """The optimizer steps of an epoch."""
        return steps_per_epoch(self.model, self.train_loader, self.experiment.train)

    @property
    def unreadable(self) -> dict[str, str]:
        """The images of train and valid that training could not read, with the reason."""
        of_valid = {} if self.valid_loader is None else self.valid_loader.unreadable
        return {**self.train_loader.unreadable, **of_valid}

    def with_new_loaders(self) -> Plan:
        """The same, with loaders that fit it and keep no pixels yet."""
        train, valid = make_loaders(self.experiment, self.preprocess, self.source, self.split)
        return replace(self, train_loader=train, valid_loader=valid)

    def with_train(self, **changes: Any) -> Plan:
        """The same plan with other values of its training config."""
        return replace(self, experiment=with_train(self.experiment, **changes))

    def loader(self, samples: Sequence[Sample], **options: Any) -> Loader:
        """A loader of some samples as in training; `options` are those of `Loader` that shall differ."""
        return make_loader(self.experiment, self.preprocess, self.source, samples, **options)


@dataclass(frozen=True)
class PlanMade(Event):
    """The network is built, its weights are loaded, nothing is left open."""

    plan: Plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """How the weights differ from those asked for."""
        return (self.plan.weights.note or "",)


@dataclass(frozen=True)
class RunReady(Event):
    """Training is about to start; `run` is None where no run folder is written."""

    run: Run | None
    plan: Plan


def is_pretrained(weights: WeightsUsed) -> bool:
    """Whether these are trained weights."""
    return weights.used != "none"


def make_loader(
    experiment: ExperimentConfig,
    preprocess: PreprocessConfig,
    source: Source,
    samples: Sequence[Sample],
    **options: Any,
) -> Loader:
    """A loader of some samples by a settled experiment; `options` are those of `Loader` that shall differ."""
    config = experiment.train
    own: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "workers": config.workers}
    own |= {"device": pick_device(config.device), "cache": experiment.data.cache, "classes": source.classes}
    return Loader(source, samples, preprocess, **{**own, **options})


def make_loaders(
    experiment: ExperimentConfig, preprocess: PreprocessConfig, source: Source, split: Split
) -> tuple[Loader, Loader | None]:
    """The loaders of training and, where there are images for it, of validation; each process gets its share."""
    load = partial(make_loader, experiment, preprocess, source, shard=distributed.shard())
    train, valid = load(split.samples("train"), train=True), load(split.samples("valid"))
    return train, valid if len(valid) else None


def plan_training(request: Request, data: str | os.PathLike[str] | Source, callbacks: Sequence[Callback] = ()) -> Plan:
    """Open, check and split the images, then settle everything else: `open_and_split` and `make_plan` in one."""
    return make_plan(request, *open_and_split(request, data, callbacks), callbacks)


def open_and_split(
    request: Request, data: str | os.PathLike[str] | Source, callbacks: Sequence[Callback] = ()
) -> tuple[Audit, Split]:
    """Open the images that a request is about, check every one, and put each into train, valid or test.

    Args:
        request: The settings.
        data: A folder, a CSV file, a named data set, or a source.
        callbacks: Functions that get the events.

    Raises:
        DataError: The images can't be used, or are not those of the run.
        ConfigError, UnknownName: A setting is not possible; raised before any image is read.
    """
    run, callbacks = request.run, with_warnings(callbacks)
    config = choose_experiment(request).data
    if run is None or isinstance(data, Source):
        source = open_source(data, **reading_options(config))
    else:
        source = source_of_run(run, os.fspath(data), config)
    experiment = experiment_on(request, source)
    if request.runs is not None and distributed.is_main():
        require_outside(request.runs, source)
        require_free(request.runs, request.name)
    notify(callbacks, SourceOpened(source))
    if run is not None:  # its images have to be there, no others
        config = replace(config, on_unreadable="skip", allow_unreadable=1.0)
    audited = audit(
        source,
        on_unreadable=config.on_unreadable,
        allow_unreadable=config.allow_unreadable,
        strict=run is None,
        progress=progress_of("checking images", callbacks),
    )
    notify(callbacks, ImagesChecked(audited))
    audited, split = _split(experiment, audited) if run is None else _split_again(run, audited)
    notify(callbacks, DataSplit(split))
    return audited, split


def _split(experiment: ExperimentConfig, audited: Audit) -> tuple[Audit, Split]:
    source, config = audited.source, experiment.data
    known = _known_places(experiment.init) if experiment.init is not None else None
    split = make_split(source, experiment.split, experiment.train.seed, config.split_file, known)
    without = [printable(name) for name, counts in split.counts().items() if not counts["train"]]
    if without:
        raise DataError(f"{source.name}: the split leaves these classes without images to train on", without)
    findings = (*split.findings, *_seen_by_start(experiment.weights, split))
    split = replace(split, findings=tuple(text for text in findings if text not in audited.findings))
    return replace(audited, findings=(*audited.findings, *split.findings)), split


def _split_again(run: Run, audited: Audit) -> tuple[Audit, Split]:
    """The images of a run in the same parts, whatever has come since and whatever they are called now."""
    classes = run.info.classes
    source, split = follow_split(read_split(run.path / SPLIT), spelled_as(audited.source, classes))
    return replace(audited, source=replace(source, classes=classes)), split


def make_plan(request: Request, audited: Audit, split: Split, callbacks: Sequence[Callback] = ()) -> Plan:
    """Build the network, load its weights, and settle every open choice, for what `open_and_split` gave."""
    asked = experiment_on(request, audited.source)
    if request.run is None:
        base = base_recipe(request, audited.source.default_recipe)
        plan = _plan(asked, base if isinstance(base, str) else None, audited, split, request.compose)
    else:
        plan = _plan_again(request, request.run, asked, audited, split)
    notify(with_warnings(callbacks), PlanMade(plan))
    return plan


def _plan(
    asked: ExperimentConfig, base: str | None, audited: Audit, split: Split, compose: Mapping[str, Any] | None
) -> Plan:
    source = audited.source
    pixels = replace(plan_pixels(asked, source, compose, audited.sizes), levels=_levels(asked, split.samples("train")))
    network, config = pick_arch(asked.arch, asked.weights), asked.train
    if config.precision == "auto" and find_arch(network).family in EXACT:
        config = replace(config, precision="fp32")
    spec = ModelConfig(network, len(source.classes), pixels.channels, pixels.size, asked.dropout)
    with drawing(seeded(config.seed, CPU), CPU):
        model = build_model(spec)
        weights = load_weights(model, spec, asked.weights, source.classes)
    augment = asked.augment or suited_augment(is_pretrained(weights))
    if compose is None:
        pixels = replace(pixels, steps=_steps(asked, source, augment))
    experiment = replace(
        asked,
        arch=network,
        **{name: getattr(pixels, name) for name in ("size", "channels", "resize_mode", "mean", "std")},
        augment=CUSTOM if compose is not None else augment,
        train=_settle(config, model, pixels, split, weights),
    )
    loaders = make_loaders(experiment, pixels, source, split)
    return Plan(asked, experiment, base, spec, pixels, model, weights, audited, split, *loaders)


def _plan_again(request: Request, run: Run, asked: ExperimentConfig, audited: Audit, split: Split) -> Plan:
    """The plan of a run once more: the same pixels, the same start. For a state that is loaded later the network is
    left as it was made."""
    pixels, weights = from_dict(PreprocessConfig, run.info.preprocess), WeightsUsed(**run.info.weights)
    start = "none" if request.state is not None else asked.weights
    plan = _plan(replace(asked, init=None, weights=start), None, audited, split, pixels.compose)
    if request.state is None and plan.weights.source != weights.source:
        raise ConfigError(f"{run.path} started {weights.source}, and now it would start {plan.weights.source}")
    return replace(plan, experiment=asked, preprocess=pixels, weights=weights).with_new_loaders()


def _settle(
    config: TrainConfig, model: nn.Module, preprocess: PreprocessConfig, split: Split, weights: WeightsUsed
) -> TrainConfig:
    """The config with every setting chosen, also those that depend on the machine: a resumed run keeps them."""
    device, pretrained, train = pick_device(config.device), is_pretrained(weights), split.samples("train")
    dtype = pick_precision(config.precision, device)
    if config.batch_size == AUTO_BATCH:
        probed = replace(config, freeze_norm=pretrained if config.freeze_norm is None else config.freeze_norm)
        size = probe_batch_size(model, (preprocess.channels, *preprocess.size), len(train), probed, device, dtype)
        config = replace(config, batch_size=sum(distributed.gather(size)))
    if config.precision == "auto" and device.type == "cuda":
        flops = step_flops(model, torch.zeros(1, preprocess.channels, *preprocess.size), config.batch_size)
        dtype = torch.float32 if launch_bound(device, flops) else dtype  # half precision would only add launches
    return resolve_config(
        replace(
            config, precision=precision_name(dtype), backend=pick_backend(config.backend, model, preprocess, device)
        ),
        pretrained=pretrained,
        images=len(train),
        valid=len(split.samples("valid")),
        probe=pretrained and weights.head != "whole" and linear_head(model) is not None,  # else nothing to gain
        batch_norms=has_batch_norms(model),
        counts=list(Counter(sample.label for sample in train).values()),
    )


def _known_places(path: str, unsaid: str = "train") -> dict[str, str]:
    """The parts of the images that a model has seen, by content, from the split of its run. A model file alone does
    not tell train and valid apart: they are `unsaid` then."""
    if Path(path, SPLIT).is_file():
        return {content_key(row): str(row.split) for row in read_split(Path(path, SPLIT)) if row.sha256}
    return dict.fromkeys(unpack_contents(read_manifest(path).seen), unsaid)


def _seen_by_start(weights: str, split: Split) -> tuple[str, ...]:
    """A sentence on the images to judge by that a model saw which training starts from, where it is one of ours."""
    if weights in NOT_PLACES:
        return ()
    try:
        places = _known_places(weights, unsaid="valid")
    except ModelFileError:  # published weights, or those of others, which don't say what they saw
        return ()
    before = [(places.get(content_key(row)), row.split) for row in split.rows]
    seen = sum(then == "train" != now or (then, now) == ("valid", "test") for then, now in before)
    if not seen:
        return ()
    images = f"{seen:,} image{'' if seen == 1 else 's'} to validate or test on"
    return (f"{printable(weights)} was trained or validated on {images}: figures will look better than they are",)


def _levels(experiment: ExperimentConfig, train: Sequence[Sample]) -> tuple[Levels, ...]:
    """The levels of the initial model and, for kinds of images that it does not know, those of the images."""
    before = () if experiment.init is None else read_manifest(experiment.init).preprocess.levels
    known = {levels.kind for levels in before}
    return (*before, *(one for one in common_levels(s.levels for s in train) if one.kind not in known))


def plan_pixels(
    experiment: ExperimentConfig, source: Source, compose: Mapping[str, Any] | None = None, sizes: Sizes | None = None
) -> PreprocessConfig:
    """The pixels that an experiment trains on: its own choices, else those of the data and of the architecture, whose
    pretrained weights are there if it asks for them."""
    arch = find_arch(pick_arch(experiment.arch, experiment.weights))
    pretrained = arch.weights is not None and experiment.weights != "none"
    channels = experiment.channels or (_channels(source) if arch.any_channels and not pretrained else arch.channels)
    augment = experiment.augment or suited_augment(pretrained)
    size = experiment.size or suited_size(arch.size, sizes, resizable=arch.resizable)
    fit = experiment.resize_mode or (
        suited_resize_mode(size, sizes) if arch.resize_mode == "crop" else arch.resize_mode
    )
    return PreprocessConfig(
        size=size,
        channels=channels,
        resize_mode=fit,
        interpolation=arch.interpolation,
        crop_pct=arch.crop_pct if fit == arch.resize_mode else 1.0,  # who squashes or pads wants to see the whole image
        mean=experiment.mean or _statistics(arch.mean, channels),
        std=experiment.std or _statistics(arch.std, channels),
        steps=_steps(experiment, source, augment) if compose is None else (),
        compose=compose,
        tta=experiment.tta,
    )


def _steps(experiment: ExperimentConfig, source: Source, augment: str) -> tuple[AugmentStep, ...]:
    """The steps of a preset, without those that would change labels."""
    steps = preset_steps(augment, mirror=source.mirror)
    return limited(steps, mirror=experiment.mirror is not False, recolor=experiment.recolor is not False)


def _channels(source: Source) -> int:
    """As many as the images have."""
    stride = max(1, len(source.samples) // LOOKED_AT)
    return max(int(source.open(sample.ref, (1, 1)).shape[2]) for sample in source.samples[::stride])


def _statistics(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Mean or std for another number of channels than the backbone's: the average for each."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
