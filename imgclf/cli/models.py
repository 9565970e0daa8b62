"""`imgclf models`: which networks there are, and what one is made of."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json
from imgclf.core.text import plural


def models(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of a network, to show its layers; or a part of names, or a glob."),
    ] = "",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes in the layer table.")] = 10,
    size: Annotated[str | None, typer.Option(help="Input size in the layer table: N or HxW pixels.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Input channels in the layer table.")] = None,
    json: Json = False,
) -> None:
    """List networks with parameters, input size and weights, or show one layer by layer.

    [dim]imgclf models resnet[/dim]   [dim]imgclf models lenet[/dim]
    """
    from imgclf.core.registry import unknown_name
    from imgclf.models.catalog import list_models, measure

    found = list_models(name)
    exact = next((info for info in found if info.name == name), None)
    if not found and re.search("[:.]", name):  # a library or a tag, as in timm:resnet18 and resnet18.a1_in1k
        exact = measure(name)
        found = [exact]
    if not found:
        raise unknown_name("architecture", name, [info.name for info in list_models()])
    if json:
        console.show_json([asdict(info) for info in (found if exact is None else [exact])])
    elif exact is None:
        rows = [[info.name, f"{info.params:,}", _side(info.size), info.channels, _host(info.weights)] for info in found]
        console.show_table(["name", "parameters", "size", "channels", "pretrained weights"], rows)
        console.say(plural(len(rows), "network"), "dim")
    else:
        _show_layers(exact, classes, size, channels)


def _host(weights: str | None) -> str | None:
    """Where weights come from, short enough for a table: a hub name, or the host of an address."""
    return weights.split("/")[2] if weights is not None and "://" in weights else weights


def _side(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}×{width}"


def _show_layers(info: Any, classes: int, size: str | None, channels: int | None) -> None:
    from imgclf.core.config import ModelConfig, parse_size
    from imgclf.models.build import build_model
    from imgclf.models.summary import layer_table

    spec = ModelConfig(info.name, classes, channels or info.channels, parse_size(size) if size else info.size)
    rows = layer_table(build_model(spec), spec.size, spec.channels)
    height, width = spec.size
    console.show(f"{info.name}: input {spec.channels}×{height}×{width} (channels × height × width), {classes} classes")
    console.show()
    cells = [[row.name, row.kind, "×".join(map(str, row.shape)), row.formula, f"{row.params:,}"] for row in rows]
    console.show_table(["layer", "kind", "output", "(W - F + 2P)/S + 1", "parameters"], cells)
    console.show()
    console.show(f"{sum(row.params for row in rows):,} parameters; pretrained weights: {info.weights or 'none'}")
