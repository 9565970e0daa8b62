"""`imgclf learning-curve`: would more images help?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json, TrainData, TrainingOptions, training_options
from imgclf.cli._output import Force, Out, picture_file
from imgclf.core.text import percent, percent_range

NEGLIGIBLE_GAIN = 0.0005  # of the accuracy: rounds to no tenth of a point

if TYPE_CHECKING:
    from imgclf.core.results import ClassGain, Estimate, LearningCurve


@training_options("arch", "recipe", "config", "weights", "size", "epochs", "split", "seed", "device", "data_dir")
def learning_curve(
    data: TrainData,
    options: TrainingOptions,
    full: Annotated[
        bool, typer.Option("--full", help="Train the whole network each time, not a linear head on its features.")
    ] = False,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure accuracy with 10% to 100% of the training images, and predict it for twice as many."""
    path = picture_file(out, "learning-curve.png", force=force, data=[data])
    with console.waiting("loading"):
        from imgclf.cli._learning_curve import CurveView
        from imgclf.data.sources.open import open_source
        from imgclf.data.write import require_outside
        from imgclf.plots.figures import save_learning_curve
        from imgclf.studies.learning_curve import learning_curve as measure

    changes = options.changes()
    require_outside(path, open_source(data, data_dir=changes["data"].get("data_dir")))
    view = CurveView(full=full)
    with view.progress:
        curve = measure(data, recipe=options.recipe, config=changes, full=full, callbacks=[view])
    save_learning_curve(curve, path)
    if json:
        console.show_json({**curve.to_dict(), "picture": str(path)})
        return
    _show(curve)
    console.show(f"picture: {path}")


def _show(curve: LearningCurve) -> None:
    law, images = curve.law, curve.points[-1].images
    rows = [(f"{p.images:,}", percent(p.accuracy), percent_range(*p.interval), p.draws) for p in curve.points]
    console.show_table(("images", "accuracy", "95% interval", "draws"), rows)
    console.show()
    console.show(f"fit:     error = {law.scale:.3g} · n^−{law.exponent:.2g} + {law.floor:.3g} for n training images")
    gain, doubled = curve.gain, curve.doubled
    if not curve.reliable:
        console.show("more:    unclear, as the points don't follow the fit")
    elif gain.high < NEGLIGIBLE_GAIN:
        console.show(f"more:    {2 * images:,} images, twice as many: a negligible gain")
    else:
        then = f"{percent(doubled.value)} ({percent_range(doubled.low, doubled.high)})"
        console.show(f"more:    {2 * images:,} images, twice as many: about {_gain(gain)} points, to {then}")
    if not curve.full:
        header = ("class", "images", "recall", "recall gain with 2×", "accuracy gain with 2×")
        console.show()
        console.show_table(header, map(_class_row, curve.classes))
        console.show()


def _gain(gain: Estimate) -> str:
    value, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in (gain.value, gain.low, gain.high))
    return f"{value} ({low} to {high})"


def _class_row(row: ClassGain) -> Sequence[object]:
    recall = None if row.recall is None else percent(row.recall)
    return row.name, f"{row.images:,}", recall, _class_gain(row.recall_gain), _class_gain(row.accuracy_gain)


def _class_gain(gain: Estimate | None) -> str | None:
    if gain is None:
        return None
    if max(abs(gain.low), abs(gain.high)) < NEGLIGIBLE_GAIN:
        return "negligible"
    return _gain(gain) if gain.significant else f"unclear {_gain(gain).partition(' ')[2]}"
