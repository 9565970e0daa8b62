"""What an architecture is, and the registry of imgclf's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError
from imgclf.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn

HEAD = "imgclf_head"  # the attribute of a user's own network that names the layer that gives the scores
IMAGENET_CLASSES = 1000

Builder = Callable[[ModelConfig], "nn.Module"]


@dataclass(frozen=True)
class Arch:
    """A kind of network: how to build one that is empty, and the pixels it prefers.

    `build` makes the module, whose output is (batch, classes) of logits. `size` is (height, width) in pixels; `mean`
    and `std` are of values in 0…1, one for all channels or one each; `interpolation`, `resize_mode` and `crop_pct`
    are those of `PreprocessConfig`. `any_channels` says that it can be built for another number of channels.
    `classes` is the number that the network was published with; `resizable` says that its weights serve other sizes
    as well. `weights` says where pretrained weights come from, None that there are none. `family` names the library or
    the group it belongs to.
    """

    name: str
    build: Builder
    size: tuple[int, int]
    channels: int
    family: str
    any_channels: bool = True
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: str = "bilinear"
    resize_mode: str = "crop"
    crop_pct: float = 1.0
    classes: int = 10
    weights: str | None = None
    resizable: bool = False
    summary: str = ""


ARCHS: Registry[Arch] = Registry("architecture")


def arch(
    name: str, *, size: tuple[int, int], channels: int, family: str, classes: int = 10, summary: str
) -> Callable[[Builder], Builder]:
    """Register the decorated function, which builds a network from a `ModelConfig`, as an architecture.

    The same function may be registered again, as when a notebook cell runs twice.

    Args:
        name: What `--arch` and `find_arch` know it by.
        size: The (height, width) in pixels that it prefers.
        channels: The number of input channels that it prefers.
        family: The library or the group it belongs to.
        classes: The number of classes it was published with.
        summary: One line about it.

    Raises:
        ConfigError: Another architecture has this name.
    """

    def register(build: Builder) -> Builder:
        if name in ARCHS and _origin(ARCHS.get(name).build) != _origin(build):
            raise ConfigError(f"an architecture called {name!r} already exists: choose another name")
        made = Arch(name, build, size=size, channels=channels, family=family, classes=classes, summary=summary)
        ARCHS.replace(name, made)
        return build

    return register


def _origin(build: Builder) -> tuple[str, str]:
    return build.__module__, getattr(build, "__qualname__", "")
