"""`imgclf find-lr`: which learning rate suits this start."""

from __future__ import annotations

from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import DataDir, Json, Out
from imgclf.cli.train import changes_of


def find_lr(
    data: Annotated[str, typer.Argument(metavar="DATA", help="What would be trained on, as for train.")],
    arch: Annotated[str | None, typer.Option(help="The network; see `imgclf models`.", show_default=False)] = None,
    recipe: Annotated[str | None, typer.Option(help="A named experiment, as for train.", show_default=False)] = None,
    weights: Annotated[str | None, typer.Option(help="What it starts from, as for train.", show_default=False)] = None,
    size: Annotated[str | None, typer.Option(help="N or HxW in pixels.", show_default=False)] = None,
    augment: Annotated[str | None, typer.Option(help="Changes to training images.", show_default=False)] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images per step.", show_default=False)] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="As for train.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute.", show_default=False)] = None,
    data_dir: DataDir = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Raise the learning rate over 100 steps, suggest one, and make a picture; nothing is kept of the training."""
    given = {key: value for key, value in locals().items() if value is not None}
    path = console.picture_path(out, "find-lr.png")
    with console.waiting("loading"):
        from imgclf.cli._training import TrainView
        from imgclf.pictures import save_lr_curve
        from imgclf.plan import plan_loader, plan_training
        from imgclf.training.lr_finder import find_lr as search

    view = TrainView()
    with view.progress:
        plan, source, split = plan_training(data, changes_of(given), recipe, [view])
        loader = plan_loader(plan, source, split.samples("train"), train=True)
        curve = search(plan.model, loader, plan.experiment.train, progress=view.searching)
    save_lr_curve(curve, path)
    if json:
        console.show_json({**curve.to_dict(), "picture": str(path)})
        return
    console.show(f"suggested learning rate: {curve.suggestion:.2g}")
    console.show(f"picture: {path}")
    console.show(f"next:    imgclf train DATA --lr {curve.suggestion:.2g}   (with the same options)")
