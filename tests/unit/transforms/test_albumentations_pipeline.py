"""Augmentation by albumentations, reseeded for each image."""

import json
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import numpy as np
import pytest

from imgclf.core.config import PreprocessConfig, from_dict, to_dict
from imgclf.core.errors import ConfigError
from imgclf.transforms.albumentations_pipeline import Augmenter, compose_to_dict

SIZE = (12, 16)


def image(height=12, width=16):
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def composed(*transforms):
    return PreprocessConfig(size=SIZE, compose=compose_to_dict(A.Compose(list(transforms))))


def test_each_image_is_reseeded_whatever_came_before_and_in_whatever_thread():
    augmenter = Augmenter(composed(A.RandomResizedCrop(SIZE), A.ColorJitter(), A.Erasing()))
    alone = [augmenter(image(), seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: augmenter(image(), seed), reversed(range(12))))
    assert all((a == b).all() for a, b in zip(alone, reversed(together), strict=True))


def test_augmenting_leaves_the_image_as_it_is():
    pixels = image()
    Augmenter(composed(A.RandomResizedCrop(SIZE), A.ColorJitter(), A.Erasing(p=1)))(pixels, 1)
    assert (pixels == image()).all()


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
    with pytest.raises(ConfigError, match=rf"must return uint8 pixels of shape \(12, 16, 3\), it returned {got}"):
        Augmenter(composed(transform))(image(), 0)


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(ConfigError, match=r"augment is HorizontalFlip; allowed: a preset's name or an albumentations"):
        compose_to_dict(A.HorizontalFlip())


def test_a_pipeline_that_cannot_be_stored_is_refused():
    with pytest.raises(ConfigError, match="cannot be stored with the model"), pytest.warns(UserWarning, match="ambda"):
        compose_to_dict(A.Compose([A.Lambda(image=lambda pixels, **_: pixels)]))
