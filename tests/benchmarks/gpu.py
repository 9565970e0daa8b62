"""Figures of a CUDA device: photos against synthetic pixels, MNIST against the tutorial loop, CIFAR-10's speed record.

    python tests/benchmarks/gpu.py photos --data DIR [--arch resnet18 --arch resnet50] [--images 12000]
    python tests/benchmarks/gpu.py mnist --data DIR
    python tests/benchmarks/gpu.py speedrun --data DIR [--seeds 10]

DIR holds what can't be made: `mnist` (with MNIST/raw) and `cifar10` (`train` and `test`, with folders of 32×32 images).
The last line of each is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import numpy as np
import torch
from PIL import Image

from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.estimator.classifier import Classifier
from imgclf.studies.benchmark import benchmark
from imgclf.training.events import CaptureFailed, Event, StepEnded

HERE = Path(__file__).parent
BATCH = 256


class StepClock:
    """A callback that takes the time of each epoch's steps, validation left out, on a device that works ahead."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self._began = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case StepEnded(state=state) if state.step == 1:
                torch.cuda.synchronize()
                self._began, self._first = time.perf_counter(), state.images
            case StepEnded(state=state) if state.step == state.steps_per_epoch:
                torch.cuda.synchronize()
                self.rates.append((state.images - self._first) / (time.perf_counter() - self._began))
            case CaptureFailed(reason=reason):
                print("uncaptured:", reason)


def photos(args: argparse.Namespace) -> dict[str, Any]:
    """The rate of whole runs on photos, from the second epoch on, against the step on pixels that cost nothing."""
    folder = folders.synthetic(args.data / f"photos{args.images}", (args.images, 300, 300))
    answer = {}
    for arch in args.arch or ["resnet18", "resnet50"]:
        train = {"epochs": 4, "batch_size": BATCH, "compile": args.compile}
        changes: dict[str, Any] = {"arch": arch, "weights": "none", "train": train}
        stages = {s.name: s.images_per_second for s in benchmark(folder, config=changes, seconds=2).stages}
        clock = StepClock()
        began = time.perf_counter()
        Classifier(config=changes).fit(folder, callbacks=[clock])
        whole = statistics.median(clock.rates[1:])
        answer[arch] = {"stages": stages, "epochs": clock.rates, "share": whole / stages["step"]}
        print(arch, json.dumps(answer[arch]), f"{time.perf_counter() - began:.1f} s", flush=True)
    return answer


def mnist(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe d0 in a process that has the libraries loaded, against the tutorial loop in another."""
    raw = folders.unpacked_mnist(args.data / "made-mnist", args.data / "mnist")
    ours = []
    for round_ in range(3):
        config = {"train": {"compile": args.compile}, "data": {"data_dir": str(args.data / "mnist")}}
        began = time.perf_counter()
        classifier = Classifier(recipe="d0", config=config).fit("mnist", epochs=9)
        accuracy = classifier.evaluate().accuracy
        training = sum(record.seconds for record in classifier.history_)
        ours.append((training, time.perf_counter() - began, accuracy))
        print(
            f"round {round_ + 1}: {training:.2f} s of training, {ours[-1][1]:.2f} s in all, {accuracy:.2%}", flush=True
        )
    command = [sys.executable, str(HERE / "peers" / "tutorial_mnist.py"), str(raw), "--device", "cuda"]
    theirs = {workers: _timed([*command, "--workers", workers]) for workers in ("2", "0")}
    quickest = min(theirs.values(), key=lambda run: run["training"])
    training = statistics.median(run[0] for run in ours)
    return {"imgclf": ours, "tutorial": theirs, "ratio": quickest["training"] / training}


def _timed(command: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answer = {**json.loads(output.splitlines()[-1]), "whole": time.perf_counter() - began}
    print(command[-1], "workers:", answer, flush=True)
    return answer


def speedrun(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe speedrun with several seeds on pixels in memory, and once as a command on the folder."""
    source = _in_memory(args.data / "cifar10")
    results = []
    for seed in range(args.seeds):
        began = time.perf_counter()
        config = {"train": {"compile": args.compile}}
        classifier = Classifier(recipe="speedrun", config=config).fit(source, seed=seed)
        accuracy = classifier.evaluate().accuracy
        training = sum(record.seconds for record in classifier.history_)
        results.append((accuracy, training, time.perf_counter() - began))
        print(f"seed {seed}: {accuracy:.2%}, {training:.2f} s of training, {results[-1][2]:.2f} s in all", flush=True)
    accuracies = [result[0] for result in results]
    answer = {
        "mean": statistics.mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "seconds": statistics.median(result[1] for result in results),
        "results": results,
    }
    if args.command:
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, "-m", "imgclf", "train", str(args.data / "cifar10"), "--recipe", "speedrun"]
            command += ["--runs", runs, "--json"]
            began = time.perf_counter()
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            figures = json.loads(output)
            answer["command"] = {
                "seconds": time.perf_counter() - began,
                "training": figures["seconds"]["train"],
                "accuracy": figures["test"]["accuracy"],
            }
    return answer


def _in_memory(folder: Path) -> Source:
    """CIFAR-10's class folders as arrays, read once for all seeds."""
    arrays, samples = {}, []
    classes = tuple(sorted(path.name for path in (folder / "train").iterdir()))
    for part in ("train", "test"):
        paths = sorted((folder / part).glob("*/*"))
        arrays[part] = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        samples += [Sample(f"{part}/{i}", path.parent.name, split=part) for i, path in enumerate(paths)]
    return Source("cifar10", classes, tuple(samples), ArrayReader(arrays))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways: dict[str, Callable[[argparse.Namespace], dict[str, Any]]]
    ways = {"photos": photos, "mnist": mnist, "speedrun": speedrun}
    parser.add_argument("what", choices=ways)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", action="append")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--command", action="store_true", help="speedrun: time the whole command once as well")
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(json.dumps(ways[args.what](args)))


if __name__ == "__main__":
    main()
