"""How fast batches come: our Loader against a torchvision Dataset in a DataLoader with 2 workers.

Run by hand: `python tests/benchmarks/loaders.py [mnist] [cifar] [photos]`. The rounds of all ways are interleaved, and
a ratio is the median of the ratios within each round; each way is warm before it is timed. Rows with "uint8" give
batches as they come, the others normalize them too, as the reference does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from decode import BATCH, RECIPE, make_photos
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from imgclf.core.config import PreprocessConfig
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.open import open_source
from imgclf.transforms.preprocess import to_input
from imgclf.transforms.presets import preset_steps

WORKERS = 2
CPU = torch.device("cpu")
Epoch = Callable[[int], int]  # of its number; gives the number of images


class Arrays(Dataset):
    def __init__(self, pixels: np.ndarray, transform: Callable) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index].squeeze())), 0


def reference(data: Dataset, batch: int) -> Epoch:
    loader = DataLoader(data, batch, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    return lambda epoch: sum(len(pixels) for pixels, _ in loader)


def ours(loader: Loader, *, normalize: bool) -> Epoch:
    def epoch(number: int) -> int:
        images = 0
        for batch in loader.epoch(number):
            images += len(to_input(batch.pixels, loader.preprocess, CPU) if normalize else batch.pixels)
        return images

    return epoch


def in_memory(side: int, channels: int, n: int, preset: str, augment: list) -> dict[str, Epoch]:
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, channels), np.uint8)
    samples = tuple(Sample(f"all/{i:05d}", "a") for i in range(n))
    source = Source("random", ("a",), samples, ArrayReader({"all": pixels}))
    recipe = PreprocessConfig(size=(side, side), channels=channels, steps=preset_steps(preset))
    loader = Loader(source, samples, recipe, classes=("a",), batch_size=128, train=True)
    normalize = transforms.Normalize((0.5,) * channels, (0.5,) * channels)
    chain = transforms.Compose([*augment, transforms.ToTensor(), normalize])
    return {
        "Dataset + PIL, DataLoader": reference(Arrays(pixels, chain), 128),
        "ours": ours(loader, normalize=True),
        "ours, uint8": ours(loader, normalize=False),
    }


def photos(folder: Path, n: int) -> dict[str, Epoch]:
    make_photos(folder, 500, 375, n)
    chain = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    chain.append(transforms.Normalize((0.5,) * 3, (0.5,) * 3))
    source = open_source(folder)
    ways = {"ImageFolder, DataLoader": reference(datasets.ImageFolder(folder, transforms.Compose(chain)), BATCH)}
    for cache in ("ram", "disk"):  # without: decode.py
        options = {"batch_size": BATCH, "train": True, "workers": WORKERS, "cache": cache}
        loader = Loader(source, source.samples, RECIPE, classes=source.classes, **options)
        ways[f"ours {cache}, uint8"] = ours(loader, normalize=False)
    return ways


def compare(title: str, ways: dict[str, Epoch], rounds: int) -> None:
    for epoch in ways.values():
        epoch(0)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        for name, epoch in ways.items():
            began = time.perf_counter()
            images = epoch(number)
            rates[name].append(images / (time.perf_counter() - began))
    base = next(iter(rates.values()))
    print(title)
    for name, found in rates.items():
        ratio = statistics.median(rate / other for rate, other in zip(found, base, strict=True))
        print(f"  {name:28} {statistics.median(found):12,.0f} images/s {ratio:8.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["mnist", "cifar", "photos", []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500, help="photos")
    arguments = parser.parse_args()
    what = arguments.what or ["mnist", "cifar", "photos"]
    torch.set_num_threads(1)  # of the main thread; the loader's threads are its own
    if "mnist" in what:
        compare("MNIST-like, batch 128", in_memory(28, 1, 20_000, "none", []), arguments.rounds)
    if "cifar" in what:
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        compare(
            "CIFAR-like, crop and flip, batch 128", in_memory(32, 3, 10_000, "shifts-flips", augment), arguments.rounds
        )
    if "photos" in what:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["IMGCLF_CACHE"] = str(Path(folder) / "cache")
            compare(
                "JPEG 500 x 375 to 224, batch 50", photos(Path(folder) / "photos", arguments.images), arguments.rounds
            )


if __name__ == "__main__":
    main()
