"""Options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from imgclf.core.config import OPTIMIZERS, ExperimentConfig, TrainConfig
from imgclf.core.registry import option_meant
from imgclf.tracking.registry import TRACKERS
from imgclf.training.recipes import EXPERIMENTS

DATA, MODEL, TRAINING, OUTPUT = "Data", "Model and pixels", "Training", "Output"


def option(panel: str, text: str, default: object = None, flag: str | None = None) -> Any:
    """An option whose default is a field of the specs: shown in the help, and applied there and not here."""
    shown = f"{text} [dim]\\[default: {default}][/dim]" if default is not None else text
    return typer.Option(*([flag] if flag else []), help=shown, show_default=False, rich_help_panel=panel)


class Command(TyperCommand):
    """A command that answers an option which it does not have with the one that is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; the error about an unknown option gets a hint."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "possibilities") and hasattr(error, "option_name"):  # click's, wherever Typer has it from
                self._hint(error)
            raise

    def _hint(self, error: Any) -> None:
        options = [param.opts[0] for param in self.params if param.param_type_name == "option"]
        arguments = [str(param.metavar) for param in self.params if param.param_type_name == "argument"]
        meant = option_meant(error.option_name, [*options, *arguments])
        error.message = error.message.rstrip(".")
        if set(meant) & set(arguments):
            error.message += f"; {arguments[0]} goes without one: imgclf {self.name} {' '.join(arguments)}"
        elif meant:
            error.message += f"; did you mean {' or '.join(meant)}?"
        error.possibilities = None


def choices(names: tuple[str, ...]) -> str:
    """Names as `a, b or c`."""
    return ", ".join(names[:-1]) + " or " + names[-1]


def command_line(command: str, data: str, given: Mapping[str, object]) -> str:
    """A command to type, with DATA and options by the names of their parameters."""
    options = [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["imgclf", command, data, *options])


Json = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]
Model = Annotated[
    str | None,
    typer.Option(help="A model file, a run folder or its name; else the default run (imgclf use).", show_default=False),
]
Precision = Annotated[str, typer.Option(help="Numbers to compute in: fp32, bf16 or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
DataDir = Annotated[
    str | None,
    typer.Option(help="Where mnist, fashion-mnist and cifar10 lie, or are downloaded to.", show_default=False),
]

DEFAULT_ARCH = "the best whose pretrained weights are on this machine, else resnet18"
# What the commands that train, or try it, have in common.
Arch = Annotated[
    str | None, option(MODEL, "The network; see `imgclf models`. FILE.py:NAME is one of your own.", DEFAULT_ARCH)
]
OwnArch = Annotated[
    str | None,
    typer.Option("--arch", help="FILE.py:NAME of the network, where the model is one of your own.", show_default=False),
]
RecipeName = Annotated[str | None, option(TRAINING, f"A named experiment: {choices(tuple(EXPERIMENTS.names()))}.")]
Config = Annotated[Path | None, option(TRAINING, "A TOML file with any of these, or a run to train like.")]
Weights = Annotated[
    str | None, option(MODEL, "auto, pretrained, none, a file, or a hub name.", ExperimentConfig.weights)
]
Size = Annotated[str | None, option(MODEL, "N or HxW in pixels; else the network's own.")]
Augment = Annotated[
    str | None,
    option(
        MODEL,
        "Changes to training images: none, light, standard, strong, trivial or mix.",
        "light from pretrained weights, else standard",
    ),
]
Split = Annotated[str | None, option(DATA, "TRAIN/VALID/TEST in per cent, or a split.csv to follow.", "70/15/15")]
TrainDataDir = Annotated[str | None, option(DATA, "Where mnist, fashion-mnist and cifar10 lie, or are downloaded to.")]
Epochs = Annotated[int | None, option(TRAINING, "Passes over the training images; else chosen by their number.")]
BatchSize = Annotated[
    str | None, option(TRAINING, "Images per step; `auto` is the most that fit.", TrainConfig.batch_size)
]
Optimizer = Annotated[str | None, option(TRAINING, f"One of {choices(OPTIMIZERS)}.", TrainConfig.optimizer)]
TrainDevice = Annotated[
    str | None, option(TRAINING, "Where to compute: auto, cpu, cuda, cuda:1 or mps.", TrainConfig.device)
]
Seed = Annotated[
    int | None,
    option(TRAINING, "Decides the split, fresh weights, the order and the augmentation.", TrainConfig.seed),
]
Track = Annotated[
    list[str] | None,
    option(OUTPUT, f"Follow training live: {choices(tuple(TRACKERS.names()))}, or NAME=PLACE; as often as wanted."),
]
