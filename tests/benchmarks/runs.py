"""Whole runs of imgclf against whole runs of its peers: same data, same work, from start of process to result.

    python tests/benchmarks/runs.py ROW --data DIR [--peers-python PYTHON] [--rounds 3] [--json]

See README.md beside this file. A row's first program is imgclf; the command lines are these, and nothing is hidden:
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import folders
from watch import Measured, RunFailed, measure

HERE = Path(__file__).parent
IMGCLF, OWN, PEER = "imgclf", "own", "peer"  # imgclf itself; a script under our Python; one under the peers' Python

# The preset `standard` also jitters colors, which the peers' scripts leave out; its crops take 0.5 to 1 of a photo.
PHOTOS = "--arch resnet18 --weights none --augment standard --optimizer sgd --lr 0.01 --momentum 0.9"
PHOTOS += " --schedule constant --label-smoothing 0 --weight-decay 0"
LARGE = "--size 224 --epochs {epochs:2} --batch-size 32"
SMALL = "--size 64 --epochs {epochs:3} --batch-size 64"
CROPS = "--smallest 0.5"
# In braces: folders, and {epochs:N}, which is N, or 1 with --quick. Train commands also get --runs NEW_FOLDER --json.
ROWS = {
    "d0": {
        "imgclf": (IMGCLF, "train mnist --data-dir {mnist} --recipe d0 --epochs {epochs:9}"),
        "tutorial": (OWN, "tutorial_mnist.py {mnist} --epochs {epochs:9}"),
        "tutorial, 0 workers": (OWN, "tutorial_mnist.py {mnist} --epochs {epochs:9} --workers 0"),
        "tutorial as in D0": (OWN, "tutorial_mnist.py {mnist} --epochs {epochs:9} --workers 0 --as-document"),
        "keras": (PEER, "keras_mnist.py {mnist} --epochs {epochs:9}"),
    },
    "d4": {
        "imgclf": (IMGCLF, "train {cifar10} --recipe d4 --epochs {epochs:3}"),
        "tutorial": (OWN, "tutorial_cifar.py {cifar10} --epochs {epochs:3}"),
        "tutorial, 0 workers": (OWN, "tutorial_cifar.py {cifar10} --epochs {epochs:3} --workers 0"),
    },
    "d4-128": {
        "imgclf": (IMGCLF, "train {cifar10} --recipe d4 --epochs {epochs:3} --batch-size 128"),
        "tutorial": (OWN, "tutorial_cifar.py {cifar10} --epochs {epochs:3} --batch-size 128"),
        "tutorial, 0 workers": (OWN, "tutorial_cifar.py {cifar10} --epochs {epochs:3} --batch-size 128 --workers 0"),
        "keras": (PEER, "keras_cifar.py {cifar10} --epochs {epochs:3} --batch-size 128"),
    },
    "resnet18-224": {
        "imgclf": (IMGCLF, f"train {{hymenoptera}} {PHOTOS} {LARGE}"),
        "torchvision": (OWN, f"torchvision_photos.py {{hymenoptera}} {CROPS} {LARGE}"),
    },
    "resnet18-64": {
        "imgclf": (IMGCLF, f"train {{synthetic}} {PHOTOS} {SMALL}"),
        "torchvision": (OWN, f"torchvision_photos.py {{synthetic}} {CROPS} {SMALL}"),
        "fastai": (PEER, f"fastai_photos.py {{synthetic}} {CROPS} {SMALL}"),
        "ultralytics": (PEER, f"ultralytics_photos.py {{synthetic}} {CROPS} {SMALL}"),
        "timm": (PEER, f"timm_photos.py {{synthetic}} {CROPS} {SMALL}"),
    },
    "evaluate": {
        "imgclf": (IMGCLF, "evaluate {flat} --model {model} --part all"),
        "imgclf bf16": (IMGCLF, "evaluate {flat} --model {model} --part all --precision bf16"),
        "torchvision": (OWN, "torchvision_evaluate.py {flat} {model}"),
    },
    "evaluate-alone": {
        "imgclf": (OWN, "imgclf_evaluate.py {flat} {model}"),
        "imgclf bf16": (OWN, "imgclf_evaluate.py {flat} {model} --precision bf16"),
        "torchvision": (OWN, "torchvision_evaluate.py {flat} {model}"),
    },
}
INNER = {"evaluate-alone": "evaluating"}  # rows whose seconds a program takes itself, without its start
MODEL = f"train {{hymenoptera}} {PHOTOS} --size 224 --epochs 1 --batch-size 32"  # what the row evaluate evaluates
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
}
BUSY = 0.5  # load beside the benchmark from which its figures are in doubt


class Number(int):
    """A number of epochs that `format` writes as the one in its braces, unless it is above 0."""

    def __format__(self, spec: str) -> str:
        return str(int(self) or spec)


@dataclass(frozen=True)
class Places:
    """What stands in for the braces of a command, and the Pythons that run them."""

    names: dict[str, object]
    pythons: dict[str, str | None]

    def command(self, kind: str, text: str, runs: Path) -> list[str]:
        words = [word.format(**self.names) for word in shlex.split(text)]
        python = self.pythons[kind]
        assert python is not None
        if kind != IMGCLF:
            return [python, str(HERE / "peers" / words[0]), *words[1:]]
        return [python, "-m", "imgclf", *words, *(["--runs", str(runs)] if words[0] == "train" else []), "--json"]


def main() -> None:
    args = _arguments()
    places = _places(args)
    made_model = Path(str(places.names["model"]))
    if args.row.startswith("evaluate") and not made_model.exists():
        _train_model(places, made_model)
    programs = _runnable(args, places)
    results = _rounds(programs, places, args)
    _show(args, programs, results)


def _places(args: argparse.Namespace) -> Places:
    """The data that the row needs: made where they are not there yet, and read once, so that all find them warm."""
    data, tenth = args.data.resolve(), 10 if args.quick else 1
    made = data / ("made-quick" if args.quick else "made")
    bees = data / "hymenoptera"
    ways: dict[str, Callable[[], Path]] = {
        "mnist": lambda: folders.unpacked_mnist(made / "mnist", data / "mnist"),
        "cifar10": lambda: data / "cifar10",
        "hymenoptera": lambda: folders.hymenoptera(made / "photos240", bees, (240 // tenth, 40 // tenth, 80 // tenth)),
        "flat": lambda: folders.flat_hymenoptera(made / "photos370", bees, 370 // tenth),
        "synthetic": lambda: folders.synthetic(made / "photos3000", (3000 // tenth, 300 // tenth, 300 // tenth)),
    }
    commands = [text for _, text in ROWS[args.row].values()]
    wanted = " ".join([*commands, MODEL] if args.row.startswith("evaluate") else commands)
    names: dict[str, object] = {key: way() for key, way in ways.items() if f"{{{key}}}" in wanted}
    for folder in names.values():
        folders.read_through(Path(str(folder)))
    names |= {"epochs": Number(1 if args.quick else 0), "model": made / "model.safetensors"}
    return Places(names, {IMGCLF: sys.executable, OWN: sys.executable, PEER: args.peers_python})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time whole runs of imgclf against its peers; see README.md.")
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--data", type=Path, required=True, help="holds mnist, cifar10, hymenoptera; gets `made`")
    parser.add_argument("--peers-python", help="the Python of an environment with keras, fastai, ultralytics and timm")
    parser.add_argument("--rounds", type=int, default=3, help="timed ones; one more looks at the memory")
    parser.add_argument("--only", action="append", metavar="PROGRAM", help="this one only; more than once for more")
    parser.add_argument("--quick", action="store_true", help="one epoch of a tenth of the photos: shows that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; expected 1 or more")
    return args


def _runnable(args: argparse.Namespace, places: Places) -> dict[str, tuple[str, str]]:
    programs = dict(ROWS[args.row])
    if args.only:
        if unknown := set(args.only) - set(programs):
            raise SystemExit(f"--only: no {', '.join(sorted(unknown))} in this row; it has {', '.join(programs)}")
        programs = {name: programs[name] for name in args.only}
    for name, (kind, _) in list(programs.items()):
        if places.pythons[kind] is None:
            _say(f"{name}: left out, since --peers-python is not given")
            del programs[name]
    return programs


def _train_model(places: Places, model: Path) -> None:
    _say("training the model to evaluate")
    with tempfile.TemporaryDirectory() as scratch:
        result = _measure(places, (IMGCLF, MODEL), Path(scratch), memory=False)
        shutil.copyfile(Path(scratch) / result.answer["model"], model)


def _measure(places: Places, program: tuple[str, str], scratch: Path, *, memory: bool) -> Measured:
    """One run in an empty folder with an empty cache: nothing that an earlier run kept can help it."""
    env = {**QUIET, "IMGCLF_CACHE": str(scratch / "cache"), "YOLO_CONFIG_DIR": str(scratch)}
    return measure(places.command(*program, runs=scratch / "runs"), folder=scratch, env=env, memory=memory)


def _rounds(
    programs: dict[str, tuple[str, str]], places: Places, args: argparse.Namespace
) -> dict[str, list[Measured]]:
    """All programs in turn, so many times over, and each round begins with another one; the memory comes in a round
    of its own at the end, because looking at it slows a program down.
    """
    if os.getloadavg()[0] > BUSY:
        _say(f"the machine is busy (load {os.getloadavg()[0]:.1f}): the figures are in doubt")
    results: dict[str, list[Measured]] = {name: [] for name in programs}
    order = list(programs)
    for number in range(args.rounds + 1):
        memory = number == args.rounds
        for name in order[number % len(order) :] + order[: number % len(order)]:
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    result = _measure(places, programs[name], Path(scratch), memory=memory)
                except RunFailed as error:
                    raise SystemExit(f"{name}: {error}") from None
            if args.row in INNER:
                result = replace(result, seconds=result.answer[INNER[args.row]])
            results[name].append(result)
            _say(f"{name}: " + ("memory" if memory else f"round {number + 1}, {result.seconds:.1f} s"))
    return results


def _show(args: argparse.Namespace, programs: dict[str, tuple[str, str]], results: dict[str, list[Measured]]) -> None:
    """A line a program; a ratio is the median of the rounds' own ratios, and the last run of each is for the memory."""
    own = [run.seconds for run in results.get("imgclf", [])[:-1]]
    table = []
    for name, (*timed, watched) in results.items():
        seconds = [run.seconds for run in timed]
        ratios = [theirs / ours for theirs, ours in zip(seconds, own, strict=False)]
        table.append(
            {
                "program": name,
                "command": programs[name][1],
                "seconds": statistics.median(seconds),
                "ratio": statistics.median(ratios) if ratios else None,
                "peak_mb": watched.peak_mb,
                "accuracy": _accuracy(watched),
                "rounds": seconds,
            }
        )
    versions = {kind: _versions(python) for kind, python in (("imgclf", sys.executable), ("peers", args.peers_python))}
    if args.json:
        print(json.dumps({"row": args.row, "quick": args.quick, "versions": versions, "programs": table}, indent=2))
        return
    print(f"{args.row}, {args.rounds} rounds" + (" (quick: the figures mean nothing)" if args.quick else ""))
    print(f"{'program':20} {'seconds':>8} {'x imgclf':>9} {'peak MB':>8} {'accuracy':>9}")
    for line in table:
        cells = (line["seconds"], line["ratio"], line["peak_mb"], line["accuracy"])
        shown = (
            "-" if cell is None else format(cell, form)
            for cell, form in zip(cells, (".1f", ".2f", ".0f", ".4f"), strict=True)
        )
        print("{:20} {:>8} {:>9} {:>8} {:>9}".format(line["program"], *shown))
    for kind, found in versions.items():
        print(f"{kind}: " + ", ".join(f"{package} {version}" for package, version in found.items()))


def _accuracy(run: Measured) -> float:
    """On the test images: `imgclf train` answers with the figures of each part, the others with those alone."""
    return run.answer["accuracy"] if "accuracy" in run.answer else run.answer["test"]["accuracy"]


def _versions(python: str | None) -> dict[str, str]:
    """What is installed there of the packages that matter."""
    if python is None:
        return {}
    code = (
        "import json, sys; from importlib.metadata import distributions; names = set(sys.argv[1:]);"
        "print(json.dumps({d.name: d.version for d in distributions() if d.name in names}))"
    )
    packages = [
        "imgclf",
        "torch",
        "torchvision",
        "timm",
        "fastai",
        "ultralytics",
        "keras",
        "tensorflow_cpu",
        "tensorflow",
    ]
    asked = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(sorted(json.loads(asked.stdout).items()))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
