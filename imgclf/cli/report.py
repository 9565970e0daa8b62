"""`imgclf report`: the page of a run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Out

PAGES = (".html", ".htm")


def report(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder, or its name; else the default run.", show_default=False),
    ] = None,
    out: Out = None,
) -> None:
    """Write the report of a run again: one page with figures, curves, confusions and pictures, to open in a browser."""
    from imgclf.run import REPORT, find_run
    from imgclf.runlist import default_run

    if run is None:
        default = default_run()
        folder = Path(default.path)
        console.say(f"run: {folder} ({default.reason})", "dim")
    else:
        folder = find_run(run).path
    path = folder / REPORT if out is None else out / REPORT if out.is_dir() else out
    console.require_output(path, PAGES, "--out")
    with console.waiting("loading"):
        from imgclf.reporting import write_report
    with console.progress("writing the report") as progress:
        write_report(folder, path, progress=progress)
    console.show(str(path))
