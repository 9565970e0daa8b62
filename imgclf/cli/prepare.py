"""`imgclf prepare`: a resized copy of a data set, or tar shards of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import DataDir
from imgclf.core.config import RESIZE_MODES
from imgclf.core.options import listed
from imgclf.core.text import plural

SIZE = "224"
SHARD_SIZE = "256MB"


def prepare(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder, a CSV file, tar shards or a named data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    size: Annotated[
        str | None,
        typer.Option(
            help=f"Size of the copies: N or HxW pixels; with --shards, files are only resized if it is given. "
            f"[dim]\\[default: {SIZE}][/dim]"
        ),
    ] = None,
    resize_mode: Annotated[
        str, typer.Option(help=f"How images are fitted to that size: {listed(RESIZE_MODES)}.")
    ] = "squash",
    kind: Annotated[str, typer.Option("--format", help="Format of resized images: jpg (quality 95) or png.")] = "jpg",
    shards: Annotated[bool, typer.Option("--shards", help="Write WebDataset tar shards.")] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(help=f"Size of a shard: 100MB, 1GB, or a number of images. [dim]\\[default: {SHARD_SIZE}][/dim]"),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a resized copy of the data into a new folder. The original is not changed.

    With --shards it becomes tar files, for data sets with too many files or on remote storage.
    Images that can't be read are listed and left out, and the exit code is then 1.
    """
    from imgclf.core.config import PreprocessConfig, parse_size
    from imgclf.core.errors import ConfigError, DataError
    from imgclf.core.text import printable
    from imgclf.data.audit import audit
    from imgclf.data.jpeg import common_levels
    from imgclf.data.sources.open import open_source
    from imgclf.data.write import (
        FORMATS,
        is_copied,
        parse_shard_size,
        prepare_folder,
        prepare_shards,
        require_new_folder,
    )

    if kind not in FORMATS:
        raise ConfigError(f"--format is {kind!r}; allowed: {', '.join(FORMATS)}")
    if shard_size is not None and not shards:
        raise ConfigError("--shard-size needs --shards")
    limit = parse_shard_size(shard_size or SHARD_SIZE)
    preprocess = PreprocessConfig(
        size=parse_size(size or SIZE), resize_mode=resize_mode, mean=(1.0,), interpolation="bicubic"
    )
    with console.progress("reading shards") as progress:
        source = open_source(data, data_dir=data_dir, strict=False, progress=progress)
    require_new_folder(out, source)
    with console.progress("checking images") as progress:
        audited = audit(source, strict=False, allow_unreadable=1.0, progress=progress)
    reasons = [f"{bad.ref}: {bad.reason}" for bad in audited.unreadable]
    if not audited.source.samples:
        raise DataError(f"{source.name}: none of the images can be read", [printable(reason) for reason in reasons])
    if reasons:
        console.warn(f"{plural(len(reasons), 'image')} can't be read and will be left out:", reasons)
    levels = common_levels(sample.levels for sample in audited.source.samples)
    resized = None if shards and size is None else preprocess
    deep = [sample for sample in audited.source.samples if sample.levels is not None]
    if any(resized or not is_copied(audited.source, sample) for sample in deep):
        console.say(f"images of more than 8 bits are written with 8: {', '.join(map(str, levels))} become 0 to 255")
    source = audited.source.at_levels(levels)
    with console.progress("writing" if shards else "resizing") as progress:
        if shards:
            count = prepare_shards(source, out, resized, kind, limit, progress)
        else:
            count = prepare_folder(source, out, preprocess, kind, progress)
    of = f" of {preprocess.size[0]}×{preprocess.size[1]}" if resized else ""
    where = f"{plural(len(list(out.glob('*.tar'))), 'shard')} in {out}" if shards else str(out)
    console.show(f"{plural(count, 'image')}{of} in {where}")
    if reasons:
        raise typer.Exit(1)
