"""Train a run again and compare: equal weights on the same machine, equal metrics elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imgclf.core.errors import ConfigError
from imgclf.core.results import Evaluation
from imgclf.estimator.classifier import Classifier
from imgclf.runtime.device import machine
from imgclf.storage.model_file import Manifest, load_model
from imgclf.storage.run_folder import find_run
from imgclf.studies.compare import Differences, differences
from imgclf.training.events import Callback

ACCURACY_TOLERANCE = 0.02  # or two images, if that is more
LOSS_TOLERANCE = 0.1  # of the earlier loss


@dataclass(frozen=True)
class Metric:
    """A metric of `n` images, then and now."""

    name: str
    then: float
    now: float
    n: int

    @property
    def agrees(self) -> bool:
        """Whether the two are within the tolerance for another machine or other versions."""
        if self.name.endswith("loss"):
            return abs(self.now - self.then) <= LOSS_TOLERANCE * max(abs(self.then), 0.1)
        return abs(self.now - self.then) <= max(ACCURACY_TOLERANCE, 2 / max(1, self.n)) + 1e-9


@dataclass(frozen=True)
class Reproduction:
    """A run trained again, compared with the first time.

    Attributes:
        largest_difference: The largest difference of any weight.
        environment: What differs in versions and machine: the values then and now, None where there is none.
        extended: Whether the run was resumed to more epochs than planned, which one run can't repeat to the bit.
    """

    run: str
    weights_equal: bool
    largest_difference: float
    metrics: tuple[Metric, ...]
    environment: Differences
    extended: bool = False

    @property
    def reproduced(self) -> bool:
        """Whether the weights are equal or, in another environment, the metrics agree."""
        if self.weights_equal:
            return True
        return bool(self.environment or self.extended) and all(metric.agrees for metric in self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "reproduced": self.reproduced}


def reproduce(
    run: str | os.PathLike[str],
    *,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Reproduction:
    """Train again with the config and the split of a run folder, and compare with its results. Nothing is written.

    Args:
        run: A run folder, or the name of a run under `runs`.
        callbacks: Those of `Classifier.fit`.
        progress: That of `Classifier.evaluate`.

    Raises:
        DataError: The images of the run have changed.
        ConfigError: The run has not ended, or its initial weights have changed.
    """
    folder = find_run(run)
    if folder.info.status not in ("done", "stopped early"):
        raise ConfigError(f"{run} has not ended: finish it first with imgclf train --resume {folder.path}")
    model, manifest = load_model(folder.model)
    again = Classifier().repeat(folder.path, callbacks=callbacks)
    if "test" in manifest.metrics:
        again.evaluate(progress=progress)
    now = again.model_.state_dict()
    difference = max(
        float((now[name].cpu().double() - then.cpu().double()).abs().max()) for name, then in model.state_dict().items()
    )
    before = {**manifest.versions, **{name: str(value) for name, value in folder.info.machine.items()}}
    after = {**again.manifest_.versions, **{name: str(value) for name, value in machine().items()}}
    return Reproduction(
        run=str(folder.path),
        weights_equal=difference == 0,
        largest_difference=difference,
        metrics=_metrics(manifest, again.metrics_),
        environment=differences(before, after),
        extended=bool(folder.info.extended),
    )


def _metrics(then: Manifest, now: Mapping[str, Evaluation]) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{part} {name}", float(metrics[name]), float(getattr(now[part], name)), int(metrics["n"]))
        for part, metrics in sorted(then.metrics.items())
        if part in now
        for name in ("accuracy", "loss")
    )
