"""From what was asked to what is done: the experiment with nothing left open, the network and its pixels."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imgclf.core.arguments import named_values, plain
from imgclf.core.config import (
    CUSTOM,
    AugmentStep,
    ExperimentConfig,
    Levels,
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    from_dict,
    to_dict,
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
    brought,
    content_key,
    follow_split,
    make_split,
    open_fractions,
    read_split,
    require_open,
    unpack_contents,
)
from imgclf.estimator.events import DataSplit, ImagesChecked, SourceOpened
from imgclf.models.backbones import find_arch
from imgclf.models.build import build_model
from imgclf.models.weights import WeightsUsed, load_weights, pick_arch
from imgclf.runtime import distributed
from imgclf.runtime.compute import step_flops
from imgclf.runtime.device import pick_device, pick_precision, precision_name
from imgclf.runtime.random import drawing, seeded
from imgclf.storage.model_file import read_manifest
from imgclf.storage.run_data import reading_options, source_of_run
from imgclf.storage.run_folder import CONFIG, NOT_PLACES, SPLIT, Run, locate, run_config
from imgclf.training.acceleration import launch_bound
from imgclf.training.defaults import resolve_config, suited_augment, suited_resize_mode, suited_size
from imgclf.training.events import Callback, Event, notify, progress_of, with_warnings
from imgclf.training.linear_probe import linear_head
from imgclf.training.recipes import EXPERIMENTS, QUICKER
from imgclf.training.step import has_batch_norms, probe_batch_size
from imgclf.transforms.presets import limited, preset_steps

AUTO_BATCH = 0
CPU = torch.device("cpu")
EXACT = ("teaching", "own")  # families that compute in fp32 unless asked: the documents' networks and a user's own
FEW_MINUTES = 10
LOOKED_AT = 16  # images that are opened to see how many channels the data have


@dataclass(frozen=True)
class Plan:
    """What training will do: what was `asked`, the experiment with nothing left open, the model, its pixels, what it
    starts from, how large the images are, the name of the recipe that it is based on, what looks wrong about the images
    (`findings`), and when it was `began`."""

    asked: ExperimentConfig
    experiment: ExperimentConfig
    spec: ModelConfig
    recipe: PreprocessConfig
    model: nn.Module
    weights: WeightsUsed
    sizes: Sizes | None = None
    base: str | None = None
    findings: tuple[str, ...] = ()
    began: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class PlanMade(Event):
    """The network is built, its weights are loaded, nothing is left open."""

    plan: Plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as it was asked for in the weights."""
        return (self.plan.weights.note or "",)


@dataclass(frozen=True)
class RunReady(Event):
    """Training is about to start; `run` is None where no run folder is written."""

    run: Run | None
    plan: Plan


def choose_experiment(
    base: str | ExperimentConfig | None, changes: Mapping[str, Any], suited: str | None = None
) -> ExperimentConfig:
    """The experiment to run: `base` (a name or a value) with the user's changes, as plain values.

    Without a base it is the one called `suited`, which goes with the data; a user who names an architecture, or a model
    to go on from, gets the defaults of fine-tuning, or of training from scratch, instead.
    """
    changes = plain(named_values("config", changes))
    for key in changes.keys() & {"train", "data"}:
        named_values(key, changes[key])
    base = _base(base, changes, suited)
    if not isinstance(base, str | ExperimentConfig):
        raise ConfigError(f"recipe is {type(base).__name__}; allowed: the name of a recipe, or an ExperimentConfig")
    experiment = EXPERIMENTS.get(base) if isinstance(base, str) else base
    values = to_dict(experiment)
    places = {key: _place(str(changes[key])) for key in ("init", "weights") if changes.get(key) is not None}
    changes = {**changes, **places}
    if "init" in places:
        values |= _like(places["init"], changes.get("arch"))
    if changes.get("train", {}).get("minutes") and values["train"]["epochs"]:
        values["train"]["epochs"] = None  # the time decides, unless the user does
    for key, value in changes.items():
        values[key] = {**values[key], **value} if key in ("train", "data") else value
    return from_dict(ExperimentConfig, values)


def _place(named: str) -> str:
    """The run folder or file of this name, else the name: of a hub, for example."""
    path = locate(named)
    return named if named in NOT_PLACES or path == Path(named) else str(path)


def recipe_name(
    base: str | ExperimentConfig | None, changes: Mapping[str, Any], suited: str | None = None
) -> str | None:
    """The name of the experiment that `choose_experiment` begins with, where it has one."""
    base = _base(base, changes, suited)
    return base if isinstance(base, str) else None


def _base(
    base: str | ExperimentConfig | None, changes: Mapping[str, Any], suited: str | None
) -> str | ExperimentConfig:
    """What was asked for or, without that, the recipe of the data set: a quicker one where a processor has only a few
    minutes."""
    if base is not None:
        return base
    if suited is None or changes.keys() & {"arch", "init"}:
        return ExperimentConfig()
    train = changes.get("train", {})
    hurry = (train.get("minutes") or math.inf) <= FEW_MINUTES and pick_device(train.get("device", "auto")).type == "cpu"
    return QUICKER.get(suited, suited) if hurry else suited


