"""How fast JPEGs become augmented batches: ours in threads, against torchvision's ImageFolder in a DataLoader.

Run by hand: `python tests/benchmarks/decode.py`. It makes its own photo-like JPEGs; the rounds of all ways are
interleaved, and a ratio is the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.data.jpeg import Jpeg, decode_jpeg, find_jpeg
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.open import open_source
from imgclf.transforms.crop import crop_decode_size
from imgclf.transforms.preprocess import to_input
from imgclf.transforms.steps import crop_boxes

SIDE = 224
BATCH = 50
CROP = AugmentStep("resized_crop", {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]})
RECIPE = PreprocessConfig(size=(SIDE, SIDE), steps=(CROP, AugmentStep("flip", {"p": 0.5})))
Epoch = Callable[[], int]


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Noise of all scales, the coarse strong and the fine weak, as in photos."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 127.0, np.float32)
    for cell, strength in ((125, 45), (40, 22), (12, 12), (4, 6), (2, 3)):
        small = rng.normal(0, 1, (max(2, height // cell), max(2, width // cell), 3))
        gray = small.mean(axis=2, keepdims=True) + 0.3 * small
        for channel in range(3):
            plane = Image.fromarray(gray[..., channel].astype(np.float32))
            total[..., channel] += strength * np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def make_photos(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """Two classes of JPEGs of quality 90, as a folder for each; a few photos are enough, each saved several times."""
    few = [photo(width, height, seed) for seed in range(min(count, 24))]
    paths = [folder / f"class{i % 2}" / f"{i:04d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        few[i % len(few)].save(path, quality=90)
    return paths


@contextmanager
def torchvision_way(folder: Path, workers: int) -> Iterator[Epoch]:
    """One epoch of the usual loader: float batches, normalized."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(SIDE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(RECIPE.mean, RECIPE.std),
    ]
    data = ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    yield lambda: sum(len(images) for images, _ in loader)


def our_way(folder: Path, workers: int, normalize: bool) -> Epoch:
    """One epoch of our loader in threads: uint8 batches, which the device normalizes; with `normalize` it is done here.

    The model has one core here, as in the loop with worker processes, so that threads read ahead on the other.
    """
    source, device, numbers = open_source(folder), torch.device("cpu"), itertools.count()
    options = {"batch_size": BATCH, "train": True, "workers": workers, "cache": "off"}
    loader = Loader(source, source.samples, RECIPE, classes=source.classes, **options)

    def epoch() -> int:
        done = 0
        for batch in loader.epoch(next(numbers)):
            done += len(to_input(batch.pixels, RECIPE, device) if normalize else batch.pixels)
        return done

    return epoch


@contextmanager
def bare_way(paths: list[Path], workers: int) -> Iterator[Epoch]:
    """libjpeg-turbo alone, in threads, at the sizes that the crops need: as fast as anything can be that decodes."""
    jpegs = [find_jpeg(BytesIO(path.read_bytes())) for path in paths]
    shapes, keys = np.array([(jpeg.height, jpeg.width) for jpeg in jpegs]), np.arange(len(jpegs), dtype=np.uint64)
    boxes = crop_boxes(CROP, 0, 0, keys, shapes)
    sizes = [crop_decode_size(tuple(box), (SIDE, SIDE)) for box in boxes.tolist()]

    def decode(jpeg: Jpeg, at_least: tuple[int, int]) -> None:
        decode_jpeg(jpeg, at_least, smooth=False)

    with ThreadPoolExecutor(workers) as pool:
        yield lambda: len(list(pool.map(decode, jpegs, sizes)))


def rate(epoch: Epoch, epochs: int) -> float:
    """Images a second over some epochs in a row."""
    start = time.perf_counter()
    done = sum(epoch() for _ in range(epochs))
    return done / (time.perf_counter() - start)


def compare(width: int, height: int, images: int, arguments: argparse.Namespace) -> None:
    """Print one table for photos of one size."""
    with tempfile.TemporaryDirectory() as name:
        paths = make_photos(Path(name), width, height, images)
        size = statistics.mean(path.stat().st_size for path in paths) / 1000
        print(f"\n{images} JPEGs of {width}×{height}, {size:.0f} kB each, {arguments.workers} workers")
        with (
            torchvision_way(Path(name), arguments.workers) as reference,
            bare_way(paths, arguments.workers) as bare,
        ):
            ways = {
                "torchvision": reference,
                "imgclf, uint8 batches": our_way(Path(name), arguments.workers, normalize=False),
                "imgclf, normalized here": our_way(Path(name), arguments.workers, normalize=True),
                "the decoder alone": bare,
            }
            rates: dict[str, list[float]] = {label: [] for label in ways}
            for label, epoch in ways.items():
                assert epoch() == images, label
            for _ in range(arguments.rounds):
                for label, epoch in ways.items():
                    rates[label].append(rate(epoch, arguments.epochs))
    for label, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["torchvision"], strict=True))
        print(f"  {label:<26}{statistics.median(found):8.0f} images/s   {ratio:5.2f}×")


def main() -> None:
    """Compare for photos of a usual size and for those of a phone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="epochs in a row per timing")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the second core is a worker's
    compare(500, 375, 400, arguments)
    compare(3000, 2000, 50, arguments)


if __name__ == "__main__":
    main()
