"""What a user asked of a `Classifier`, as changes of an experiment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from imgclf.bundle import ARCH_NAME
from imgclf.errors import ConfigError
from imgclf.models._arch import ARCHS, Arch
from imgclf.plan import AUTO_BATCH
from imgclf.specs import ModelSpec
from imgclf.transforms.augment import compose_to_dict

Builder = Callable[[ModelSpec], nn.Module]


def changes_of(given: Mapping[str, Any], knobs: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """A user's own augmentation pipeline, if any, and all that was asked for as changes of an experiment.

    `given` are the arguments of a `Classifier`, `knobs` those of its `fit`.
    """
    augment, size, arch = given["augment"], given["size"], given["arch"]
    compose = None if augment is None or isinstance(augment, str) else compose_to_dict(augment)
    own = {
        "arch": register_builder(arch) if callable(arch) else arch,
        "weights": given["weights"],
        "init": None if given["init"] is None else os.fspath(given["init"]),
        "size": (size, size) if isinstance(size, int) else size,
        "augment": augment if compose is None else None,
    }
    if knobs.get("batch_size") == "auto":
        knobs = {**knobs, "batch_size": AUTO_BATCH}
    config = dict(given["config"] or {})
    config["train"] = {
        **config.get("train", {}),
        **{key: value for key, value in knobs.items() if value is not None},
    }
    return compose, {**config, **{key: value for key, value in own.items() if value is not None}}


def register_builder(build: Builder) -> str:
    """The name under which a user's own network is known: its function's name, registered if it is new.

    A model file of it can be loaded wherever the function was registered before (`imgclf.arch`, or this).
    """
    name = getattr(build, "__name__", type(build).__name__)
    if not ARCH_NAME.fullmatch(name):
        raise ConfigError(f"a network of your own needs a function with a plain name, not {name!r}")
    if name not in ARCHS:
        ARCHS.add(name, Arch(name, build, size=(224, 224), channels=3, family="own", summary="a network of your own"))
    elif ARCHS.get(name).build is not build:
        raise ConfigError(f"an architecture called {name!r} is there already; give your function another name")
    return name
