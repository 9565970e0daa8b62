"""A look at some samples of a source: which, and what a model sees of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imgclf.core.config import PreprocessConfig
from imgclf.data.dataset import Pixels, Sample, Source
from imgclf.data.images import BadImage
from imgclf.data.loading.loader import Loader

# The whole image, on white.
WHOLE_IMAGE = PreprocessConfig(size=(224, 224), resize_mode="pad", interpolation="bicubic", mean=(1.0,))


def pick_samples(source: Source, n: int, seed: int = 0) -> list[Sample]:
    """`n` samples of a source, the classes in turn, by a seeded choice."""
    rng = np.random.default_rng(seed)
    by_class: dict[str, list[Sample]] = {name: [] for name in source.classes}
    for index in rng.permutation(len(source.samples)):
        by_class[source.samples[index].label].append(source.samples[index])
    turns = max(map(len, by_class.values()), default=0)
    in_turn = [rows[turn] for turn in range(turns) for rows in by_class.values() if turn < len(rows)]
    return in_turn[:n]


def sample_pixels(
    source: Source, samples: Sequence[Sample], preprocess: PreprocessConfig, *, augmented: bool, seed: int = 0
) -> list[Pixels]:
    """The pixels of samples as a model sees them: for evaluation or, with `augmented`, in the first training epoch."""
    loader = Loader(
        source, samples, preprocess, classes=source.classes, train=augmented, seed=seed, workers=0, cache="ram"
    )
    shown: dict[int, Pixels] = {}
    for batch in loader.epoch():
        shown |= zip(batch.positions.tolist(), batch.pixels.numpy(), strict=True)
    for ref, reason in loader.unreadable.items():
        raise BadImage(reason, ref)
    return [shown[position] for position in range(len(samples))]
