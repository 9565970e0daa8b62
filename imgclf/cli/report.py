"""`imgclf report`: the page of a run, written again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import require_own
from imgclf.cli._options import OwnArch
from imgclf.cli._output import Force, Out, output_file, run_data

PAGES = (".html", ".htm")


def report(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Run folder or name of a run. [dim]\\[default: the default run][/dim]"),
    ] = None,
    arch: OwnArch = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Write the report of a run again: one HTML page with metrics, curves, confusions and pictures."""
    from imgclf.storage.run_folder import REPORT, find_run, open_run
    from imgclf.storage.run_list import default_run

    if run is None:
        default = default_run()
        folder = Path(default.path)
        console.say(f"run: {folder} ({default.reason})", "dim")
    else:
        folder = find_run(run).path
    path = folder / REPORT
    if out is not None:
        path = out / REPORT if os.path.isdir(out) else out
        output_file(path, "--out", PAGES, force=force, data=run_data(open_run(folder)))
    with console.waiting("loading"):
        require_own(arch)
        from imgclf.report.collect import write_report
    with console.progress("writing the report") as progress:
        write_report(folder, path, progress=progress)
    console.show(str(path))
