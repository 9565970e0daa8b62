"""`imgclf find-lr`: which learning rate suits this start."""

from __future__ import annotations

from imgclf.cli import _console as console
from imgclf.cli._options import Json, TrainData, TrainingOptions, command_line, training_options
from imgclf.cli._output import Force, Out, picture_file


@training_options(
    *("arch", "recipe", "config", "weights", "size", "augment", "batch_size", "optimizer", "seed", "device", "data_dir")
)
def find_lr(
    data: TrainData, options: TrainingOptions, out: Out = None, force: Force = False, json: Json = False
) -> None:
    """Suggest a learning rate: raise it over 100 steps and plot the loss. The training itself is not kept."""
    path = picture_file(out, "find-lr.png", force=force, data=[data])
    with console.waiting("loading"):
        from imgclf.cli._training import TrainView
        from imgclf.data.sources.open import open_source
        from imgclf.data.write import require_outside
        from imgclf.estimator.settings import Request
        from imgclf.estimator.warm_start import plan_start
        from imgclf.plots.figures import save_lr_curve
        from imgclf.training.lr_finder import find_lr as search

    changes = options.changes()
    source = open_source(data, data_dir=changes["data"].get("data_dir"))
    require_outside(path, source)
    view = TrainView()
    with view.progress:
        plan = plan_start(Request(options.recipe, changes), data, [view]).plan
        curve = search(plan.model, plan.train_loader, plan.experiment.train, progress=view.searching)
    usual = plan.experiment.train.lr
    assert usual is not None
    save_lr_curve(curve, path, f"{source.name}, {plan.spec.arch}", usual)
    if curve.suggestion is None:
        console.warn(f"no learning rate lowers the loss much in so few steps: keep the default, {usual:.2g}")
    if json:
        console.show_json({**curve.to_dict(), "picture": str(path)})
        return
    typed = dict(options.typed)
    if curve.suggestion is not None:
        console.show(f"suggested learning rate: {curve.suggestion:.2g}   (train would use {usual:.2g})")
        typed |= {"lr": f"{curve.suggestion:.2g}"}
    console.show(f"picture: {path}")
    console.show(f"next:    {command_line('train', data, typed)}")
