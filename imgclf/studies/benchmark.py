"""How fast training is here, stage by stage, and what bounds it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from imgclf.core.config import PreprocessConfig
from imgclf.data.audit import Audit
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.folder import FileReader
from imgclf.estimator.plan import Plan, make_plan, open_and_split
from imgclf.estimator.settings import Request
from imgclf.runtime.device import cores, machine
from imgclf.training.events import Callback
from imgclf.training.throughput import train_rate, wait
from imgclf.transforms.preprocess import decode_size

SECONDS = 3.0  # a stage
MOST = 2000  # images that are looked at
BATCHES = 4  # of synthetic pixels


@dataclass(frozen=True)
class Stage:
    """One stage of training on its own: how many images a second, and in words what was measured."""

    name: str
    images_per_second: float
    what: str


@dataclass(frozen=True)
class Benchmark:
    """The stages, which of them bounds the run, what may be changed, and what was measured on what."""

    stages: tuple[Stage, ...]
    bound: str
    advice: tuple[str, ...]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def benchmark(
    data: str | os.PathLike[str] | Source,
    changes: Mapping[str, Any],
    *,
    recipe: str | None = None,
    seconds: float = SECONDS,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> Benchmark:
    """Measure reading, decoding, augmenting, the step on synthetic pixels, and the whole of training, each on its own.

    `changes` are those of an `ExperimentConfig`, as for training. At most 2,000 training images are used, so that the
    first pass is short; the files may lie in the system's file cache, as they do from the second epoch on. `progress`
    is told the name of each stage.
    """
    request = Request(recipe, changes)
    audited, split = open_and_split(request, data, callbacks)
    plan, source = make_plan(request, audited, split, callbacks), audited.source
    samples = split.samples("train")[:MOST]
    config = replace(plan.experiment.train, class_weights="none")
    plan = replace(plan, experiment=replace(plan.experiment, train=config))

    stages: list[Stage] = []
    for name, measure in (("reading", _reading), ("decoding", _decoding)):
        progress(name)
        stages += measure(source, samples, plan.preprocess, seconds)
    progress("augmenting")
    ram = plan.loader(samples, train=True, cache="ram")
    stages.append(Stage("augmenting", _feed_rate(ram, seconds), "from decoded pixels in memory to batches"))
    progress("feeding")
    loader = plan.loader(samples, train=True)
    stages.append(Stage("feeding", _feed_rate(loader, seconds), f"batches as training gets them ({loader.tier.name})"))
    progress("step")
    step = _step_rate(plan, source.classes, seconds)
    stages.append(Stage("step", step, "forward, backward and optimizer on synthetic pixels"))
    progress("whole")
    whole = train_rate(plan.model, loader, config, seconds, from_epoch=1)
    stages.append(Stage("whole", whole, "all of it, from the second epoch on"))
    rates = {stage.name: stage.images_per_second for stage in stages}
    bound = _bound(rates, loader.tier.name)
    images = len(split.samples("train"))
    facts = {**_facts(plan, loader), "images": images, "epoch_seconds": images / whole}
    return Benchmark(tuple(stages), bound, _advice(bound, plan, loader.tier.name), facts)


def _reading(source: Source, samples: Sequence[Sample], recipe: PreprocessConfig, seconds: float) -> list[Stage]:
    reader = source.reader
    if not isinstance(reader, FileReader):
        return []
    total = 0

    def read(sample: Sample) -> None:
        nonlocal total
        with open(reader.path(sample.ref), "rb") as file:
            total += len(file.read())

    rate, spent = _thread_rate(read, samples, seconds)
    return [Stage("reading", rate, f"the files' bytes, {total / max(spent, 1e-9) / 1e6:,.0f} MB/s")]


def _decoding(source: Source, samples: Sequence[Sample], recipe: PreprocessConfig, seconds: float) -> list[Stage]:
    if isinstance(source.reader, ArrayReader):
        return []
    size = decode_size(recipe)
    rate, _ = _thread_rate(lambda sample: source.open(sample.ref, size), samples, seconds)
    return [Stage("decoding", rate, f"files to pixels, in {cores()} threads")]


def _thread_rate(work: Callable[[Sample], object], samples: Sequence[Sample], seconds: float) -> tuple[float, float]:
    """Samples a second of `work` with a thread for every core, and the seconds that were measured."""
    done, began = 0, time.perf_counter()
    chunk = 8 * cores()
    with ThreadPoolExecutor(cores()) as pool:
        while time.perf_counter() - began < seconds:
            start = done % len(samples)
            done += len(list(pool.map(work, samples[start : start + chunk])))
    spent = time.perf_counter() - began
    return done / spent, spent


def _feed_rate(loader: Loader, seconds: float) -> float:
    """Images a second of a loader on its own, once its cache is full."""
    for _ in loader.epoch(0):
        pass
    began, images = time.perf_counter(), 0
    for batch in _endless(loader):
        images += len(batch)
        if time.perf_counter() - began > seconds:
            break
    wait(loader.device)
    return images / (time.perf_counter() - began)


def _endless(loader: Loader) -> Iterator[torch.Tensor]:
    epoch = 1
    while True:
        yield from (batch.targets for batch in loader.epoch(epoch))
        epoch += 1


def _step_rate(plan: Plan, classes: Sequence[str], seconds: float) -> float:
    """The rate of training on pixels that cost nothing: noise in memory, of the final size, without augmentation."""
    recipe, config = replace(plan.preprocess, steps=(), compose=None), plan.experiment.train
    n = BATCHES * config.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (n, *recipe.size, recipe.channels), np.uint8)
    reader = ArrayReader({"noise": noise})
    samples = [Sample(f"noise/{i}", classes[i % len(classes)], sha256=f"{i:064x}") for i in range(n)]
    source = Source("noise", tuple(classes), tuple(samples), reader)
    loader = replace(plan, preprocess=recipe, audit=Audit(source)).loader(samples, train=True, cache="device")
    return train_rate(plan.model, loader, config, seconds)


def _bound(rates: Mapping[str, float], tier: str) -> str:
    """The slowest part: the step, or that stage of the feeding which is the slowest of those that still happen."""
    if rates["step"] <= rates["feeding"]:
        return "step"
    every_epoch = ["reading", "decoding", "augmenting"] if tier == "off" else ["augmenting"]
    return min((name for name in every_epoch if name in rates), key=rates.__getitem__)


def _advice(bound: str, plan: Plan, tier: str) -> tuple[str, ...]:
    height, width = plan.preprocess.size
    match bound:
        case "step":
            return tuple(_faster_steps(plan))
        case "reading":
            return ("copy the images to a faster disk, or keep them decoded: --cache disk",)
        case "decoding":
            smaller = f"imgclf prepare DATA OUT --size {_size(height, width)}"
            return (f"decode once: --cache ram or --cache disk (now {tier})", f"make the images smaller: {smaller}")
        case _:
            return ("use fewer or simpler augmentations: --augment light",)


def _faster_steps(plan: Plan) -> Iterable[str]:
    config, (height, width) = plan.experiment.train, plan.preprocess.size
    if plan.device.type == "cpu":
        yield "a GPU would help most: this is all computing"
    if min(height, width) >= 64:
        yield f"smaller images: --size {_size(_smaller(height), _smaller(width))} takes about half the time"
    if config.precision == "fp32":
        yield "half precision, where the processor has it: --precision auto"
    yield "a smaller network: imgclf models lists them by size"


def _smaller(side: int) -> int:
    """A side with about half of the pixels: most networks halve an image three to five times."""
    step = 32 if side >= 224 else 8
    return round(side * 0.7 / step) * step


def _size(height: int, width: int) -> str:
    return f"{height}" if height == width else f"{height}x{width}"


def _facts(plan: Plan, loader: Loader) -> dict[str, Any]:
    config = plan.experiment.train
    return {
        "arch": plan.spec.arch,
        "size": list(plan.preprocess.size),
        "batch_size": config.batch_size,
        "precision": config.precision,
        "device": str(plan.device),
        "cache": loader.tier.name,
        **machine(),
    }
