"""Augmentation of whole batches, against albumentations: the same distributions, and the same pixels for them."""

import itertools

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.augmentations.geometric.functional import warp_affine
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.transforms import ops_cpu, ops_torch, steps
from imgclf.transforms.presets import PRESETS, preset_steps
from imgclf.transforms.steps import augment, blend, crop_boxes

N = 3000
KEYS = np.random.default_rng(1).integers(0, 2**64 - 1, N, dtype=np.uint64)
SIZE = (12, 16)
JITTER = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
AFFINE = {"shift": 0.2, "rotate": 15, "scale": [0.8, 1.3]}
SAME = 0.001  # the p-value below which two samples are held to differ; all seeds are fixed


def images(n=8, height=12, width=16, channels=3, low=0, high=256):
    shape = (n, height, width, channels)
    return torch.from_numpy(np.random.default_rng(5).integers(low, high, shape, dtype=np.uint8))


def recipe_of(op, channels=3, size=SIZE, **params):
    return PreprocessConfig(size=size, channels=channels, steps=(AugmentStep(op, params),))


def one_step(pixels, op, *, epoch=0, keys=None, **params):
    keys = KEYS[: len(pixels)] if keys is None else keys
    return augment(pixels, recipe_of(op, pixels.shape[3], tuple(pixels.shape[1:3]), **params), 3, epoch, keys)


class Spy:
    """In the place of the operations: writes down the parameters and changes nothing."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def operation(pixels, *parameters):
            self.calls.append((name, *parameters))
            return pixels

        return operation


@pytest.fixture
def parameters(monkeypatch):
    """The parameters that `augment` draws for N images by one step: a list of (operation, parameters …)."""

    def draw(op, height=40, width=60, channels=3, **params):
        spy = Spy()
        monkeypatch.setattr(steps, "_ops", lambda pixels: spy)
        one_step(torch.zeros((1, 1, 1, 1), dtype=torch.uint8).expand(N, height, width, channels), op, **params)
        return spy.calls

    return draw


def albumentations_transform(op, size, channels, **params):
    """The transform of albumentations that a step follows."""
    if op == "resized_crop":
        return A.RandomResizedCrop(size, params["scale"], params["ratio"], interpolation=cv2.INTER_AREA, p=1)
    if op == "affine":
        shift, rotate = (-params["shift"], params["shift"]), (-params["rotate"], params["rotate"])
        moves = {"translate_percent": {"x": shift, "y": shift}, "rotate": rotate, "scale": tuple(params["scale"])}
        return A.Affine(**moves, border_mode=cv2.BORDER_REPLICATE, p=1)
    if op == "erase":
        return A.Erasing(scale=tuple(params["scale"]), fill="random_uniform", p=params["p"])
    factors = [params[name] for name in ("brightness", "contrast", "saturation")]
    if channels != 3:
        return A.RandomBrightnessContrast(*factors[:2], p=1)
    return A.ColorJitter(*[(1 - part, 1 + part) for part in factors], (-params["hue"], params["hue"]), p=1)


def theirs(op, height=40, width=60, channels=3, **params):
    """The parameters that albumentations draws, N times."""
    transform = albumentations_transform(op, (height, width), channels, **params)
    transform.set_random_seed(7)
    shape = {"shape": (height, width, channels)}
    data = {"image": np.zeros((height, width, channels), np.uint8)}
    return [transform.get_params() | transform.get_params_dependent_on_data(shape, data) for _ in range(N)]


def assert_same_numbers(ours, others):
    """Of real numbers: Kolmogorov and Smirnov's test for two samples."""
    assert stats.ks_2samp(np.asarray(ours, float), np.asarray(others, float)).pvalue > SAME


def assert_same_counts(ours, others):
    """Of a few whole numbers: the chi-squared test for two samples."""
    ours, others = np.asarray(ours).astype(int), np.asarray(others).astype(int)
    values = np.union1d(ours, others)
    table = [[(given == value).sum() for value in values] for given in (ours, others)]
    assert len(values) > 1
    assert stats.chi2_contingency(table).pvalue > SAME


# Distributions


def test_as_many_are_mirrored(parameters):
    ((_, chosen),) = parameters("flip", p=0.3)
    assert stats.binomtest(int(chosen.sum()), N, 0.3).pvalue > SAME


