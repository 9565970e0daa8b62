"""The list of runs: what each one was, how it ended, how well it did, and which one is the default.

Without torch, so that it takes no time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any

from imgclf.core.errors import ConfigError, DataError, ModelFileError
from imgclf.core.files import read_text, write_text
from imgclf.core.results import ENDED
from imgclf.core.text import printable
from imgclf.storage.model_file import read_manifest
from imgclf.storage.run_folder import (
    AT_WORK,
    INFO,
    MODEL,
    PREDICTIONS,
    ROOT,
    Run,
    find_model,
    find_run,
    is_held,
    list_runs,
    spent_seconds,
)

SORTS = ("number", "name", "data", "arch", "recipe", "status", "accuracy", "seconds", "size")
FILTERS = ("name", "data", "arch", "recipe", "status")
PIN = ".default"  # beside the run folders: holds the name of the one that is pinned


@dataclass(frozen=True)
class RunEntry:
    """One run. `accuracy` (0…1) is that of `n` images of the `part` test or, where there was no test, valid, and
    `interval` its 95 % interval; `seconds` are those of the whole command or, where it was trained in Python, of `fit`
    after the images were checked, with those before it was resumed; `size` is the model file's in bytes, `recipe` the
    name of the experiment that it began with. What is not known is None. `default` says that commands without --model
    take it, `pinned` that this is so because the user said it."""

    path: str
    number: int
    status: str
    data: str | None
    arch: str | None
    recipe: str | None
    created: str | None
    part: str | None = None
    n: int | None = None
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    seconds: float | None = None
    size: int | None = None
    default: bool = False
    pinned: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        return Path(self.path).name

    @property
    def model(self) -> Path:
        """Where the model file is, or will be."""
        return Path(self.path, MODEL)

    @property
    def reason(self) -> str:
        """Why it is the default, in words."""
        return "pinned by `imgclf use`" if self.pinned else "newest finished run"

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return {"name": self.name, **asdict(self)}


def list_entries(root: Path) -> tuple[list[RunEntry], list[Path]]:
    """The runs in a folder, oldest first, and the run folders whose `run.json` can't be read."""
    runs = list_runs(root)
    default = _default_among(runs, root)
    entries = [entry_of(run) for run in runs]
    marked = [default if default is not None and entry.path == default.path else entry for entry in entries]
    read = {run.path for run in runs}
    folders = root.iterdir() if root.is_dir() else ()
    hidden = sorted(f for f in folders if f not in read and not f.name.startswith(".") and (f / INFO).is_file())
    return marked, hidden


def find_default(root: Path = ROOT) -> RunEntry | None:
    """The run that commands take without --model: the pinned one or, without a pin, the newest that has ended with a
    figure and whose network commands know; None if there is none, or if the pinned one no longer exists."""
    return _default_among(list_runs(root), root)


def _default_among(runs: Sequence[Run], root: Path) -> RunEntry | None:
    if (pinned := pinned_name(root)) is not None:
        run = next((run for run in runs if run.path.name == pinned and run.model.is_file()), None)
        return None if run is None else replace(entry_of(run), default=True, pinned=True)
    for run in reversed(runs):
        if run.info.status in ENDED and run.model.is_file() and not run.info.own_network:
            entry = entry_of(run)
            if entry.accuracy is not None:
                return replace(entry, default=True)
    return None


def default_run(root: Path = ROOT) -> RunEntry:
    """The same; `ModelFileError`, which says what to do, where there is none."""
    if (found := find_default(root)) is not None:
        return found
    if (pinned := pinned_name(root)) is not None:
        raise ModelFileError(
            f"the pinned run {printable(str(root / pinned))} no longer has a model file: pin another run "
            "(imgclf use RUN), or unpin it (imgclf use --clear)"
        )
    raise ModelFileError(
        f"{why_none(root)} in {root.absolute()}: train one (imgclf train DATA), or name a run or a model file"
    )


def why_none(root: Path = ROOT) -> str:
    """Why no run is the default, where none is pinned."""
    if any(run.info.own_network and run.info.status in ENDED for run in list_runs(root)):
        return "the only finished runs are of custom networks (use --model RUN --arch FILE.py:NAME)"
    return "there is no finished run with an accuracy"


