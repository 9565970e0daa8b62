"""A command beside other work: alone, beside one busy process, and twice at once.

    python tests/benchmarks/busy.py [--rounds 3] [--json] -- train DATA --recipe probe

Seconds of whole processes, medians of the rounds, in turn: `default` is with OpenMP's own busy waiting, `little` with
little of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

SETTINGS = {"default": {}, "little": {"GOMP_SPINCOUNT": "1000"}}


@contextmanager
def busy() -> Iterator[None]:
    """Beside one process that computes."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def seconds(command: list[str], setting: dict[str, str], copies: int) -> float:
    """How long so many processes take together."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        arguments = [sys.executable, "-m", "imgclf", *command]
        started = [
            subprocess.Popen(
                arguments, env={**environment, **setting}, cwd=folder, stdout=subprocess.DEVNULL, stderr=-3
            )
            for _ in range(copies)
        ]
        if any(process.wait() for process in started):
            raise SystemExit(f"{' '.join(command)} failed")
        return time.perf_counter() - began


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for where, beside, copies in (
            ("alone", nullcontext, 1),
            ("one busy", busy, 1),
            ("two at once", nullcontext, 2),
        ):
            for name, setting in SETTINGS.items():
                with beside():
                    found.setdefault(f"{where}, {name}", []).append(seconds(given.command, setting, copies))
    medians = {name: round(statistics.median(times), 2) for name, times in found.items()}
    print(
        json.dumps(medians) if given.json else "\n".join(f"{name:22} {value:7.2f} s" for name, value in medians.items())
    )


if __name__ == "__main__":
    main()
