"""What the commands that look at single images share: which images, and the model."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console

if TYPE_CHECKING:
    from imgclf.classifier import Classifier

Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES", help="Files, folders, globs, or - for a list of paths on stdin.", show_default=False
    ),
]


def expand(images: list[str]) -> Iterator[str]:
    """Paths as given; globs that the shell left alone; the lines of stdin for `-`."""
    for image in images:
        if image == "-":
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from (line for line in lines if line)
        elif glob.has_magic(image) and not os.path.lexists(image):
            yield from sorted(glob.glob(image, recursive=True)) or [image]
        else:
            yield image


def load_classifier(model: str | None, device: str, precision: str = "fp32") -> Classifier:
    """The classifier of a model file or a run folder or, without one, of the newest run, which is then said."""
    from imgclf.run import find_model

    path = find_model(model)
    if model is None:
        console.say(f"model: {path}", "dim")
    with console.waiting("loading"):
        from imgclf.classifier import Classifier

        return Classifier.load(path, device=device, precision=precision)
