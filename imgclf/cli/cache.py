"""`imgclf cache`: what is kept in the user's cache folder to save time, and how to be rid of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Command, Json


def cache_list(json: Json = False) -> None:
    """List the cache entries."""
    from dataclasses import asdict

    from imgclf.core.files import cache_folder
    from imgclf.core.text import byte_size
    from imgclf.data.loading.disk_cache import list_cache

    entries = list_cache()
    total = sum(entry.bytes for entry in entries)
    if json:
        console.show_json({"folder": str(cache_folder()), "bytes": total, "entries": [asdict(e) for e in entries]})
        return
    rows = [
        [e.name, e.about, None if e.images is None else f"{e.images:,}", byte_size(e.bytes), _day(e.used)]
        for e in entries
    ]
    if rows:
        console.show_table(["name", "what", "images", "size", "last used"], rows)
    console.show(f"{byte_size(total)} in {cache_folder()}")


def cache_clear(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Only this entry, by its name in the list.")] = "",
    json: Json = False,
) -> None:
    """Clear the cache, or one entry of it. The next run recreates what it needs."""
    from imgclf.core.registry import unknown_name
    from imgclf.core.text import byte_size
    from imgclf.data.loading.disk_cache import clear_cache, list_cache

    names = [entry.name for entry in list_cache()]
    if name and name not in names:
        raise unknown_name("cache entry", name, names)
    freed = clear_cache(name)
    if json:
        console.show_json({"freed": freed})
    else:
        console.show(f"{byte_size(freed)} freed")


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")


cache = typer.Typer(no_args_is_help=True, help="List or clear the cache of decoded images and checked files.")
for _command, _name in ((cache_list, "list"), (cache_clear, "clear")):
    cache.command(_name, cls=Command)(console.guarded(_command))
