"""A registry: the names that a user may type, and what each one stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Generic, TypeVar

from imgclf.core.errors import UnknownName
from imgclf.core.text import first_few

T = TypeVar("T")
CLOSE = 0.6
FEW, SHOWN = 6, 12  # names: all are listed, some are
# What other tools call our options. A name that stands with several means the first of them that there is.
CALLED_ELSEWHERE = {
    "arch": "model net network backbone architecture model-name encoder",
    "model": "weights checkpoint ckpt resume run init arch model-path",
    "weights": "pretrained pretrained-weights",
    "init": "checkpoint ckpt initial-checkpoint load finetune fine-tune transfer start-from",
    "size": "imgsz img-size image-size img input-size resolution crop-size resize width height",
    "channels": "in-chans num-channels grayscale greyscale gray grey",
    "resize-mode": "fit crop-mode resize-method letterbox pad",
    "mirror": "flip hflip fliplr horizontal-flip",
    "augment": "aug augmentation augmentations auto-augment aa mixup cutmix transforms randaugment",
    "dropout": "drop drop-rate dropout-rate",
    "split": "val valid validation val-split valid-split validation-split val-size valid-pct val-dir test "
    "test-split test-size test-dir split-ratio folds",
    "part": "split subset partition val valid validation test train",
    "data-dir": "root cache-dir download-dir",
    "cache": "cache-images",
    "epochs": "epoch e n-epochs num-epochs nepochs max-epochs num-train-epochs steps iterations",
    "minutes": "time max-time time-limit hours",
    "batch-size": "batch b bs train-batch-size per-device-train-batch-size eval-batch-size",
    "lr": "lr0 learning-rate base-lr max-lr eta alpha",
    "optimizer": "optim opt optimizer",
    "weight-decay": "wd l2 decay",
    "schedule": "sched scheduler lr-scheduler lr-schedule lr-scheduler-type cos-lr",
    "step-epochs": "step-size decay-epochs lr-step-size",
    "gamma": "decay-rate lr-gamma",
    "warmup-epochs": "warmup warmup-steps warmup-ratio",
    "label-smoothing": "smoothing ls",
    "clip-norm": "clip-grad grad-clip max-grad-norm gradient-clip-val",
    "freeze-epochs": "freeze-backbone",
    "freeze-stages": "freeze freeze-layers frozen-stages",
    "patience": "early-stopping early-stop early-stopping-patience",
    "ema": "model-ema ema-decay",
    "class-weights": "class-weight weighted balanced",
    "precision": "amp fp16 bf16 half mixed-precision dtype",
    "device": "gpu gpus cuda cpu accelerator gpu-id devices",
    "workers": "num-workers j threads dataloader-num-workers n-jobs",
    "compile": "torchcompile torch-compile",
    "seed": "random-seed random-state",
    "ensemble": "members",
    "resume": "continue",
    "checkpoint-every": "save-period save-interval checkpoint-interval",
    "keep": "save-best save-all",
    "out": "output o output-dir output-file out-dir outdir save save-dir save-path dest results picture",
    "csv": "out output o output-file save save-csv results",
    "picture": "out output o save plot",
    "runs": "out output o output-dir out-dir outdir save-dir project log-dir logdir checkpoint-dir default-root-dir",
    "name": "run-name experiment exp exp-name run",
    "track": "tensorboard wandb visdom mlflow log logger report-to",
    "reject": "unknown ood",
    "top": "topk top-k k",
    "recipe": "preset hyp experiment",
    "config": "cfg yaml toml",
    "method": "cam explainer",
    "class": "label target target-class",
    "dry-run": "plan simulate",
    "force": "overwrite exist-ok yes f",
    "DATA": "data dataset train train-dir train-data source dir path input images i",
    "IMAGES": "data source input images image img file files i",
}
# What other tools call our commands.
COMMANDS_ELSEWHERE = {
    "train": "fit learn finetune fine-tune",
    "evaluate": "eval test val valid validate score",
    "predict": "classify infer inference detect label",
    "explain": "gradcam cam saliency visualize",
    "runs": "ls list history experiments",
    "models": "networks archs list-models",
    "show": "plot view preview",
    "find-lr": "lr-find lr-finder lr",
    "tune": "search sweep hpo optimize",
    "prepare": "convert resize preprocess",
    "benchmark": "bench profile",
    "schema": "json-schema config",
}


def close_matches(name: str, known: list[str]) -> list[str]:
    """Up to three known names that look like `name`, best first, equally good ones in their order; case is ignored."""
    matcher = SequenceMatcher(b=name.lower())
    scores = []
    for item in known:
        matcher.set_seq1(item.lower())
        if matcher.real_quick_ratio() >= CLOSE and matcher.quick_ratio() >= CLOSE:
            scores.append((matcher.ratio(), item))
    scores.sort(key=lambda scored: -scored[0])
    return [item for score, item in scores[:3] if score >= CLOSE]


def name_meant(name: str, known: list[str], elsewhere: Mapping[str, str] = CALLED_ELSEWHERE) -> list[str]:
    """Up to three of the known options or commands that somebody who types `name` may mean: as other tools call them
    (`elsewhere`), else by their words, else by their looks. Dashes before a name, underscores and case are ignored."""
    plain, ours = _bare(name), {_bare(item): item for item in known}
    theirs = [own for own, names in elsewhere.items() if plain in names.split() and _bare(own) in ours]
    found = [plain] if plain in ours else [_bare(own) for own in theirs[:1]]
    found = found or [item for item in ours if plain in (*item.split("-"), item.removesuffix("s"))]
    return [ours[item] for item in (found or close_matches(plain, list(ours)))[:3]]


def _bare(option: str) -> str:
    return option.lstrip("-").lower().replace("_", "-").removeprefix("no-")


def unknown_name(kind: str, name: str, known: list[str]) -> UnknownName:
    """The error for a name that is not known, with close matches or, failing these, what there is."""
    close = close_matches(str(name), known)
    there = f"available: {first_few(known, SHOWN)}"
    hint = f"did you mean {' or '.join(close)}?" if close else there
    if close and len(known) <= FEW:
        hint += f" ({there})"
    return UnknownName(f"no {kind} is called {name!r}; {hint}")


class Registry(Generic[T]):
    """Maps names to things of one kind; refuses duplicates, and suggests close matches for an unknown name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> None:
        """Register `item`; a name that is taken raises `ValueError`, since that is a bug and not bad input."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item

    def replace(self, name: str, item: T) -> None:
        """Register `item` in the place of what has its name, if anything has."""
        self._items[name] = item

    def get(self, name: str) -> T:
        """The item called `name`, or `UnknownName`."""
        try:
            return self._items[name]
        except KeyError:
            raise unknown_name(self.kind, name, self.names()) from None

    def names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)
