"""The contract of every augmentation preset."""

import numpy as np
import pytest
import torch

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import UnknownName
from imgclf.transforms.presets import PRESETS, RECOLORING, limited, preset_steps
from imgclf.transforms.steps import augment

NAMES = PRESETS.names()
MOVING = [name for name in NAMES if name != "none"]


def recipe(name, mirror=True, channels=3, **options):
    return PreprocessConfig(size=(12, 16), channels=channels, steps=preset_steps(name, mirror=mirror), **options)


def image(channels=3):
    return np.random.default_rng(7).integers(0, 256, (12, 16, channels), dtype=np.uint8)


def augmented(recipe, seed):
    """One image eight times, as eight samples see it."""
    pixels = torch.from_numpy(image(recipe.channels)[None].repeat(8, 0))
    return augment(pixels, recipe, seed, 0, np.arange(8, dtype=np.uint64)).numpy()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_pixels_keep_their_type_and_shape_and_depend_on_the_seed_alone(name, mirror, channels):
    seen = augmented(recipe(name, mirror, channels), 5)
    assert seen.dtype == np.uint8
    assert seen.shape == (8, 12, 16, channels)
    assert (augmented(recipe(name, mirror, channels), 5) == seen).all()


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("name", MOVING)
def test_another_seed_or_sample_gives_other_pixels(name, mirror):
    first, second = (augmented(recipe(name, mirror), seed) for seed in (1, 2))
    assert (first != second).any()
    assert len({pixels.tobytes() for pixels in first}) > 4


def test_none_changes_nothing():
    assert preset_steps("none") == ()
    assert (augmented(recipe("none"), 3) == image()).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_would_change_a_label_is_left_out(name):
    assert not {"flip", "resized_crop"} & {step.op for step in preset_steps(name, mirror=False)}


@pytest.mark.parametrize("name", ["light", "standard", "strong", "shifts-flips", "mix", "trivial"])
def test_photos_are_mirrored(name):
    assert "flip" in {step.op for step in preset_steps(name)}


@pytest.mark.parametrize("mirror", [True, False])
def test_mix_is_strong_and_blends_every_image_in_one_of_two_ways(mirror):
    steps = preset_steps("mix", mirror=mirror)
    assert steps[:-2] == preset_steps("strong", mirror=mirror)
    assert [step.op for step in steps[-2:]] == ["mixup", "cutmix"]
    assert sum(step.params["p"] for step in steps[-2:]) == 1


@pytest.mark.parametrize("name", ["strong", "trivial"])
def test_where_colors_carry_meaning_they_are_kept(name):
    steps = limited(preset_steps(name), mirror=True, recolor=False)
    assert [step.op for step in steps] == [step.op for step in preset_steps(name)]
    gray = np.repeat(image(1), 3, axis=2) // np.array([1, 2, 4], np.uint8)  # of one hue and saturation
    batch = torch.from_numpy(gray[None].repeat(40, 0))
    recipe = PreprocessConfig(size=(12, 16), steps=tuple(step for step in steps if step.op in RECOLORING))
    out = augment(batch, recipe, 0, 0, np.arange(40, dtype=np.uint64)).numpy().astype(int)
    assert (out[..., 0] >= out[..., 1]).all()
    assert (out[..., 1] >= out[..., 2]).all()


def test_an_unknown_preset_is_answered_with_the_one_that_was_meant():
    with pytest.raises(UnknownName, match="no augmentation preset is called 'stong'; did you mean strong"):
        preset_steps("stong")
