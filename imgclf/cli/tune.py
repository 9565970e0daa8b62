"""`imgclf tune`: search for better settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import (
    OUTPUT,
    TRAINING,
    Arch,
    Config,
    Epochs,
    Json,
    RecipeName,
    Seed,
    Size,
    Split,
    TrainDataDir,
    TrainDevice,
    Weights,
)
from imgclf.cli._output import output_folder
from imgclf.cli.train import resolve_request
from imgclf.storage.run_folder import ROOT


def tune(
    data: Annotated[str, typer.Argument(metavar="DATA", help="What to train on, as for train.")],
    trials: Annotated[
        int, typer.Option(min=1, help="How many settings are tried, in all.", rich_help_panel=TRAINING)
    ] = 20,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Stop after this time.", show_default=False, rich_help_panel=TRAINING),
    ] = None,
    arch: Arch = None,
    recipe: RecipeName = None,
    config: Config = None,
    weights: Weights = None,
    size: Size = None,
    epochs: Epochs = None,
    split: Split = None,
    seed: Seed = None,
    device: TrainDevice = None,
    data_dir: TrainDataDir = None,
    runs: Annotated[
        Path, typer.Option(help="Where the trials and the best settings are kept.", rich_help_panel=OUTPUT)
    ] = ROOT,
    json: Json = False,
) -> None:
    """Try settings of training, judge them by the valid images, and write down the best; goes on where it stopped."""
    search = ("data", "trials", "minutes", "runs", "json")
    given = {key: value for key, value in locals().items() if value is not None and key not in (*search, "search")}
    output_folder(runs, "--runs", data=[data])
    with console.waiting("loading"):
        from imgclf.cli._tuning import run_search

    options = {"recipe": recipe, "trials": trials, "minutes": minutes, "folder": runs}
    run_search(data, resolve_request(given), options, as_json=json)