def _like(path: str, arch: str | None) -> dict[str, Any]:
    """What an experiment shares with the run or model file that it goes on from; `arch` is what the user names."""
    manifest = read_manifest(path)
    if arch not in (None, manifest.spec.arch):
        raise ConfigError(f"arch is {arch!r}, and {path} is a {manifest.spec.arch}: leave out one of --arch and --init")
    if manifest.spec.members > 1:
        raise ConfigError(
            f"{path} is an ensemble of {manifest.spec.members} networks, and training goes on from one: name one of "
            "its members, such as NAME-member-1"
        )
    pixels = to_dict(manifest.recipe)
    shared = {name: pixels[name] for name in ("size", "channels", "resize_mode", "mean", "std", "tta")}
    return {**shared, "arch": manifest.spec.arch, "dropout": manifest.spec.dropout, "weights": path}


def _known_places(path: str, unsaid: str = "train") -> dict[str, str]:
    """Where the images were that a model has seen, by content: as its run's split says. A model file alone does not
    tell train and valid apart: they are `unsaid` then."""
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


def fit_experiment(base: str | ExperimentConfig | None, changes: Mapping[str, Any], source: Source) -> ExperimentConfig:
    """The experiment to run on a source, checked before any image is read.

    A recipe's shares of valid and test give way to those that the data bring; a user's are refused then. Raises
    `UnknownName` or `ConfigError`.
    """
    experiment = choose_experiment(base, changes, source.default_recipe)
    check_experiment(experiment)
    if experiment.split is None:
        return experiment
    if changes.get("split") is not None:
        require_open(source, experiment.split)
        return experiment
    return replace(experiment, split=open_fractions(brought(source), experiment.split))


def check_experiment(experiment: ExperimentConfig) -> None:
    """Raise `UnknownName` or `ConfigError` for a name or a device that is not there."""
    find_arch(pick_arch(experiment.arch, experiment.weights))
    if experiment.augment is not None:
        preset_steps(experiment.augment)
    pick_precision(experiment.train.precision, pick_device(experiment.train.device))


def make_plan(
    experiment: ExperimentConfig,
    source: Source,
    train: Sequence[Sample],
    compose: Mapping[str, Any] | None = None,
    sizes: Sizes | None = None,
    valid: int | None = None,
) -> Plan:
    """Build the network, load its weights, and settle every open choice, for the `train` samples of a source.

    `compose` is a user's own augmentation, which takes the place of the preset; `sizes` are those of the images;
    `valid` is how many of them there are to judge training by.
    """
    recipe = replace(plan_pixels(experiment, source, compose, sizes), levels=_levels(experiment, train))
    network, config = pick_arch(experiment.arch, experiment.weights), experiment.train
    if config.precision == "auto" and find_arch(network).family in EXACT:
        config = replace(config, precision="fp32")
    spec = ModelConfig(network, len(source.classes), recipe.channels, recipe.size, experiment.dropout)
    with drawing(seeded(config.seed, CPU), CPU):
        model = build_model(spec)
        weights = load_weights(model, spec, experiment.weights, source.classes)
    augment = experiment.augment or suited_augment(weights.used != "none")
    if compose is None:
        recipe = replace(recipe, steps=_steps(experiment, source, augment))
    settled = replace(
        experiment,
        arch=network,
        **{name: getattr(recipe, name) for name in ("size", "channels", "resize_mode", "mean", "std")},
        augment=CUSTOM if compose is not None else augment,
        train=_settle(config, model, recipe, train, weights, valid),
    )
    return Plan(experiment, settled, spec, recipe, model, weights, sizes)


def _settle(
    config: TrainConfig,
    model: nn.Module,
    recipe: PreprocessConfig,
    train: Sequence[Sample],
    weights: WeightsUsed,
    valid: int | None,
) -> TrainConfig:
    """The config with nothing left open, also of what depends on the machine: it stays so when a run goes on."""
    device, pretrained = pick_device(config.device), weights.used != "none"
    dtype = pick_precision(config.precision, device)
    if config.batch_size == AUTO_BATCH:
        freeze = config.freeze_norm if config.freeze_norm is not None else pretrained
        probed = replace(config, freeze_norm=freeze)
        size = probe_batch_size(model, (recipe.channels, *recipe.size), len(train), probed, device, dtype)
        config = replace(config, batch_size=sum(distributed.gather(size)))
    if config.precision == "auto" and device.type == "cuda":
        flops = step_flops(model, torch.zeros(1, recipe.channels, *recipe.size), config.batch_size)
        dtype = torch.float32 if launch_bound(device, flops) else dtype  # half precision would only add launches
    config = replace(config, precision=precision_name(dtype))
    probe = weights.used != "none" and weights.head != "whole" and linear_head(model) is not None
    counts = list(Counter(sample.label for sample in train).values())
    return resolve_config(
        config,
        pretrained=pretrained,
        images=len(train),
        valid=valid,
        probe=probe,
        batch_norms=has_batch_norms(model),
        counts=counts,
    )


