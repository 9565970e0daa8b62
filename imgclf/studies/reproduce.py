"""Train again as a run did, and compare: the same weights on the same machine, the same figures elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from imgclf.core.errors import ConfigError
from imgclf.estimator.classifier import Classifier
from imgclf.runtime.device import machine
from imgclf.storage.model_file import Manifest, load_model
from imgclf.storage.run_folder import find_run
from imgclf.training.events import Callback

ACCURACY_TOLERANCE = 0.02  # or two images, where that is more
LOSS_TOLERANCE = 0.1  # of the loss then


@dataclass(frozen=True)
class Figure:
    """One figure of the run, then and now; `n` is the number of images it is about."""

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
    """What came of training again: `largest_difference` is that of any weight; `different` maps what is not as it was
    (a package's version, the processor, the number of threads) to (then, now). `extended` says that the run was resumed
    to more epochs than it was planned for, which one run from the start can't repeat to the bit."""

    run: str
    weights_equal: bool
    largest_difference: float
    figures: tuple[Figure, ...]
    different: Mapping[str, tuple[str, str]]
    extended: bool = False

    @property
    def reproduced(self) -> bool:
        """Equal weights or, where anything about the machine or the software is different, figures that agree."""
        if self.weights_equal:
            return True
        return bool(self.different or self.extended) and all(figure.agrees for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "reproduced": self.reproduced}


def reproduce(
    run: str | os.PathLike[str],
    *,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Reproduction:
    """Train again from the config and the split of a run folder, writing nothing, and compare with what it saved.

    The run is given as its folder or as its name under `runs`. Its images must be the same, and so must be what the
    weights start from; `DataError` and `ConfigError` say what is not. `callbacks` and `progress` are those of
    `Classifier.fit` and `evaluate`.
    """
    folder = find_run(run)
    if folder.info.get("status") not in ("done", "stopped early"):
        raise ConfigError(f"{run} has not ended: finish it first, with imgclf train --resume {folder.path}")
    model, manifest = load_model(folder.model)
    again = Classifier().repeat(folder.path, callbacks=callbacks)
    if "test" in manifest.metrics:
        again.evaluate(progress=progress)
    now = {part: result.to_dict() for part, result in again.metrics_.items()}
    difference = _largest_difference(model.state_dict(), again.model_.state_dict())
    return Reproduction(
        run=str(folder.path),
        weights_equal=difference == 0,
        largest_difference=difference,
        figures=_figures(manifest, now),
        different=_differences(manifest, folder.info.get("machine", {})),
        extended=bool(folder.info.get("extended")),
    )


def _largest_difference(then: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> float:
    return max(float((now[name].cpu().double() - tensor.cpu().double()).abs().max()) for name, tensor in then.items())


def _figures(then: Manifest, now: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{part} {name}", float(figures[name]), float(now[part][name]), int(figures["n"]))
        for part, figures in sorted(then.metrics.items())
        if part in now
        for name in ("accuracy", "loss")
    )


def _differences(then: Manifest, machine_then: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What is not as it was: versions of packages, and the machine."""
    before = {**then.versions, **{name: str(value) for name, value in machine_then.items()}}
    after = {**Manifest(then.spec, then.classes, then.recipe).versions, **{n: str(v) for n, v in machine().items()}}
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (before.get(name, "–"), after.get(name, "–")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
