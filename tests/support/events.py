"""Callbacks for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imgclf.training.events import Callback, Event


def on(kind: type[Event], action: Callable[[Any], object]) -> Callback:
    """A callback that does something at every event of one kind."""

    def callback(event: Event) -> None:
        if isinstance(event, kind):
            action(event)

    return callback


def with_state(kind: type[Event], action: Callable[[Any], object]) -> Callback:
    """A callback that does something with the state of every event of one kind."""
    return on(kind, lambda event: action(event.state))
