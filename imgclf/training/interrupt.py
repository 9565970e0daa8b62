"""Graceful interrupts: the first signal ends training after its step, with its state saved; the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interrupts:
    """How many signals have asked to end."""

    count = 0


@contextmanager
def graceful_interrupts() -> Iterator[Interrupts]:
    """Count SIGINT, SIGTERM and SIGHUP instead of ending at the first; the second raises `KeyboardInterrupt`.

    An earlier handler is still called for each signal, so that a program can note which one came.
    Signals that are ignored (as `nohup` does) stay so. Away from the main thread, where Python takes no signals,
    nothing is changed.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before: dict[int, Any] = {}  # handlers

    def handle(number: int, frame: FrameType | None) -> None:
        interrupts.count += 1
        earlier = before[number]
        with suppress(KeyboardInterrupt):
            if callable(earlier):
                earlier(number, frame)
        if interrupts.count > 1:
            raise KeyboardInterrupt

    try:
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            earlier = signal.getsignal(number)
            if earlier is None or earlier is signal.SIG_IGN:  # None: not set by Python, and can't be set again by it
                continue
            before[number] = earlier
            signal.signal(number, handle)
        yield interrupts
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
