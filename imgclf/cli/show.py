"""`imgclf show`: look at the data as a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import TRAIN_DATA, TrainingOptions, training_options
from imgclf.cli._output import Force, Out, picture_file
from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.core.text import plural

if TYPE_CHECKING:
    from imgclf.core.config import ExperimentConfig
    from imgclf.data.dataset import Pixels, Source


@training_options("arch", "recipe", "augment", "size", "resize_mode", "data_dir")
def show(
    options: TrainingOptions,
    data: Annotated[str | None, TRAIN_DATA] = None,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Show images as the network sees them in training.")
    ] = False,
    channels: Annotated[Path | None, typer.Option(help="Show this image channel by channel, with its values.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=200, help="Number of images.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the selection and the augmentation.")] = 0,
    out: Out = None,
    force: Force = False,
) -> None:
    """Draw images with their classes, or one image channel by channel."""
    if (data is None) == (channels is None):
        raise ConfigError("show takes either DATA or --channels IMAGE")
    place = str(channels or data)
    name = f"{channels.stem}-channels" if channels is not None else Path(os.path.abspath(place)).name or "data"
    path = picture_file(out, f"{name}{'-augmented' if augmented else ''}.png", force=force, data=[place])
    if channels is not None:
        _show_channels(channels, path)
    else:
        _show_grid(place, path, options, n, seed, augmented)
    console.show(str(path))


def _show_channels(image: Path, path: Path) -> None:
    from imgclf.data.images import read_image
    from imgclf.plots.figures import ANNOTATED_SIDE, save_channels
    from imgclf.transforms.preprocess import prepare

    pixels = read_image(image)
    height, width = pixels.shape[:2]
    if max(height, width) > ANNOTATED_SIDE:
        scale = ANNOTATED_SIDE / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        console.say(
            f"{image} is {height}×{width} pixels; shown at {size[0]}×{size[1]}, so that the values are readable"
        )
        pixels = prepare(pixels, PreprocessConfig(size=size, channels=pixels.shape[2], resize_mode="squash"))
    save_channels(pixels, image.name, path)


def _show_grid(data: str, path: Path, options: TrainingOptions, n: int, seed: int, augmented: bool) -> None:
    from imgclf.core.errors import DataError
    from imgclf.core.text import printable
    from imgclf.data.loading.preview import WHOLE_IMAGE
    from imgclf.data.sources.open import open_source
    from imgclf.data.write import require_outside
    from imgclf.estimator.settings import Request, choose_experiment
    from imgclf.plots.figures import save_grid

    changes = options.changes()
    source = _at_levels(open_source(data, data_dir=changes["data"].get("data_dir"), strict=False), n, seed)
    require_outside(path, source)
    experiment = choose_experiment(Request(options.recipe, changes), source.default_recipe)
    as_it_is = not augmented and not options.typed.keys() - {"data_dir"}
    pixels = WHOLE_IMAGE if as_it_is else _training_pixels(experiment, source)
    images, titles, bad = _readable(source, pixels, n, seed, augmented=augmented)
    if not images:
        raise DataError(f"{source.name}: none of the images can be read", [printable(reason) for reason in bad])
    if bad:
        console.warn(f"{plural(len(bad), 'image')} can't be read and will be left out:", bad)
    save_grid(images, titles, path)


def _at_levels(source: Source, n: int, seed: int) -> Source:
    """The source, whose images of more than 8 bits are shown by the levels of `n` of them."""
    from imgclf.data.audit import audit
    from imgclf.data.jpeg import common_levels
    from imgclf.data.loading.preview import pick_samples

    looked_at = audit(source.with_samples(pick_samples(source, n, seed)), strict=False, allow_unreadable=1.0).source
    return source.at_levels(common_levels(sample.levels for sample in looked_at.samples))


def _training_pixels(experiment: ExperimentConfig, source: Source) -> PreprocessConfig:
    """The pixels of training. Only where an image that they depend on is bad, all are checked, as training does."""
    from imgclf.data.audit import audit
    from imgclf.data.images import BadImage
    from imgclf.estimator.plan import plan_pixels

    try:
        return plan_pixels(experiment, source)
    except BadImage:
        with console.progress("checking images") as progress:
            usable = audit(source, strict=False, allow_unreadable=1.0, progress=progress).source
        return plan_pixels(experiment, usable if usable.samples else source)


def _readable(
    source: Source, preprocess: PreprocessConfig, n: int, seed: int, *, augmented: bool
) -> tuple[list[Pixels], list[str], list[str]]:
    """The pixels and the classes of up to `n` images, and what came before them that can't be read, with the reason."""
    from dataclasses import replace

    from imgclf.data.images import BadImage
    from imgclf.data.loading.preview import pick_samples, sample_pixels

    images: list[Pixels] = []
    titles, bad = [], []
    for sample in pick_samples(source, len(source), seed):
        if len(images) == n:
            break
        try:
            known = replace(sample, sha256=source.reader.digest(sample.ref))
            images += sample_pixels(source, [known], preprocess, augmented=augmented, seed=seed)
            titles.append(sample.label)
        except BadImage as error:
            bad.append(f"{sample.ref}: {error.reason}")
    return images, titles, bad
