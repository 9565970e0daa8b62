"""The only place that prints: results to stdout, progress and messages to stderr; and the exit codes.

Every text that comes from a file name or a class is escaped, and never read as rich markup.
"""

from __future__ import annotations

import contextvars
import functools
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from imgclf.cli._streams import Stream
from imgclf.core.errors import ConfigError, ImgclfError
from imgclf.core.text import natural, plural, printable

P = ParamSpec("P")
FIELD = re.compile(r"\b(?:Experiment|Train|Data|Preprocess|Model)Config\.(\w+) is")  # an option, to a user
PIPE_WIDTH = 1000  # a table that goes to a file or a pipe is not folded
GAP, SHORT = 2, 12  # between the columns of a table; characters of a cell that is not folded
NUMERIC = re.compile(r"–|[\d.,]+( ?%)?")


class Interruption:
    """Whether a signal has asked to end, and what a shell expects as the exit code of it."""

    asked = False
    code = 130


def out() -> Console:
    """The console of results."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)


@functools.cache
def err() -> Console:
    """The console of progress and messages; one only, so that lines are printed above a bar and not into it."""
    return Console(stderr=True, highlight=False)


def say(text: str = "", style: str = "") -> None:
    """A line of progress, as it is, to stderr."""
    _print(Text(printable(text), style=style))


def say_beside(start: str, text: str) -> None:
    """A line of progress in two columns; on a terminal that is too narrow for `text`, it goes on below itself."""
    room = err().width - cell_len(start)
    folds = err().is_terminal and room >= SHORT
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) if folds else [text]
    for number, line in enumerate(lines or [text]):
        say((" " * cell_len(start) if number else start) + line)


def warn(text: str, details: Iterable[str] = ()) -> None:
    """A line that should not be missed, to stderr, and the first of its details."""
    _print(Text("! ", style="bold yellow") + Text(printable(text), style="yellow"))
    say_list(details)


def warn_of_images(reasons: Mapping[str, str], what: str) -> None:
    """Say what became of images, if there are any, and why of each."""
    if reasons:
        warn(f"{plural(len(reasons), 'image')} {what}:", (f"{ref}: {why}" for ref, why in reasons.items()))


def _print(text: Text) -> None:
    """Print on stderr as it is: the terminal folds what is too long for it."""
    err().print(text, no_wrap=True, overflow="ignore", crop=False)


def say_list(items: Iterable[str], most: int = 5) -> None:
    """Some lines of detail below a line, to stderr, in natural order: the first five and a count."""
    lines = sorted(items, key=natural)
    for line in lines[:most]:
        say(f"         {line}", "dim")
    if len(lines) > most:
        say(f"         … and {len(lines) - most:,} more", "dim")


def show(text: str = "") -> None:
    """A line of a result, to stdout."""
    out().print(Text(printable(text)))


def show_page(label: str, path: Path) -> None:
    """The path of a page after a label, to stdout: a link where the terminal knows links."""
    out().print(Text(printable(label)) + Text(printable(str(path)), style=f"link {path.absolute().as_uri()}"))


def show_json(value: Any) -> None:
    """One JSON value on one line, to stdout, at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def show_table(header: Sequence[str], rows: Iterable[Sequence[object]], keys: int = 1) -> None:
    """A table of a result, to stdout; columns that hold numbers stand to the right.

    What is wider than the terminal is shown in parts, each with the first `keys` columns. No word is broken, unless
    these alone take most of the room.
    """
    cells = [["–" if value is None else printable(str(value)) for value in row] for row in rows]
    names = [printable(name) for name in header]
    columns = [[name, *(row[index] for row in cells)] for index, name in enumerate(names)]
    least = [_least_width(column) for column in columns]
    screen = out()
    for number, part in enumerate(_parts(least, keys, screen.width)):
        if number:
            show()
        table = Table(box=None, pad_edge=False)
        widths = _widths([least[index] for index in part], [columns[index] for index in part], screen.width)
        for index, width in zip(part, widths, strict=True):
            right = bool(cells) and all(NUMERIC.fullmatch(row[index]) for row in cells)
            name = Text(names[index], style="bold")
            table.add_column(name, justify="right" if right else "left", overflow="fold", width=width)
        for row in cells:
            table.add_row(*(Text(row[index]) for index in part))
        screen.print(table)


def _least_width(texts: Sequence[str]) -> int:
    """The width of a column that breaks no word, and no text that is short."""
    return max(cell_len(part) for text in texts for part in ([text] if len(text) <= SHORT else text.split(" ")))


def _widths(least: Sequence[int], columns: Sequence[Sequence[str]], room: int) -> Sequence[int | None]:
    """The widths of columns that break no word: what is left over goes to the narrowest that could use it. None where
    there is too little room for that, which leaves it to the table."""
    spare = room - sum(least) - GAP * (len(least) - 1)
    if spare < 0:
        return [None] * len(least)
    full = [max(map(cell_len, texts)) for texts in columns]
    widths = list(least)
    for _ in range(min(spare, sum(full) - sum(least))):
        widths[min((i for i, width in enumerate(widths) if width < full[i]), key=widths.__getitem__)] += 1
    return widths


