"""What the commands that look at single images share: which images, and the model."""

from __future__ import annotations

import codecs
import glob
import os
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from imgclf.cli import _console as console
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.text import first_few, natural, plural, printable

if TYPE_CHECKING:
    from imgclf.estimator.classifier import Classifier

PixelStore = Annotated[
    list[str], typer.Argument(metavar="IMAGES", help="Files, folders, globs, or - for a list of paths on stdin.")
]


def expand(images: list[str]) -> Iterator[str]:
    """Paths as given; globs that the shell left alone, in natural order; the lines of stdin for `-`.

    Raises `DataError` for a glob that nothing matches.
    """
    for image in images:
        if image == "-":
            yield from filter(None, _lines(sys.stdin.buffer))
        elif glob.has_magic(image) and not os.path.lexists(image):
            if not (found := glob.glob(image, recursive=True)):
                raise DataError(f"no file matches '{printable(image)}'")
            yield from sorted(found, key=natural)
        else:
            yield image


def _lines(stream: BinaryIO) -> Iterator[str]:
    """The lines as they come; a byte-order mark is no part of the first, and tells UTF-16, which is read as a whole."""
    first = stream.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = (first + stream.read()).decode("utf-16", "replace")
        yield from (line.rstrip("\r") for line in text.split("\n"))
        return
    for line in chain([first.removeprefix(codecs.BOM_UTF8)], stream):
        yield os.fsdecode(line.rstrip(b"\r\n"))


def arch_name(arch: str, *, new_head: bool = False) -> str:
    """The name of an architecture as it is; that of FILE.py:NAME, whose code the command then knows."""
    from imgclf.models.own import named_network, own_arch, use

    network = named_network(arch)
    if network is None:
        return arch
    use(found := own_arch(network, new_head=new_head))
    return found.name


def require_own(arch: str | None) -> None:
    """Make the code of FILE.py:NAME known to a command whose model is such a network; raise `ConfigError` for another
    name of an architecture: a model has its own."""
    if arch is not None and arch_name(arch, new_head=True) == arch:
        raise ConfigError(
            f"--arch is {arch!r}; a model knows its network: leave it out, or name your own as FILE.py:NAME"
        )


def load_classifier(
    model: str | None, device: str, precision: str = "fp32", arch: str | None = None, backend: str = "torch"
) -> Classifier:
    """The classifier of a model file or a run or, without one, of the default run, which is then said.

    `arch` is FILE.py:NAME of a network of the user's own.
    """
    from imgclf.storage.run_folder import find_model
    from imgclf.storage.run_list import default_run

    default = default_run() if model is None else None
    path = default.model if default is not None else find_model(str(model))
    with console.waiting("loading"):
        require_own(arch)
        from imgclf.estimator.classifier import Classifier

        classifier = Classifier.load(path, device=device, precision=precision, backend=backend)
    if backend != "torch":
        with console.waiting("compiling the network for this processor"):
            classifier.compiled()
    if default is not None:
        classes = f"{plural(len(classifier.classes_), 'class')}: {first_few(classifier.classes_)}"
        console.say(f"model: {path} ({default.arch}, {classes}; {default.reason})", "dim")
    return classifier
