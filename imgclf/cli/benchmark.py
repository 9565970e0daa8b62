"""`imgclf benchmark`: how fast training is here, and what bounds it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import DataDir, Json
from imgclf.cli.train import resolve_request
from imgclf.core.text import plural


def benchmark(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images as for train.", show_default=False)],
    arch: Annotated[
        str | None, typer.Option(help="The network. [dim]\\[default: resnet18][/dim]", show_default=False)
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A named experiment, as for train.", show_default=False)] = None,
    size: Annotated[str | None, typer.Option(help="N or HxW in pixels.", show_default=False)] = None,
    augment: Annotated[str | None, typer.Option(help="Changes to training images.", show_default=False)] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images per step.", show_default=False)] = None,
    precision: Annotated[str | None, typer.Option(help="Numbers to compute in.", show_default=False)] = None,
    cache: Annotated[str | None, typer.Option(help="Where decoded images are kept.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that read images.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute.", show_default=False)] = None,
    data_dir: DataDir = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each stage is measured.")] = 3.0,
    json: Json = False,
) -> None:
    """Measure the stages of training on these images; say which one bounds it, and what to change."""
    given = {key: value for key, value in locals().items() if value is not None}
    with console.waiting("loading"):
        from imgclf.cli._training import TrainView
        from imgclf.studies.benchmark import benchmark as measure

    view = TrainView()
    with view.progress:
        result = measure(
            data,
            {"weights": "none", **resolve_request(given)},
            recipe=recipe,
            seconds=seconds,
            callbacks=[view],
            progress=lambda stage: view.waiting(f"measuring: {stage}"),
        )
    if json:
        console.show_json(result.to_dict())
    else:
        _show(result)


def _show(result: Any) -> None:
    facts = result.facts
    height, width = facts["size"]
    console.show(
        f"{facts['arch']}, {height}×{width}, batch {facts['batch_size']}, {facts['precision']}, on {facts['device']} "
        f"({facts['processor']}, {plural(facts['cores'], 'core')})"
    )
    rows = [(stage.name, f"{stage.images_per_second:,.0f}", stage.what) for stage in result.stages]
    console.show_table(["stage", "images/s", ""], rows)
    console.show(f"bound by: {result.bound}")
    for line in result.advice:
        console.show(f"  - {line}")
