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
for _backend in (TensorBoard, Visdom, MLflow, WandB):
    TRACKERS.add(_backend.name, _backend)


def find_backend(text: str) -> Backend:
    """The backend that `NAME` or `NAME=PLACE` names; the place is a folder, an address, a URI or a project.

    Raises:
        UnknownName: there is no such tracker.
        MissingExtra: its package is not installed.
        ConfigError: the place is wrong.
    """
    name, _, place = text.partition("=")
    return TRACKERS.get(name.strip())(place.strip() or None)
