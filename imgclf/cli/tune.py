"""`imgclf tune`: search for better settings."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import DataDir, Json
from imgclf.cli.train import changes_of
from imgclf.run import ROOT

SHOWN = 5


def tune(
    data: Annotated[str, typer.Argument(metavar="DATA", help="What to train on, as for train.")],
    trials: Annotated[int, typer.Option(min=1, help="How many settings are tried, in all.")] = 20,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Stop after this time.", show_default=False)] = None,
    arch: Annotated[str | None, typer.Option(help="The network; see `imgclf models`.", show_default=False)] = None,
    recipe: Annotated[str | None, typer.Option(help="A named experiment, as for train.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file, as for train.", show_default=False)] = None,
    weights: Annotated[str | None, typer.Option(help="What it starts from, as for train.", show_default=False)] = None,
    size: Annotated[str | None, typer.Option(help="N or HxW in pixels.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each trial.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="As for train.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="As for train.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute.", show_default=False)] = None,
    data_dir: DataDir = None,
    runs: Annotated[Path, typer.Option(help="Where the trials and the best settings are kept.")] = ROOT,
    json: Json = False,
) -> None:
    """Try settings of training, judge them by the valid images, and write down the best; goes on where it stopped."""
    given = {key: value for key, value in locals().items() if value is not None}
    del given["minutes" if "minutes" in given else "trials"]
    with console.waiting("loading"):
        from imgclf.cli._training import TrainView
        from imgclf.pictures import save_importances
        from imgclf.tuning import Trial
        from imgclf.tuning import tune as search

    def told(trial: Trial) -> None:
        loss = trial.ended if trial.loss is None else f"valid loss {trial.loss:.4f}"
        console.say(f"trial {trial.number + 1:3d}: {loss:18}  {_words(trial.values)}")

    view = TrainView()
    with view.progress:
        result = search(
            data,
            changes_of(given),
            recipe=recipe,
            trials=trials,
            minutes=minutes,
            folder=runs,
            callbacks=[view],
            told=told,
        )
    picture = Path(result.config).with_suffix(".png")
    if result.importances:
        save_importances(result.importances, picture)
    if json:
        console.show_json(result.to_dict())
        return
    header = ["trial", "valid loss", *result.trials[0].values]
    rows = [
        (t.number + 1, f"{t.loss:.4f}", *map(_word, t.values.values())) for t in result.trials if t.loss is not None
    ]
    console.show_table(header, rows[:SHOWN])
    if result.importances:
        console.show("what matters: " + ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items()))
        console.show(f"picture: {picture}")
    console.show(f"next:  imgclf train {shlex.quote(data)} --config {shlex.quote(result.config)}")


def _words(values: Any) -> str:
    return ", ".join(f"{name} {_word(value)}" for name, value in values.items())


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
