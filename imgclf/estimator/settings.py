"""The settings of a training as the user gave them, one `Request`, and the experiment that results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from imgclf.core.arguments import as_mapping, as_path, plain
from imgclf.core.config import ExperimentConfig, from_dict, to_dict
from imgclf.core.errors import ConfigError
from imgclf.data.dataset import Source
from imgclf.data.split import brought, open_fractions, require_open
from imgclf.models.backbones import find_arch
from imgclf.models.own import name_of, own_arch
from imgclf.models.registry import Arch
from imgclf.models.weights import pick_arch
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.storage.model_file import read_manifest
from imgclf.storage.run_folder import NOT_PLACES, Run, locate
from imgclf.training.recipes import EXPERIMENTS, QUICKER
from imgclf.transforms.albumentations_pipeline import compose_to_dict
from imgclf.transforms.presets import preset_steps

AUTO_BATCH = 0
FEW_MINUTES = 10

Builder = Callable[..., nn.Module] | nn.Module


@dataclass(frozen=True)
class Request:
    """The settings of a training: a `recipe` (a name, or a value), `changes` of it as plain values, and `compose`, an
    augmentation of the user's own instead of a preset. A run folder is made in `runs`, called `name`.

    With a `run`, training is that of the run once more: on its images in their parts, with its pixels, from its start.
    With `resume`, training continues in the folder of that run, from `state` if there is one.
    """

    recipe: str | ExperimentConfig | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    compose: Mapping[str, Any] | None = None
    runs: Path | None = None
    name: str | None = None
    run: Run | None = None
    resume: bool = False
    state: dict[str, Any] | None = field(default=None, repr=False)


def resolve_request(given: Mapping[str, Any], knobs: Mapping[str, Any], runs: Any = None, name: Any = None) -> Request:
    """The request of a `Classifier`.

    Args:
        given: The arguments of the `Classifier`.
        knobs: Those of its `fit` that are settings of training.
        runs: The folder in which a run folder is made, if one is.
        name: The name of the run folder; else it is called after the data and the network.
    """
    augment, size, arch = given["augment"], plain(given["size"]), given["arch"]
    compose = None if augment is None or isinstance(augment, str) else compose_to_dict(augment)
    own = {
        "arch": arch if arch is None or isinstance(arch, str) else name_of(arch),
        "weights": given["weights"],
        "init": None if given["init"] is None else str(as_path("init", given["init"])),
        "size": (size, size) if isinstance(size, int) else size,
        "augment": augment if compose is None else None,
        "mean": given["mean"],
        "std": given["std"],
    }
    if knobs.get("batch_size") == "auto":
        knobs = {**knobs, "batch_size": AUTO_BATCH}
    config = dict(as_mapping("config", given["config"] or {}))
    config["train"] = {
        **as_mapping("train", config.get("train", {})),
        **{key: value for key, value in knobs.items() if value is not None},
    }
    changes = {**config, **{key: value for key, value in own.items() if value is not None}}
    return Request(given["recipe"], changes, compose, None if runs is None else as_path("runs", runs), name)


def own_network(given: Mapping[str, Any]) -> Arch | None:
    """The architecture that stands for the network of the user's own among the arguments of a `Classifier`, if any.

    Raises `ConfigError` for an object that is no network, and for a pretrained one without `mean` and `std`.
    """
    arch, pretrained = given["arch"], given["pretrained"]
    if arch is None or isinstance(arch, str):
        if pretrained:
            raise ConfigError("pretrained is for a network of your own; with a name, say weights='pretrained'")
        return None
    known = [given[key] is not None or key in (given["config"] or {}) for key in ("mean", "std")]
    if pretrained and not all(known):
        raise ConfigError(
            "pretrained=True needs the mean and the std of the pixels (0 to 1) that your network was trained on, as "
            "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225) of ImageNet"
        )
    return own_arch(arch, pretrained=bool(pretrained))


def choose_experiment(request: Request, suited: str | None = None) -> ExperimentConfig:
    """The experiment that a request means: its recipe with its changes.

    Without a recipe it is the one called `suited`, which goes with the data; a user who names an architecture, or a
    initial model, gets the defaults of fine-tuning, or of training from scratch, instead.
    """
    changes = plain(as_mapping("config", request.changes))
    for key in changes.keys() & {"train", "data"}:
        as_mapping(key, changes[key])
    base = base_recipe(request, suited)
    if not isinstance(base, str | ExperimentConfig):
        raise ConfigError(f"recipe is {type(base).__name__}; allowed: the name of a recipe, or an ExperimentConfig")
    values = to_dict(EXPERIMENTS.get(base) if isinstance(base, str) else base)
    places = {key: _place(str(changes[key])) for key in ("init", "weights") if changes.get(key) is not None}
    changes = {**changes, **places}
    if "init" in places:
        values |= _like(places["init"], changes.get("arch"))
    if changes.get("train", {}).get("minutes") and values["train"]["epochs"]:
        values["train"]["epochs"] = None  # the time decides, unless the user does
    for key, value in changes.items():
        values[key] = {**values[key], **value} if key in ("train", "data") else value
    return from_dict(ExperimentConfig, values)


def base_recipe(request: Request, suited: str | None) -> str | ExperimentConfig:
    """The recipe that `choose_experiment` begins with: the user's, else that of the data set; a quicker one for a few
    minutes on a CPU."""
    if request.recipe is not None:
        return request.recipe
    if suited is None or request.changes.keys() & {"arch", "init"}:
        return ExperimentConfig()
    train = request.changes.get("train", {})
    hurry = (train.get("minutes") or math.inf) <= FEW_MINUTES and pick_device(train.get("device", "auto")).type == "cpu"
    return QUICKER.get(suited, suited) if hurry else suited


def _place(named: str) -> str:
    """The run folder or file of this name, else the name: of a hub, for example."""
    path = locate(named)
    return named if named in NOT_PLACES or path == Path(named) else str(path)


def _like(path: str, arch: str | None) -> dict[str, Any]:
    """The values that an experiment takes over from its initial model; `arch` is the one that the user names."""
    manifest = read_manifest(path)
    if arch not in (None, manifest.model.arch):
        raise ConfigError(
            f"arch is {arch!r}, and {path} is a {manifest.model.arch}: leave out one of --arch and --init"
        )
    if manifest.model.members > 1:
        raise ConfigError(
            f"{path} is an ensemble of {manifest.model.members} networks, and training starts from a single one: "
            "name one of its members, such as NAME-member-1"
        )
    pixels = to_dict(manifest.preprocess)
    shared = {name: pixels[name] for name in ("size", "channels", "resize_mode", "mean", "std", "tta")}
    return {**shared, "arch": manifest.model.arch, "dropout": manifest.model.dropout, "weights": path}


def experiment_on(request: Request, source: Source) -> ExperimentConfig:
    """The experiment that a request means on a source, checked before any image is read.

    A recipe's shares of valid and test give way to those that the data bring; a user's are refused then. Raises
    `UnknownName` or `ConfigError`.
    """
    experiment = choose_experiment(request, source.default_recipe)
    if request.run is not None:
        return experiment
    check_experiment(experiment)
    if experiment.split is not None and request.changes.get("split") is None:
        return replace(experiment, split=open_fractions(brought(source), experiment.split))
    if experiment.split is not None:
        require_open(source, experiment.split)
    return experiment


def with_train(experiment: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    """The experiment with other values of its training config."""
    return replace(experiment, train=replace(experiment.train, **changes))


def check_experiment(experiment: ExperimentConfig) -> None:
    """Raise `UnknownName` or `ConfigError` for an unknown name or a missing device."""
    find_arch(pick_arch(experiment.arch, experiment.weights))
    if experiment.augment is not None:
        preset_steps(experiment.augment)
    pick_precision(experiment.train.precision, pick_device(experiment.train.device))
