"""Runs as rows of a table."""

from __future__ import annotations

from imgclf.core.text import percent, percent_range
from imgclf.storage.run_list import RunEntry

HEADER = ("run", "data", "arch", "recipe", "accuracy", "95% interval", "of", "seconds", "MB", "status")


def cells(entry: RunEntry) -> tuple[object, ...]:
    """A run as a row of a table, see `HEADER`."""
    return (
        entry.name,
        entry.data,
        entry.arch,
        entry.recipe,
        None if entry.accuracy is None else percent(entry.accuracy),
        None if entry.interval is None else percent_range(*entry.interval),
        None if entry.n is None else f"{entry.n:,} {entry.part}",
        None if entry.seconds is None else f"{entry.seconds:,.0f}",
        None if entry.size is None else f"{entry.size / 1e6:,.1f}",
        entry.status,
    )
