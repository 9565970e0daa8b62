"""All architectures that a name can stand for, as a static table: listing them loads no torch.

`python -m imgclf.models.catalog` writes the table anew, by building every network without memory for its weights.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from imgclf.core.config import ModelConfig, parse_size
from imgclf.core.files import csv_text, read_text, write_text

TABLE = Path(__file__).with_name("catalog.csv")
COLUMNS = ("name", "params", "size", "channels", "weights")


@dataclass(frozen=True)
class ModelInfo:
    """An architecture as it was published: parameters with its own number of classes, preferred (height, width).

    `weights` says where pretrained weights come from, None that there are none.
    """

    name: str
    params: int
    size: tuple[int, int]
    channels: int
    weights: str | None


def list_models(pattern: str = "") -> list[ModelInfo]:
    """The architectures whose name contains `pattern`, or matches it where it holds one of `*?[`; case is ignored.

    imgclf's own come first, then timm's, then torchvision's that timm lacks.
    """
    wanted = pattern.lower()
    glob = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"
    return [info for info in _table() if fnmatchcase(info.name.lower(), glob)]


@cache
def _table() -> tuple[ModelInfo, ...]:
    _, *rows = csv.reader(io.StringIO(read_text(TABLE)))
    return tuple(
        ModelInfo(name, int(params), parse_size(size), int(channels), weights or None)
        for name, params, size, channels, weights in rows
    )


def measure(name: str) -> ModelInfo:
    """The row of one architecture, from the network itself. Loads torch, and the library that the network is from."""
    from imgclf.models.backbones import find_arch
    from imgclf.models.build import empty_network

    arch = find_arch(name)
    model = empty_network(ModelConfig(name, arch.classes, arch.channels, arch.size))
    params = sum(parameter.numel() for parameter in model.parameters())
    return ModelInfo(name, params, arch.size, arch.channels, arch.weights)


def _rows() -> Iterator[tuple[object, ...]]:
    from imgclf.models.backbones import all_names

    yield COLUMNS
    for name in all_names():
        info = measure(name)
        yield info.name, info.params, f"{info.size[0]}x{info.size[1]}", info.channels, info.weights or ""


if __name__ == "__main__":
    write_text(TABLE, csv_text(_rows()))
