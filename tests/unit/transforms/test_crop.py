"""Crops for training: the right part, at the right size, into memory that is there already."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.transforms import crop
from imgclf.transforms.crop import crop_decode_size, crop_resize, kept_side, shrink, takes_whole_image
from imgclf.transforms.preprocess import to_channels

sides = st.integers(1, 300)
SIZE = (12, 16)
WHOLE = (0.0, 0.0, 1.0, 1.0)


@st.composite
def boxes(draw, least=0.001):
    height, width = draw(st.floats(least, 1)), draw(st.floats(least, 1))
    return draw(st.floats(0, 1 - height)), draw(st.floats(0, 1 - width)), height, width


def smooth(height, width, channels=3):
    """The value says where in the image a pixel lies, whatever the size of the image."""
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None, :] + 0.5) / width
    planes = [y + 0 * x, x + 0 * y, (x + y) / 2]
    return np.rint(np.stack([planes[c % 3] for c in range(channels)], axis=2) * 255).astype(np.uint8)


def cropped(pixels, box, size, channels=None):
    out = np.empty((*size, channels or pixels.shape[2]), np.uint8)
    crop_resize(pixels, box, out)
    return out


@given(sides, sides, st.sampled_from([1, 2, 3, 4, 7, 64]), st.tuples(st.integers(1, 40), st.integers(1, 40)), boxes())
def test_one_color_stays_one_color_whatever_the_shape(height, width, channels, size, box):
    pixels = np.full((height, width, channels), 77, np.uint8)
    pixels.flags.writeable = False
    assert (cropped(pixels, box, size) == 77).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (70000, 1)])
def test_a_line_of_pixels_is_an_image_too(shape):
    for box in (WHOLE, (0.0, 0.0, 1e-6, 1e-6), (0.999999, 0.999999, 1e-6, 1e-6)):
        assert (cropped(np.full((*shape, 3), 200, np.uint8), box, (8, 12)) == 200).all()


def test_only_the_row_that_was_given_is_written():
    batch = np.zeros((3, 6, 5, 3), np.uint8)
    crop_resize(np.full((20, 30, 3), 9, np.uint8), WHOLE, batch[1])
    assert (batch[1] == 9).all()
    assert not batch[[0, 2]].any()


@given(st.integers(30, 300), st.integers(30, 300), st.tuples(st.integers(2, 60), st.integers(2, 60)), boxes(0.1))
def test_the_part_is_that_of_pillow(height, width, size, box):
    pixels = smooth(height, width)
    top, left, rows, columns = np.array(box) * (height, width, height, width)
    theirs = Image.fromarray(pixels).resize(
        size[::-1], Image.Resampling.BILINEAR, box=(left, top, left + columns, top + rows)
    )
    # Whole pixels move an edge by half a pixel of the image; a halving, by half a pixel of the result.
    allowed = 255 * (1 / min(height, width) + 0.5 * max(box[2] / size[0], box[3] / size[1])) + 2
    away = np.abs(cropped(pixels, box, size).astype(int) - np.asarray(theirs))
    assert away.max() <= allowed


@given(boxes(0.2), st.sampled_from([1, 2, 4, 8]))
def test_the_same_region_is_taken_at_any_scale_of_decoding(box, scale):
    full, small = smooth(480, 640), smooth(480 // scale, 640 // scale)
    away = np.abs(cropped(full, box, (24, 24)).astype(int) - cropped(small, box, (24, 24)))
    assert away.max() <= 255 * (1.1 * scale / 480 + max(box[2:]) / 24) + 2


@pytest.mark.parametrize("factor", [2, 3, 4, 7, 8.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_shrinking_averages_and_does_not_pick(factor, axis):
    side = round(32 * factor)
    stripes = np.zeros((side, side, 1), np.uint8)
    stripes[(slice(None),) * axis + (slice(None, None, 2),)] = 255
    assert np.abs(cropped(stripes, WHOLE, (32, 32)).astype(int) - 127).max() <= 3
    one_axis = (32, side) if axis == 0 else (side, 32)
    assert np.abs(cropped(stripes, WHOLE, one_axis).astype(int) - 127).max() <= 3


def test_an_exact_half_is_the_mean_of_four_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    means = pixels.reshape(32, 2, 24, 2, 3).mean(axis=(1, 3))
    assert np.abs(cropped(pixels, WHOLE, (32, 24)) - means).max() <= 0.5


@given(st.integers(5, 100), st.integers(5, 100), st.sampled_from([2, 3, 5, 64]), boxes())
def test_each_of_many_channels_is_resized_like_a_gray_image(height, width, channels, box):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, channels), dtype=np.uint8)
    alone = [cropped(np.ascontiguousarray(pixels[..., c : c + 1]), box, (9, 11)) for c in range(channels)]
    # OpenCV has a path of its own for each number of channels; they round differently.
    assert np.abs(cropped(pixels, box, (9, 11)).astype(int) - np.concatenate(alone, axis=2)).max() <= 2


def test_other_channels_follow_the_rule_of_evaluation():
    color, gray = smooth(40, 60), smooth(40, 60, 1)
    assert np.array_equal(cropped(gray, WHOLE, (8, 8), 3), np.repeat(cropped(gray, WHOLE, (8, 8)), 3, axis=2))
    assert np.array_equal(cropped(color, WHOLE, (8, 8), 1), to_channels(cropped(color, WHOLE, (8, 8)), 1))


@given(boxes(), st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_what_is_decoded_leaves_the_box_its_pixels(box, size):
    height, width = crop_decode_size(box, size)
    assert height * box[2] >= size[0] - 1e-6
    assert width * box[3] >= size[1] - 1e-6
    assert (height - 1) * box[2] < size[0]


@given(sides, sides, st.integers(1, 200), st.sampled_from([1, 3, 5]))
def test_kept_images_keep_their_ratio_and_never_grow(height, width, side, channels):
    pixels = smooth(height, width, channels)
    kept = shrink(pixels, side)
    if min(height, width) <= side:
        assert kept is pixels
        return
    assert min(kept.shape[:2]) == side
    assert abs(max(kept.shape[:2]) - max(height, width) * side / min(height, width)) <= 0.5
    assert kept.shape[2] == channels


def test_kept_images_are_antialiased():
    stripes = np.zeros((128, 128, 1), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(shrink(stripes, 32)[:, 1:-1].astype(int) - 127).max() <= 3


def test_the_kept_side_leaves_room_for_crops():
    assert kept_side(PreprocessConfig(size=(224, 224))) == 258
    assert kept_side(PreprocessConfig(size=(32, 64))) == 74


def test_opencv_starts_no_threads():
    import cv2

    cv2.setNumThreads(2)
    crop._cv2.cache_clear()
    crop_resize(smooth(8, 8), WHOLE, np.empty((4, 4, 3), np.uint8))
    assert cv2.getNumThreads() == 1


def test_a_random_crop_is_taken_from_the_whole_image():
    steps = (AugmentStep("resized_crop", {"scale": [0.1, 0.1], "ratio": [1.0, 1.0]}),)
    assert takes_whole_image(PreprocessConfig(size=SIZE, steps=steps))


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
