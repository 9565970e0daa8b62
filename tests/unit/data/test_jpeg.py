"""JPEGs without Pillow: the same pixels, the same verdicts, the same words."""

import os
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from imgclf.data import images
from imgclf.data import jpeg as decode
from imgclf.data.dataset import Draft
from imgclf.data.images import BadImage, check_image, read_image
from imgclf.data.jpeg import decode_jpeg, find_jpeg

sides = st.integers(1, 90)


def picture(height, width, channels=3):
    """Waves, an edge and a little noise: every frequency that a JPEG can hold."""
    rng = np.random.default_rng([height, width])
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (3 + c) + y / 7) + 30 * (x > width // 2) for c in range(channels)]
    pixels = np.clip(np.stack(waves, axis=2) + rng.normal(0, 8, (height, width, channels)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def encoded(image, kind="JPEG", **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def by_pillow(data, needed=None):
    """What Pillow alone makes of a JPEG: (height, width, channels)."""
    image = Image.open(BytesIO(data))
    if needed:
        image.draft(None, needed[::-1])
    pixels = np.asarray(ImageOps.exif_transpose(image))
    return pixels if pixels.ndim == 3 else pixels[..., None]


@given(sides, sides, st.sampled_from([1, 3]), st.integers(1, 100), st.sampled_from([0, 1, 2]), st.booleans())
def test_pixels_are_those_of_pillow_to_the_bit(height, width, channels, quality, subsampling, progressive):
    data = encoded(picture(height, width, channels), quality=quality, subsampling=subsampling, progressive=progressive)
    assert not find_jpeg(BytesIO(data)).may_turn
    assert np.array_equal(read_image(data), by_pillow(data))


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([1, 3]), st.sampled_from([0, 2]), sides, sides)
def test_a_smaller_decoding_is_pillows_too(height, width, channels, subsampling, least_height, least_width):
    data = encoded(picture(height, width, channels), subsampling=subsampling)
    needed = (least_height, least_width)
    assert np.array_equal(read_image(data, at_least=needed), by_pillow(data, needed))


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([1, 3]), st.sampled_from([0, 2]), st.booleans())
def test_a_draft_differs_only_where_colors_would_be_smoothed(height, width, channels, subsampling, half):
    data = encoded(picture(height, width, channels), subsampling=subsampling)
    needed = (height // 2, width // 2) if half else (height, width)
    draft, smooth = read_image(data, at_least=Draft(lambda _: needed)), read_image(data, at_least=needed)
    assert draft.shape == smooth.shape
    if half or channels == 1 or subsampling == 0:
        assert np.array_equal(draft, smooth)


def test_a_draft_doubles_the_colors_of_a_photo():
    muted = Image.fromarray(np.asarray(picture(60, 90)) // 2 + 64)  # no value meets the ends of its range
    data = encoded(muted, subsampling=2)
    draft, smooth = (read_image(data, at_least=which).astype(int) for which in (Draft(lambda _: (60, 90)), (60, 90)))
    assert not np.array_equal(draft, smooth)
    red_less_blue = (draft[..., 0] - draft[..., 2]).reshape(
        30, 2, 45, 2
    )  # without the brightness, which has its detail
    assert np.ptp(red_less_blue, axis=(1, 3)).max() <= 2


@pytest.mark.parametrize("options", [{"restart_marker_blocks": 2}, {"optimize": True}, {"comment": b"a note"}])
def test_what_else_a_header_may_hold_changes_nothing(options):
    data = encoded(picture(50, 70), **options)
    assert not find_jpeg(BytesIO(data)).may_turn
    assert np.array_equal(read_image(data), by_pillow(data))
    assert np.array_equal(read_image(data + b"left by a camera"), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once_and_the_scale_chosen_as_displayed(orientation):
    data = encoded(picture(40, 96), exif=turned(orientation))
    upright = by_pillow(data)
    assert find_jpeg(BytesIO(data)).may_turn
    assert np.array_equal(read_image(data), upright)
    height, width = upright.shape[:2]
    asked = []

    def half(shape):
        asked.append(shape)
        return shape[0] // 2, 1

    assert read_image(data, at_least=Draft(half)).shape == (height // 2, width // 2, 3)
    assert asked == [(height, width)]


def test_orientation_in_xmp_counts_where_pillow_counts_it():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(picture(24, 48), xmp=xmp)
    assert np.array_equal(read_image(data), by_pillow(data))
    assert read_image(data).shape == (48, 24, 3)


def test_a_color_profile_needs_no_second_reader():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(picture(24, 48), icc_profile=profile)
    assert not find_jpeg(BytesIO(data)).may_turn
    assert np.array_equal(read_image(data), by_pillow(data))


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(20, 30).convert("CMYK")),
        encoded(picture(20, 30), keep_rgb=True),
        encoded(picture(20, 30), "PNG"),
        encoded(picture(20, 30))[:150],
        b"\xff\xd8\xff",
        b"",
    ],
    ids=["CMYK", "RGB", "PNG", "cut in the header", "no header", "empty"],
)
def test_the_rest_is_left_to_pillow(data):
    assert find_jpeg(BytesIO(data)) is None


def test_colors_that_are_stored_as_such_are_read_by_pillow():
    for data in (encoded(picture(20, 30).convert("CMYK"), quality=95), encoded(picture(20, 30), keep_rgb=True)):
        assert np.array_equal(read_image(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_the_first_picture_of_an_mpo():
    data = encoded(picture(64, 40), "MPO", save_all=True, append_images=[picture(64, 48)])
    assert np.array_equal(read_image(data), by_pillow(data))
    assert read_image(data, at_least=(16, 10)).shape == (16, 10, 3)


def test_twelve_bits_are_refused_in_pillows_words():
    data = bytearray(encoded(picture(20, 30)))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(BadImage) as caught:
        read_image(bytes(data))
    assert caught.value.reason == "damaged JPEG header: cannot handle 12-bit layers"


def test_a_huge_file_is_not_read_at_once(monkeypatch):
    data = encoded(picture(20, 30))
    monkeypatch.setattr(decode, "_MAX_BYTES", len(data) - 1)
    assert find_jpeg(BytesIO(data)) is None
    assert np.array_equal(read_image(data), by_pillow(data))


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images, "decode_jpeg", None)
    with pytest.raises(BadImage, match=r"100×50 are 0\.005 megapixels, more than the limit of 0\.0049"):
        read_image(encoded(picture(50, 100)), max_pixels=4900)


def test_a_mistake_in_what_is_needed_is_no_bad_image():
    for data in (encoded(picture(20, 30)), encoded(picture(20, 30).convert("CMYK"))):
        with pytest.raises(ZeroDivisionError):
            read_image(data, at_least=Draft(lambda shape: (shape[0] // 0, 1)))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that can be opened and not read")
def test_a_file_that_fails_while_it_is_read_is_a_bad_image():
    with pytest.raises(BadImage, match=r"cannot be decoded: .*[Ii]nput/output error"):
        read_image("/proc/self/mem")


def verdict(data, needed):
    try:
        return read_image(data, at_least=needed)
    except BadImage as error:
        return error.reason


@given(
    st.sampled_from([{}, {"progressive": True}, {"exif": turned(6)}, {"restart_marker_blocks": 1}]),
    st.sampled_from([None, (9, 9)]),
    st.data(),
)
def test_damage_is_judged_by_pillow_alone(options, needed, draw):
    data = bytearray(encoded(picture(40, 56), **options))
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.one_of(st.just(len(data)), st.integers(1, len(data))))
    damaged = bytes(data[:cut])
    found = verdict(damaged, needed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "find_jpeg", lambda file: None)
        expected = verdict(damaged, needed)
    assert type(found) is type(expected)
    assert np.array_equal(found, expected)
    if isinstance(found, str):
        with pytest.raises(BadImage):
            check_image(damaged)


def test_damage_that_pillow_tolerates_is_not_decoded_without_it():
    data = bytearray(encoded(picture(64, 64), restart_marker_blocks=1))
    data[data.rindex(b"\xff\xd3") + 1] = 0xD6  # a restart out of turn
    jpeg = find_jpeg(BytesIO(bytes(data)))
    assert decode_jpeg(jpeg) is None
    assert np.array_equal(read_image(bytes(data)), by_pillow(bytes(data)))
