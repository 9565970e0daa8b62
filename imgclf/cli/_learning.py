"""What `imgclf learning-curve` shows on stderr as it goes on."""

from __future__ import annotations

from dataclasses import replace

from imgclf.cli import _console as console
from imgclf.cli._tuning import TuneView
from imgclf.core.results import CurvePoint
from imgclf.estimator.plan import Plan


class CurveView(TuneView):
    """Shows the events of `learning_curve`: a callback."""

    word = "training"

    def __init__(self, *, full: bool) -> None:
        super().__init__()
        self._full = full

    def _on_model(self, plan: Plan) -> None:
        if not self._full and plan.weights.used != "none":  # what training would do afterwards does not matter here
            head_alone = replace(plan.experiment.train, epochs=0)
            plan = replace(plan, experiment=replace(plan.experiment, train=head_alone))
        super()._on_model(plan)

    def _on_trainings(self, planned: tuple[int, float]) -> None:
        count, seconds = planned
        duration = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"
        console.say(f"time:  about {duration} for the steps of {count} trainings")

    def _on_heads(self, progress: tuple[int, int]) -> None:
        self._bar("fitting heads", *progress)

    def _on_class_heads(self, progress: tuple[int, int]) -> None:
        self._bar("halving classes", *progress)

    def _on_point(self, point: CurvePoint) -> None:
        console.say(f"       {point.images:7,} images: {point.accuracy:.1%}")
