"""The run folder: everything that happened in one training run, under `runs/NAME/`.

model.safetensors   the model file; its presence says that the run has a result
config.toml         the complete configuration: `imgclf train --config` trains with it again
split.csv           which images were train, valid and test
history.csv         one row an epoch                events.jsonl   the same and more, as it happened
run.json            data, versions, machine, how it ended, the metrics: `RunInfo`
predictions.safetensors  the logits of each test image
report.html         all of it as a page to read
samples/            some images, of a data set that lies in memory
checkpoint.pt       private: the state that `--resume` continues from; may be deleted
.lock               held by the process that trains
"""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from imgclf.core.arguments import as_path
from imgclf.core.config import ExperimentConfig, from_dict, to_dict
from imgclf.core.errors import ConfigError, DataError, ImgclfError, ModelFileError
from imgclf.core.files import csv_text, read_text, require_writable, sync_folder, write_text
from imgclf.core.registry import close_matches, unknown_name
from imgclf.core.results import EpochRecord, History
from imgclf.core.text import printable

MODEL = "model.safetensors"
CONFIG = "config.toml"
SPLIT = "split.csv"
HISTORY = "history.csv"
EVENTS = "events.jsonl"
INFO = "run.json"
CHECKPOINT = "checkpoint.pt"
PREDICTIONS = "predictions.safetensors"
REPORT = "report.html"
LOCK = ".lock"
SAMPLES = "samples"
ROOT = Path("runs")
AT_WORK = ("running", "testing")  # what run.json says while a process holds the run, and after that was killed
NAME_BYTES = 255  # of a file's or a folder's name, at most
STEM_LENGTH = 100  # letters of the data's name in a name that is made from it
NOT_PLACES = ("auto", "pretrained", "none")  # what weights may be beside a file


@dataclass(frozen=True)
class RunInfo:
    """What `run.json` holds: these fields, and no others."""

    number: int = 0  # runs are ordered by it, not by their files' times
    created: str = ""  # UTC
    status: str = ""  # running, testing; done, stopped early, interrupted, failed
    error: str | None = None  # what it failed with
    pid: int | None = None  # of the process that works, or worked, in the folder
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages
    folder: str = ""  # in which training was begun
    source: str | None = None  # the data as the user named them
    location: str | None = None  # where the images were
    data: str = ""  # name of the data set
    classes: tuple[str, ...] = ()
    given_parts: tuple[str, ...] = ()  # of train, valid, test: those that the data set divides itself
    unreadable: tuple[tuple[str, str], ...] = ()  # images left out by the check, with the reason
    skipped: tuple[str, ...] = ()  # files that are no images, with the reason
    findings: tuple[str, ...] = ()  # what looks wrong about the images
    unreadable_later: tuple[tuple[str, str], ...] = ()  # images that couldn't be read, or had changed, after the check
    recipe: str | None = None  # that the experiment began with
    minutes: float | None = None  # that were given for all of training
    arch: str = ""
    own_network: bool = False  # one whose code no command knows
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # a `PreprocessConfig`
    weights: Mapping[str, Any] = field(default_factory=dict)  # what training started from: a `WeightsUsed`
    decisions: tuple[Mapping[str, str], ...] = ()  # name, value and reason of each
    members: tuple[str, ...] = ()  # run folders that this one joins, of an ensemble
    extended: tuple[int, ...] = ()  # epochs that were planned before it was resumed to others
    epochs: int | None = None  # that were trained, in all
    seconds: float | None = None  # of the last process, with its checks and its test
    train_seconds: float | None = None  # of the epochs in it
    seconds_before: float = 0.0  # of the processes before
    metrics: Mapping[str, Mapping[str, Any]] | None = None  # by part, valid and test; none before the run has ended


@dataclass(frozen=True)
class Run:
    """A run folder and what its `run.json` says."""

    path: Path
    info: RunInfo = field(repr=False)

    @property
    def model(self) -> Path:
        """Where the model file is, or will be."""
        return self.path / MODEL


