"""The front door of data: whatever a user names becomes a `Source`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imgclf.core.arguments import as_path, whole
from imgclf.core.errors import DataError
from imgclf.core.registry import close_matches
from imgclf.core.text import printable
from imgclf.data.dataset import Source
from imgclf.data.images import MAX_PIXELS
from imgclf.data.sources.csv_table import open_table
from imgclf.data.sources.folder import open_folder
from imgclf.data.sources.named import NAMED, open_named
from imgclf.data.sources.tar_shards import names_shards, open_shards

ARCHIVES = (".zip", ".7z", ".rar")


def open_source(
    data: str | os.PathLike[str] | Source,
    *,
    data_dir: str | Path | None = None,
    strict: bool = True,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """A folder with one sub-folder per class, a CSV, tar shards, or a named data set, as a `Source`.

    Args:
        data: A path, a URL of shards, a name, or a `Source`, which is returned as it is. Existing paths come first.
        data_dir: The folder of named data sets; missing ones are downloaded there.
        strict: Whether training needs it: at least two classes, and clear roles of the folders.
        max_pixels: The largest image that is read.
        progress: Called with the number of tars read and of all, where they had to be read.

    Raises:
        DataError: Where the data can't be used; all problems are listed.

    Example:
        >>> from imgclf import open_source
        >>> source = open_source("digits")
        >>> source.name, len(source), source.samples[1234].label
        ('digits', 1797, '2')
    """
    if isinstance(data, Source):
        return data
    if not isinstance(data, str | os.PathLike):
        kinds = "a folder, a CSV file, tar shards or the name of a data set, as text or a Path, or a Source"
        raise DataError(f"the data are {type(data).__name__}; expected {kinds}")
    max_pixels, data_dir = whole("max_pixels", max_pixels, 1), data_dir and as_path("data_dir", data_dir)
    text, shown = os.fspath(data), printable(os.fspath(data))
    if names_shards(text):
        return open_shards(text, max_pixels=max_pixels, strict=strict, progress=progress)
    if os.path.isdir(text):
        return open_folder(text, max_pixels=max_pixels, strict=strict)
    if os.path.exists(text):
        if text.lower().endswith(".csv"):
            return open_table(text, max_pixels=max_pixels, strict=strict)
        if text.lower().endswith(ARCHIVES):
            raise DataError(f"{shown} is an archive; unpack it, and pass the folder of the images")
        raise DataError(f"{shown} is a file; expected a folder, a .csv file or tar shards")
    if text in NAMED:
        return open_named(text, data_dir)
    close = [*_close_paths(text), *close_matches(text, NAMED.names())]
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise DataError(
        f"no folder, CSV file or named data set is called {shown!r}{hint} Named sets: {', '.join(NAMED.names())}"
    )


def _close_paths(text: str) -> list[str]:
    """Folders and CSV files that are where this one was looked for, and called nearly so; hidden ones only for one."""
    folder, name = os.path.split(text.rstrip("/" + os.sep))
    try:
        with os.scandir(folder or os.curdir) as entries:
            there = sorted(e.name for e in entries if e.is_dir() or e.name.lower().endswith(".csv"))
    except OSError:
        return []
    there = [entry for entry in there if name.startswith(".") or not entry.startswith(".")]
    return [printable(os.path.join(folder, close)) for close in close_matches(name, there)]
