"""What `imgclf train --dry-run` shows."""

from __future__ import annotations

from imgclf.cli import _console as console
from imgclf.core.text import byte_size, duration
from imgclf.studies.dry_run import DryRun


def show_plan(plan: DryRun, *, as_json: bool) -> None:
    """Show a plan."""
    if as_json:
        console.show_json(plan.to_dict())
        return
    console.show_table(["setting", "value", "reason"], [(d.name, d.value, d.reason) for d in plan.decisions])
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in plan.seconds.items())
    console.show(f"time:   about {duration(sum(plan.seconds.values()))} after the images are checked ({parts})")
    console.show(f"memory: about {byte_size(plan.memory)} for a step, without cached images")
    console.show("in Python:")
    for line in plan.python.splitlines():
        console.show(f"    {line}" if line else "")
