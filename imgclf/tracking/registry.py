"""The trackers that a user may name, as `--track NAME` or `--track NAME=PLACE`."""

from __future__ import annotations

from collections.abc import Callable

from imgclf.core.registry import Registry
from imgclf.tracking.backend import Backend
from imgclf.tracking.mlflow import MLflow
from imgclf.tracking.tensorboard import TensorBoard
from imgclf.tracking.visdom import Visdom
from imgclf.tracking.wandb import WandB

TRACKERS: Registry[Callable[[str | None], Backend]] = Registry("tracker")
for _sink in (TensorBoard, Visdom, MLflow, WandB):
    TRACKERS.add(_sink.name, _sink)


def find_backend(asked: str) -> Backend:
    """The sink that `NAME` or `NAME=PLACE` stands for: a folder, an address, a URI or a project.

    Raises `UnknownName`, `MissingExtra` where its package is not installed, and `ConfigError` for a wrong place.
    """
    name, _, place = asked.partition("=")
    return TRACKERS.get(name.strip())(place.strip() or None)
