"""`imgclf reproduce`: train a run again, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import require_own
from imgclf.cli._options import Json, OwnArch

if TYPE_CHECKING:
    from imgclf.studies.reproduce import Reproduction


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or name of a run.")],
    arch: OwnArch = None,
    json: Json = False,
) -> None:
    """Train again with the config and the split of a run, and compare weights and metrics. Nothing is written.

    Exit code 0: equal weights or, on another machine or version, metrics that agree; else 1.
    """
    with console.waiting("loading"):
        require_own(arch)
        from imgclf.cli._training import TrainView
        from imgclf.runtime import distributed
        from imgclf.studies.reproduce import reproduce as train_again

    view = TrainView()
    with view.progress:
        result = train_again(run, callbacks=[view], progress=view.evaluating)
    if json and distributed.is_main():
        console.show_json(result.to_dict())
    elif distributed.is_main():
        _show(result)
    if not result.reproduced:
        raise typer.Exit(1)


def _show(result: Reproduction) -> None:
    if result.weights_equal:
        console.show("weights: equal to the bit")
    else:
        console.show(f"weights: different, by {result.largest_difference:.3g} at most")
    rows = [(m.name, f"{m.then:.4f}", f"{m.now:.4f}", "agrees" if m.agrees else "differs") for m in result.metrics]
    console.show_table(["metric", "then", "now", ""], rows)
    if result.environment:
        console.show_table(["environment", "then", "now"], [(n, *pair) for n, pair in result.environment.items()])
    if result.extended:
        console.show("the run was resumed to more epochs than planned: training without a break differs")
    console.show("reproduced" if result.reproduced else "not reproduced")