def test_windows_lie_as_in_albumentations(parameters):
    ((_, padding, top, left, _),) = parameters("random_crop", padding=4)
    assert padding == 4
    boxes = np.array([p["crop_coords"] for p in _crops(48, 68)])
    assert_same_counts(top, boxes[:, 1])
    assert_same_counts(left, boxes[:, 0])
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.07


def _crops(height, width):
    transform = A.RandomCrop(height - 8, width - 8)
    transform.set_random_seed(7)
    return [transform.get_params_dependent_on_data({"shape": (height, width, 3)}, {}) for _ in range(N)]


def test_images_are_moved_as_in_albumentations(parameters):
    ((_, ours),) = parameters("affine", **AFFINE)
    others = np.array([p["matrix"][:2] for p in theirs("affine", **AFFINE)])
    ours, others = _moves(ours), _moves(others)
    assert_same_counts(ours["x"], others["x"])
    assert_same_counts(ours["y"], others["y"])
    for name in ("angle", "wide", "high"):
        assert_same_numbers(ours[name], others[name])
    assert abs(np.corrcoef(list(ours.values()))[np.triu_indices(5, 1)]).max() < 0.07


def _moves(matrices, height=40, width=60):
    """What a matrix does: the shift of the center, the angle, both scales."""
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = matrices[:, :, :2] @ center + matrices[:, :, 2] - center
    angle = np.arctan2(-matrices[:, 1, 0], matrices[:, 0, 0])
    wide, high = np.hypot(*matrices[:, :, 0].T), np.hypot(*matrices[:, :, 1].T)
    assert abs(shift - np.rint(shift)).max() < 1e-6
    return {"x": np.rint(shift[:, 0]), "y": np.rint(shift[:, 1]), "angle": angle, "wide": wide, "high": high}


def test_colors_change_as_in_albumentations(parameters):
    (_, *first), (_, turn), (_, *rest) = parameters("color_jitter", **JITTER)
    others = theirs("color_jitter", **JITTER)
    for name, before, after in zip(JITTER, first, rest, strict=False):
        assert ((before == 1) | (after == 1)).all()
        assert_same_numbers(before * after, [p[name] for p in others])
    assert_same_numbers(turn, [p["hue"] for p in others])
    order = [[p["order"].index(i) < p["order"].index(3) for i in range(3)] for p in others]
    assert_same_counts(_code(np.array(first).T != 1), _code(order))


def _code(before):
    """Which of the three factors come before the hue, as one number."""
    return np.asarray(before) @ np.array([1, 2, 4])


def test_without_a_hue_there_is_one_pass(parameters):
    assert [name for name, *_ in parameters("color_jitter", **JITTER | {"hue": 0})] == ["color"]


def test_tones_change_as_in_albumentations(parameters):
    ((name, gain, offset),) = parameters("color_jitter", channels=1, **JITTER)
    others = theirs("color_jitter", channels=1, **JITTER)
    assert name == "tone"
    assert_same_numbers(gain, [p["alpha"] for p in others])
    assert_same_numbers(offset, [p["beta"] for p in others])
    assert abs(np.corrcoef(gain, offset)[0, 1]) < 0.07


@pytest.mark.parametrize(("height", "width"), [(40, 60), (9, 30)])
def test_rectangles_are_erased_as_in_albumentations(parameters, height, width):
    ((_, boxes, values),) = parameters("erase", height=height, width=width, scale=[0.02, 0.2], p=1.0)
    holes = np.concatenate([p["holes"] for p in theirs("erase", height, width, scale=[0.02, 0.2], p=1.0)])
    assert len(holes) == N
    for ours, others in zip(boxes.T, holes[:, [1, 0, 3, 2]].T, strict=True):
        assert_same_counts(ours // 3, others // 3)
    area = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, holes)]
    assert_same_counts(area[0] // (height * width // 50), area[1] // (height * width // 50))
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [height, width]).all()
    colors = values.numpy().reshape(N, 3)
    assert stats.chisquare(np.bincount(colors.ravel(), minlength=256)).pvalue > SAME
    assert abs(np.corrcoef(colors.T)[np.triu_indices(3, 1)]).max() < 0.07


