"""Pictures to look at."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from imgclf.core.config import PreprocessConfig
from imgclf.core.results import LrCurve
from imgclf.data.loading.loader import Loader
from imgclf.data.loading.preview import pick_samples, sample_pixels
from imgclf.plots import figures as pictures
from imgclf.plots.figures import save_channels, save_grid, save_importances, save_lr_curve
from imgclf.transforms.preprocess import prepare
from imgclf.transforms.presets import preset_steps


def test_the_classes_come_in_turn(make_source):
    source = make_source()
    chosen = pick_samples(source, 8)
    assert [sample.label for sample in chosen] == ["a", "b", "c"] * 2 + ["a", "b"]
    assert len({sample.ref for sample in chosen}) == 8
    assert pick_samples(source, 8) == chosen
    assert pick_samples(source, 8, seed=1) != chosen


def test_a_small_class_gives_all_it_has(make_source):
    source = make_source()
    few = source.with_samples(s for i, s in enumerate(source.samples) if s.label != "b" or i < 3)
    counts = Counter(sample.label for sample in pick_samples(few, 9))
    assert counts == {"a": 4, "b": 1, "c": 4}
    assert len(pick_samples(few, 1000)) == len(few)


def test_evaluation_pixels(make_source):
    source = make_source()
    recipe = PreprocessConfig(size=(6, 6), channels=1, steps=preset_steps("strong"))
    shown = sample_pixels(source, source.samples[:3], recipe, augmented=False)
    assert all((a == prepare(source.open(s.ref), recipe)).all() for a, s in zip(shown, source.samples[:3], strict=True))


@pytest.mark.parametrize("preset", ["none", "light", "standard"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_augmented_pixels_are_those_of_the_first_epoch(make_source, preset, ratio):
    source = make_source(n=4)
    recipe = PreprocessConfig(size=(6, 6), channels=1, crop_pct=ratio, steps=preset_steps(preset))
    shown = sample_pixels(source, source.samples, recipe, augmented=True, seed=5)
    loader = Loader(source, source.samples, recipe, classes=source.classes, train=True, seed=5, batch_size=12)
    batch = next(loader.epoch(0))
    for position, pixels in zip(batch.positions, batch.pixels, strict=True):
        assert (shown[position] == pixels.numpy()).all()


@pytest.mark.slow
def test_legend_title_image_and_name_stand_under_each_other(tmp_path):
    images = [np.full((8, 8, 3), 90, np.uint8)] * 7
    save_grid(images, ["a → b"] * 7, tmp_path / "grid.png", names=["photo"] * 7, legend="a said → b said")
    with Image.open(tmp_path / "grid.png") as picture:
        ink = (np.asarray(picture.convert("L")) < 200).any(axis=1)
    lines = np.flatnonzero(np.diff(ink.astype(int)) == 1)
    ends = np.flatnonzero(np.diff(ink.astype(int)) == -1)
    assert lines[4] - ends[3] > 2 * (lines[3] - ends[2])  # a name stands by its image, and not by the title below
    assert len(lines) == 7  # the legend, and for each of two rows of images titles, images and names


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (5, 1), (6, 2)])
def test_a_grid_has_five_columns(tmp_path, n, rows):
    images = [np.full((4, 4, 3 if i % 2 else 1), 40 * i, np.uint8) for i in range(n)]
    save_grid(images, ["plain", "$x_1$", "a\x1b[31m\nb", "x" * 99, "[bold]", "_"][:n], tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.width / picture.height == pytest.approx(5 / (1.1 * rows), rel=0.05)


def test_a_grid_shows_its_images(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    save_grid([red], ["red"], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert (pixels == [255, 0, 0]).all(axis=2).mean() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_one_picture_a_channel(tmp_path, channels):
    save_channels(np.zeros((3, 4, channels), np.uint8), "a $title", tmp_path / "channels.png")
    with Image.open(tmp_path / "channels.png") as picture:
        assert picture.width / picture.height == pytest.approx(channels / 1.1, rel=0.05)


def test_the_same_image_twice_is_augmented_by_its_content(make_source):
    source = make_source()
    recipe = PreprocessConfig(size=(8, 8), channels=1, steps=preset_steps("light"))
    named_otherwise = replace(source.samples[0], label="b")
    one, other = sample_pixels(source, [source.samples[0], named_otherwise], recipe, augmented=True)
    assert (one == other).all()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which are then written too."""
    figures, save = [], pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def test_a_curve_of_rates_says_of_what_it_is_and_names_both_rates(tmp_path, drawn):
    save_lr_curve(LrCurve((1e-4, 1e-3, 1e-2), (1.0, 0.5, 9.0), 3e-4), tmp_path / "rates.png", "photos, lenet", 0.001)
    (figure,) = drawn
    assert figure.get_suptitle() == "photos, lenet"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "suggested: 0.0003",
        "train would use 0.001",
    ]
    lines = [line.get_xdata()[0] for line in figure.axes[0].lines[1:]]
    assert lines == [3e-4, 0.001]


def test_bars_of_what_matters_say_of_what_and_by_how_many_trials(tmp_path, drawn):
    save_importances({"lr": 0.7, "augment": 0.3}, tmp_path / "bars.png", "photos, lenet", 12)
    (figure,) = drawn
    assert figure.get_suptitle() == "photos, lenet"
    assert figure.axes[0].get_xlabel() == "importance, from 12 trials"