def create_run(
    root: Path, name: str, info: RunInfo, *, exact: bool = False, fill: Callable[[Path], None] | None = None
) -> Run:
    """Make a new run folder: `root/name-1`, or the first number that is free; with `exact`, `root/name` or an error.

    `fill` writes more files into it. The folder gets its name when it is whole: a crash leaves no half of a run.
    """
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"
    require_free(root, name if exact else None)
    draft = root / f".{stem[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        draft.mkdir(parents=True)
        number = 1 + max((run.info.number for run in list_runs(root)), default=0)
        run = write_info(Run(draft, info), number=number)
        if fill is not None:
            fill(draft)
        path = _claim(draft, [name] if exact else (f"{stem}-{count}" for count in itertools.count(1)))
    except OSError as error:
        raise ImgclfError(f"can't create a run folder in {root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return replace(run, path=path)


def require_free(root: Path, name: str | None) -> None:
    """Raise `ConfigError` for a run's name that is a path, or taken; None is a name that is still to be made."""
    if name is not None and (not isinstance(name, str) or not name or Path(name).name != name or name.startswith(".")):
        raise ConfigError(f"the run's name is {name!r}; allowed: the name of a folder, not a path (see --runs)")
    if name is not None and (length := len(os.fsencode(name))) > NAME_BYTES:
        raise ConfigError(f"a run's name has {length} bytes; allowed: {NAME_BYTES}, as for any folder")
    try:
        require_writable(root / (name or "run"))
    except OSError as error:
        raise ConfigError(
            f"{root} can't hold runs: {error.filename}: {error.strerror}; choose another folder"
        ) from None
    if name is not None and (root / name).exists():
        raise ConfigError(f"{root / name} already exists; choose another --name, or delete it")


def stem_of(data: str, arch: str, *more: str) -> str:
    """What a run is called, but for its number, unless the user names it: after its data and its network."""
    return "-".join((data[:STEM_LENGTH], arch.replace(":", "-"), *more))  # a colon is no part of a name on Windows


def _claim(draft: Path, names: Iterable[str]) -> Path:
    """Give a folder the first of the names that is free beside it."""
    for name in names:
        path = draft.with_name(name)
        if path.exists():
            continue
        try:
            draft.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # then another process was faster
                raise
            continue
        sync_folder(path.parent)
        return path
    raise ConfigError(f"{path} already exists; choose another --name, or delete it")


def write_info(run: Run, **changes: Any) -> Run:
    """The run with these fields of its `run.json` changed, which is written."""
    run = replace(run, info=replace(run.info, **changes))
    write_text(run.path / INFO, json.dumps(asdict(run.info), indent=2) + "\n")
    return run


def spent_seconds(run: Run) -> float | None:
    """How long the run took, in seconds, with all before it was resumed; None where no process came to its end."""
    return round(run.info.seconds_before + (run.info.seconds or 0.0), 3) or None


def open_run(path: Path) -> Run:
    """The run in a folder; `DataError` where there is none."""
    try:
        values = json.loads(read_text(path / INFO))
        info = RunInfo(**{key: _as_tuple(value) for key, value in values.items()})
        return Run(path, replace(info, number=int(values["number"])))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is not a run folder: it has no {INFO}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / INFO} cannot be read: {error}") from None


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Hold a run folder, so that no other process trains in it; `ConfigError` where one does.

    The lock ends with its process, however that ends. May be taken again by who has it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run.path / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        pid = open_run(run.path).info.pid
        raise ConfigError(f"{run.path} is in use by process {pid}; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def is_held(run: Run) -> bool:
    """Whether a process trains in a run folder just now."""
    from filelock import FileLock, Timeout

    if not (run.path / LOCK).exists():
        return False
    try:
        with FileLock(run.path / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def run_source(run: Run, named: str) -> str:
    """The data of a run: where they were then, whatever is called so in the present working folder. Where they are
    gone, what the user named: a run may have moved together with its images.

    Raises `DataError` where neither is there.
    """
    location = run.info.location
    if location is None:
        return named
    if _is_there(location):
        return named if os.path.abspath(named) == location else location
    if not _is_there(named):
        raise DataError(
            f"{run.path}: its images were in {printable(location)}, which no longer exists: restore them there"
        )
    return named


def _is_there(place: str) -> bool:
    """Whether a file, a folder, or at least the folder of a pattern of tars exists; of a URL its opening tells."""
    return "://" in place or os.path.exists(place) or ("{" in place and os.path.isdir(os.path.dirname(place) or "."))


def run_config(run: Run) -> tuple[dict[str, Any], str | None]:
    """The values of a run's config and its data, to be used in any working folder: see `read_config`.

    A file or folder that it names by a relative path is the one of the folder in which the run was begun, if it is
    still there.
    """
    values, source = read_config(run.path / CONFIG)
    data = values.get("data", {})
    for table, key in ((values, "weights"), (values, "init"), (data, "split_file"), (data, "data_dir")):
        named = table.get(key, "none")
        there = os.path.join(run.info.folder, named)
        if named not in NOT_PLACES and os.path.exists(there):
            table[key] = named if os.path.abspath(named) == there else there
    return values, source


def list_runs(root: Path = ROOT) -> list[Run]:
    """All runs in a folder, oldest first."""
    return sorted(_runs(root), key=lambda run: (run.info.number, run.info.created))


def _runs(root: Path) -> Iterator[Run]:
    if not root.is_dir():
        return
    for entry in root.iterdir():
        if not entry.name.startswith(".") and (entry / INFO).is_file():
            try:
                yield open_run(entry)
            except DataError:
                continue  # not ours, or damaged: it is not the newest run


def locate(named: str | os.PathLike[str], root: Path = ROOT) -> Path:
    """Where the run folder or the file is that a user names: the path itself, else the run of this name under `root`.

    A folder that is no run, of images for example, does not hide a run of its name. Where there is neither, the path.
    """
    path = as_path("the run", named)
    if _holds_run(path) or os.path.isfile(path) or not _holds_run(root / path):
        return path
    return root / path


def _holds_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or at least holds a model file."""
    return any(os.path.isfile(folder / name) for name in (INFO, MODEL))


def find_run(named: str | os.PathLike[str], root: Path = ROOT) -> Run:
    """The run that a user names: its folder, its model file, or its name under `root`; see `locate`."""
    path = locate(named, root)
    if path.name == MODEL and os.path.isfile(path):
        path = path.parent
    if os.path.exists(path):
        return open_run(path)  # which says what is missing there
    known = [run.path.name for run in list_runs(root)]
    if not known:
        raise DataError(f"{printable(str(named))} not found, and there are no runs in {root.absolute()}")
    raise unknown_name("run", printable(str(named)), known[::-1])


def find_model(named: str | os.PathLike[str], root: Path = ROOT) -> Path:
    """The model file that a user names: the file, a run folder, or the name of a run under `root`; see `locate`."""
    path = locate(named, root)
    shown = printable(str(path))
    if path.is_dir() and (path / MODEL).is_file():
        return path / MODEL
    if path.is_dir():
        problem = "a run without a result yet" if (path / INFO).is_file() else f"not a run: it has no {MODEL}"
        raise ModelFileError(f"{shown} is {problem}; expected a model file or one run's folder")
    if not os.path.exists(path):
        close = close_matches(str(named), [run.path.name for run in list_runs(root)][::-1])
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelFileError(
            f"{shown} not found: expected a model file, a run folder, or the name of a run in {root}{hint}"
        )
    return path


def find_config(named: str | os.PathLike[str], root: Path = ROOT) -> dict[str, Any]:
    """The values of the config that a user names: a TOML file, or a run by its folder or its name; see `run_config`."""
    return _named_config(named, root)[1]


def config_source(named: str | os.PathLike[str], root: Path = ROOT) -> str | None:
    """The data that such a config names; see `run_source`."""
    run, _, source = _named_config(named, root)
    return source if run is None or source is None else run_source(run, source)


def _named_config(named: str | os.PathLike[str], root: Path) -> tuple[Run | None, dict[str, Any], str | None]:
    """The config that a user names, and the run whose it is; None for a config of the user's own."""
    path = locate(named, root)
    folder = path.parent if path.name == CONFIG and os.path.isfile(path) else path
    if not (folder / INFO).is_file():
        return None, *read_config(path)
    run = open_run(folder)
    return run, *run_config(run)


def write_config(path: Path, experiment: ExperimentConfig, source: str | None) -> None:
    """Write an experiment, and the data it was run on, as TOML; what is left open (None) is left out."""
    import tomli_w

    values = _without_none(to_dict(experiment))
    write_text(path, tomli_w.dumps({"source": source, **values} if source is not None else values))


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """The values of a config file, for `ExperimentConfig`, and its `source`. Wrong TOML is a `ConfigError`."""
    import tomllib

    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the config {path} is not TOML: {error}") from None
    source = values.pop("source", None)
    try:
        from_dict(ExperimentConfig, values)  # every key and value is checked here, where the file can be named
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return values, source


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in values.items() if v is not None}


def write_history(path: Path, history: list[EpochRecord]) -> None:
    """Write the epochs so far as CSV."""
    header = [f.name for f in fields(EpochRecord)]
    write_text(path, csv_text([header, *map(astuple, history)]))


def read_history(path: Path) -> History:
    """The epochs that `write_history` wrote; none where there is no file yet. `DataError` where it is damaged."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
        return History(tuple(_epoch(row) for row in rows))
    except FileNotFoundError:
        return History()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def read_start(path: Path) -> tuple[float, float] | None:
    """The loss and the accuracy on valid before the first step, from a run's events; None where they don't say."""
    try:
        events = [json.loads(line) for line in read_text(path).splitlines()]
        found = [event for event in events if event["event"] == "baseline"]
        return (float(found[-1]["loss"]), float(found[-1]["accuracy"])) if found else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _epoch(row: Mapping[str, str]) -> EpochRecord:
    numbers: dict[str, Any] = {key: float(row[key]) for key in ("train_loss", "train_accuracy", "lr", "seconds")}
    numbers |= {key: float(row[key]) if row[key] else None for key in ("valid_loss", "valid_accuracy")}
    return EpochRecord(epoch=int(row["epoch"]), best=row["best"] == "True", **numbers)


def append_event(path: Path, event: str, **values: Any) -> None:
    """Add one whole line to the events, or none."""
    line = json.dumps({"event": event, **values}) + "\n"
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="ascii") as file:
            file.write(line)
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, before)
        raise OSError(error.errno, error.strerror, str(path)) from error
