"""The folders of photos that the whole-run benchmarks use: made once, below `DATA/made`, and the same everywhere."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = 10
WIDTH, HEIGHT = 400, 533
QUALITY = 90  # about 45 KB a file
PARTS = ("train", "val", "test")


def synthetic(folder: Path, counts: tuple[int, int, int]) -> Path:
    """Photo-like JPEGs of 400×533 in ten classes: so many images in train, val and test."""
    jobs = []
    for part, count in zip(PARTS, counts, strict=True):
        jobs += [(f"{part}/class{n % CLASSES}/{n:05}.jpg", (PARTS.index(part), n)) for n in range(count)]
    return once(folder, lambda partial: _draw_all(partial, jobs))


def hymenoptera(folder: Path, source: Path, counts: tuple[int, int, int]) -> Path:
    """So many of the ants and bees in train, val and test, half of them of each class."""

    def fill(partial: Path) -> None:
        for label, photos in _ants_and_bees(source).items():
            for part, count in zip(PARTS, counts, strict=True):
                taken, photos = photos[: count // 2], photos[count // 2 :]
                _copy(taken, partial / part / label, count // 2)

    return once(folder, fill)


def flat_hymenoptera(folder: Path, source: Path, count: int) -> Path:
    """So many of the ants and bees in two class folders."""

    def fill(partial: Path) -> None:
        for label, photos in _ants_and_bees(source).items():
            _copy(photos[: count // 2], partial / label, count // 2)

    return once(folder, fill)


def unpacked_mnist(folder: Path, source: Path) -> Path:
    """MNIST as torchvision leaves it after a download: in MNIST/raw the packed files and the unpacked ones."""

    def fill(partial: Path) -> None:
        raw = partial / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for path in sorted((source / "MNIST" / "raw").glob("*.gz")):
            shutil.copyfile(path, raw / path.name)
            (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))

    return once(folder, fill)


def read_through(folder: Path) -> None:
    """Read every file once, so that each program finds them in the memory of the operating system."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, made by `fill` where it is not there yet; a folder by that name is always a whole one."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(folder)
    return folder


def _ants_and_bees(source: Path) -> dict[str, list[Path]]:
    """The readable JPEGs of both of its parts by class. One file of the set is a GIF that says it was not found."""
    found = {}
    for label in ("ants", "bees"):
        photos = sorted(source.glob(f"*/{label}/*.jpg"), key=lambda path: (path.parent.parent.name, path.name))
        found[label] = [path for path in photos if Image.open(path).format == "JPEG"]
    return found


def _copy(photos: list[Path], folder: Path, wanted: int) -> None:
    if len(photos) < wanted:
        raise SystemExit(f"{folder.name}: {wanted} photos are needed, {len(photos)} are left in hymenoptera")
    folder.mkdir(parents=True)
    for path in photos:
        shutil.copyfile(path, folder / path.name)


def _draw_all(folder: Path, jobs: list[tuple[str, tuple[int, int]]]) -> None:
    for name, _ in jobs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_draw, [(folder / name, seed) for name, seed in jobs], chunksize=16))


def _draw(job: tuple[Path, tuple[int, int]]) -> None:
    path, seed = job
    pixels = _photo(np.random.default_rng(seed), seed[1] % CLASSES)
    Image.fromarray(pixels).save(path, "JPEG", quality=QUALITY)


def _photo(rng: np.random.Generator, label: int) -> NDArray[np.uint8]:
    """Smooth random fields, rougher ones at half the strength each time, stripes at the class's angle, and noise."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
    for octave in range(1, 6):
        pixels += _smooth(rng, 2**octave) * (70 / 2 ** (octave - 1))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angle = np.pi * label / CLASSES
    stripes = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) / 16 + rng.uniform(0, 2 * np.pi))
    pixels += 20 * stripes[..., None] + 5 * rng.standard_normal(pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
    """Three fields of normal noise on a grid of `cells`, enlarged to the photo."""
    grid = rng.standard_normal((cells * HEIGHT // WIDTH + 1, cells, 3)).astype(np.float32)
    fields = [
        np.asarray(Image.fromarray(grid[..., c]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for c in range(3)
    ]
    return np.stack(fields, axis=-1)
