"""Progress of `imgclf learning-curve`, on stderr."""

from __future__ import annotations

from dataclasses import replace

from imgclf.cli import _console as console
from imgclf.cli._tuning import TuneView
from imgclf.core.text import duration, percent
from imgclf.estimator.plan import PlanMade
from imgclf.studies.events import CurvePointMeasured, TrainingsPlanned
from imgclf.training.events import Event


class CurveView(TuneView):
    """Shows the events of `learning_curve`: a callback."""

    word = "training"

    def __init__(self, *, full: bool) -> None:
        super().__init__()
        self._full = full

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case PlanMade(plan=plan) if not self._full and plan.pretrained:
                head_alone = replace(plan.experiment.train, epochs=0)  # all that matters here
                super().__call__(PlanMade(replace(plan, experiment=replace(plan.experiment, train=head_alone))))
            case TrainingsPlanned(count=count, seconds=seconds):
                console.say(f"time:  about {duration(seconds)} for the steps of {count} trainings")
            case CurvePointMeasured(point=point):
                console.say(f"       {point.images:7,} images: {percent(point.accuracy)}")
            case _:
                super().__call__(event)
