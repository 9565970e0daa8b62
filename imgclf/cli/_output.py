"""Where commands write: every place is checked here, and refused before any work."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.core.errors import ConfigError
from imgclf.core.files import PICTURES, require_writable
from imgclf.core.text import printable

if TYPE_CHECKING:
    from imgclf.storage.run_folder import Run

Out = Annotated[Path | None, typer.Option("--out", "-o", help="File or folder to write to.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that already exists.")]


def output_file(
    path: Path, option: str, suffixes: Sequence[str], *, force: bool = False, data: Collection[str] = ()
) -> Path:
    """`path`, where a file can be written that ends in one of the `suffixes`: no file of the user's, unless by `force`.

    `data` are places that nothing is written to: files, and folders with all that is in them. Raises `ConfigError`,
    and `DataError` for a path within the data.
    """
    shown = printable(str(path))
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} is {shown!r}; expected the name of a file that ends in {' or '.join(suffixes)}")
    _require_place(path, option, data)
    if not path.parent.is_dir():
        folder = printable(str(path.parent))
        raise ConfigError(f"{option} is {shown!r}, and there is no folder {folder!r}: make it, or name another place")
    if path.is_dir():
        raise ConfigError(f"{option} is {shown!r}, a folder; expected the name of a file")
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{shown} already exists: name another file as {option}, or overwrite it with --force")
    return path


def picture_file(out: Path | None, name: str, *, force: bool = False, data: Collection[str] = ()) -> Path:
    """Where a picture goes: the file `out`, or `name` in the folder `out` or the working folder.

    Without `force` a `name` that is taken gets a number. Raises what `output_file` raises.
    """
    if out is not None and not os.path.isdir(out):
        return output_file(out, "--out", PICTURES, force=force, data=data)
    path = (out or Path()) / name
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    free = path if force else next(each for each in chain([path], numbered) if not os.path.lexists(each))
    return output_file(free, "--out", PICTURES, force=force, data=data)


def output_folder(path: Path, option: str, *, data: Collection[str] = ()) -> Path:
    """`path`, where a folder is or can be made, outside of the `data`. Raises what `output_file` raises."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise ConfigError(f"{option} is {printable(str(path))!r}, a file; expected a folder")
    _require_place(path, option, data, path / "file")
    return path


def _require_place(path: Path, option: str, data: Collection[str], file: Path | None = None) -> None:
    """Refuse what lies within the data, and where `file`, else `path`, can't be written."""
    from imgclf.data.write import require_apart

    try:
        require_writable(file or path)
    except OSError as error:
        where = printable(str(error.filename or path))
        raise ConfigError(f"{option}: nothing can be written to {where}: {error.strerror}") from None
    require_apart(path, data)


def model_data(model: str | None) -> list[str]:
    """Where the images are that the model of a run has learned from; nothing for a model file of its own."""
    from imgclf.core.errors import ImgclfError
    from imgclf.storage.run_folder import find_model, open_run
    from imgclf.storage.run_list import default_run

    try:
        return run_data(open_run(Path(default_run().path) if model is None else find_model(model).parent))
    except ImgclfError:  # no run, or no model, which is for others to say
        return []


def run_data(run: Run) -> list[str]:
    """Where the images of a run are: as they were named, and where that was."""
    return [place for place in (run.info.source, run.info.location) if isinstance(place, str)]
