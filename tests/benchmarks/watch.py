"""Runs one program to its end: wall time, peak memory of its whole process tree, and what it answered."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY = 0.1  # seconds between two looks at the memory
MEGABYTE = 1e6


class RunFailed(Exception):
    """A program ended with an error; the message holds the end of what it said."""


@dataclass(frozen=True)
class Measured:
    """Wall time from the start of the process to its end, peak memory in MB (None where not looked at), the answer."""

    seconds: float
    peak_mb: float | None
    answer: dict[str, Any]


def measure(command: Sequence[str], *, folder: Path, env: Mapping[str, str], memory: bool) -> Measured:
    """Run `command` in `folder`, with `env` over this environment. Raises `RunFailed`.

    To look at the `memory` takes about 20 ms a process each time, and so belongs in a run that is not timed.
    The answer is JSON: all of stdout, or its last line where libraries write to stdout as well.
    """
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **env}, stdout=stdout, stderr=stderr, start_new_session=True
        )
        peak = _Peak(process.pid)
        if memory:
            peak.start()
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            seconds = time.perf_counter() - began
            if memory:
                peak.finish()
    text = out.read_text(errors="replace")
    if code:
        said = (err.read_text(errors="replace") or text).strip()
        raise RunFailed(f"exit code {code}: {' '.join(command)}\n{said[-2000:]}")
    return Measured(seconds, peak.megabytes, _answer(text))


def _answer(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return json.loads(text.strip().splitlines()[-1])


class _Peak(threading.Thread):
    """Samples the memory of a process and its descendants until it is told to finish."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.bytes = 0
        self._over = threading.Event()

    @property
    def megabytes(self) -> float | None:
        return self.bytes / MEGABYTE if self.bytes else None

    def run(self) -> None:
        while not self._over.wait(EVERY):
            self.bytes = max(self.bytes, sum(_proportional_bytes(pid) for pid in _tree(self.root)))

    def finish(self) -> None:
        self._over.set()
        self.join()


def _tree(root: int) -> list[int]:
    """`root`, its descendants, and what is left in its session by those of them that have ended."""
    parents: dict[int, int] = {}
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold spaces and brackets: what is wanted comes after the last one.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        if pid == root or int(fields[3]) == root:
            found.add(pid)
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grown = bool(children)
    return sorted(found)


def _proportional_bytes(pid: int) -> int:
    """The process's share of the memory it is in (PSS): pages that n processes share count 1/n in each."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # ended meanwhile
    return 0
