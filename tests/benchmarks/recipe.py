"""What each part of the default recipe is worth: whole runs with one part off in turn; the table of docs/recipe.md.

    python tests/benchmarks/recipe.py --data DIR --out FILE [--only ants-bees] [--part "no probe"] [--epochs 40]

DIR holds what can't be made: `hymenoptera` (`train` and `val`) and `cifar10` (`train` and `test`); the sets are drawn
from them into DIR/made. FILE gets a line of JSON a run; runs that it has are not repeated. The table comes last.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from folders import once

from imgclf.estimator.classifier import Classifier
from imgclf.training.ema import copied
from imgclf.training.events import EpochEnded, Event, TrainingStarted
from imgclf.training.state import Weights

ARCH = "efficientnet_lite0"
# What is changed of the experiment for each part that is off, or another.
OFF: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "no probe: a random head": {"train": {"probe": False}},
    "a head as sure as the baseline": {"train": {"head_scale": 1.0}},
    "no layer decay": {"train": {"layer_decay": 1.0}},
    "batch norms trained": {"train": {"freeze_norm": False}},
    "no label smoothing": {"train": {"label_smoothing": 0.0}},
    "no augmentation": {"augment": "none"},
    "light augmentation": {"augment": "light"},
    "no warm-up": {"train": {"warmup_epochs": 0.0}},
    "a constant rate": {"train": {"schedule": "constant"}},
    "no weight decay": {"train": {"weight_decay": 0.0}},
    "no running mean": {"train": {"ema": 0.0}},
    "learning rate 3e-4": {"train": {"lr": 3e-4}},
}


def ants_and_bees(folder: Path, data: Path) -> Path:
    """The photos of PyTorch's transfer-learning tutorial; its 153 of `val` are the test."""

    def fill(partial: Path) -> None:
        shutil.copytree(data / "hymenoptera" / "train", partial / "train")
        shutil.copytree(data / "hymenoptera" / "val", partial / "test")

    return once(folder, fill)


def cifar(folder: Path, data: Path, train: int, test: int) -> Path:
    """So many of CIFAR-10's images a class, in train and test."""

    def fill(partial: Path) -> None:
        for part, count in (("train", train), ("test", test)):
            for label in sorted((data / "cifar10" / part).iterdir()):
                (partial / part / label.name).mkdir(parents=True)
                for path in random.Random(0).sample(sorted(label.iterdir()), count):
                    shutil.copyfile(path, partial / part / label.name / path.name)

    return once(folder, fill)


SETS: dict[str, Callable[[Path, Path], Path]] = {
    "ants-bees": ants_and_bees,
    "cifar-30": lambda folder, data: cifar(folder, data, 30, 100),
    "cifar-100": lambda folder, data: cifar(folder, data, 100, 100),
}


class Watcher:
    """A callback that keeps the weights of the start, those of the last epoch and the running mean."""

    def __init__(self) -> None:
        self.weights: dict[str, Weights] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingStarted | EpochEnded):
            state = event.state
            self.weights["start" if isinstance(event, TrainingStarted) else "last"] = copied(state.model.state_dict())
            self.weights["mean"] = copied(state.ema or state.model.state_dict())


def run(folder: Path, changes: dict[str, Any], seed: int, epochs: int | None) -> dict[str, Any]:
    """Accuracies on the test images: of the start, of the last epoch, of its mean, of what is kept; the seconds."""
    watcher = Watcher()
    classifier = Classifier(ARCH, config={"split": (0.85, 0.15, 0.0), **changes})
    classifier.fit(folder, seed=seed, epochs=epochs, callbacks=[watcher])
    figures: dict[str, Any] = {"kept": classifier.evaluate().accuracy, "start kept": classifier.history_.best is None}
    for name, weights in watcher.weights.items():
        classifier.model_.load_state_dict(weights)
        figures[name] = classifier.evaluate().accuracy
    return {**figures, "training": sum(record.seconds for record in classifier.history_.epochs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--part", action="append", choices=OFF)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of as many as the recipe chooses")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    known = {(line["set"], line["off"], line["seed"]): line for line in lines}
    for seed in range(args.seeds):
        for name in args.only or SETS:
            folder = SETS[name](args.data / "made" / f"recipe-{name}", args.data)
            row = name if args.epochs is None else f"{name}, {args.epochs} epochs"
            for off in args.part or OFF:
                if (row, off, seed) in known:
                    continue
                line = {"set": row, "off": off, "seed": seed, **run(folder, OFF[off], seed, args.epochs)}
                known[row, off, seed] = line
                with open(args.out, "a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    _show(known)


def _show(known: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """A line for each set and part: mean accuracies over the seeds, and how often the start was kept."""
    columns = ("start", "last", "mean", "kept")
    heads = "".join(f"{column:>7}" for column in columns)
    print(f"{'set':20} {'':26} {heads} {'start kept':>10} {'training s':>10} {'runs':>5}")
    for name, off in dict.fromkeys((name, off) for name, off, _ in known):
        runs = [line for (n, o, _), line in known.items() if (n, o) == (name, off)]
        means = "".join(f"{100 * statistics.mean(line[column] for line in runs):7.1f}" for column in columns)
        starts, training = sum(r["start kept"] for r in runs), statistics.mean(r["training"] for r in runs)
        print(f"{name:20} {off:26} {means} {starts:10} {training:10.0f} {len(runs):5}")


if __name__ == "__main__":
    main()
