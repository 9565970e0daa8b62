"""What the command's settings of the garbage collector bring: one image predicted with them and without, in turn.

python tests/benchmarks/start.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = (sys.executable, "-m", "imgclf")
MODEL = ("train", "digits", "--arch", "lenet", "--weights", "none", "--size", "16", "--epochs", "1", "--json")
SETTINGS = {"imgclf": "", "Python's own": "default"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time `imgclf predict` with and without its garbage-collector settings."
    )
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [*COMMAND, *MODEL, "--runs", "runs", "--name", "one"], cwd=scratch, check=True, capture_output=True
        )
        image = next(Path(scratch, "runs", "one", "samples").iterdir())
        seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(rounds):
            for name, setting in SETTINGS.items():
                began = time.perf_counter()
                predict = [*COMMAND, "predict", str(image), "--model", "runs/one"]
                env = {**os.environ, "IMGCLF_GC": setting}
                subprocess.run(predict, cwd=scratch, check=True, capture_output=True, env=env)
                seconds[name].append(time.perf_counter() - began)
    ours, theirs = seconds.values()
    ratio = statistics.median(one / other for one, other in zip(theirs, ours, strict=True))
    for name, measured in seconds.items():
        print(f"{name:14} {statistics.median(measured):6.2f} s")
    print(f"ratio          {ratio:6.2f}")


if __name__ == "__main__":
    main()
