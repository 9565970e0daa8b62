"""`imgclf prepare`: a resized copy of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import DataDir


def prepare(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a CSV file or a named data set.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.", show_default=False)],
    size: Annotated[str, typer.Option(help="N or HxW in pixels, as 64x128.")] = "224",
    fit: Annotated[str, typer.Option(help="crop, pad or squash to that size.")] = "squash",
    kind: Annotated[str, typer.Option("--format", help="jpg (quality 95) or png.")] = "jpg",
    data_dir: DataDir = None,
) -> None:
    """Write every readable image, resized, into a new folder with the same classes; the data stay as they are.

    Images that can't be read are named and left out, and the command then ends with 1.
    """
    from imgclf._files import printable
    from imgclf.data.audit import audit
    from imgclf.data.open import open_source
    from imgclf.data.prepare import FORMATS, prepare_folder
    from imgclf.errors import ConfigError, DataError
    from imgclf.specs import Recipe, parse_size

    if kind not in FORMATS:
        raise ConfigError(f"--format is {kind!r}; allowed: {', '.join(FORMATS)}")
    recipe = Recipe(size=parse_size(size), fit=fit, mean=(1.0,), kernel="bicubic")
    source = open_source(data, data_dir=data_dir, strict=False)
    with console.progress("checking images") as progress:
        audited = audit(source, strict=False, allow_bad=1.0, progress=progress)
    reasons = [f"{bad.ref}: {bad.reason}" for bad in audited.bad]
    if not audited.source.samples:
        raise DataError(f"{source.name}: none of the images can be read", [printable(reason) for reason in reasons])
    if reasons:
        console.warn(f"{console.plural(len(reasons), 'image')} can't be read and will be left out:")
        console.say_list(reasons)
    with console.progress("resizing") as progress:
        count = prepare_folder(audited.source, out, recipe, kind, progress)
    console.show(f"{console.plural(count, 'image')} of {recipe.size[0]}×{recipe.size[1]} in {out}")
    if reasons:
        raise typer.Exit(1)
