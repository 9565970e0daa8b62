"""TrivialAugment: each operation against PIL's or albumentations' own, one by one; and which ones come up how often."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.transforms import ops_cpu, ops_torch, steps
from imgclf.transforms.steps import augment
from imgclf.transforms.trivial_augment import OPERATIONS, RECOLORING, Space, alter

FAR = {"shear": 0.3, "shift": 0.2, "rotate": 30, "factor": 0.9}
SPACE = Space(**FAR)
SAME = 0.001  # the p-value below which a sample is held to differ
N = 4000
KEYS = np.random.default_rng(1).integers(0, 2**64 - 1, N, dtype=np.uint64)
BOTH = pytest.mark.parametrize("ops", [ops_cpu, ops_torch])
HOW_MUCH = pytest.mark.parametrize("strength", [-1.0, -0.6, -0.1, 0.0, 0.35, 0.99])
PIL = {
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "saturation": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


def photo(height=60, width=80, channels=3):
    """Smooth, and without the darkest and the brightest levels: there is something to stretch."""
    noise = np.random.default_rng(2).normal(120, 300, (height, width, channels))
    return cv2.GaussianBlur(noise, (0, 0), 2).reshape(height, width, channels).clip(20, 230).astype(np.uint8)


def by(ops, operation, strength, pixels, space=SPACE):
    """One image changed by one operation."""
    numbers = np.array([[(OPERATIONS.index(operation) + 0.5) / len(OPERATIONS)], [(strength + 1) / 2]])
    return alter(ops, torch.from_numpy(pixels)[None], numbers, space)[0].numpy()


@BOTH
@HOW_MUCH
@pytest.mark.parametrize("operation", PIL)
def test_levels_and_colors_change_as_by_pil(ops, operation, strength):
    ours = by(ops, operation, strength, photo()).astype(int)
    theirs = np.asarray(PIL[operation](Image.fromarray(photo()), strength)).astype(int)
    if operation == "sharpness":  # PIL leaves the outermost pixels as they are
        ours, theirs = ours[1:-1, 1:-1], theirs[1:-1, 1:-1]
    assert abs(ours - theirs).max() <= (0 if operation in ("posterize", "solarize", "equalize") else 2)


@BOTH
@HOW_MUCH
def test_an_image_is_turned_about_its_center(ops, strength):
    matrix = cv2.getRotationMatrix2D((39.5, 29.5), 30 * strength, 1)
    theirs = cv2.warpAffine(photo(), matrix, (80, 60), borderMode=cv2.BORDER_REPLICATE).astype(int)
    assert abs(by(ops, "rotate", strength, photo()) - theirs).max() <= 2


@BOTH
@HOW_MUCH
@pytest.mark.parametrize("operation", ["shear_x", "shear_y"])
def test_an_image_is_sheared_about_its_center(ops, operation, strength):
    slope = 0.3 * strength
    matrix = (
        [[1, slope, -slope * 29.5], [0, 1, 0]] if operation == "shear_x" else [[1, 0, 0], [slope, 1, -slope * 39.5]]
    )
    theirs = cv2.warpAffine(photo(), np.array(matrix), (80, 60), borderMode=cv2.BORDER_REPLICATE).astype(int)
    assert abs(by(ops, operation, strength, photo()) - theirs).max() <= 2


@BOTH
@HOW_MUCH
@pytest.mark.parametrize(("operation", "axis", "side"), [("translate_x", 1, 80), ("translate_y", 0, 60)])
def test_an_image_is_shifted_by_whole_pixels_and_its_border_is_continued(ops, operation, axis, side, strength):
    shift = int(np.trunc(0.2 * side * strength + 1e-9 * np.sign(strength)))
    places = (np.arange(side) - shift).clip(0, side - 1)
    assert (by(ops, operation, strength, photo()) == photo().take(places, axis)).all()


@BOTH
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_identity_is_a_copy(ops, channels):
    pixels = photo(channels=channels)
    out = by(ops, "identity", 0.7, pixels)
    assert (out == pixels).all()
    assert not np.shares_memory(out, pixels)


@BOTH
@pytest.mark.parametrize("operation", ["autocontrast", "equalize"])
def test_an_image_of_one_level_has_nothing_to_stretch(ops, operation):
    flat = np.full((9, 9, 2), 77, np.uint8)
    assert (by(ops, operation, 0.5, flat) == flat).all()


@BOTH
@pytest.mark.parametrize("channels", [1, 5])
def test_without_colors_there_are_tones(ops, channels):
    pixels = photo(channels=channels)
    assert (by(ops, "saturation", 1.0, pixels) == pixels).all()
    assert abs(by(ops, "brightness", -0.5, pixels) - 0.55 * pixels).max() <= 0.51
    assert abs(by(ops, "contrast", -0.5, pixels) - (127.5 + 0.55 * (pixels - 127.5))).max() <= 0.51


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_both_kinds_of_operations_give_the_same_pixels_and_leave_theirs_as_they_are(channels):
    pixels = torch.from_numpy(np.stack([photo(channels=channels)] * 200))
    before, numbers = pixels.clone(), np.random.default_rng(3).random((2, 200))
    first, second = (alter(ops, pixels, numbers, SPACE) for ops in (ops_cpu, ops_torch))
    assert abs(first.int() - second.int()).max() <= 2
    assert (pixels == before).all()


class Spy:
    """In the place of the operations: writes down their names and parameters, and changes nothing."""

    def __init__(self):
        self.calls = {}

    def histograms(self, pixels):
        return torch.zeros((len(pixels), 3, 256), dtype=torch.int64)

    def __getattr__(self, name):
        def operation(pixels, *parameters):
            self.calls.setdefault(name, []).append(parameters)
            return pixels

        return operation


@pytest.fixture
def parameters(monkeypatch):
    """What `augment` draws for N images by the step: operation → its parameters at each call."""

    def draw(**more):
        spy = Spy()
        monkeypatch.setattr(steps, "_ops", lambda pixels: spy)
        recipe = PreprocessConfig(size=(40, 60), steps=(AugmentStep("trivial", {**FAR, **more}),))
        augment(torch.zeros((1, 1, 1, 1), dtype=torch.uint8).expand(N, 40, 60, 3), recipe, 0, 1, KEYS)
        return spy.calls

    return draw


def test_all_operations_are_as_likely_and_all_strengths(parameters):
    calls = parameters()
    ((matrices,),) = calls["warp"]
    (factors,) = calls["color"]
    ((sharpness,),) = calls["sharpen"]
    (masks,), (stretches,) = calls["lookup"]
    counts = [len(matrices), len(factors[0]), len(sharpness), len(masks), len(stretches)]
    expected = N * np.array([5, 3, 1, 2, 2]) / len(OPERATIONS)
    assert stats.chisquare([*counts, N - sum(counts)], [*expected, N - expected.sum()]).pvalue > SAME
    uniform = stats.uniform(0.1, 1.8).cdf
    for factor in (*factors, sharpness):
        drawn = factor[factor != 1]
        assert stats.binomtest(len(drawn), N, 1 / len(OPERATIONS)).pvalue > SAME
        assert stats.kstest(drawn, uniform).pvalue > SAME
    shears = matrices[(matrices[:, 0, 0] == 1) & (matrices[:, 0, 1] != 0), 0, 1]
    assert stats.kstest(shears, stats.uniform(-0.3, 0.6).cdf).pvalue > SAME


def test_where_colors_carry_meaning_each_channel_keeps_its_share(parameters):
    calls = parameters(recolor=False)
    assert set(calls) == {"warp", "color", "sharpen"}
    ((brightness, contrast, saturation),) = calls["color"]
    assert (saturation == 1).all()
    left = len(OPERATIONS) - len(RECOLORING)
    assert stats.binomtest(int((brightness != 1).sum()), N, 1 / left).pvalue > SAME
    assert stats.binomtest(int((contrast != 1).sum()), N, 1 / left).pvalue > SAME


@pytest.mark.parametrize("params", [{}, {**FAR, "p": 0.5}])
def test_a_parameter_that_is_none_or_missing(params):
    recipe = PreprocessConfig(size=(60, 80), steps=(AugmentStep("trivial", params),))
    with pytest.raises(ConfigError, match="step 'trivial' does not take "):
        augment(torch.from_numpy(photo())[None], recipe, 0, 0, KEYS[:1])
