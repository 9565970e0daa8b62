"""The plan of a training, with its time and memory. Nothing is trained, and nothing is written."""

from __future__ import annotations

import copy
import json
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
from imgclf.core.text import printable
from imgclf.estimator.decisions import describe
from imgclf.estimator.plan import Plan, plan_training
from imgclf.estimator.settings import Request, choose_experiment
from imgclf.estimator.warm_start import fit_to_time, seconds_a_step
from imgclf.evaluation.inference import infer
from imgclf.training.batch_size import step_memory
from imgclf.training.events import Callback

TIMED_IMAGES = 64  # in a forward pass
LINE_WIDTH = 80  # of the Python code


@dataclass(frozen=True)
class DryRun:
    """The plan of a training.

    Attributes:
        decisions: The decisions and their reasons.
        seconds: About how long each part takes.
        memory: About how many bytes a step takes, without the cached images.
        python: The Python code that does the same.
    """

    decisions: tuple[Decision, ...]
    seconds: Mapping[str, float]
    memory: int
    python: str

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)


def dry_run(
    data: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    members: int = 1,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    track: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
) -> DryRun:
    """Plan the training of `data`, and time a few steps of a copy of its network.

    What a probe would find out about mirrored and gray images is left open. Raises what training would raise before its
    first step.

    Args:
        data: What would be trained on.
        recipe: The name of a recipe.
        config: Changes of it, as for `Classifier`.
        members: The number of networks; more than one are an ensemble.
        runs: The folder of the run folders, for the Python code.
        name: The name of the run folder, for the Python code.
        track: The names of trackers, for the Python code.
        callbacks: Functions that get the events.
    """
    members, config = whole("members", members, 1), config or {}
    plan = plan_training(Request(recipe, config), data, callbacks)
    settled, found, seconds = _measure(plan)
    weights, image = step_memory(plan.model.train(), (plan.preprocess.channels, *plan.preprocess.size), plan.dtype)
    memory = weights + image * min(settled.batch_size, len(plan.split.samples("train")))
    short = shortest_config(config, recipe, plan.source.default_recipe)
    code = python_code(data, short, recipe, members=members, runs=runs, name=name, track=track)
    if plan.split.samples("test"):
        code += "\nprint(classifier.evaluate().accuracy)"
    return DryRun(describe(plan, found), {part: members * s for part, s in seconds.items()}, memory, code)


def _measure(plan: Plan) -> tuple[TrainConfig, tuple[Decision, ...], dict[str, float]]:
    """The config of training, the decisions by measurement, and about how many seconds each part takes."""
    config = plan.experiment.train
    model = copy.deepcopy(plan.model).to(plan.device).eval()
    train, held_out = plan.split.samples("train"), plan.split.samples("valid")
    some = plan.loader(train[:TIMED_IMAGES])
    infer(model, some, plan.device, None, plan.dtype)  # once, so that the images are decoded
    began = time.perf_counter()
    infer(model, some, plan.device, None, plan.dtype)
    look = (time.perf_counter() - began) / len(some)
    seconds = {"probe": look * len(train)} if config.probe else {}
    found: tuple[Decision, ...] = ()
    if config.epochs and config.minutes is not None:
        timed, choice = fit_to_time(replace(plan, model=model))
        config, found = timed.experiment.train, (choice,)
        seconds["training"] = 60 * (config.minutes or 0)
    elif config.epochs:
        step = seconds_a_step(model, plan.train_loader, config)
        seconds["training"] = config.epochs * (plan.steps_per_epoch * step + look * len(held_out))
    seconds["test"] = look * (len(plan.split.samples("test")) + len(held_out))
    return config, found, seconds


def shortest_config(config: Mapping[str, Any], recipe: str | None, suited: str | None) -> dict[str, Any]:
    """A config without the values that change nothing; `suited` is the recipe that goes with the data."""
    experiment = choose_experiment(Request(recipe, config), suited)
    tables = {name: dict(config.get(name, {})) for name in ("train", "data")}
    kept = {**config, **tables}
    for table in (kept, *tables.values()):
        for key in [key for key in table if key not in tables]:
            value = table.pop(key)
            with suppress(ConfigError):  # without it others may be wrong
                if choose_experiment(Request(recipe, kept), suited) == experiment:
                    continue
            table[key] = value
    return {key: kept[key] for key in config if kept.get(key, {}) != {}}


def python_code(
    data: str | os.PathLike[str],
    config: Mapping[str, Any],
    recipe: str | None = None,
    *,
    members: int = 1,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    track: Sequence[str] = (),
) -> str:
    """The Python code of a training; see `dry_run` for the arguments."""
    config, single = dict(config), members == 1
    arch = config.pop("arch", None) if single else None
    chosen = [arch and _literal(arch), recipe and f"recipe={_literal(recipe)}", config and "config=config"]
    fitted = [_literal(os.fspath(data)), "" if single else str(members)]
    where = [f"runs={_literal(os.fspath(runs))}", name and f"name={_literal(name)}"]
    where += [f"callbacks=[tracker({', '.join(map(_literal, track))})]"] if track else []
    imported = ["Classifier" if single else "fit_ensemble", *(["tracker"] if track else [])]
    lines = [f"from imgclf import {', '.join(imported)}", ""]
    lines += [f"config = {_literal(config)}"] if config else []
    if single:
        lines += [f"classifier = {_call('Classifier', chosen)}", _call("classifier.fit", [*fitted, *where])]
    else:
        lines += [f"classifier = {_call('fit_ensemble', [*fitted, *chosen, *where])}"]
    return "\n".join(lines)


def _call(function: str, arguments: Sequence[Any]) -> str:
    """A call with the arguments that are not empty, on one line or one a line."""
    given = [str(argument) for argument in arguments if argument]
    line = f"{function}({', '.join(given)})"
    return line if len(line) <= LINE_WIDTH else "\n    ".join([f"{function}(", *(f"{text}," for text in given)]) + "\n)"


def _literal(value: Any, indent: int = 0) -> str:
    """A value as Python, texts in double quotes, long tables on several lines."""
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    if not isinstance(value, Mapping):
        return repr(value)
    rows = [f"{_literal(key)}: {_literal(below, indent + 4)}" for key, below in value.items()]
    line, margin = f"{{{', '.join(rows)}}}", " " * indent
    if len(line) + indent <= LINE_WIDTH:
        return line
    return "{\n" + "".join(f"{margin}    {row},\n" for row in rows) + margin + "}"