def _parts(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """The columns of each part of a table; all in one where they fit, or where the key columns leave no room."""
    first, rest = list(range(keys)), range(keys, len(widths))
    left = room - sum(widths[index] + GAP for index in first) + GAP
    if left < room / 2:
        return [[*first, *rest]]
    parts: list[list[int]] = [[]]
    for index in rest:
        if parts[-1] and sum(widths[other] + GAP for other in (*parts[-1], index)) > left:
            parts.append([])
        parts[-1].append(index)
    return [[*first, *part] for part in parts]


def guarded(command: Callable[P, None], *, kept: bool = False) -> Callable[P, None]:
    """The command with imgclf's errors as a message and an exit code, and without a traceback unless `--debug`.

    `kept` says that what it works for is on the disk: it has done its work also where nothing can be shown of it.
    """

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> None:
        if os.environ.get("IMGCLF_DEBUG"):
            return command(*args, **kwargs)
        try:
            contextvars.copy_context().run(command, *args, **kwargs)  # what it makes known ends with it
            if _was_lost() and (not kept or kwargs.get("json")):
                raise typer.Exit(1)
        except (typer.Exit, typer.BadParameter):
            raise
        except ConfigError as error:
            text = FIELD.sub(lambda field: f"{field[1]} is", str(error))
            name = text.partition(" is ")[0]
            _fail(f"--{name.replace('_', '-')}{text[len(name) :]}" if name in kwargs else text, error.exit_code)
        except ImgclfError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            end_interrupted()
        except MemoryError:
            _fail("the machine has too little memory for this", 3)
        except OSError as error:
            _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
        except Exception as error:
            _fail_unforeseen(error)

    return guard


def nobody_reads() -> bool:
    """Whether results can't get out any more, as whoever read them has seen enough, or there is no room for them."""
    return isinstance(sys.stdout, Stream) and sys.stdout.fault is not None


def _was_lost() -> bool:
    """Whether a result could not be written on stdout, which is said; not where its reader has seen enough."""
    fault = sys.stdout.fault if isinstance(sys.stdout, Stream) else None
    if fault is None or isinstance(fault, BrokenPipeError):
        return False
    warn(f"the result can't be shown in full: stdout: {fault.strerror}")
    return True


def _fail_unforeseen(error: Exception) -> None:
    """End with an error that no part of imgclf speaks of: an interrupt, a lack of memory, or else a bug."""
    if Interruption.asked and isinstance(error, ImportError | SystemError):
        end_interrupted()  # which is what a library's import makes of an interrupt
    if "torch" in sys.modules:
        from imgclf.runtime.compute import ran_out_of_memory

        if ran_out_of_memory(error):
            _fail("the device has too little memory for this: use a smaller --batch-size, --size or --arch", 3)
    _fail(
        f"this is a bug in imgclf: {type(error).__name__}: {error}\n"
        "run it again as `imgclf --debug …` and report what it prints",
        1,
    )


def bar(*columns: str | ProgressColumn, hidden: bool = False) -> Progress:
    """A display on stderr, where that is a terminal, which leaves stdout alone; it goes when it is done."""
    shown = sys.stderr.isatty() and err().is_terminal and not hidden
    return Progress(*columns, console=err(), transient=True, redirect_stdout=False, disable=not shown)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sign of life on stderr, where that is a terminal, while libraries or a model are loaded."""
    with bar(SpinnerColumn(), TextColumn("[dim]{task.description}[/dim]")) as spinner:
        spinner.add_task(what, total=None)
        yield


@contextmanager
def progress(what: str, *, streamed: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; the function it gives is told (done, in all).

    There is none where results are `streamed` to a terminal: they are a sign of life, and would get into it.
    """
    with bar(*Progress.get_default_columns(), hidden=streamed and sys.stdout.isatty()) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _fail(message: str, code: int) -> None:
    _print(Text("error: ", style="bold red") + Text("\n".join(map(printable, message.split("\n")))))
    raise typer.Exit(code) from None


def end_interrupted() -> NoReturn:
    """End as a signal has asked for."""
    say("interrupted")
    raise typer.Exit(Interruption.code) from None


@contextmanager
def signals_end_cleanly() -> Iterator[None]:
    """Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes end what is done within as a `KeyboardInterrupt` does: what
    was learned is kept, and the cursor comes back. What is ignored stays so, as `nohup` asks for.

    After that they end the process at once: it is only tidying up.
    """

    def end(signum: int, frame: object) -> None:
        Interruption.asked, Interruption.code = True, 128 + signum
        raise KeyboardInterrupt

    names = (name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
    heard = [number for number in map(signal.Signals.__getitem__, names) if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if Interruption.asked and (isinstance(error, KeyboardInterrupt) or error.code == 130):  # as typer makes of all
            raise SystemExit(Interruption.code) from None
        raise
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)
        if Interruption.asked and sys.stderr.isatty():
            err().show_cursor()  # the signal may have come when a bar had hidden it, and before it would bring it back