def test_as_many_are_erased(parameters):
    ((_, boxes, _),) = parameters("erase", scale=[0.02, 0.2], p=0.25)
    assert stats.binomtest(int((boxes[:, 2] > 0).sum()), N, 0.25).pvalue > SAME


def test_where_nothing_fits_nothing_is_erased(parameters):
    ((_, boxes, _),) = parameters("erase", height=4, width=60, scale=[0.5, 0.9], p=1.0)
    assert all(p["holes"].size == 0 for p in theirs("erase", 4, 60, scale=[0.5, 0.9], p=1.0)[:50])
    assert not boxes.any()


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (4000, 3000), (1000, 4000), (4000, 1000)])
def test_crops_lie_as_in_albumentations(height, width):
    params = {"scale": [0.25, 1.0], "ratio": [0.75, 4 / 3]}
    ours = crop_boxes(AugmentStep("resized_crop", params), 0, 5, KEYS, np.full((N, 2), [height, width]))
    coords = np.array([p["crop_coords"] for p in theirs("resized_crop", height, width, **params)])
    left, top, right, bottom = coords.T / np.array([[width], [height], [width], [height]])
    for mine, other in zip(ours.T, (top, left, bottom - top, right - left), strict=True):
        assert_same_numbers(mine.round(3), other.round(3))
    assert_same_numbers((ours[:, 2] * ours[:, 3]).round(3), ((bottom - top) * (right - left)).round(3))
    assert (ours >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= 1 + 1e-12).all()


def test_a_crop_is_the_same_part_at_any_scale_and_in_any_batch():
    step = AugmentStep("resized_crop", {"scale": [0.1, 1.0], "ratio": [0.5, 2.0]})
    shapes = np.array([[300, 400], [100, 900], [77, 33]])
    whole = crop_boxes(step, 1, 2, KEYS[:3], shapes)
    assert (crop_boxes(step, 1, 2, KEYS[:3], shapes * 4) == whole).all()
    assert all((crop_boxes(step, 1, 2, KEYS[[i]], shapes[[i]])[0] == whole[i]).all() for i in range(3))
    assert (crop_boxes(step, 1, 3, KEYS[:3], shapes) != whole).any()


def test_where_no_box_fits_the_largest_in_the_center_is_taken():
    step = AugmentStep("resized_crop", {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]})
    boxes = crop_boxes(step, 0, 0, KEYS[:3], np.array([[100, 400], [400, 100], [50, 50]]))
    assert boxes == pytest.approx(np.array([[0, 0.375, 1, 0.25], [0.375, 0, 0.25, 1], [0, 0, 1, 1]]))


def test_an_image_is_mirrored_in_every_second_epoch():
    pixels = images(200)
    seen = [one_step(pixels, "alternating_flip", epoch=epoch) for epoch in range(4)]
    assert (seen[0] == seen[2]).all()
    assert (seen[1] == seen[3]).all()
    assert (seen[0].flip(2) == seen[1]).all()
    begun = (seen[0] != pixels).flatten(1).any(1).sum()
    assert stats.binomtest(int(begun), 200, 0.5).pvalue > SAME


# Pixels


def test_a_mirror_image_is_that_of_albumentations():
    pixels = images()
    expected = torch.stack([torch.from_numpy(A.HorizontalFlip(p=1)(image=p)["image"]) for p in pixels.numpy()])
    assert (one_step(pixels, "flip", p=1.0) == expected).all()
    assert (one_step(pixels, "flip", p=0.0) == pixels).all()


