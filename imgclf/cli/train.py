"""`imgclf train`: from images to a model file, with everything that happened in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import TRAIN_DATA, Json, TrainingOptions, training_options
from imgclf.core.config import OUTPUT, TRAINING
from imgclf.core.options import listed
from imgclf.storage.run_folder import ROOT
from imgclf.tracking.registry import TRACKERS


@training_options()
def train(
    options: TrainingOptions,
    data: Annotated[str | None, TRAIN_DATA] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            help="Train N networks with different seeds and join them in one model file.",
            metavar="N",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan, its time and memory; train nothing.", rich_help_panel=OUTPUT),
    ] = False,
    resume: Annotated[Path | None, typer.Option(help="Resume this run.", rich_help_panel=OUTPUT)] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help=f"Folder for the run folders. [dim]\\[default: {ROOT}][/dim]", rich_help_panel=OUTPUT),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run folder. [dim]\\[default: from data and network][/dim]", rich_help_panel=OUTPUT
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Follow training live: {listed(tuple(TRACKERS.names()))}, or NAME=PLACE; repeatable.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a classifier, test it, and keep everything in a run folder.

    [dim]imgclf train digits[/dim]   [dim]imgclf train ./my_photos --arch resnet50[/dim]
    """
    trackers = list(dict.fromkeys(each for given in track or () for each in given.split(",")))
    own: dict[str, object] = {"data": data, "ensemble": ensemble, "resume": resume, "runs": runs, "name": name}
    own |= {"track": trackers or None, "dry_run": dry_run or None}
    given = {key: value for key, value in own.items() if value is not None}
    with console.waiting("loading"):
        from imgclf.cli._training import run_training

    run_training(data, options.changes(), {**options.typed, **given, "json": json})
