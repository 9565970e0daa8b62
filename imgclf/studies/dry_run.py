"""What training would do and what it would take: nothing is trained, and nothing is written."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from imgclf.core.arguments import whole
from imgclf.core.config import TrainConfig
from imgclf.core.errors import ConfigError
from imgclf.core.results import Decision
from imgclf.estimator.decisions import describe
from imgclf.estimator.plan import Plan, make_plan, open_and_split
from imgclf.estimator.settings import Request, choose_experiment
from imgclf.estimator.warm_start import fit_to_time, seconds_a_step
from imgclf.evaluation.inference import infer
from imgclf.training.batch_size import step_memory
from imgclf.training.events import Callback

LOOKED_AT = 64  # images whose forward pass is measured
WIDTH = 80  # of a line of Python


@dataclass(frozen=True)
class DryRun:
    """The choices with their reasons, about how many seconds each part takes, about how many bytes of memory beside the
    kept images, and the Python that does the same."""

    choices: tuple[Decision, ...]
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
    members: int = 1,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    track: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
) -> DryRun:
    """Plan the training of `data` with these changes of an experiment, and measure a few steps of a copy of its net.

    More than one of `members` are an ensemble. `runs`, `name` and the trackers to `track` by are for the Python alone.
    What a probe would find out about mirrored and gray images is left open. Raises what training would raise before its
    first step.
    """
    members = whole("members", members, 1)
    request = Request(recipe, changes)
    audited, split = open_and_split(request, data, callbacks)
    plan = make_plan(request, audited, split, callbacks)
    config, found, seconds = _measure(plan)
    weights, image = step_memory(plan.model.train(), (plan.preprocess.channels, *plan.preprocess.size), plan.dtype)
    memory = weights + image * min(config.batch_size, len(split.samples("train")))
    asked = needed(changes, recipe, audited.source.default_recipe)
    code = python_of(data, asked, recipe, members=members, runs=runs, name=name, track=track)
    if split.samples("test"):
        code += "\nprint(classifier.evaluate().accuracy)"
    return DryRun(describe(plan, found), {part: members * s for part, s in seconds.items()}, memory, code)


def _measure(plan: Plan) -> tuple[TrainConfig, tuple[Decision, ...], dict[str, float]]:
    """The config of training, what was found out for it, and about how many seconds each part takes."""
    config = plan.experiment.train
    model = copy.deepcopy(plan.model).to(plan.device).eval()
    train, held_out = plan.split.samples("train"), plan.split.samples("valid")
    some = plan.loader(train[:LOOKED_AT])
    infer(model, some, plan.device, None, plan.dtype)  # once, so that the images are decoded
    began = time.perf_counter()
    infer(model, some, plan.device, None, plan.dtype)
    look = (time.perf_counter() - began) / len(some)
    seconds = {"probe": look * len(train)} if config.probe else {}
    found: tuple[Decision, ...] = ()
    if config.epochs and config.minutes is not None:
        config, choice = fit_to_time(replace(plan, model=model))
        found = (choice,)
        seconds["training"] = 60 * (config.minutes or 0)
    elif config.epochs:
        step = seconds_a_step(model, plan.train_loader, config)
        seconds["training"] = config.epochs * (plan.steps_per_epoch * step + look * len(held_out))
    seconds["test"] = look * (len(plan.split.samples("test")) + len(held_out))
    return config, found, seconds


def needed(changes: Mapping[str, Any], recipe: str | None, suited: str | None) -> dict[str, Any]:
    """The changes without those that change nothing: the experiment is the same without them."""
    whole = choose_experiment(Request(recipe, changes), suited)
    tables = {name: dict(changes.get(name, {})) for name in ("train", "data")}
    kept = {**changes, **tables}
    for table in (kept, *tables.values()):
        for key in [key for key in table if key not in tables]:
            value = table.pop(key)
            with suppress(ConfigError):  # without it others may be wrong
                if choose_experiment(Request(recipe, kept), suited) == whole:
                    continue
            table[key] = value
    return {key: kept[key] for key in changes if kept.get(key, {}) != {}}


def python_of(
    data: str | os.PathLike[str],
    changes: Mapping[str, Any],
    recipe: str | None = None,
    *,
    members: int = 1,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    track: Sequence[str] = (),
) -> str:
    """The Python that trains with these changes of an experiment, so many `members`, and follows it."""
    config = dict(changes)
    single = members == 1
    arch = config.pop("arch", None) if single else None
    chosen = [arch and repr(arch), recipe and f"recipe={recipe!r}", config and "config=config"]
    where = [f"runs={os.fspath(runs)!r}", name and f"name={name!r}"]
    where += [f"callbacks=[tracker({', '.join(map(repr, track))})]"] if track else []
    taken = ["Classifier" if single else "fit_ensemble", *(["tracker"] if track else [])]
    lines = [f"from imgclf import {', '.join(taken)}", ""]
    lines += [f"config = {_written(config)}"] if config else []
    if single:
        lines += [f"classifier = {_call('Classifier', chosen)}"]
        lines += [_call("classifier.fit", [repr(os.fspath(data)), *where])]
    else:
        given = [repr(os.fspath(data)), str(members), "config" if config else "{}", *chosen[1:2], *where]
        lines += [f"classifier = {_call('fit_ensemble', given)}"]
    return "\n".join(lines)


def _call(function: str, arguments: Sequence[str | Mapping[str, Any] | None]) -> str:
    """A call with those arguments that there are, on one line or one a line."""
    given = [str(argument) for argument in arguments if argument]
    line = f"{function}({', '.join(given)})"
    return line if len(line) <= WIDTH else "\n    ".join([f"{function}(", *(f"{text}," for text in given)]) + "\n)"


def _written(value: Any, indent: int = 0) -> str:
    """A value as Python, tables over several lines where one is too long."""
    if not isinstance(value, Mapping) or len(repr(value)) + indent <= WIDTH:
        return repr(value)
    margin = " " * indent
    rows = [f"{margin}    {key!r}: {_written(below, indent + 4)},\n" for key, below in value.items()]
    return "{\n" + "".join(rows) + margin + "}"
