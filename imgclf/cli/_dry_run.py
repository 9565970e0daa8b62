"""What `imgclf train --dry-run` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imgclf.cli import _console as console
from imgclf.core.text import byte_size, duration
from imgclf.storage.run_folder import ROOT
from imgclf.studies.dry_run import dry_run

if TYPE_CHECKING:
    from imgclf.cli._training import TrainView


def show_plan(data: str, config: Mapping[str, Any], options: Mapping[str, Any], view: TrainView) -> None:
    """Plan the training that these options of the command ask for, and show it."""
    where = {"runs": options.get("runs", ROOT), "name": options.get("name"), "track": options.get("track", ())}
    members, recipe = options.get("ensemble", 1), options.get("recipe")
    plan = dry_run(data, recipe=recipe, config=config, members=members, callbacks=[view], **where)
    view.progress.stop()  # else the plan would get into it
    if options["json"]:
        console.show_json(plan.to_dict())
        return
    console.show_table(["setting", "value", "reason"], [(d.name, d.value, d.reason) for d in plan.decisions])
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in plan.seconds.items())
    console.show(f"time:   about {duration(sum(plan.seconds.values()))} after the images are checked ({parts})")
    console.show(f"memory: about {byte_size(plan.memory)} for a step, without cached images")
    console.show("in Python:")
    for line in plan.python.splitlines():
        console.show(f"    {line}" if line else "")
