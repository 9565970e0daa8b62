"""Pictures to look at: a grid of images with their classes, and one image channel by channel with its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imgclf._files import printable
from imgclf.data.images import BadImage
from imgclf.data.loader import Loader
from imgclf.data.source import Pixels, Sample, Source
from imgclf.results import LrCurve
from imgclf.specs import Recipe

if TYPE_CHECKING:
    from PIL import Image, ImageFont

COLUMNS = 5
ANNOTATED_SIDE = 32  # every pixel carries its value: more of them could not be read
SMALL, LARGE = 64, 128  # sides between which the images of a drawn grid are
CELL, GAP, TEXT, MOST_TEXT = 96, 6, 18, 140  # pixels: the least width of a title, and so on
CHANNEL_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}

Colour = tuple[int, int, int]


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
    source: Source, samples: Sequence[Sample], recipe: Recipe, *, augmented: bool, seed: int = 0
) -> list[Pixels]:
    """What a model sees of the samples: evaluation pixels or, with `augmented`, those of the first training epoch."""
    loader = Loader(source, samples, recipe, classes=source.classes, train=augmented, seed=seed, workers=0, cache="ram")
    shown: dict[int, Pixels] = {}
    for batch in loader.epoch():
        shown |= zip(batch.positions.tolist(), batch.pixels.numpy(), strict=True)
    for ref, reason in loader.lost.items():
        raise BadImage(reason, ref)
    return [shown[position] for position in range(len(samples))]


def save_grid(images: Sequence[Pixels], titles: Sequence[str], path: Path) -> None:
    """Write images (height, width, 1 or 3) as a grid of five columns, each under its title."""
    rows = -(-len(images) // COLUMNS)
    figure, axes = _figure(rows, COLUMNS, 2.2)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(_short(printable(title)), fontsize=9, parse_math=False)
    _save(figure, path)


def save_channels(pixels: Pixels, title: str, path: Path) -> None:
    """Write one image (height, width, channels) as a picture a channel, each pixel with its value 0…255.

    The CIFAR-10 document (D4) prints such a picture. Values stay readable up to 32 × 32 pixels.
    """
    channels = pixels.shape[2]
    names = CHANNEL_NAMES.get(channels, tuple(f"channel {i + 1}" for i in range(channels)))
    figure, axes = _figure(1, channels, 9.0)
    for axis, name, plane in zip(axes.flat, names, np.moveaxis(pixels, 2, 0), strict=True):
        axis.imshow(plane, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{_short(printable(title))}: {name}", parse_math=False)
        axis.axis("off")
        for (y, x), value in np.ndenumerate(plane):
            colour = "black" if value > 127 else "white"
            axis.text(x, y, str(value), ha="center", va="center", fontsize=6, color=colour)
    _save(figure, path)


def _figure(rows: int, columns: int, inches: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * inches, rows * inches * 1.1), layout="tight")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def save_lr_curve(curve: LrCurve, path: Path) -> None:
    """Write the loss over the learning rate, with the suggestion."""
    figure, axes = _figure(1, 1, 5.0)
    axis = axes.flat[0]
    axis.plot(curve.rates, curve.losses)
    axis.set_xscale("log")
    axis.set_ylim(top=min(max(curve.losses), 2 * curve.losses[0]))  # an explosion would hide the rest
    axis.axvline(curve.suggestion, linestyle="--", color="grey")
    axis.annotate(f" {curve.suggestion:.2g}", (curve.suggestion, max(curve.losses)), va="top")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss, smoothed")
    _save(figure, path)


def save_importances(importances: Mapping[str, float], path: Path) -> None:
    """Write how much each thing that was tuned matters, as bars."""
    figure, axes = _figure(1, 1, 5.0)
    names = sorted(importances, key=importances.__getitem__)
    axes.flat[0].barh(names, [importances[name] for name in names])
    axes.flat[0].set_xlabel("share of the differences between trials")
    _save(figure, path)


def draw_grid(images: Sequence[Pixels], titles: Sequence[str], colours: Sequence[Colour]) -> Pixels:
    """A grid of five columns as pixels (height, width, 3), each image under its title: small, and quicker than
    `save_grid`. The colours of the titles come round again."""
    from PIL import Image, ImageDraw

    pictures = [_thumbnail(image) for image in images]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    cell_width, cell_height = max(width, CELL) + GAP, height + TEXT + GAP
    columns = min(COLUMNS, len(pictures))
    sheet = Image.new("RGB", (columns * cell_width + GAP, -(-len(pictures) // columns) * cell_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        shown = _fitting(printable(title), cell_width - GAP, font.getlength)
        draw.text((x + (cell_width - GAP) / 2, y), shown, colours[index % len(colours)], font, anchor="ma")
        sheet.paste(picture, (x + (cell_width - GAP - picture.width) // 2, y + TEXT))
    return np.asarray(sheet)


def draw_matrix(counts: NDArray[np.int64], names: Sequence[str]) -> Pixels:
    """A confusion matrix as pixels (height, width, 3): a row for each true class, darker where a greater share of its
    images is; with names and counts, where there is room for them."""
    from PIL import Image, ImageDraw

    font, n = _font(), len(names)
    side = max(6, min(40, 800 // n))
    shown = [_fitting(printable(name), MOST_TEXT, font.getlength) for name in names] if side >= TEXT else [""] * n
    margin = GAP + int(max(font.getlength("called →"), *map(font.getlength, shown))) + TEXT
    sheet = Image.new("RGB", (margin + n * side + GAP,) * 2, "white")
    draw = ImageDraw.Draw(sheet)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    for (row, column), share in np.ndenumerate(shares):
        x, y = margin + column * side, margin + row * side
        light = int(255 * (1 - share))
        draw.rectangle((x, y, x + side - 1, y + side - 1), (light, light, 255), "lightgrey" if side >= TEXT else None)
        if counts[row, column] and side >= 30:
            colour, text = "white" if share > 0.5 else "black", f"{counts[row, column]}"
            draw.text((x + side / 2, y + side / 2), text if len(text) < 5 else "…", colour, font, anchor="mm")
    for index, name in enumerate(shown):
        middle = margin + index * side + side // 2
        draw.text((margin - 3, middle), name, "black", font, anchor="rm")
        upright = Image.new("RGB", (margin - 3, TEXT), "white")
        ImageDraw.Draw(upright).text((0, TEXT / 2), name, "black", font, anchor="lm")
        sheet.paste(upright.rotate(90, expand=True), (middle - TEXT // 2, 0))
    draw.text((GAP, GAP), "true ↓", "grey", font)
    draw.text((GAP, GAP + TEXT), "called →", "grey", font)
    return np.asarray(sheet)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more."""
    from PIL import ImageFont

    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.submodule_search_locations
    fonts = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", 12)


def _thumbnail(pixels: Pixels) -> Image.Image:
    """An image large enough to be seen, and not larger than that."""
    from PIL import Image

    colours = pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2)
    picture = Image.fromarray(np.ascontiguousarray(colours))
    side = max(picture.size)
    if side < SMALL:
        scale = -(-SMALL // side)
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((LARGE, LARGE))
    return picture


def _fitting(text: str, width: float, measure: Callable[[str], float]) -> str:
    """As much of a text as fits, with an ellipsis for the rest."""
    if measure(text) <= width:
        return text
    while text and measure(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
