"""Batches: samples in a seeded order, read and augmented, as uint8 tensors on the device.

Every random number is a function of (seed, epoch, sample): the batches are the same for any number of workers and
wherever the pixels are kept, and an epoch can be begun anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.arguments import require, whole
from imgclf.core.config import CACHES, PreprocessConfig
from imgclf.core.errors import ConfigError, DataError
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.pixel_store import CacheFormat, CacheLevel, DenseStore, choose_cache_level
from imgclf.data.loading.prefetch import Job, fetched, share_cores
from imgclf.data.loading.rows import (
    AlbumentationsRowWriter,
    CropRowWriter,
    PixelStore,
    Prepared,
    RowWriter,
    chunks,
    write_plain,
)
from imgclf.runtime.compute import in_parts_that_fit
from imgclf.runtime.device import pick_device
from imgclf.transforms.steps import augment, blend, blends

UNLABELED = -1


class Mix(NamedTuple):
    """Blended images: the class indices of the others, int64 (n,), and each image's own share, float32 (n,) in 0…1."""

    targets: torch.Tensor
    share: torch.Tensor


class Batch(NamedTuple):
    """Pixels as uint8 (n, height, width, channels) and class indices as int64 (n,), both on the loader's device;
    positions in the loader's samples; the blending, if any."""

    pixels: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mix: Mix | None = None

    def part(self, begin: int, end: int) -> Batch:
        """The images from `begin` to before `end`."""
        mix = self.mix and Mix(self.mix.targets[begin:end], self.mix.share[begin:end])
        return Batch(self.pixels[begin:end], self.targets[begin:end], self.positions[begin:end], mix)


# What gives a batch's pixels when all its jobs are done, with the positions of those images that could be read.
Finish = Callable[[], tuple[torch.Tensor, NDArray[np.int64]]]


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of `n` samples in one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(n)


