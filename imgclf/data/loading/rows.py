"""From a sample to its row in a batch: read or found where pixels are kept, then copied, cropped or augmented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import compress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.core.errors import DataError
from imgclf.data.dataset import Pixels, Sample, Sides, Source, open_measured
from imgclf.data.images import CHANGED, BadImage
from imgclf.data.loading.disk_cache import CachedImage, PixelCache
from imgclf.data.loading.pixel_store import CacheFormat, DenseStore, RaggedStore
from imgclf.data.loading.prefetch import Watch
from imgclf.transforms.albumentations_pipeline import Augmenter
from imgclf.transforms.crop import Box, crop_decode_size, crop_resize
from imgclf.transforms.preprocess import prepare
from imgclf.transforms.steps import crop_boxes

Index = NDArray[np.int64]
Keys = NDArray[np.uint64]
T = TypeVar("T")

MIN_CHUNK_IMAGES = 8  # images that a thread takes at once, at least
CHUNKS_PER_THREAD = 3  # pieces of a batch for each thread


class PixelStore:
    """The kept pixels of samples, by position; from where the cache_level says. May be used from several threads.

    What can't be read is None, and named in `unreadable` (ref → reason); it is tried again each time.
    """

    def __init__(self, source: Source, samples: Sequence[Sample], form: CacheFormat, cache_level: str) -> None:
        self.source, self.samples, self.form = source, samples, form
        self.unreadable: dict[str, str] = {}
        self.watch = Watch()
        self.memory: DenseStore | RaggedStore | None = None
        self._disk: PixelCache | None = None
        if cache_level in ("device", "ram"):
            self.memory = RaggedStore(len(samples)) if form.whole else DenseStore(source, samples, form)
        elif cache_level == "disk":
            self._disk = PixelCache(form.settings())

    def __call__(self, position: int) -> CachedImage | None:
        """The pixels of one image, read-only."""
        kept = self.memory.row(position) if self.memory is not None else None
        if kept is None:
            kept = self.guarded(position, self._from_disk if self._disk is not None else self._read)
            if kept is not None and self.memory is not None:
                self.memory.put(position, kept)
        return kept

    def guarded(self, position: int, read: Callable[[Sample], T]) -> T | None:
        """The result of `read`, or None and a line in `unreadable`."""
        sample = self.samples[position]
        try:
            with self.watch.reading(sample.ref):
                return read(sample)
        except DataError as error:
            self.unreadable[sample.ref] = error.reason if isinstance(error, BadImage) else str(error)
            return None

    def flush(self) -> None:
        """Seal the images added to the disk cache: before and after an epoch."""
        if self._disk is not None:
            self._disk.seal()

    def _read(self, sample: Sample) -> CachedImage:
        return self.form.read(self.source, sample.ref)

    def _from_disk(self, sample: Sample) -> CachedImage:
        """By the digest that the sample is known by; its reader holds what is added to it."""
        assert self._disk is not None
        kept = self._disk.find(sample.sha256) if sample.sha256 else None
        if kept is None:
            digest = self.source.reader.digest(sample.ref)
            if sample.sha256 not in ("", digest):
                raise BadImage(CHANGED, sample.ref)
            kept = self._disk.find(digest)
            if kept is None:
                kept = self._read(sample)
                self._disk.add(digest, kept)
        return kept


class Prepared(PixelStore):
    """Evaluation pixels of some of the samples of another store, made of those that it keeps; where it keeps none, of
    the files.

    Whole images that are kept have been shrunk: they give nearly the pixels of an evaluation.
    """

    def __init__(self, images: PixelStore, positions: Sequence[int]) -> None:
        samples = [images.samples[i] for i in positions]
        super().__init__(images.source, samples, CacheFormat.of(images.form.preprocess, train=False), "off")
        self._images, self._positions = images, positions
        self.unreadable, self.watch = images.unreadable, images.watch

    def __call__(self, position: int) -> CachedImage | None:
        """See `PixelStore`."""
        if self._images.memory is None and self._images._disk is None:
            return super().__call__(position)
        kept = self._images(self._positions[position])
        if kept is None or not self._images.form.whole:
            return kept
        return CachedImage(prepare(kept.pixels, self.form.preprocess), self.form.preprocess.size)

    def flush(self) -> None:
        """See `PixelStore`."""
        self._images.flush()


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """The seed (0 to 2^32 - 1) of one sample's augmentation by albumentations in one epoch."""
    return int.from_bytes(blake2b(f"{seed}/{epoch}/{key}".encode("utf-8", "surrogateescape"), digest_size=4).digest())


