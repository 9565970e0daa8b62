"""The command line: a thin layer over `Classifier` and the public functions. One file a command.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from typing import Annotated

import typer

from imgclf.cli._console import guarded, signals_end_cleanly
from imgclf.cli._options import Command, Commands
from imgclf.cli._streams import guard_streams
from imgclf.cli.benchmark import benchmark
from imgclf.cli.cache import cache
from imgclf.cli.compare import compare
from imgclf.cli.evaluate import evaluate
from imgclf.cli.explain import explain
from imgclf.cli.find_lr import find_lr
from imgclf.cli.learning_curve import learning_curve
from imgclf.cli.models import models
from imgclf.cli.predict import predict
from imgclf.cli.prepare import prepare
from imgclf.cli.report import report
from imgclf.cli.reproduce import reproduce
from imgclf.cli.runs import runs
from imgclf.cli.schema import schema
from imgclf.cli.show import show
from imgclf.cli.train import train
from imgclf.cli.tune import tune
from imgclf.cli.use import use

app = typer.Typer(
    name="imgclf",
    cls=Commands,
    help="From a folder of photos to a trained image classifier.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    *(train, evaluate, predict, explain, runs, use, compare, report, models, show),
    *(find_lr, learning_curve, tune, prepare, benchmark, reproduce, schema),
)
KEPT = (train, tune, prepare, report, show)  # whose work is on the disk, whatever becomes of the output
SHARED = ("train", "reproduce")  # the work of which several processes share
COLLECT_AFTER = 1_000_000  # new objects; Python's own limit is 700 or, in later versions, 2,000
for command in COMMANDS:
    app.command(cls=Command, no_args_is_help=command not in (train, evaluate, runs, use, models, report, schema))(
        guarded(command, kept=command in KEPT)
    )
app.add_typer(cache, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        from imgclf.cli import _console
        from imgclf.core.version import __version__

        _console.show(f"imgclf {__version__}")
        raise typer.Exit


def _go_alone() -> None:
    """Of the processes that torchrun starts, let the main one work by itself: the others have nothing to add."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if os.environ.get("RANK", "0") != "0":
            raise typer.Exit
        del os.environ["WORLD_SIZE"]


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From a folder of photos to a trained image classifier."""
    if context.invoked_subcommand not in SHARED:
        _go_alone()
    if debug:
        os.environ["IMGCLF_DEBUG"] = "1"


def main() -> None:
    """Run the command that `sys.argv` holds; ends with `SystemExit`."""
    guard_streams()
    # The modules of torch and timm hold a million objects that stay. Python would look through them for garbage again
    # and again while they are loaded, and once more at the end: without that, a whole `predict` of one image takes 1 /
    # 1.47 of the time (tests/benchmarks/start.py; CPython 3.11). Needless once CPython collects incrementally.
    if os.environ.get("IMGCLF_GC") != "default":
        gc.set_threshold(COLLECT_AFTER, 50, 50)
        atexit.register(gc.freeze)
    with signals_end_cleanly():
        app()
