"""`imgclf runs`: what was trained so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json
from imgclf.cli._run_table import HEADER, cells
from imgclf.core.errors import ModelFileError
from imgclf.core.options import listed
from imgclf.core.text import plural
from imgclf.storage.run_folder import ROOT
from imgclf.storage.run_list import FILTERS, SORTS, RunEntry


def runs(
    folder: Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")] = ROOT,
    sort: Annotated[str, typer.Option(help=f"Sort by {listed(SORTS)}.")] = "number",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help=f"Only runs that contain this text, or KEY=PATTERN, e.g. arch=resnet*; KEY is {listed(FILTERS)}.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List runs with accuracy, time and size, newest last; * marks the default.

    [dim]imgclf runs --filter data=cifar10 --sort accuracy[/dim]
    """
    from imgclf.core.errors import ConfigError
    from imgclf.storage.run_list import filtered, list_entries, ordered

    if folder != ROOT and not folder.is_dir():
        raise ConfigError(f"--runs is {str(folder)!r}; expected the folder of run folders")
    entries, damaged = list_entries(folder)
    shown = ordered(entries, sort)
    for text in condition or ():
        shown = filtered(shown, text)
    if damaged:
        console.warn(f"{plural(len(damaged), 'run')} left out: run.json can't be read:", map(str, damaged))
    if json:
        console.show_json({"runs": [entry.to_dict() for entry in shown]})
        return
    if not entries:
        console.say(f"no runs in {folder.absolute()}: train one (imgclf train DATA)")
    elif not shown:
        console.say(f"no run matches the filter ({plural(len(entries), 'run')})")
    else:
        rows = [("*" if entry.default else "", *cells(entry)) for entry in shown]
        console.show_table(("", *HEADER), rows, keys=2)
        _say_default(folder, entries, shown)


def _say_default(folder: Path, entries: Sequence[RunEntry], shown: Sequence[RunEntry]) -> None:
    """Which of the runs is the default and why, if it is in the table, or why none is."""
    from imgclf.storage.run_list import default_run

    default = next((entry for entry in entries if entry.default), None)
    if default is None:
        try:
            default_run(folder)
        except ModelFileError as error:
            console.say(f"no run is the default: {error}", "dim")
    elif default in shown:
        console.say(f"* default model: {default.reason}", "dim")
