"""Evaluation pixels: the same for valid, test and predict."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgclf.core.config import INTERPOLATIONS, RESIZE_MODES, PreprocessConfig
from imgclf.core.errors import DataError
from imgclf.models.backbones import find_arch
from imgclf.transforms.preprocess import decode_size, mean_color, prepare, to_channels, to_input

CPU = torch.device("cpu")


def smooth(height, width, channels=3):
    """An image without edges, in which a shift by a pixel changes little and a wrong crop much."""
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    planes = [(1 + np.sin(3 * y + c) * np.cos(2 * x - c)) * 127 for c in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8)


def noise(height, width, channels=3):
    rng = np.random.default_rng([height, width, channels])
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def photo(height, width):
    """Patches of colors, with edges that show a shift of a fraction of a pixel."""
    rng = np.random.default_rng([height, width])
    small = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def recipe_of(arch):
    mean, std = (values * (3 // len(values)) for values in (arch.mean, arch.std))
    return PreprocessConfig(arch.size, 3, arch.resize_mode, arch.interpolation, arch.crop_pct, mean, std)


SHAPES = [(375, 500), (500, 333), (481, 480), (299, 701), (224, 224), (100, 80)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "name",
    [
        "resnet18.a1_in1k",
        "mobilenetv3_small_100",
        "vit_base_patch16_224",
        "dm_nfnet_f0",  # squashed, and the edges cut off
        "coat_tiny",
        "vit_base_patch16_siglip_224",  # squashed
        "deepseek_vit_412m",  # with a border of the mean color
        "volo_d4_448",  # with a black border
        "csatv2",
    ],
)
def test_evaluation_pixels_are_those_of_timm(name, shape):
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg

    config = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg(name).to_dict())
    image = photo(*shape)
    theirs = np.asarray(create_transform(**config, normalize=False)(image)).transpose(1, 2, 0).astype(int)
    difference = np.abs(prepare(np.asarray(image), recipe_of(find_arch(name))) - theirs)
    assert difference.max() <= 2, "Pillow may take the two directions in another order"
    assert difference.mean() < 0.25


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "efficientnet_b1", "vit_b_16", "swin_t"])
def test_evaluation_pixels_are_those_of_torchvision(name, shape):
    from torchvision.models import get_model_weights
    from torchvision.transforms import functional

    preset, image = get_model_weights(name).DEFAULT.transforms(), photo(*shape)
    resized = functional.resize(image, preset.resize_size, preset.interpolation)
    theirs = np.asarray(functional.center_crop(resized, preset.crop_size)).astype(int)
    difference = np.abs(prepare(np.asarray(image), recipe_of(find_arch(f"torchvision:{name}"))) - theirs)
    assert difference.max() <= 2
    assert difference.mean() < 0.25


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.3])
def test_sizes_that_are_no_square_are_those_of_timm(resize_mode, ratio):
    from timm.data import create_transform

    mode, image = {"crop": "center", "squash": "squash", "pad": "border"}[resize_mode], photo(120, 150)
    recipe = PreprocessConfig((48, 96), 3, resize_mode, "bicubic", ratio, (0.2, 0.4, 0.6))
    transform = create_transform(
        (3, 48, 96), crop_mode=mode, crop_pct=ratio, interpolation="bicubic", mean=recipe.mean, normalize=False
    )
    theirs = np.asarray(transform(image)).transpose(1, 2, 0).astype(int)
    assert np.abs(prepare(np.asarray(image), recipe) - theirs).max() <= 2


def test_a_crop_cuts_the_longer_side_on_both_ends_alike():
    pixels = np.zeros((10, 30, 1), np.uint8)
    pixels[:, 10:20] = 200
    assert (prepare(pixels, PreprocessConfig(size=(10, 10), channels=1)) == 200).all()
    assert (prepare(pixels.swapaxes(0, 1), PreprocessConfig(size=(10, 10), channels=1)) == 200).all()


def test_a_crop_pct_keeps_that_share_of_the_side():
    pixels = np.zeros((32, 32, 1), np.uint8)
    pixels[8:24, 8:24] = 200
    assert (
        prepare(pixels, PreprocessConfig(size=(8, 8), channels=1, crop_pct=0.5, interpolation="nearest")) == 200
    ).all()


def test_padding_keeps_the_whole_image_between_the_mean_color():
    recipe = PreprocessConfig(size=(8, 16), resize_mode="pad", mean=(0.2, 0.4, 2.0), interpolation="nearest")
    result = prepare(np.full((20, 20, 3), 9, np.uint8), recipe)
    assert (result[:, 4:12] == 9).all()
    assert mean_color(recipe) == [51, 102, 255]
    assert (result[:, :4] == [51, 102, 255]).all()
    assert (result[:, 12:] == [51, 102, 255]).all()


def test_squashing_keeps_every_part_of_the_image():
    pixels = np.zeros((8, 32, 1), np.uint8)
    pixels[:, 16:] = 200
    result = prepare(pixels, PreprocessConfig(size=(8, 8), channels=1, resize_mode="squash", interpolation="nearest"))
    assert (result[:, :4] == 0).all()
    assert (result[:, 4:] == 200).all()


sides = st.integers(1, 40)


@given(
    sides,
    sides,
    st.sampled_from([1, 3]),
    st.tuples(sides, sides),
    st.sampled_from(RESIZE_MODES),
    st.sampled_from(INTERPOLATIONS),
    st.floats(0.1, 1),
)
def test_an_image_of_any_shape_comes_out_at_the_size(height, width, channels, size, resize_mode, kernel, ratio):
    recipe = PreprocessConfig(size=size, resize_mode=resize_mode, interpolation=kernel, crop_pct=ratio)
    pixels = np.full((height, width, channels), 77, np.uint8)
    result = prepare(pixels, recipe)
    assert result.shape == (*size, 3)
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {77, 128}, "one color stays one color; padding has the mean's"
    assert resize_mode == "pad" or (result == 77).all()


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_a_line_of_pixels_is_an_image_too(resize_mode, shape):
    result = prepare(np.full((*shape, 1), 200, np.uint8), PreprocessConfig(size=(8, 12), resize_mode=resize_mode))
    assert result.shape == (8, 12, 3)
    assert (result == 200).any()


@given(sides, sides, st.integers(1, 6), st.sampled_from(RESIZE_MODES))
def test_an_image_of_the_right_size_is_untouched(height, width, channels, resize_mode):
    pixels = noise(height, width, channels)
    assert (
        prepare(pixels, PreprocessConfig(size=(height, width), channels=channels, resize_mode=resize_mode)) == pixels
    ).all()


def test_each_of_many_channels_is_resized_like_a_gray_image():
    pixels = smooth(20, 30, 5)
    recipe = PreprocessConfig(size=(8, 8), channels=5)
    alone = [prepare(pixels[..., c : c + 1], PreprocessConfig(size=(8, 8), channels=1)) for c in range(5)]
    assert (prepare(pixels, recipe) == np.concatenate(alone, axis=2)).all()


def test_shrinking_averages_and_does_not_pick():
    stripes = np.zeros((32, 32, 1), np.uint8)
    stripes[:, ::2] = 255
    result = prepare(stripes, PreprocessConfig(size=(8, 8), channels=1))
    assert np.abs(result[:, 1:-1].astype(int) - 127).max() <= 3


def test_gray_becomes_color_by_repetition():
    gray = noise(3, 4, 1)
    for channels in (2, 3, 5):
        assert (to_channels(gray, channels) == gray).all()
        assert to_channels(gray, channels).shape == (3, 4, channels)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_color_becomes_gray_by_the_luma_of_pillow(color):
    pixels = np.full((1, 1, 3), color, np.uint8)
    pillow = Image.fromarray(pixels).convert("L").getpixel((0, 0))
    assert abs(int(to_channels(pixels, 1)[0, 0, 0]) - pillow) <= 1


def test_white_and_grays_keep_their_value():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert (to_channels(ramp, 1)[0, :, 0] == np.arange(256)).all()


@pytest.mark.parametrize(("have", "want"), [(3, 4), (4, 3), (2, 1), (5, 3)])
def test_other_channels_have_no_rule(have, want):
    with pytest.raises(
        DataError, match=f"an image has {have} channels, which can't be converted to the {want} of the model"
    ):
        prepare(noise(4, 4, have), PreprocessConfig(size=(4, 4), channels=want))


@given(st.sampled_from([1, 3, 4]), st.data())
def test_the_input_is_normalized(channels, data):
    numbers = st.tuples(*[st.floats(0.1, 2)] * channels)
    recipe = PreprocessConfig(size=(5, 6), channels=channels, mean=data.draw(numbers), std=data.draw(numbers))
    pixels = np.stack([noise(5, 6, channels), noise(6, 5, channels).reshape(5, 6, channels)])
    result = to_input(torch.from_numpy(pixels), recipe, CPU)
    expected = (pixels / 255 - np.array(recipe.mean)) / np.array(recipe.std)
    assert result.dtype == torch.float32
    assert result.shape == (2, channels, 5, 6)
    np.testing.assert_allclose(result.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_the_input_lies_in_channels_last_memory():
    batch = torch.from_numpy(np.stack([noise(5, 6), noise(6, 5).reshape(5, 6, 3)]))
    assert to_input(batch, PreprocessConfig(size=(5, 6)), CPU).is_contiguous(memory_format=torch.channels_last)


def test_a_scaled_decoding_stays_above_what_the_resize_needs():
    assert decode_size(PreprocessConfig(size=(8, 12))) == (16, 24)
    assert decode_size(PreprocessConfig(size=(8, 12), crop_pct=0.5)) == (32, 48)
