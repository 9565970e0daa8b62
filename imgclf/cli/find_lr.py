"""`imgclf find-lr`: which learning rate suits this start."""

from __future__ import annotations

from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import (
    Arch,
    Augment,
    BatchSize,
    Config,
    Json,
    Optimizer,
    RecipeName,
    Seed,
    Size,
    TrainDataDir,
    TrainDevice,
    Weights,
    command_line,
)
from imgclf.cli._output import Force, Out, picture_file
from imgclf.cli.train import resolve_request


def find_lr(
    data: Annotated[str, typer.Argument(metavar="DATA", help="What would be trained on, as for train.")],
    arch: Arch = None,
    recipe: RecipeName = None,
    config: Config = None,
    weights: Weights = None,
    size: Size = None,
    augment: Augment = None,
    batch_size: BatchSize = None,
    optimizer: Optimizer = None,
    seed: Seed = None,
    device: TrainDevice = None,
    data_dir: TrainDataDir = None,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Raise the learning rate over 100 steps, suggest one, and make a picture; nothing is kept of the training."""
    own = ("data", "out", "force", "json")
    given = {key: value for key, value in locals().items() if value is not None and key not in (*own, "own")}
    path = picture_file(out, "find-lr.png", force=force, data=[data])
    with console.waiting("loading"):
        from imgclf.cli._training import TrainView
        from imgclf.data.sources.open import open_source
        from imgclf.data.write import require_outside
        from imgclf.estimator.settings import Request
        from imgclf.estimator.warm_start import plan_start
        from imgclf.plots.grids import save_lr_curve
        from imgclf.training.lr_finder import find_lr as search

    changes = resolve_request(given)
    source = open_source(data, data_dir=changes["data"].get("data_dir"))
    require_outside(path, source)
    view = TrainView()
    with view.progress:
        plan = plan_start(Request(recipe, changes), data, [view]).plan
        curve = search(plan.model, plan.train_loader, plan.experiment.train, progress=view.searching)
    usual = plan.experiment.train.lr
    assert usual is not None
    save_lr_curve(curve, path, f"{source.name}, {plan.spec.arch}", usual)
    if curve.suggestion is None:
        console.warn(f"no learning rate makes the loss much lower in so few steps: keep the default, {usual:.2g}")
    if json:
        console.show_json({**curve.to_dict(), "picture": str(path)})
        return
    if curve.suggestion is not None:
        console.show(f"suggested learning rate: {curve.suggestion:.2g}   (train would use {usual:.2g})")
        given |= {"lr": f"{curve.suggestion:.2g}"}
    console.show(f"picture: {path}")
    console.show(f"next:    {command_line('train', data, given)}")
