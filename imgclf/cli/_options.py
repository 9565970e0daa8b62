"""Options of commands: those of training come from the fields of the configs; what other commands share is here."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from imgclf.cli._inputs import arch_name
from imgclf.core.config import PANELS, TRAINING, DataConfig, ExperimentConfig, TrainConfig, parse_split
from imgclf.core.errors import ConfigError
from imgclf.core.options import Option, OptionField, option_fields
from imgclf.core.registry import COMMANDS_ELSEWHERE, name_meant
from imgclf.training.recipes import EXPERIMENTS

TABLES = {"": ExperimentConfig, "data": DataConfig, "train": TrainConfig}  # of a config file
TABLE_OF = {name: table for table, kind in TABLES.items() for name in option_fields(kind)}
CONFIG = Option(help="TOML file with any of these options, or a run to train like", panel=TRAINING)
RECIPE = Option(
    help="Named experiment", panel=TRAINING, default="what suits the data", choices=tuple(EXPERIMENTS.names())
)
# What the command line offers of training: the fields of the configs that have a panel, and where others come from.
FIELDS: dict[str, OptionField] = {
    each.name: each
    for panel in PANELS
    for each in (
        OptionField("recipe", str, True, None, RECIPE),
        OptionField("config", str, True, None, CONFIG),
        *(each for kind in TABLES.values() for each in option_fields(kind).values()),
    )
    if each.option.panel == panel
}

EXPECTED = {  # by pydantic's names of what is wrong
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "greater_than_equal": "a number of {ge} or more",
    "less_than_equal": "a number of {le} or less",
}


@dataclass(frozen=True)
class TrainingOptions:
    """The options of training that a user has typed, by the names of their fields."""

    typed: Mapping[str, Any]

    @property
    def recipe(self) -> str | None:
        """The named experiment to begin with."""
        return self.typed.get("recipe")

    def changes(self) -> dict[str, Any]:
        """The options as changes of an `ExperimentConfig`, over those of the config file."""
        from imgclf.storage.run_folder import find_config

        values: dict[str, Any] = find_config(self.typed["config"]) if "config" in self.typed else {}
        values = {**values, "data": dict(values.get("data", {})), "train": dict(values.get("train", {}))}
        for name, value in self.typed.items():
            if name == "split":
                _follow(value, values)
            elif name in TABLE_OF:
                parse = FIELDS[name].option.parse
                table = values[TABLE_OF[name]] if TABLE_OF[name] else values
                table[name] = value if parse is None else parse(value)
        if "arch" in self.typed:
            values["arch"] = arch_name(self.typed["arch"])
        return values


def _follow(split: str, values: dict[str, Any]) -> None:
    """Put `--split` into the values of a config: fractions, or a file to follow."""
    if Path(split).is_file():
        values["data"]["split_file"] = split
    elif split.lower().endswith(".csv"):
        raise ConfigError(f"--split is {split!r}, and there is no such file")
    else:
        values["split"] = parse_split(split)
        values["data"]["split_file"] = None  # that of a config would decide alone


def field_option(name: str, *, default: str = "", panel: bool = False) -> Any:
    """The option of a field for Typer; the default is shown here and applied by the config."""
    option = FIELDS[name].option
    value = FIELDS[name].default
    default = default or option.default or ("" if value is None else str(value))
    text = f"{option.described()} [dim]\\[default: {default}][/dim]" if default else option.described()
    return typer.Option(*option.flags, help=text, show_default=False, rich_help_panel=option.panel if panel else None)


def training_options(*names: str, **defaults: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the fields called `names`, or all, in the place of its parameter `options`.

    The command gets them as `TrainingOptions`. `defaults` are shown in the place of those of the fields.
    """
    fields = {name: each for name, each in FIELDS.items() if not names or name in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            typed = {name: values.pop(name) for name in fields}
            command(options=TrainingOptions({k: v for k, v in typed.items() if v is not None}), **values)

        own = inspect.signature(command, eval_str=True).parameters
        of_fields = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    (str if each.option.parse or typing.get_args(each.type) else each.type) | None,
                    field_option(name, default=defaults.get(name, ""), panel=True),
                ],
            )
            for name, each in fields.items()
        ]
        parameters = [
            part
            for each in own.values()
            for part in (of_fields if each.name == "options" else [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


class Commands(TyperGroup):
    """The commands; a name that is none of them is answered with what is meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names."""
        name = args[0]
        if self.get_command(ctx, name) is None and (meant := self._meant(name)):
            ctx.fail(f"there is no command {name!r}; did you mean imgclf {meant}?")
        return super().resolve_command(ctx, args)

    def _meant(self, name: str) -> str:
        from imgclf.core.files import PICTURES
        from imgclf.data.sources.named import NAMED

        if os.path.exists(name) or "/" in name or name in NAMED:
            return f"{'predict' if name.lower().endswith((*PICTURES, '.gif')) else 'train'} {shlex.quote(name)}"
        return " or ".join(name_meant(name, list(self.commands), COMMANDS_ELSEWHERE))


class Command(TyperCommand):
    """A command that answers an option which it does not have with the one that is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; the error about an unknown option gets a hint."""
        for before, text in pairwise(["", *args]):
            name, equals, value = text.partition("=")
            if equals and not text.startswith("-") and not before.startswith("-") and not os.path.lexists(text):
                self._answer_assignment(ctx, name, value)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "possibilities") and hasattr(error, "option_name"):  # click's, wherever Typer has it from
                self._hint(error)
            for found in getattr(error.__cause__, "errors", tuple)():  # pydantic's, by which Typer reads numbers
                if expected := EXPECTED.get(found["type"]):
                    expected = expected.format(**found.get("ctx", {}))
                    error.message = f"expected {expected}; got {found['input']!r}"  # type: ignore[attr-defined]
            raise

    def _names(self, kind: str) -> list[str]:
        of_kind = [param for param in self.params if param.param_type_name == kind]
        return [str(param.metavar) if kind == "argument" else param.opts[0] for param in of_kind]

    def _answer_assignment(self, ctx: Any, name: str, value: str) -> None:
        """End with how to write NAME=VALUE, if it is an option of this command by its own or by another name."""
        arguments = self._names("argument")
        meant = name_meant(name, [*self._names("option"), *arguments])
        if meant:
            written = shlex.quote(value) if meant[0] in arguments else f"{meant[0]} {shlex.quote(value)}"
            ctx.fail(f"{name}={value} is written without the equals sign: imgclf {self.name} {written}")

    def _hint(self, error: Any) -> None:
        arguments = self._names("argument")
        meant = name_meant(error.option_name, [*self._names("option"), *arguments])
        error.message = error.message.rstrip(".")
        if meant and meant[0] in arguments:
            error.message += f"; {meant[0]} goes without one: imgclf {self.name} {' '.join(arguments)}"
        elif meant:
            error.message += f"; did you mean {' or '.join(name for name in meant if name not in arguments)}?"
        error.possibilities = None


def command_line(command: str, data: str, typed: Mapping[str, object]) -> str:
    """A command to type, with DATA and options by the names of their parameters."""
    options = [part for key, value in typed.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["imgclf", command, data, *options])


TRAIN_DATA = typer.Argument(
    metavar="DATA",
    help="A folder with one folder per class, a CSV file, tar shards, or digits, mnist, fashion-mnist or cifar10.",
)
TrainData = Annotated[str, TRAIN_DATA]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Model file, run folder or name of a run (see imgclf use). [dim]\\[default: the default run][/dim]"
    ),
]
OwnArch = Annotated[str | None, typer.Option("--arch", help="FILE.py:NAME of the network, if it is one of your own.")]
Precision = Annotated[str, field_option("precision", default="fp32")]
Backend = Annotated[str, field_option("backend", default="auto")]
Device = Annotated[str, field_option("device")]
DataDir = Annotated[str | None, field_option("data_dir")]