def chunks(index: Index, parts: int) -> list[slice]:
    """Cuts of a batch for `parts` threads: a few for each, so that none waits long for the others."""
    share = max(MIN_CHUNK_IMAGES, -(-len(index) // (parts * CHUNKS_PER_THREAD))) if parts else max(1, len(index))
    return [slice(begin, begin + share) for begin in range(0, len(index), share)]


# Writes the images at some positions, for one epoch, into the rows of a batch, uint8 (n, height, width, channels), and
# says which rows are filled: the others can't be read.
RowWriter = Callable[[PixelStore, Index, int, Pixels], list[bool]]


def write_plain(images: PixelStore, index: Index, epoch: int, out: Pixels) -> list[bool]:
    """The prepared pixels as they are."""
    kept = [images(i) for i in index.tolist()]
    for one, row in zip(kept, out, strict=True):
        if one is not None:
            row[...] = one.pixels
    return [one is not None for one in kept]


class AlbumentationsRowWriter:
    """The prepared pixels of every image through the user's own albumentations pipeline."""

    def __init__(self, preprocess: PreprocessConfig, seed: int) -> None:
        self._augment, self._seed = Augmenter(preprocess), seed

    def __call__(self, images: PixelStore, index: Index, epoch: int, out: Pixels) -> list[bool]:
        """See `RowWriter`."""
        filled = write_plain(images, index, epoch, out)
        for i, row in zip(index[filled].tolist(), compress(out, filled), strict=True):
            sample = images.samples[i]
            row[...] = self._augment(row, sample_seed(self._seed, epoch, sample.sha256 or sample.ref))
        return filled


class CropRowWriter:
    """The random resized crop of each image, for the steps of `transforms.steps` that follow.

    Where whole images are not kept, the crop is chosen from the header of a file, which is then decoded as small as
    the crop allows.
    """

    def __init__(self, step: AugmentStep, seed: int, keys: Keys, cache_level: str) -> None:
        self._step, self._seed, self._keys, self._off = step, seed, keys, cache_level == "off"
        self._shapes: Index = np.ones((len(keys), 2), np.int64)  # as they were found last

    def __call__(self, images: PixelStore, index: Index, epoch: int, out: Pixels) -> list[bool]:
        """See `RowWriter`."""
        if self._off and images.form.whole:
            return self._from_files(images, index, epoch, out)
        kept = [images(i) for i in index.tolist()]
        boxes = self._boxes(index, epoch, np.array([(1, 1) if one is None else one.shape for one in kept]))
        for one, box, row in zip(kept, boxes, out, strict=True):
            if one is not None:
                crop_resize(one.pixels, box, row)
        return [one is not None for one in kept]

    def _boxes(self, index: Index, epoch: int, shapes: Index) -> list[Box]:
        return list(crop_boxes(self._step, self._seed, epoch, self._keys[index], shapes).tolist())

    def _from_files(self, images: PixelStore, index: Index, epoch: int, out: Pixels) -> list[bool]:
        guesses = self._boxes(index, epoch, self._shapes[index])
        rows = zip(index.tolist(), guesses, out, strict=True)
        return [
            images.guarded(i, partial(self._cut, images.source, i, epoch, guess, row)) is not None
            for i, guess, row in rows
        ]

    def _cut(self, source: Source, position: int, epoch: int, guess: Box, row: Pixels, sample: Sample) -> Sides:
        """Read one image for its crop alone; `guess` is the crop if the image still has the shape it had before."""
        known = tuple(self._shapes[position].tolist())

        def box_of(shape: Sides) -> Box:
            return guess if shape == known else self._boxes(np.array([position]), epoch, np.array([shape]))[0]

        size = (row.shape[0], row.shape[1])
        pixels, shape = open_measured(source, sample.ref, lambda shape: crop_decode_size(box_of(shape), size))
        crop_resize(pixels, box_of(shape), row)
        self._shapes[position] = shape
        return shape