class Loader:
    """Gives the batches of some samples of a source, as often as wanted.

    With `train=True` each epoch has its own order and augmentation; otherwise samples come in their order, as
    evaluation pixels. An image that can't be read is left out of its batch and named in `unreadable` (ref → reason);
    no other takes its place.

    Args:
        source: Opens the images.
        samples: Which of them, in their order.
        preprocess: The preprocessing and augmentation.
        classes: The names behind the class indices.
        batch_size: Images a batch, over all processes.
        train: Whether to shuffle and augment.
        seed: Of the order and the augmentation.
        workers: Threads that read; by default as many as the model leaves cores, and none for a set in memory.
        cache: Where decoded pixels are kept for the next epoch; `cache_level` is the choice.
        device: Where the batches go.
        shard: (rank, processes): each process takes its share of every batch, and all give as many batches.
    """

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        preprocess: PreprocessConfig,
        *,
        classes: Sequence[str],
        batch_size: int = 32,
        train: bool = False,
        seed: int = 0,
        workers: int | None = None,
        cache: str = "auto",
        device: torch.device | str | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        require("source", source, Source)
        require("preprocess", preprocess, PreprocessConfig)
        index = {"": UNLABELED, **{name: i for i, name in enumerate(classes)}}
        unknown_classes = sorted({sample.label for sample in samples} - set(index))
        if unknown_classes:
            raise DataError(f"{source.name}: classes that the model does not know", unknown_classes)
        if cache not in CACHES:
            raise ConfigError(f"cache is {cache!r}; allowed: {', '.join(CACHES)}")
        self.samples = tuple(samples)
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self.batch_size = whole("batch_size", batch_size, 1)
        self.device = pick_device("cpu" if device is None else device)
        self.shard = shard
        self.source, self._cache = source.at_levels(preprocess.levels), cache
        self._form = CacheFormat.of(preprocess, train)
        self.targets = [index[sample.label] for sample in self.samples]
        self._train, self._seed = train, whole("seed", seed, 0)
        workers = None if workers is None else whole("workers", workers, 0)
        self._workers = 0 if workers is None and isinstance(source.reader, ArrayReader) else workers

    def __len__(self) -> int:
        """The number of samples, over all processes."""
        return len(self.samples)

    @property
    def unreadable(self) -> dict[str, str]:
        """The images that could not be read (ref → reason)."""
        return self._images.unreadable

    @cached_property
    def cache_level(self) -> CacheLevel:
        """Where this loader keeps decoded pixels, and why."""
        return choose_cache_level(self._cache, self.source, self.samples, self._form, self.device)

    def steps(self, drop_last: bool = False) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.samples), self.batch_size)
        return whole + (rest > 0 and not (drop_last and whole > 0))

    def epoch(self, epoch: int = 0, *, start: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        """The batches of one epoch, from batch number `start` on; `drop_last` leaves out a last part of a batch.

        A batch of which nothing could be read, or that has nothing for this process, comes with 0 images. Raises
        `ImgclfError` where the disk hangs.
        """
        free, ahead = share_cores(self.device)
        threads = free if self._workers is None else self._workers
        self._images.flush()
        plans = self._plans(epoch, range(start, self.steps(drop_last)), threads)
        try:
            for guest, finish in fetched(plans, threads, ahead, self._images.watch):
                yield self._batch(*finish(), epoch, guest)
        finally:
            self._images.flush()  # decoded images are kept, also when the epoch is left early
        memory = self._images.memory
        if isinstance(memory, DenseStore) and start == 0:
            memory.move_to(self.device if self._on_device else torch.device("cpu"))

    def as_evaluated(self, positions: Sequence[int]) -> Loader:
        """A loader of some of the samples as evaluation pixels, made of those that this one keeps, if it keeps any."""
        loader = Loader(
            self.source,
            [self.samples[i] for i in positions],
            self.preprocess,
            classes=self.classes,
            batch_size=self.batch_size,
            workers=self._workers,
            cache="off",
            device=self.device,
            shard=self.shard,
        )
        loader._images = Prepared(self._images, positions)
        return loader

    @cached_property
    def _images(self) -> PixelStore:
        images = PixelStore(self.source, self.samples, self._form, self.cache_level.name)
        if isinstance(images.memory, DenseStore) and images.memory.full and self._on_device:
            images.memory.move_to(self.device)
        return images

    @cached_property
    def _row_writer(self) -> RowWriter:
        """How an image of the kept form gets to its row."""
        if self._train and self.preprocess.compose is not None:
            return AlbumentationsRowWriter(self.preprocess, self._seed)
        crops = [step for step in self.preprocess.steps if step.op == "resized_crop"] if self._train else []
        if len(crops) > 1:
            raise ConfigError(f"{len(crops)} steps are 'resized_crop'; allowed: one")
        return CropRowWriter(crops[0], self._seed, self._keys, self.cache_level.name) if crops else write_plain

    @property
    def _on_device(self) -> bool:
        """Whether batches are selected on the device; changes image by image are made on the CPU."""
        return self.cache_level.name == "device" and self._row_writer is write_plain

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        return sample_keys(self.samples)

    @cached_property
    def _labels(self) -> torch.Tensor:
        return torch.tensor(self.targets, dtype=torch.int64, device=self.device)

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """Batches travel on a stream of their own, while the device computes."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _plans(self, epoch: int, steps: range, threads: int) -> Iterator[tuple[tuple[int | None, Finish], list[Job]]]:
        n = len(self.samples)
        order = epoch_order(self._seed, epoch, n) if self._train else np.arange(n)
        memory = self._images.memory if self._row_writer is write_plain else None
        for step in steps:
            index, guest = self._share(order[step * self.batch_size : (step + 1) * self.batch_size])
            if isinstance(memory, DenseStore):
                missing = memory.missing(index)
                jobs: list[Job] = [partial(self._fill, missing[cut]) for cut in chunks(missing, threads)]
                yield (guest, partial(memory.select, index)), jobs
            else:
                shape = (len(index), *self._form.shape)
                pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
                filled: NDArray[np.bool_] = np.zeros(len(index), np.bool_)
                jobs = [partial(self._write, index, epoch, pixels, filled, cut) for cut in chunks(index, threads)]
                yield (guest, partial(_collected, pixels, index, filled)), jobs

    def _share(self, batch: NDArray[np.int64]) -> tuple[NDArray[np.int64], int | None]:
        """This process's part of a batch, and its guest: where images are blended, the one that its last is blended
        with comes at the end, so that images meet the same ones whatever the number of processes."""
        rank, world = self.shard
        if world == 1 or not (self._train and blends(self.preprocess)):
            return batch[rank::world], None
        begin, end = (len(batch) * place // world for place in (rank, rank + 1))
        if begin == end:
            return batch[:0], None
        guest = batch[end % len(batch)]
        return np.append(batch[begin:end], guest), int(guest)

    def _fill(self, index: NDArray[np.int64]) -> None:
        for position in index.tolist():
            self._images(position)

    def _write(
        self, index: NDArray[np.int64], epoch: int, pixels: torch.Tensor, filled: NDArray[np.bool_], cut: slice
    ) -> None:
        filled[cut] = self._row_writer(self._images, index[cut], epoch, pixels.numpy()[cut])

    def _batch(self, pixels: torch.Tensor, index: NDArray[np.int64], epoch: int, guest: int | None) -> Batch:
        positions = torch.from_numpy(index)
        pixels, mix = self._to_device(pixels), None
        targets = self._labels.index_select(0, self._to_device(positions))
        if self._train and len(index):
            keys = self._keys[index]
            pixels = self._augmented(pixels, epoch, keys)
            pixels, blended = blend(pixels, targets, self.preprocess, self._seed, epoch, keys)
            mix = None if blended is None else Mix(*blended)
        batch = Batch(pixels, targets, positions, mix)
        return batch.part(0, len(index) - 1) if len(index) and index[-1] == guest else batch

    def _augmented(self, pixels: torch.Tensor, epoch: int, keys: NDArray[np.uint64]) -> torch.Tensor:
        """The augmented pixels: in parts where memory is short, which changes none of them."""

        def in_parts(most: int) -> torch.Tensor:
            cuts = [slice(begin, begin + most) for begin in range(0, len(keys), most)]
            parts = [augment(pixels[cut], self.preprocess, self._seed, epoch, keys[cut]) for cut in cuts]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return in_parts_that_fit(in_parts, len(keys), self.device)[0]

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == self.device or self.device.type == "cpu":
            return tensor
        if self.device.type != "cuda" or not tensor.is_pinned():
            return tensor.to(self.device, non_blocking=self.device.type == "cuda")  # else it waits for the step before
        with torch.cuda.stream(self._stream):
            there = tensor.to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._stream)
        there.record_stream(now)
        return there


def _collected(
    pixels: torch.Tensor, index: NDArray[np.int64], filled: NDArray[np.bool_]
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """The rows that could be read."""
    return (pixels, index) if filled.all() else (pixels[torch.from_numpy(filled)], index[filled])


def sample_keys(samples: Sequence[Sample]) -> NDArray[np.uint64]:
    """A number (n,) for each sample, from its sha256 or else its ref; the same whatever samples stand beside it."""
    texts = ((sample.sha256 or sample.ref).encode("utf-8", "surrogateescape") for sample in samples)
    digests = b"".join(blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
