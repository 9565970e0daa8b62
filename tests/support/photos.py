"""Tiny photos, made for each test."""

from __future__ import annotations

import json
import shutil
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def color_image(name: str, index: int, size: tuple[int, int] = (24, 32)) -> Image.Image:
    """An image (height, width) of a noisy color; each index gives another one."""
    rng = np.random.default_rng([index, *name.encode()])
    pixels = np.array(COLORS[name]) + rng.integers(-30, 30, (*size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@cache
def color_png(name: str, index: int) -> bytes:
    """The file of such an image."""
    file = BytesIO()
    color_image(name, index).save(file, "PNG")
    return file.getvalue()


def copy_of_world(world: Path, target: Path, *without: str) -> Path:
    """A copy of a folder with images and runs, as if they had been made there: of a run the images lie in the copy."""
    shutil.copytree(world, target, ignore=shutil.ignore_patterns(*without))
    for info in target.glob("runs/*/run.json"):
        info.write_text(info.read_text().replace(json.dumps(str(world))[:-1], json.dumps(str(target))[:-1]))
    return target


def save_photos(root: Path) -> Path:
    """Make a folder with 20 images in each of 3 class folders, which differ by color."""
    for name in COLORS:
        (root / name).mkdir(parents=True)
        for index in range(20):
            (root / name / f"{index:02d}.png").write_bytes(color_png(name, index))
    return root


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file and folder below a folder, with its bytes; of caches, which may be made at any time, none."""
    return {
        path.relative_to(folder): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if "cache" not in path.parts
    }
