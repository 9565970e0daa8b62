"""The speed of training, stage by stage, and its bottleneck."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from imgclf.core.text import byte_size
from imgclf.data.audit import Audit
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.folder import FileReader
from imgclf.estimator.plan import Plan, plan_training
from imgclf.estimator.settings import Request
from imgclf.runtime.device import cores, machine
from imgclf.training.events import Callback, Progressed, notify
from imgclf.training.throughput import train_rate, wait
from imgclf.transforms.preprocess import decode_size

MAX_IMAGES = 2000  # that are read
SYNTHETIC_BATCHES = 4
STAGES = ("reading", "decoding", "augmenting", "feeding", "step", "whole")


@dataclass(frozen=True)
class Stage:
    """One stage of training on its own: images per second, and a description of what was measured."""

    name: str
    images_per_second: float
    what: str


@dataclass(frozen=True)
class Benchmark:
    """The stages, the name of the bottleneck, advice on it, and facts about network, settings and machine."""

    stages: tuple[Stage, ...]
    bottleneck: str
    advice: tuple[str, ...]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def benchmark(
    data: str | os.PathLike[str] | Source,
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    seconds: float = 3.0,
    callbacks: Sequence[Callback] = (),
) -> Benchmark:
    """Measure reading, decoding, augmenting, steps on synthetic pixels, and whole training, each on its own.

    At most 2,000 training images are used. The files may be in the system's file cache, as from the second epoch on.

    Args:
        data: What would be trained on.
        recipe: The name of a recipe.
        config: Changes of it, as for `Classifier`.
        seconds: How long each stage is measured.
        callbacks: Functions that get the events.
    """
    plan = plan_training(Request(recipe, config or {}), data, callbacks).with_train(class_weights="none")
    images, reader = plan.split.samples("train"), plan.source.reader
    samples = images[:MAX_IMAGES]
    stages: list[Stage] = []

    def measure(name: str, what: str, rate: Callable[..., float], *values: Any) -> None:
        notify(callbacks, Progressed(f"measuring {name}", STAGES.index(name), len(STAGES)))
        stages.append(Stage(name, rate(*values), what))

    if isinstance(reader, FileReader):
        paths = [Path(reader.path(sample.ref)) for sample in samples]
        size = byte_size(float(np.mean([path.stat().st_size for path in paths])))
        measure("reading", f"bytes of the files, {size} each", _thread_rate, Path.read_bytes, paths, seconds)
    if not isinstance(reader, ArrayReader):
        decode, refs = partial(reader.open, at_least=decode_size(plan.preprocess)), [sample.ref for sample in samples]
        measure("decoding", f"files to pixels, {cores()} threads", _thread_rate, decode, refs, seconds)
    ram = plan.loader(samples, train=True, cache="ram")
    measure("augmenting", "from decoded pixels in memory to batches", _feed_rate, ram, seconds)
    loader = plan.loader(samples, train=True)
    cache = loader.cache_level.name
    measure("feeding", f"batches as in training (cache {cache})", _feed_rate, loader, seconds)
    measure("step", "forward, backward and optimizer on synthetic pixels", _step_rate, plan, seconds)
    measure(
        "whole", "training from the second epoch on", train_rate, plan.model, loader, plan.experiment.train, seconds, 1
    )
    rates = {stage.name: stage.images_per_second for stage in stages}
    bottleneck = _bottleneck(rates, cache)
    facts = {**_facts(plan, cache), "images": len(images), "epoch_seconds": len(images) / rates["whole"]}
    return Benchmark(tuple(stages), bottleneck, tuple(_advice(bottleneck, plan, cache)), facts)


def _thread_rate(work: Callable[[Any], object], items: Sequence[Any], seconds: float) -> float:
    """Items per second with a thread for every core."""
    done, began, chunk = 0, time.perf_counter(), 8 * cores()
    with ThreadPoolExecutor(cores()) as pool:
        while time.perf_counter() - began < seconds:
            start = done % len(items)
            done += len(list(pool.map(work, items[start : start + chunk])))
    return done / (time.perf_counter() - began)


def _feed_rate(loader: Loader, seconds: float) -> float:
    """Images per second of a loader on its own, once its cache is full."""
    for _ in loader.epoch(0):
        pass
    began, images = time.perf_counter(), 0
    for batch in chain.from_iterable(map(loader.epoch, count(1))):
        images += len(batch.targets)
        if time.perf_counter() - began > seconds:
            break
    wait(loader.device)
    return images / (time.perf_counter() - began)


def _step_rate(plan: Plan, seconds: float) -> float:
    """The rate of training on pixels that cost nothing: noise in memory, of the final size, without augmentation."""
    config, classes = plan.experiment.train, plan.source.classes
    pixels = replace(plan.preprocess, steps=(), compose=None)
    n = SYNTHETIC_BATCHES * config.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (n, *pixels.size, pixels.channels), np.uint8)
    samples = tuple(Sample(f"noise/{i}", classes[i % len(classes)], sha256=f"{i:064x}") for i in range(n))
    source = Source("noise", classes, samples, ArrayReader({"noise": noise}))
    synthetic = replace(plan, preprocess=pixels, audit=Audit(source))
    return train_rate(plan.model, synthetic.loader(samples, train=True, cache="device"), config, seconds)


def _bottleneck(rates: Mapping[str, float], cache: str) -> str:
    """The slowest stage: the step, or the slowest of the stages that feed it from the second epoch on."""
    if rates["step"] <= rates["feeding"]:
        return "step"
    every_epoch = ["reading", "decoding", "augmenting"] if cache == "off" else ["augmenting"]
    return min((name for name in every_epoch if name in rates), key=rates.__getitem__)


def _advice(bottleneck: str, plan: Plan, cache: str) -> Iterable[str]:
    height, width = plan.preprocess.size
    match bottleneck:
        case "reading":
            yield "copy the images to a faster disk, or keep them decoded: --cache disk"
        case "decoding":
            yield f"decode once: --cache ram or --cache disk (now {cache})"
            yield f"make the images smaller: imgclf prepare DATA OUT --size {size_text(height, width)}"
        case "augmenting":
            yield "use fewer or simpler augmentations: --augment light"
        case _:
            if plan.device.type == "cpu":
                yield "a GPU would help most: the time is all computing"
            if min(height, width) >= 64:
                smaller = size_text(half_pixels(height), half_pixels(width))
                yield f"smaller images: --size {smaller} takes about half the time"
            if plan.experiment.train.precision == "fp32":
                yield "half precision, where the processor has it: --precision auto"
            yield "a smaller network: imgclf models lists them by size"


def half_pixels(side: int) -> int:
    """A side with about half of the pixels: most networks halve an image three to five times."""
    step = 32 if side >= 224 else 8
    return round(side * 0.7 / step) * step


def size_text(height: int, width: int) -> str:
    """A size as `--size` takes it."""
    return f"{height}" if height == width else f"{height}x{width}"


def _facts(plan: Plan, cache: str) -> dict[str, Any]:
    config = plan.experiment.train
    return {
        "arch": plan.spec.arch,
        "size": list(plan.preprocess.size),
        "batch_size": config.batch_size,
        "precision": config.precision,
        "device": str(plan.device),
        "cache": cache,
        **machine(),
    }