def pin_run(named: str | os.PathLike[str], root: Path = ROOT) -> RunEntry:
    """Make a run the default of its folder until another one is pinned, or none: its name is kept beside the runs."""
    run = find_run(named, root)
    if run.path.resolve().parent != root.resolve():
        raise ConfigError(f"{printable(str(named))} is not in {root}; only runs in this folder can be the default")
    find_model(run.path)  # which says what is missing
    write_text(root / PIN, run.path.resolve().name + "\n")
    return default_run(root)


def unpin(root: Path = ROOT) -> None:
    """Let the newest finished run be the default again."""
    (root / PIN).unlink(missing_ok=True)


def pinned_name(root: Path = ROOT) -> str | None:
    """The name of the run that is pinned; None where none is."""
    try:
        return read_text(root / PIN).strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def entry_of(run: Run) -> RunEntry:
    """What the list says of one run."""
    from imgclf.evaluation.intervals import wilson_interval  # loads numpy, which --help does without

    part, figures = _figures(run)
    n, accuracy = figures.get("n"), figures.get("accuracy")
    info = run.info
    return RunEntry(
        path=str(run.path),
        number=run.info.number,
        status=_status(run),
        data=info.data or None,
        arch=f"{len(info.members)} × {info.arch}" if len(info.members) > 1 else info.arch or None,
        recipe=info.recipe,
        created=info.created or None,
        part=part,
        n=n,
        accuracy=accuracy,
        interval=wilson_interval(round(accuracy * n), n) if accuracy is not None and n else None,
        seconds=spent_seconds(run),
        size=run.model.stat().st_size if run.model.is_file() else None,
    )


def filtered(entries: Sequence[RunEntry], condition: str) -> list[RunEntry]:
    """The entries for which a condition holds: `arch=resnet*` (a pattern of the whole) or a text that they contain.

    Case does not matter. Raises `ConfigError` for a key that there is not.
    """
    key, equals, pattern = condition.lower().partition("=")
    if not equals:
        return [entry for entry in entries if any(fnmatchcase(_text(entry, name), f"*{key}*") for name in FILTERS)]
    if key not in FILTERS:
        raise ConfigError(
            f"--filter is {condition!r}; allowed: a text, or KEY=PATTERN with {', '.join(FILTERS)} as KEY"
        )
    return [entry for entry in entries if fnmatchcase(_text(entry, key), pattern)]


def ordered(entries: Sequence[RunEntry], key: str) -> list[RunEntry]:
    """The entries by one of `SORTS`: the highest accuracy first, all others rising; what is not known comes last."""
    if key not in SORTS:
        raise ConfigError(f"--sort is {key!r}; allowed: {', '.join(SORTS)}")
    known = [entry for entry in entries if getattr(entry, key) is not None]
    unknown = [entry for entry in entries if getattr(entry, key) is None]
    return sorted(known, key=attrgetter(key), reverse=key == "accuracy") + unknown


def _text(entry: RunEntry, key: str) -> str:
    return str(getattr(entry, key) or "").lower()


def _status(run: Run) -> str:
    """How the run ended; `killed` where it says that a process is at work, and none holds it."""
    status = run.info.status or "–"
    return "killed" if status in AT_WORK and not is_held(run) else status


def _figures(run: Run) -> tuple[str | None, Mapping[str, Any]]:
    """The part that the run was judged by, with its metrics: from `run.json`, its predictions or its model file."""
    known = run.info.metrics or _of_model(run)
    if tested := known.get("test") or _answered(run):
        return "test", tested
    return ("valid", known["valid"]) if "valid" in known else (None, {})


def _answered(run: Run) -> Mapping[str, Any]:
    """The metrics of the test predictions in the run folder; none where there are no such predictions."""
    from imgclf.evaluation.predictions import read_score

    try:
        right, n = read_score(run.path / PREDICTIONS)
    except DataError:
        return {}
    return {"n": n, "accuracy": right / n} if n else {}


def _of_model(run: Run) -> Mapping[str, Any]:
    """The metrics in the model file of a run; none where there is none, or it can't be read."""
    try:
        return read_manifest(run.model).metrics
    except ModelFileError:
        return {}
