"""Batches: samples in a seeded order, decoded and augmented in threads, as uint8 tensors.

Every random number is a function of (seed, epoch, sample): the batches are the same for any number of workers, and an
epoch can be begun anywhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch

from imgclf.data.images import BadImage
from imgclf.data.source import ArrayReader, Pixels, Sample, Source
from imgclf.data.store import Store
from imgclf.errors import DataError
from imgclf.specs import Recipe
from imgclf.transforms.augment import Augmenter, takes_whole_image
from imgclf.transforms.pixels import decode_size, prepare

AHEAD = 2
UNLABELLED = -1


class Mix(NamedTuple):
    """Blended images: the class indices of the others, int64 (n,), and each image's own share, float32 (n,) in 0…1."""

    targets: torch.Tensor
    share: torch.Tensor


class Batch(NamedTuple):
    """Pixels as uint8 (n, height, width, channels) and class indices as int64 (n,), both on the loader's device;
    positions in the loader's samples; the images of the planned batch over all processes; what was blended."""

    pixels: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    whole: int
    mix: Mix | None = None


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """The seed (0 to 2^32 - 1) of one sample's augmentation in one epoch."""
    return int.from_bytes(blake2b(f"{seed}/{epoch}/{key}".encode("utf-8", "surrogateescape"), digest_size=4).digest())


def epoch_order(seed: int, epoch: int, n: int) -> list[int]:
    """The order of `n` samples in one epoch."""
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(n).tolist()
    return order


def default_workers(source: Source) -> int:
    """Threads that read a source: none for what lies in memory, else one a processor core, up to 8."""
    return 0 if isinstance(source.reader, ArrayReader) else min(8, _cores())


def _cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Loader:
    """Gives the batches of some samples of a source, as often as wanted.

    With `train=True` each epoch has its own order and augmentation; otherwise samples come in their order, as
    evaluation pixels. `keep` holds decoded pixels in memory for the next epoch, as far as it lasts. An image that can
    no longer be read is left out of its batch and named in `lost` (ref → reason); no other takes its place.
    """

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        recipe: Recipe,
        *,
        classes: Sequence[str],
        batch_size: int = 32,
        train: bool = False,
        seed: int = 0,
        workers: int | None = None,
        keep: bool = True,
        device: torch.device | None = None,
    ) -> None:
        index = {"": UNLABELLED, **{name: i for i, name in enumerate(classes)}}
        strangers = sorted({sample.label for sample in samples} - set(index))
        if strangers:
            raise DataError(f"{source.name}: classes that the model does not know", strangers)
        self.samples = tuple(samples)
        self.classes = tuple(classes)
        self.recipe = recipe
        self.batch_size = batch_size
        self.device = device or torch.device("cpu")
        self.lost: dict[str, str] = {}
        self._source = source
        self._targets = [index[sample.label] for sample in samples]
        self._train = train
        self._seed = seed
        self._workers = default_workers(source) if workers is None else workers
        self._augmenter = Augmenter(recipe) if train and (recipe.steps or recipe.compose is not None) else None
        self._store = Store(self._read, len(self.samples), None if keep else 0)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    @property
    def targets(self) -> list[int]:
        """The class index of every sample."""
        return self._targets

    def steps(self, drop_last: bool = False) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.samples), self.batch_size)
        return whole + (rest > 0 and not (drop_last and whole > 0))

    def epoch(self, epoch: int = 0, *, start: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        """The batches of one epoch, from batch number `start` on; `drop_last` leaves out a last part of a batch."""
        n = len(self.samples)
        order = epoch_order(self._seed, epoch, n) if self._train else list(range(n))
        batches = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(start, self.steps(drop_last))]
        rows = self._rows_in_threads(batches, epoch) if self._workers else self._rows_inline(batches, epoch)
        for batch, pixels in zip(batches, rows, strict=True):
            kept = [(i, p) for i, p in zip(batch, pixels, strict=True) if p is not None]
            if kept:
                yield self._collate([i for i, _ in kept], [p for _, p in kept])

    def _collate(self, index: list[int], pixels: list[Pixels]) -> Batch:
        targets = torch.tensor([self._targets[i] for i in index]).to(self.device, non_blocking=True)
        stacked = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
        return Batch(stacked, targets, torch.tensor(index), len(index))

    def _rows_inline(self, batches: list[list[int]], epoch: int) -> Iterator[list[Pixels | None]]:
        for batch in batches:
            yield self._fetch(batch, epoch)

    def _rows_in_threads(self, batches: list[list[int]], epoch: int) -> Iterator[list[Pixels | None]]:
        """Each batch is cut into one share a worker; a few batches are under way ahead of the one that is wanted."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="imgclf-loader")
        pending: deque[list[Future[list[Pixels | None]]]] = deque()
        try:
            for batch in batches:
                share = -(-len(batch) // self._workers)
                cuts = [batch[i : i + share] for i in range(0, len(batch), share)]
                pending.append([pool.submit(self._fetch, cut, epoch) for cut in cuts])
                if len(pending) > AHEAD:
                    yield [row for future in pending.popleft() for row in future.result()]
            while pending:
                yield [row for future in pending.popleft() for row in future.result()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _fetch(self, index: list[int], epoch: int) -> list[Pixels | None]:
        return [self._pixels(i, epoch) for i in index]

    def _pixels(self, i: int, epoch: int) -> Pixels | None:
        sample = self.samples[i]
        try:
            stored = self._store(i)
        except DataError as error:
            self.lost[sample.ref] = error.reason if isinstance(error, BadImage) else str(error)
            return None
        if self._augmenter is None:
            return stored
        return self._augmenter(stored, sample_seed(self._seed, epoch, sample.sha256 or sample.ref))

    def _read(self, i: int) -> Pixels:
        pixels = self._source.open(self.samples[i].ref, decode_size(self.recipe))
        whole = self._augmenter is not None and takes_whole_image(self.recipe)
        return pixels if whole else prepare(pixels, self.recipe)
