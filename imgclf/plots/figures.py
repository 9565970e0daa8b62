"""Figures of matplotlib: grids of images, the values of one image, explanations, and curves."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgclf.core.arguments import as_path
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.files import PICTURES
from imgclf.core.results import Explanation, LearningCurve, LrCurve
from imgclf.core.text import percent, printable, shorten
from imgclf.data.dataset import Pixels

COLUMNS = 5
ANNOTATED_SIDE = 32  # every pixel carries its value: more of them could not be read
SOURCE_KEY = "Source"  # one of the keywords that the PNG specification has
MAX_STEM = 60  # of a file's name, which ends at 255 bytes
EXPLAINED_SIDE = 300  # output pixels that the longer side of an explained image gets at least
TITLE_HEIGHT, SCALE_HEIGHT, MARGIN = 34, 18, 8
SCALE = (9, 64)  # height and width of the colors of the heat, in output pixels
HEAT_STRENGTH = 0.7  # how much of the image the hottest pixel hides
GRID_TITLE, MAX_NAME = 25, 32  # characters above and below an image of a grid
CHANNEL_NAMES = {1: ("gray",), 3: ("red", "green", "blue")}


def save_grid(
    images: Sequence[Pixels],
    titles: Sequence[str],
    path: Path,
    colors: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    legend: str = "",
) -> None:
    """Write images as a grid of five columns.

    Args:
        images: uint8 (height, width, 1 or 3) each.
        titles: The text above each image.
        path: The picture to write; its folder is made.
        colors: The matplotlib color of each title; by default, black.
        names: A text below each image, of which the end is shown.
        legend: A text above all images.
    """
    rows = -(-len(images) // COLUMNS)
    figure, axes = _figure(rows, COLUMNS, 2.2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    texts = zip(titles, colors or repeat("black"), names or repeat(""), strict=False)
    for axis, image, (title, color, name) in zip(axes.flat, images, texts, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title_of(title, GRID_TITLE), fontsize=9, parse_math=False, color=color)
        name = printable(name)  # of which the end tells most
        name = name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
        axis.set_xlabel(name, fontsize=7, parse_math=False, color="dimgray")
    if legend or names:
        figure.set_layout_engine("constrained", hspace=0.08)  # which leaves room for it, and between the rows
    if legend:
        figure.suptitle(printable(legend), fontsize=10, parse_math=False, x=0.02, ha="left")
    save_figure(figure, path)


def save_channels(pixels: Pixels, title: str, path: Path) -> None:
    """Write one image channel by channel, each pixel with its value 0…255.

    The CIFAR-10 document (D4) prints such a picture. Values stay readable up to 32 × 32 pixels.

    Args:
        pixels: uint8 (height, width, channels).
        title: The name of the image.
        path: The picture to write; its folder is made.
    """
    channels = pixels.shape[2]
    names = CHANNEL_NAMES.get(channels, tuple(f"channel {i + 1}" for i in range(channels)))
    figure, axes = _figure(1, channels, 9.0)
    for axis, name, plane in zip(axes.flat, names, np.moveaxis(pixels, 2, 0), strict=True):
        axis.imshow(plane, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{title_of(title)}: {name}", parse_math=False)
        axis.axis("off")
        for (y, x), value in np.ndenumerate(plane):
            color = "black" if value > 127 else "white"
            axis.text(x, y, str(value), ha="center", va="center", fontsize=6, color=color)
    save_figure(figure, path)


def save_explanation(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Write the pixels that the model saw and, beside them, the heat over the same pixels in gray.

    The title is like "bees 97.3%, gradcam 7×7", with the size of the feature maps; a scale explains the colors. Each
    pixel becomes a square of whole pixels: nothing is smoothed.

    Args:
        explanation: One of those that `explain` returns.
        path: The picture to write, `.png` or another format by its name; its folder is made.

    Raises:
        DataError: The image could not be read, so there is no heat.
        ConfigError: The name is not that of a picture.
    """
    from matplotlib.figure import Figure

    if not isinstance(explanation, Explanation):
        raise ConfigError(f"the explanation is {type(explanation).__name__}; expected one of those `explain` gives")
    path = as_path("path", path)
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"path is {str(path)!r}; expected a name that ends in {', '.join(PICTURES)}")
    pixels, heat = explanation.pixels, explanation.heat
    if pixels is None or heat is None or explanation.confidence is None:
        raise DataError(f"{printable(explanation.path)} has no explanation: {explanation.error}")
    colors = pixels if pixels.shape[2] == 3 else pixels.mean(2, keepdims=True).repeat(3, axis=2)
    hot = _heated(colors.mean(2, keepdims=True) / 255, heat)
    scale = -(-EXPLAINED_SIDE // max(heat.shape))
    height, width = heat.shape[0] * scale, heat.shape[1] * scale
    panel = max(width, EXPLAINED_SIDE) + MARGIN
    dpi = 100
    figure = Figure(
        figsize=((2 * panel + MARGIN) / dpi, (height + SCALE_HEIGHT + TITLE_HEIGHT + MARGIN) / dpi), dpi=dpi
    )
    title = f"{title_of(explanation.label or '', 16)} {percent(explanation.confidence)}, {explanation.method}"
    title += "" if explanation.cells is None else f" {explanation.cells[0]}×{explanation.cells[1]}"
    titles = (Path(explanation.path).name, title)
    for index, (shown, title) in enumerate(zip((colors / 255, hot), titles, strict=True)):
        left = MARGIN + index * panel
        enlarged = shown.repeat(scale, axis=0).repeat(scale, axis=1)
        figure.figimage(enlarged, left + (panel - MARGIN - width) // 2, MARGIN, origin="upper")
        where = ((left + (panel - MARGIN) / 2) / figure.bbox.width, 1 - TITLE_HEIGHT / 2 / figure.bbox.height)
        figure.text(*where, title_of(title, 40), ha="center", va="center", fontsize=11, parse_math=False)
    _draw_scale(figure, MARGIN + panel, MARGIN + height, explanation.label or "")
    save_figure(figure, path, dpi, explanation.path)


def _heated(gray: NDArray[Any], heat: NDArray[Any]) -> NDArray[Any]:
    """Pixels 0…1 (height, width, 3): `gray` ones with the colors of the heat over them, the stronger the hotter."""
    from matplotlib import colormaps

    strength = HEAT_STRENGTH * heat[..., None]
    heated: NDArray[Any] = (1 - strength) * gray + strength * colormaps["turbo"](heat)[..., :3]
    return heated


def _draw_scale(figure, left: int, bottom: int, label: str) -> None:  # type: ignore[no-untyped-def]
    """The colors of the heat from none to the hottest, and what the last one means, from output pixels on."""
    height, width = SCALE
    colors = _heated(np.array(0.5), np.tile(np.linspace(0, 1, width), (height, 1)))
    figure.figimage(colors, left, bottom + (SCALE_HEIGHT - height) // 2, origin="upper")
    where = ((left + width + MARGIN) / figure.bbox.width, (bottom + SCALE_HEIGHT / 2) / figure.bbox.height)
    text = f"less → more evidence for “{title_of(label, 18)}”"
    figure.text(*where, text, ha="left", va="center", fontsize=8, color="dimgray", parse_math=False)


def _figure(rows: int, columns: int, inches: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * inches, rows * inches * 1.1), layout="tight")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure, path: Path, dpi: int = 120, image: str = "") -> None:  # type: ignore[no-untyped-def]
    """Write a figure of matplotlib.

    Args:
        figure: A `matplotlib.figure.Figure`.
        path: The picture to write; its folder is made.
        dpi: Pixels per inch.
        image: The path of the image that the figure shows, which a PNG file remembers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remembered = image and path.suffix.lower() == ".png"
    figure.savefig(path, dpi=dpi, metadata={SOURCE_KEY: source_text(image)} if remembered else None)


def source_text(image: str) -> str:
    """How a picture remembers the image."""
    return printable(os.path.abspath(image))


def free_path(folder: Path, image: str, kind: str, taken: Container[Path] = ()) -> Path:
    """A name for a picture of an image: NAME-kind.png or, where that is taken, NAME-kind-2.png, and so on.

    An earlier picture of the same image may be overwritten; any other file counts as taken.

    Args:
        folder: Where the picture will be.
        image: The path of the image.
        kind: What the picture shows, for its name.
        taken: Paths of pictures that will be written.
    """
    stem = f"{Path(image).stem[:MAX_STEM]}-{kind}"
    names = chain([f"{stem}.png"], (f"{stem}-{number}.png" for number in count(2)))
    return next(path for path in map(folder.joinpath, names) if path not in taken and _is_free(path, image))


def _is_free(path: Path, image: str) -> bool:
    if not os.path.lexists(path):
        return True
    try:
        with Image.open(path) as picture:
            return bool(picture.info.get(SOURCE_KEY) == source_text(image))
    except OSError:
        return False


def title_of(text: str, most: int = 28) -> str:
    """A text that fits above a picture, with control characters spelt out."""
    return shorten(printable(text), most)


def save_lr_curve(curve: LrCurve, path: Path, title: str, usual: float) -> None:
    """Write the loss over the learning rate.

    Args:
        curve: The curve; its suggestion, if any, is marked.
        path: The picture to write; its folder is made.
        title: The title.
        usual: The learning rate that training would use, marked too.
    """
    figure, axes = _figure(1, 1, 5.0)
    axis = axes.flat[0]
    axis.plot(curve.rates, curve.losses)
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    axis.set_ylim(top=min(max(curve.losses), 2 * curve.losses[0]))  # an explosion would hide the rest
    if curve.suggestion is not None:
        axis.axvline(curve.suggestion, linestyle="--", color="C1", label=f"suggested: {curve.suggestion:.2g}")
    axis.axvline(usual, linestyle=":", color="black", label=f"train would use {usual:.2g}")
    axis.legend()
    figure.suptitle(title_of(title, 60), parse_math=False, fontsize=11)
    save_figure(figure, path)


def save_importances(importances: Mapping[str, float], path: Path, title: str, trials: int) -> None:
    """Write the importance of each tuned setting as bars.

    Args:
        importances: The importance, 0…1, by setting.
        path: The picture to write; its folder is made.
        title: The title.
        trials: How many trials they come from.
    """
    figure, axes = _figure(1, 1, 5.0)
    names = sorted(importances, key=importances.__getitem__)
    axes.flat[0].barh(names, [importances[name] for name in names])
    axes.flat[0].set_xlabel(f"importance, from {trials} trials")
    figure.suptitle(title_of(title, 60), parse_math=False, fontsize=11)
    save_figure(figure, path)


def save_learning_curve(curve: LearningCurve, path: Path) -> None:
    """Write the accuracy over the number of training images: measured, and the fit with its 95% interval up to twice
    as many."""
    from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

    figure, axes = _figure(1, 1, 5.0)
    axis, (band, points) = axes.flat[0], (curve.band, curve.points)
    axis.fill_between(band.images, band.low, band.high, alpha=0.15, linewidth=0, label="95% interval of the fit")
    axis.plot(band.images, band.accuracy, label="fit")
    images, accuracy = [point.images for point in points], np.array([point.accuracy for point in points])
    ends = np.array([point.interval for point in points]).T
    bars = np.abs(ends - accuracy)
    axis.errorbar(images, accuracy, bars, fmt="o", color="black", capsize=3, label="measured")
    axis.axvline(images[-1], linestyle=":", color="gray")
    axis.plot([2 * images[-1]], [curve.doubled.value], "o", color="C0", fillstyle="none", label="twice as many")
    axis.set(xscale="log", xlabel="training images", ylabel=f"accuracy on {curve.held_out:,} held-out images")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks([*images, 2 * images[-1]], [f"{n:,}" for n in [*images, 2 * images[-1]]], rotation=45)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(title_of(f"{curve.data}, {curve.arch}", 60), parse_math=False)
    axis.legend(loc="lower right")
    save_figure(figure, path)
