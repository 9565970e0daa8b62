"""Augmentation by albumentations, reseeded for each image."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import numpy as np
import pytest

from imgclf.core.config import AugmentStep, PreprocessConfig, from_dict, to_dict
from imgclf.core.errors import ConfigError
from imgclf.transforms.albumentations_pipeline import Augmenter, compose_to_dict, takes_whole_image
from imgclf.transforms.preprocess import prepare
from imgclf.transforms.presets import preset_steps

SIZE = (12, 16)
ZERO = {"saturation": 0.0, "hue": 0.0}


def image(height=12, width=16):
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def composed(*transforms):
    return PreprocessConfig(size=SIZE, compose=compose_to_dict(A.Compose(list(transforms))))


def test_each_image_is_reseeded_whatever_came_before_and_in_whatever_thread():
    augmenter = Augmenter(PreprocessConfig(size=SIZE, steps=preset_steps("strong")))
    alone = [augmenter(image(), seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: augmenter(image(), seed), reversed(range(12))))
    assert all((a == b).all() for a, b in zip(alone, reversed(together), strict=True))


def test_augmenting_leaves_the_image_as_it_is():
    pixels = image()
    Augmenter(PreprocessConfig(size=SIZE, steps=preset_steps("strong", mirror=False)))(pixels, 1)
    assert (pixels == image()).all()


def test_what_was_cropped_once_is_not_cropped_again():
    recipe = PreprocessConfig(size=SIZE, crop_pct=0.5, steps=(AugmentStep("flip", {"p": 0.0}),))
    pixels = prepare(image(40, 60), recipe)
    assert (Augmenter(recipe)(pixels, 0) == pixels).all()


def test_a_random_crop_is_taken_from_the_whole_image():
    recipe = PreprocessConfig(
        size=SIZE, steps=(AugmentStep("resized_crop", {"scale": [0.1, 0.1], "ratio": [1.0, 1.0]}),)
    )
    assert takes_whole_image(recipe)
    halves = np.zeros((200, 200, 1), np.uint8)
    halves[:, 100:] = 255
    levels = {int(Augmenter(recipe)(halves, seed).mean()) for seed in range(20)}
    assert {0, 255} <= levels, "a tenth of the image often lies in one half"


@pytest.mark.parametrize(
    "change",
    [
        {"resize_mode": "pad"},
        {"steps": (AugmentStep("flip", {"p": 0.5}),)},
        {"steps": ()},
        {"compose": {"transform": {}}},
    ],
)
def test_all_else_starts_from_the_prepared_pixels(change):
    steps = (AugmentStep("resized_crop", {"scale": [0.5, 1.0], "ratio": [1.0, 1.0]}),)
    assert not takes_whole_image(PreprocessConfig(**{"size": SIZE, "steps": steps} | change))


def test_a_flip_is_a_mirror_image():
    always = Augmenter(PreprocessConfig(size=SIZE, steps=(AugmentStep("flip", {"p": 1.0}),)))
    assert (always(image(), 0) == image()[:, ::-1]).all()


def test_shifts_are_crops_of_the_image_in_a_black_frame():
    recipe = PreprocessConfig(size=SIZE, steps=(AugmentStep("random_crop", {"padding": 4}),))
    framed = np.pad(image(), ((4, 4), (4, 4), (0, 0)))
    crops = {framed[y : y + 12, x : x + 16].tobytes() for y in range(9) for x in range(9)}
    seen = {Augmenter(recipe)(image(), seed).tobytes() for seed in range(30)}
    assert seen <= crops
    assert len(seen) > 10


def test_steps_that_need_the_epoch_or_other_images_are_left_to_the_batch():
    flip = AugmentStep("flip", {"p": 0.5})
    blends = AugmentStep("mixup", {"alpha": 1.0, "p": 0.5}), AugmentStep("cutmix", {"alpha": 1.0, "p": 0.5})
    with_them = Augmenter(PreprocessConfig(size=SIZE, steps=(AugmentStep("alternating_flip"), flip, *blends)))
    without = Augmenter(PreprocessConfig(size=SIZE, steps=(flip,)))
    assert all((with_them(image(), seed) == without(image(), seed)).all() for seed in range(8))
    alone = Augmenter(PreprocessConfig(size=SIZE, steps=(AugmentStep("alternating_flip"), *blends)))
    assert (alone(image(), 0) == image()).all()


def test_a_jitter_above_one_stops_at_black():
    recipe = PreprocessConfig(
        size=SIZE, steps=(AugmentStep("color_jitter", dict.fromkeys(("brightness", "contrast"), 1.5) | ZERO),)
    )
    assert len({Augmenter(recipe)(image(), seed).tobytes() for seed in range(8)}) > 4


def test_a_step_with_a_parameter_that_is_none():
    augmenter = Augmenter(PreprocessConfig(size=SIZE, steps=(AugmentStep("flip", {"chance": 0.5}),)))
    with pytest.raises(ConfigError, match=r"step 'flip' does not take \{'chance': 0\.5\}"):
        augmenter(image(), 0)


def test_a_pipeline_of_the_user_comes_back_to_the_same_pixels():
    own = A.Compose([A.RandomResizedCrop(size=SIZE, scale=(0.3, 1.0)), A.HorizontalFlip(p=0.5), A.Rotate(limit=20)])
    recipe = PreprocessConfig(size=SIZE, compose=compose_to_dict(own))
    stored = from_dict(PreprocessConfig, json.loads(json.dumps(to_dict(recipe))))
    seen = set()
    for seed in range(8):
        own.set_random_seed(seed)
        expected = own(image=image())["image"]
        assert (Augmenter(recipe)(image(), seed) == expected).all()
        assert (Augmenter(stored)(image(), seed) == expected).all()
        seen.add(expected.tobytes())
    assert len(seen) > 4


@pytest.mark.parametrize(
    ("transform", "got"),
    [(A.Normalize(), "float32"), (A.ToFloat(), "float32"), (A.Resize(10, 10), "uint8 .10, 10, 3.")],
)
def test_a_pipeline_that_gives_something_else_is_refused(transform, got):
    with pytest.raises(ConfigError, match=rf"must give uint8 pixels of shape \(12, 16, 3\), it gave {got}"):
        Augmenter(composed(transform))(image(), 0)


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(ConfigError, match=r"augment is HorizontalFlip; allowed: a preset's name or an albumentations"):
        compose_to_dict(A.HorizontalFlip())


def test_a_pipeline_that_cannot_be_stored_is_refused():
    with pytest.raises(ConfigError, match="cannot be stored with the model"), pytest.warns(UserWarning, match="ambda"):
        compose_to_dict(A.Compose([A.Lambda(image=lambda pixels, **_: pixels)]))


def test_the_library_is_kept_from_the_network_and_loaded_only_when_it_is_needed():
    code = (
        "import os, sys; import imgclf.transforms.albumentations_pipeline as a\n"
        "from imgclf.core.config import PreprocessConfig, AugmentStep\n"
        "assert 'albumentations' not in sys.modules and 'NO_ALBUMENTATIONS_UPDATE' not in os.environ\n"
        "import numpy as np\n"
        "steps = (AugmentStep('flip', {'p': 1.0}),)\n"
        "a.Augmenter(PreprocessConfig(size=(4, 4), steps=steps))(np.zeros((4, 4, 3), np.uint8), 0)\n"
        "assert 'albumentations' in sys.modules and os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
