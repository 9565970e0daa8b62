"""`imgclf tune`: search for better settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json, TrainData, TrainingOptions, training_options
from imgclf.cli._output import output_folder
from imgclf.core.config import OUTPUT, TRAINING
from imgclf.storage.run_folder import ROOT


@training_options(*("arch", "recipe", "config", "weights", "size", "epochs", "split", "seed", "device", "data_dir"))
def tune(
    data: TrainData,
    options: TrainingOptions,
    trials: Annotated[int, typer.Option(min=1, help="Total number of trials.", rich_help_panel=TRAINING)] = 20,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Time limit of the search.", rich_help_panel=TRAINING)
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder for the trials and the best settings.", rich_help_panel=OUTPUT)
    ] = ROOT,
    json: Json = False,
) -> None:
    """Search for better training settings, compared on the validation images. The same command resumes a search."""
    output_folder(runs, "--runs", data=[data])
    with console.waiting("loading"):
        from imgclf.cli._tuning import run_search

    search = {"recipe": options.recipe, "trials": trials, "minutes": minutes, "folder": runs}
    run_search(data, options.changes(), search, as_json=json)
