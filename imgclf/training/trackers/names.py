"""The trackers that a user may name, as `--track NAME` or `--track NAME=PLACE`."""

from __future__ import annotations

from collections.abc import Callable

from imgclf._registry import Registry
from imgclf.training.trackers.mlflow import MLflow
from imgclf.training.trackers.sink import Sink
from imgclf.training.trackers.tensorboard import TensorBoard
from imgclf.training.trackers.visdom import Visdom
from imgclf.training.trackers.wandb import WandB

TRACKERS: Registry[Callable[[str | None], Sink]] = Registry("tracker")
for _sink in (TensorBoard, Visdom, MLflow, WandB):
    TRACKERS.add(_sink.name, _sink)


def find_sink(asked: str) -> Sink:
    """The sink that `NAME` or `NAME=PLACE` stands for: a folder, an address, a URI or a project.

    Raises `UnknownName`, `MissingExtra` where its package is not installed, and `ConfigError` for a wrong place.
    """
    name, _, place = asked.partition("=")
    return TRACKERS.get(name.strip())(place.strip() or None)