@pytest.mark.parametrize(("border", "mode"), [("black", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("ops", [ops_cpu, ops_torch])
def test_windows_are_crops_of_the_framed_image(monkeypatch, border, mode, ops):
    monkeypatch.setattr(steps, "_ops", lambda pixels: ops)
    pixels = images(1).expand(300, -1, -1, -1)
    framed = np.pad(pixels[0], ((3, 3), (3, 3), (0, 0)), mode=mode)
    windows = {framed[y : y + 12, x : x + 16].tobytes() for y in range(7) for x in range(7)}
    ours = {window.numpy().tobytes() for window in one_step(pixels, "random_crop", padding=3, border=border)}
    assert ours == windows


def test_a_border_that_is_none():
    with pytest.raises(ConfigError, match="'white'; allowed: black, reflect"):
        one_step(images(1), "random_crop", padding=3, border="white")


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("size", [28, 90])
def test_moved_images_are_those_of_albumentations(monkeypatch, channels, size):
    spy, pixels = Spy(), _smooth(6, size, channels)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_ops", lambda pixels: spy)
        one_step(pixels, "affine", **AFFINE)
    moved = one_step(pixels, "affine", **AFFINE)
    for image, matrix, ours in zip(pixels.numpy(), spy.calls[0][1], moved.numpy(), strict=True):
        whole = np.vstack([matrix, [0, 0, 1]])
        expected = warp_affine(image, whole, cv2.INTER_LINEAR, 0, cv2.BORDER_REPLICATE, (size, size))
        apart = abs(expected.astype(int) - ours)
        assert apart[..., :4].max() == 0
        assert apart.max() <= 1  # of more channels, albumentations moves the last two one by one


def _smooth(n, size, channels):
    noise = np.random.default_rng(2).normal(128, 300, (n, size, size, channels))
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 3).reshape(size, size, channels) for image in noise])
    return torch.from_numpy(blurred.clip(0, 255).astype(np.uint8))


def test_changed_colors_are_those_of_albumentations_where_nothing_is_clipped(monkeypatch):
    spy, pixels = Spy(), images(40, low=90, high=140)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_ops", lambda pixels: spy)
        one_step(pixels, "color_jitter", **JITTER)
    (_, *first), (_, turn), (_, *rest) = spy.calls
    ours = one_step(pixels, "color_jitter", **JITTER).numpy()
    other = A.ColorJitter(p=1)
    for i, image in enumerate(pixels.numpy()):
        before = [k for k in range(3) if first[k][i] != 1]
        order = [*before, 3, *({0, 1, 2} - set(before))]
        factors = [first[k][i] * rest[k][i] for k in range(3)]
        expected = other.apply(image, *factors, turn[i], order)
        # Albumentations rounds after each change, and mostly down; a turn of the hue of a grayish pixel adds to that.
        apart = abs(expected.astype(int) - ours[i])
        assert apart.max() <= 6
        assert apart.mean() < 1.5


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_factors_in_one_pass_are_those_one_by_one_in_any_order(order):
    pixels, factors = images(30, low=60, high=150), np.random.default_rng(3).uniform(0.8, 1.2, (3, 30))
    ours, other = ops_cpu.color(pixels, *factors).numpy(), A.ColorJitter(p=1)
    for i, image in enumerate(pixels.numpy()):
        assert abs(_one_by_one(image, factors[:, i], order) - ours[i]).max() < 0.9  # OpenCV takes 10 bits of a factor
        expected = other.apply(image, *factors[:, i], 0.0, [*order, 3])
        assert abs(expected.astype(int) - ours[i]).max() <= 3  # it rounds after each change, and mostly down


def _one_by_one(image, factors, order):
    """The factors as torchvision defines them, in real numbers."""
    values = image.astype(float)
    for k in order:
        gray = (values @ [0.299, 0.587, 0.114])[..., None]
        rest = (0.0, gray.mean(), gray)[k]
        values = values * factors[k] + rest * (1 - factors[k])
    return values


def test_changed_tones_are_those_of_albumentations():
    pixels, gain, offset = images(20, channels=2), np.linspace(0.5, 1.5, 20), np.linspace(-50, 50, 20)
    ours, other = ops_cpu.tone(pixels, gain, offset).numpy(), A.RandomBrightnessContrast(p=1)
    for i, image in enumerate(pixels.numpy()):
        assert abs(other.apply(image, gain[i], offset[i]).astype(int) - ours[i]).max() <= 1


def test_a_rectangle_of_one_color_is_erased():
    pixels = torch.zeros((200, *SIZE, 3), dtype=torch.uint8)
    out = one_step(pixels, "erase", scale=[0.2, 0.3], p=1.0).numpy()
    for image in out:
        rows, columns = np.nonzero(image.any(2))
        inside = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (inside == inside[0, 0]).all()
        assert 0.1 < len(rows) / (12 * 16) < 0.4