def _levels(experiment: ExperimentConfig, train: Sequence[Sample]) -> tuple[Levels, ...]:
    """The levels of the model to go on from and, of kinds of images that it does not know, those of the images."""
    before = () if experiment.init is None else read_manifest(experiment.init).recipe.levels
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


def plan_training(
    data: str | os.PathLike[str] | Source,
    changes: Mapping[str, Any],
    recipe: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Plan, Source, Split]:
    """What training with these changes of an experiment would do, on which images; nothing is written."""
    callbacks = with_warnings(callbacks)
    experiment = choose_experiment(recipe, changes)
    source = open_source(data, **reading_options(experiment.data))
    experiment = fit_experiment(recipe, changes, source)
    audited, split = read_data(source, experiment, callbacks)
    plan = make_plan(
        experiment, audited.source, split.samples("train"), sizes=audited.sizes, valid=len(split.samples("valid"))
    )
    base = recipe_name(recipe, changes, source.default_recipe)
    plan = replace(plan, base=base, findings=audited.all_findings)
    notify(callbacks, PlanMade(plan))
    return plan, audited.source, split


def plan_loader(plan: Plan, source: Source, samples: Sequence[Sample], **options: Any) -> Loader:
    """The loader of a plan's own training on some samples; `options` are those of `Loader` that shall differ."""
    config = plan.experiment.train
    own: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "workers": config.workers}
    own |= {"device": pick_device(config.device), "cache": plan.experiment.data.cache}
    return Loader(source, samples, plan.recipe, classes=source.classes, **{**own, **options})


def read_data(source: Source, experiment: ExperimentConfig, callbacks: Sequence[Callback] = ()) -> tuple[Audit, Split]:
    """Check every image of a source, and split what is usable; tells the callbacks of each step."""
    config = experiment.data
    notify(callbacks, SourceOpened(source))
    audited = audit(
        source,
        on_bad=config.on_bad,
        allow_bad=config.allow_bad,
        progress=progress_of("checking images", callbacks),
    )
    notify(callbacks, ImagesChecked(audited))
    known = _known_places(experiment.init) if experiment.init is not None else None
    split = make_split(audited.source, experiment.split, experiment.train.seed, config.split_file, known)
    without = [printable(name) for name, counts in split.counts().items() if not counts["train"]]
    if without:
        raise DataError(f"{source.name}: the split leaves these classes without images to train on", without)
    findings = (*split.findings, *_seen_by_start(experiment.weights, split))
    split = replace(split, findings=tuple(text for text in findings if text not in audited.findings))
    notify(callbacks, DataSplit(split))
    return replace(audited, findings=(*audited.findings, *split.findings)), split


def read_experiment(run: Run) -> tuple[ExperimentConfig, str]:
    """What a run was asked to do, and the name of its data.

    Raises `ConfigError` where these were a `Source` of the user's, and for an ensemble, which was never trained as one.
    """
    if "members" in run.info:
        members = ", ".join(run.info["members"])
        raise ConfigError(
            f"{run.path} is an ensemble, which was not trained as one; name one of its members: {members}"
        )
    values, data = run_config(run)
    if data is None:
        raise ConfigError(f"{run.path / CONFIG} names no data: a run on a Source of your own can't be trained again")
    return from_dict(ExperimentConfig, values), data


def plan_as(
    run: Run, experiment: ExperimentConfig, data: str, callbacks: Sequence[Callback], *, weights: bool
) -> tuple[Plan, Source, Split]:
    """Get ready to train as a run did: the same images in the same places, whatever has come since and whatever they
    are called now, the same pixels, the same start.

    Without `weights` the network is left as it was made, for a state that is loaded later.
    """
    find_arch(experiment.arch)  # a network of the user's own is asked for before any image is read
    source = source_of_run(run, data, experiment.data)
    notify(callbacks, SourceOpened(source))
    audited = audit(
        source,
        allow_bad=1.0,
        strict=False,
        progress=progress_of("checking images", callbacks),
    )
    notify(callbacks, ImagesChecked(audited))
    source, split = follow_split(read_split(run.path / SPLIT), spelled_as(audited.source, run.info["classes"]))
    source = replace(source, classes=tuple(run.info["classes"]))
    notify(callbacks, DataSplit(split))
    recipe, start = from_dict(PreprocessConfig, run.info["recipe"]), WeightsUsed(**run.info["weights"])
    asked = replace(experiment, init=None) if weights else replace(experiment, init=None, weights="none")
    plan = make_plan(asked, source, split.samples("train"), recipe.compose, audited.sizes, len(split.samples("valid")))
    if weights and plan.weights.source != start.source:
        raise ConfigError(f"{run.path} started {start.source}, and now it would start {plan.weights.source}")
    plan = replace(plan, experiment=experiment, recipe=recipe, weights=start, findings=audited.all_findings)
    return plan, source, split
