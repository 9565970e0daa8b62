"""Grids of images and confusion matrices as pixels, drawn by Pillow: small and fast, for live views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imgclf.core.text import printable
from imgclf.data.dataset import Pixels

COLUMNS = 5
MIN_SIDE, MAX_SIDE = 64, 128  # of the images of a grid, in pixels
CELL, GAP, TEXT, MAX_NAME = 96, 6, 18, 140  # pixels: least width of a title, margin, height and width of a text

Color = tuple[int, int, int]


def draw_grid(images: Sequence[Pixels], titles: Sequence[str], colors: Sequence[Color]) -> Pixels:
    """A grid of five columns, each image under its title: small, and faster than `save_grid`.

    Args:
        images: uint8 (height, width, 1 or 3) each; at least one.
        titles: One for each image.
        colors: (red, green, blue) of the titles, 0…255; repeated where there are fewer.

    Returns:
        uint8 (height, width, 3).
    """
    pictures = [_thumbnail(image) for image in images]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    cell_width, cell_height = max(width, CELL) + GAP, height + TEXT + GAP
    columns = min(COLUMNS, len(pictures))
    sheet = Image.new("RGB", (columns * cell_width + GAP, -(-len(pictures) // columns) * cell_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        shown = _fitting(printable(title), cell_width - GAP, font.getlength)
        draw.text((x + (cell_width - GAP) / 2, y), shown, colors[index % len(colors)], font, anchor="ma")
        sheet.paste(picture, (x + (cell_width - GAP - picture.width) // 2, y + TEXT))
    return np.asarray(sheet)


def draw_matrix(counts: NDArray[np.int64], names: Sequence[str]) -> Pixels:
    """A confusion matrix with a row for each true class; a cell is darker the larger its share of the row.

    Args:
        counts: Images (k, k), by true and predicted class.
        names: The k classes; names and counts are drawn where there is room.

    Returns:
        uint8 (height, width, 3).
    """
    font, n = _font(), len(names)
    side = max(6, min(40, 800 // n))
    shown = [_fitting(printable(name), MAX_NAME, font.getlength) for name in names] if side >= TEXT else [""] * n
    margin = GAP + int(max(font.getlength("predicted →"), *map(font.getlength, shown))) + TEXT
    sheet = Image.new("RGB", (margin + n * side + GAP,) * 2, "white")
    draw = ImageDraw.Draw(sheet)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    for (row, column), share in np.ndenumerate(shares):
        x, y = margin + column * side, margin + row * side
        light = int(255 * (1 - share))
        draw.rectangle((x, y, x + side - 1, y + side - 1), (light, light, 255), "lightgray" if side >= TEXT else None)
        if counts[row, column] and side >= 30:
            color, text = "white" if share > 0.5 else "black", f"{counts[row, column]}"
            draw.text((x + side / 2, y + side / 2), text if len(text) < 5 else "…", color, font, anchor="mm")
    for index, name in enumerate(shown):
        middle = margin + index * side + side // 2
        draw.text((margin - 3, middle), name, "black", font, anchor="rm")
        upright = Image.new("RGB", (margin - 3, TEXT), "white")
        ImageDraw.Draw(upright).text((0, TEXT / 2), name, "black", font, anchor="lm")
        sheet.paste(upright.rotate(90, expand=True), (middle - TEXT // 2, 0))
    draw.text((GAP, GAP), "true ↓", "gray", font)
    draw.text((GAP, GAP + TEXT), "predicted →", "gray", font)
    return np.asarray(sheet)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more."""
    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.submodule_search_locations
    fonts = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", 12)


def _thumbnail(pixels: Pixels) -> Image.Image:
    """An image large enough to be seen, and not larger than that."""
    colors = pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2)
    picture = Image.fromarray(np.ascontiguousarray(colors))
    side = max(picture.size)
    if side < MIN_SIDE:
        scale = -(-MIN_SIDE // side)
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def _fitting(text: str, width: float, measure: Callable[[str], float]) -> str:
    """As much of a text as fits, with an ellipsis for the rest."""
    if measure(text) <= width:
        return text
    while text and measure(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