# Every recipe, every device


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("name", PRESETS.names())
def test_every_preset_gives_new_pixels_of_the_same_shape(name, mirror, channels):
    recipe = PreprocessConfig(size=SIZE, channels=channels, steps=preset_steps(name, mirror=mirror))
    pixels = images(channels=channels)
    before, targets = pixels.clone(), torch.arange(8)
    out = augment(pixels, recipe, 0, 1, KEYS[:8])
    mixed, mix = blend(out, targets, recipe, 0, 1, KEYS[:8])
    assert out.shape == mixed.shape == pixels.shape
    assert out.dtype == mixed.dtype == torch.uint8
    assert (pixels == before).all()
    assert (mix is None) == (name != "mix")
    if name == "none":
        assert out is pixels
    elif {"flip", "color_jitter", "affine", "random_crop"} & {step.op for step in recipe.steps}:
        assert (out != pixels).any()
        assert out.data_ptr() != pixels.data_ptr()


EVERY = (
    *(AugmentStep("random_crop", {"padding": 2}), AugmentStep("affine", AFFINE), AugmentStep("flip", {"p": 0.5})),
    *(
        AugmentStep("alternating_flip"),
        AugmentStep("color_jitter", JITTER),
        AugmentStep("erase", {"scale": [0.02, 0.2], "p": 0.5}),
    ),
    AugmentStep("trivial", {"shear": 0.3, "shift": 0.2, "rotate": 30, "factor": 0.9}),
)


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9),
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 5]),
    st.tuples(st.integers(5, 33), st.integers(5, 33)),
)
def test_an_image_does_not_depend_on_its_neighbors(keys, seed, epoch, channels, size):
    keys = np.array(keys, np.uint64)
    recipe, pixels = PreprocessConfig(size=size, channels=channels, steps=EVERY), images(len(keys), *size, channels)
    together = augment(pixels, recipe, seed, epoch, keys)
    for i in range(len(keys)):
        assert (augment(pixels[i : i + 1], recipe, seed, epoch, keys[i : i + 1])[0] == together[i]).all()
    back = augment(pixels.flip(0), recipe, seed, epoch, keys[::-1])
    assert (back.flip(0) == together).all()


def test_the_order_of_memory_does_not_matter():
    pixels = images()
    planes = pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    recipe = PreprocessConfig(size=SIZE, steps=EVERY)
    assert (augment(planes, recipe, 0, 0, KEYS[:8]) == augment(pixels, recipe, 0, 0, KEYS[:8])).all()


def test_another_seed_and_another_epoch_give_other_pixels():
    pixels, recipe = images(), PreprocessConfig(size=SIZE, steps=EVERY)
    first = augment(pixels, recipe, 0, 0, KEYS[:8])
    assert (augment(pixels, recipe, 1, 0, KEYS[:8]) != first).any()
    assert (augment(pixels, recipe, 0, 1, KEYS[:8]) != first).any()
    assert (augment(pixels, recipe, 0, 0, KEYS[:8]) == first).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_none(channels):
    recipe = PreprocessConfig(size=SIZE, channels=channels, steps=(*EVERY, *preset_steps("mix")[-2:]))
    out = augment(images(0, channels=channels), recipe, 0, 0, KEYS[:0])
    mixed, mix = blend(out, torch.zeros(0, dtype=torch.int64), recipe, 0, 0, KEYS[:0])
    assert mixed.shape == (0, *SIZE, channels)
    assert [part.shape for part in mix] == [(0,), (0,)]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_operations_for_accelerators_take_any_device(channels):
    recipe = PreprocessConfig(size=SIZE, channels=channels, steps=(*EVERY, *preset_steps("mix")[-2:]))
    pixels, targets = images(channels=channels).to("meta"), torch.zeros(8, dtype=torch.int64, device="meta")
    out, (others, share) = blend(augment(pixels, recipe, 0, 1, KEYS[:8]), targets, recipe, 0, 1, KEYS[:8])
    assert out.shape == pixels.shape
    assert out.dtype == torch.uint8
    assert out.device.type == others.device.type == share.device.type == "meta"


