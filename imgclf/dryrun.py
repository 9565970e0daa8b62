"""What training would do and what it would take: nothing is trained, and nothing is written."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imgclf.choices import describe
from imgclf.inference import infer
from imgclf.plan import plan_loader, plan_training
from imgclf.results import Choice
from imgclf.start import fit_to_time, seconds_a_step
from imgclf.training.callbacks import Callback
from imgclf.training.device import pick_device, pick_precision
from imgclf.training.step import step_memory

LOOKED_AT = 64  # images whose forward pass is measured


@dataclass(frozen=True)
class DryRun:
    """The choices with their reasons, about how many seconds each part takes, about how many bytes of memory beside the
    kept images, and the Python that does the same."""

    choices: tuple[Choice, ...]
    seconds: Mapping[str, float]
    memory: int
    python: str

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)


def dry_run(
    data: str | os.PathLike[str],
    changes: Mapping[str, Any],
    *,
    recipe: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> DryRun:
    """Plan the training of `data` with these changes of an experiment, and measure a few steps of a copy of its net.

    What a probe would find out about mirrored and grey images is left open. Raises what training would raise before its
    first step.
    """
    plan, source, split = plan_training(data, changes, recipe, callbacks)
    config = plan.experiment.train
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    model = copy.deepcopy(plan.model).to(device)
    train, held_out = split.samples("train"), split.samples("valid")
    some = plan_loader(plan, source, train[:LOOKED_AT])
    infer(model, some, device, None, precision)  # once, so that the images are decoded
    began = time.perf_counter()
    infer(model, some, device, None, precision)
    look = (time.perf_counter() - began) / len(some)
    seconds = {"probe": look * len(train)} if config.probe else {}
    found: tuple[Choice, ...] = ()
    loader = plan_loader(plan, source, train, train=True)
    if config.epochs and config.minutes is not None:
        valid = plan_loader(plan, source, held_out) if held_out else None
        config, choice = fit_to_time(plan, loader, valid)
        found = (choice,)
        seconds["training"] = 60 * (config.minutes or 0)
    elif config.epochs:
        steps = config.epochs * min(loader.steps(config.drop_last), config.epoch_steps or loader.steps())
        seconds["training"] = steps * seconds_a_step(model, loader, config) + config.epochs * look * len(held_out)
    seconds["test"] = look * (len(split.samples("test")) + len(held_out))
    weights, image = step_memory(model.train(), (plan.recipe.channels, *plan.recipe.size), precision)
    memory = weights + image * min(config.batch_size, len(train))
    return DryRun(describe(plan, train, found), seconds, memory, python_of(data, changes, recipe))


def python_of(data: str | os.PathLike[str], changes: Mapping[str, Any], recipe: str | None = None) -> str:
    """The Python that trains with these changes of an experiment."""
    config = {key: value for key, value in changes.items() if value not in ({}, None)}
    given = {"arch": config.pop("arch", None), "recipe": recipe, "config": config or None}
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items() if value is not None)
    return (
        f"from imgclf import Classifier\n\nclassifier = Classifier({arguments})\n"
        f"classifier.fit({os.fspath(data)!r}, runs='runs')\nprint(classifier.evaluate())"
    )
