"""`imgclf use`: which run is the default."""

from __future__ import annotations

from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json
from imgclf.cli._results import figure
from imgclf.core.errors import ConfigError


def use(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run in ./runs to pin; without it, show the default.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Unpin: the newest finished run with a test result is the default again.")
    ] = False,
    json: Json = False,
) -> None:
    """Pin the default run: what predict, evaluate and other commands use without --model.

    [dim]imgclf use photos-resnet18-1[/dim]
    """
    from imgclf.storage.run_list import default_run, find_default, pin_run, unpin, why_none

    if clear and run is not None:
        raise ConfigError("--clear takes no RUN: leave out one of them")
    if clear:
        unpin()
        default = find_default()
    else:
        default = default_run() if run is None else pin_run(run)
    if json:
        console.show_json({"default": None if default is None else default.to_dict()})
    elif default is None:
        console.show(f"default: none: {why_none()}")
    else:
        console.show(f"default: {default.path} ({default.reason}; {figure(default)})")
