"""`imgclf reproduce`: train again as a run did, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import require_own
from imgclf.cli._options import Json, OwnArch


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name.", show_default=False)],
    arch: OwnArch = None,
    json: Json = False,
) -> None:
    """Train again from the config and the split of a run, and compare weights and figures. Nothing is written.

    Ends with 0 where the weights are equal or, on another machine or with other versions, where the figures agree;
    else with 1.
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


def _show(result: Any) -> None:
    if result.weights_equal:
        console.show("weights: equal, to the bit")
    else:
        console.show(f"weights: not equal; the largest difference is {result.largest_difference:.3g}")
    rows = [
        (figure.name, f"{figure.then:.4f}", f"{figure.now:.4f}", "agrees" if figure.agrees else "differs")
        for figure in result.figures
    ]
    console.show_table(["figure", "then", "now", ""], rows)
    if result.different:
        console.show_table(["not as it was", "then", "now"], [(n, *pair) for n, pair in result.different.items()])
    if result.extended:
        console.show("the run was resumed to more epochs than it was planned for: one run from the start differs")
    console.show("reproduced" if result.reproduced else "not reproduced")
