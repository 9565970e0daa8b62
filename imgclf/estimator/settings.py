"""What a user asked of a `Classifier`, as changes of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from imgclf.core.arguments import as_path, named_values, plain
from imgclf.core.errors import ConfigError
from imgclf.estimator.plan import AUTO_BATCH
from imgclf.models.own import name_of, own_arch
from imgclf.models.registry import Arch
from imgclf.transforms.albumentations_pipeline import compose_to_dict

Builder = Callable[..., nn.Module] | nn.Module


def resolve_request(
    given: Mapping[str, Any], knobs: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """A user's own augmentation pipeline, if any, and all that was asked for as changes of an experiment.

    `given` are the arguments of a `Classifier`, `knobs` those of its `fit`.
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
    config = dict(named_values("config", given["config"] or {}))
    config["train"] = {
        **named_values("train", config.get("train", {})),
        **{key: value for key, value in knobs.items() if value is not None},
    }
    return compose, {**config, **{key: value for key, value in own.items() if value is not None}}


def own_network(given: Mapping[str, Any]) -> Arch | None:
    """The architecture that stands for the network of the user's own among the arguments of a `Classifier`, if any.

    Raises `ConfigError` for what is no network, and for one that is pretrained on pixels of unknown mean and std.
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
