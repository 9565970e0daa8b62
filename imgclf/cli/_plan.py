"""What `imgclf train --dry-run` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imgclf.cli import _console as console
from imgclf.storage.run_folder import ROOT
from imgclf.studies.dry_run import dry_run

if TYPE_CHECKING:
    from imgclf.cli._training import TrainView


def show_plan(data: str, changes: Mapping[str, Any], options: Mapping[str, Any], view: TrainView) -> None:
    """Plan the training that these options of the command ask for, and show it."""
    plan = dry_run(
        data,
        changes,
        recipe=options.get("recipe"),
        members=options.get("ensemble", 1),
        runs=options.get("runs", ROOT),
        name=options.get("name"),
        track=[name for given in options.get("track", []) for name in given.split(",")],
        callbacks=[view],
    )
    view.progress.stop()  # else the plan would get into it
    if options["json"]:
        console.show_json(plan.to_dict())
        return
    console.show_table(["choice", "value", "reason"], [(c.name, c.value, c.reason) for c in plan.choices])
    parts = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in plan.seconds.items())
    console.show(f"time:   about {sum(plan.seconds.values()):,.0f} s after the images are checked ({parts})")
    console.show(f"memory: about {plan.memory / 1e6:,.0f} MB for a step, beside the images that are kept")
    console.show("in Python:")
    for line in plan.python.splitlines():
        console.show(f"    {line}" if line else "")