@pytest.mark.parametrize("n", [1, 7])
def test_both_kinds_of_operations_give_the_same_pixels(monkeypatch, n):
    pixels = torch.cat([_smooth(n - n // 2, 31, 3), images(n // 2, 31, 31)])
    recipe = PreprocessConfig(size=(31, 31), steps=(*EVERY[:2], *EVERY[2:4], EVERY[5], *preset_steps("mix")[-2:]))
    both = []
    for ops in (ops_cpu, ops_torch):
        monkeypatch.setattr(steps, "_ops", lambda pixels, ops=ops: ops)
        out = augment(pixels, recipe, 0, 1, KEYS[:n])
        mixed, (_, share) = blend(out, torch.arange(n), recipe, 0, 1, KEYS[:n])
        both.append((out.int(), mixed.int(), share))
    (a, b, c), (d, e, f) = both
    assert abs(a - d).max() <= 2
    assert abs(b - e).max() <= 2
    assert (c == f).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_both_kinds_of_operations_give_the_same_colors(channels):
    pixels, rng = images(30, 20, 20, channels), np.random.default_rng(4)
    factors = rng.uniform(0.5, 1.5, (3, 30))
    if channels == 1:
        pairs = [kind.tone(pixels, factors[0], 100 * (factors[1] - 1)) for kind in (ops_cpu, ops_torch)]
    else:
        pairs = [kind.color(pixels, *factors) for kind in (ops_cpu, ops_torch)]
    assert abs(pairs[0].int() - pairs[1].int()).max() <= 1


def test_both_kinds_of_operations_turn_the_hue():
    primaries = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], dtype=torch.uint8)
    third = ops_torch.hue(primaries[None, None], np.array([1 / 3]))
    assert (third[0, 0] == primaries[[1, 2, 0, 3]]).all()
    pixels, turn = images(30), np.linspace(-0.5, 0.5, 30)
    apart = abs(ops_cpu.hue(pixels, turn).int() - ops_torch.hue(pixels, turn).int())
    assert apart.float().mean() < 3  # OpenCV has a hue in 180 steps and rounds it down
    assert apart.max() < 16
    assert (ops_torch.hue(pixels, np.zeros(30)) == pixels).all()


@given(st.integers(1, 9))
@settings(max_examples=10)
def test_on_an_accelerator_too_an_image_is_the_same_alone(n):
    pixels, factors = images(n, 13, 17), np.random.default_rng(n).uniform(0.5, 1.5, (3, n))
    together = ops_torch.color(ops_torch.hue(pixels, factors[0] - 1), *factors)
    for i in range(n):
        one = ops_torch.hue(pixels[i : i + 1], factors[0, i : i + 1] - 1)
        assert abs(ops_torch.color(one, *factors[:, i : i + 1])[0].int() - together[i].int()).max() <= 1


# Blended images


def mixed(pixels, targets, *steps, epoch=0):
    recipe = PreprocessConfig(size=tuple(pixels.shape[1:3]), channels=pixels.shape[3], steps=steps)
    return blend(pixels, targets, recipe, 0, epoch, KEYS[: len(pixels)])


def gray_levels(n):
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(-1, 20, 30, 1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_shares_of_mixup_have_their_beta_distribution(alpha):
    pixels = torch.zeros((N, 1, 1, 1), dtype=torch.uint8)
    _, (_, share) = mixed(pixels, torch.zeros(N), AugmentStep("mixup", {"alpha": alpha, "p": 1.0}))
    assert share.dtype == torch.float32
    assert stats.kstest(share.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > SAME


def test_mixup_is_a_share_of_each_image_and_the_rest_of_the_next():
    pixels, targets = images(9), torch.arange(9)
    out, (others, share) = mixed(pixels, targets, AugmentStep("mixup", {"alpha": 1.0, "p": 1.0}))
    part = share[:, None, None, None]
    assert others.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert abs(out - (pixels * part + pixels[others] * (1 - part))).max() <= 0.51
    assert len(set(share.tolist())) == 9


def test_cutmix_is_a_box_of_the_next_image_and_its_share_is_counted():
    pixels = gray_levels(200)
    out, (others, share) = mixed(pixels, torch.arange(200), AugmentStep("cutmix", {"alpha": 1.0, "p": 1.0}))
    own = (out == pixels).float().mean((1, 2, 3))
    assert torch.allclose(own, share, atol=1e-6)
    assert ((out == pixels) | (out == others[:, None, None, None])).all()
    for image, other in zip(out.numpy(), others.tolist(), strict=True):
        rows, columns = np.nonzero(image[..., 0] == other)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert 0.5 < share.mean() < 0.75  # a half, were no box cut at the edge


def test_the_boxes_of_cutmix_have_the_shape_of_the_image():
    pixels = torch.zeros((1, 1, 1, 1), dtype=torch.uint8).expand(N, 200, 200, 1)
    spy = Spy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_ops", lambda pixels: spy)
        mixed(pixels, torch.zeros(N), AugmentStep("cutmix", {"alpha": 1.0, "p": 1.0}))
    top, left, bottom, right = spy.calls[0][1].T
    inner = (top > 0) & (left > 0) & (bottom < 200) & (right < 200)
    center = (top + bottom)[inner] / 2
    assert inner.sum() > 300
    assert abs((bottom - top - right + left)[inner]).max() <= 1, "boxes have the shape of the image"
    assert 90 < center.mean() < 110


def test_each_image_is_blended_in_one_way_or_in_none():
    steps = AugmentStep("mixup", {"alpha": 1.0, "p": 0.3}), AugmentStep("cutmix", {"alpha": 1.0, "p": 0.5})
    pixels = torch.cat([gray_levels(250)] * 4)
    out, (others, share) = mixed(pixels, torch.arange(1000), *steps)
    values = [np.unique(image) for image in out.numpy()]
    stays = sum(len(v) == 1 and v[0] == p[0, 0, 0] for v, p in zip(values, pixels.numpy(), strict=True))
    cut = sum(len(v) == 2 for v in values)
    assert 120 < (share == 1).sum() <= stays
    assert stats.binomtest(cut, 1000, 0.5).pvalue > 1e-6
    assert 0.6 < (share < 1).float().mean() < 0.85
    assert (others == torch.arange(1000).roll(-1)).all()


def test_blending_is_left_out_where_the_recipe_has_none():
    pixels, targets = images(), torch.arange(8)
    out, mix = mixed(pixels, targets, AugmentStep("flip", {"p": 1.0}))
    assert out is pixels
    assert mix is None
    same, (_, share) = mixed(pixels, targets, AugmentStep("mixup", {"alpha": 1.0, "p": 0.0}))
    assert (same == pixels).all()
    assert (share == 1).all()


def test_blending_leaves_the_input_as_it_is():
    pixels, targets = images(), torch.arange(8)
    mixed(pixels, targets, *preset_steps("mix")[-2:])
    assert (pixels == images()).all()
    assert targets.tolist() == list(range(8))


# Errors


@pytest.mark.parametrize(
    ("op", "params"),
    [("flip", {"chance": 0.5}), ("affine", {"shift": 0.1}), ("erase", {}), ("alternating_flip", {"p": 0.5})],
)
def test_a_step_with_a_parameter_that_is_none_or_without_one(op, params):
    with pytest.raises(ConfigError, match=f"step '{op}' does not take "):
        one_step(images(), op, **params)


def test_the_parameters_of_blending_and_of_a_crop_are_checked():
    pixels, targets = images(), torch.arange(8)
    with pytest.raises(ConfigError, match="step 'mixup' does not take"):
        mixed(pixels, targets, AugmentStep("mixup", {"alpha": 1.0}))
    with pytest.raises(ConfigError, match=r"have alpha 0 and p 0\.5; allowed: alpha above 0"):
        mixed(pixels, targets, AugmentStep("cutmix", {"alpha": 0, "p": 0.5}))
    with pytest.raises(ConfigError, match=r"sum to 1\.2; allowed: up to 1"):
        mixed(pixels, targets, *(AugmentStep(op, {"alpha": 1.0, "p": 0.6}) for op in ("mixup", "cutmix")))
    with pytest.raises(ConfigError, match="step 'resized_crop' does not take"):
        crop_boxes(AugmentStep("resized_crop", {"scale": [0.5, 1]}), 0, 0, KEYS[:1], np.array([[4, 4]]))
