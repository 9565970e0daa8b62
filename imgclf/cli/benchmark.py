"""`imgclf benchmark`: the speed of training here, and its bottleneck."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json, TrainData, TrainingOptions, training_options
from imgclf.core.text import plural

if TYPE_CHECKING:
    from imgclf.studies.benchmark import Benchmark


@training_options(
    *("arch", "recipe", "size", "augment", "batch_size", "precision", "cache", "workers", "device", "data_dir"),
    arch="resnet18",
)
def benchmark(
    data: TrainData,
    options: TrainingOptions,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds to measure each stage.")] = 3.0,
    json: Json = False,
) -> None:
    """Measure the stages of training on these images, and show the bottleneck and how to remove it."""
    with console.waiting("loading"):
        from imgclf.cli._training import TrainView
        from imgclf.studies.benchmark import benchmark as measure

    view = TrainView()
    with view.progress:
        config = {"weights": "none", **options.changes()}
        result = measure(data, recipe=options.recipe, config=config, seconds=seconds, callbacks=[view])
    if json:
        console.show_json(result.to_dict())
    else:
        _show(result)


def _show(result: Benchmark) -> None:
    facts = result.facts
    height, width = facts["size"]
    work = f"{facts['arch']}, {height}×{width}, batch {facts['batch_size']}, {facts['precision']}"
    console.show(f"{work}, on {facts['device']} ({facts['processor']}, {plural(facts['cores'], 'core')})")
    rows = [(stage.name, f"{stage.images_per_second:,.0f}", stage.what) for stage in result.stages]
    console.show_table(["stage", "images/s", ""], rows)
    console.show(f"bottleneck: {result.bottleneck}")
    for line in result.advice:
        console.show(f"  - {line}")
