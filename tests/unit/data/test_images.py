"""The only reader of pixels."""

import os
import pickle
import socket
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, ImageOps, features

from imgclf.core.config import Levels
from imgclf.data import jpeg as decode
from imgclf.data.images import (
    BadImage,
    check_image,
    digest_pixels,
    has_image_magic,
    image_pixels,
    is_image_name,
    open_regular,
    read_image,
)
from imgclf.data.jpeg import common_levels, levels_of

ORIENTATION = 0x0112


def encoded(image, kind, **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters(width=64, height=32):
    """Four colors, so that every turn and flip can be told apart."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 10, 10)
    pixels[: height // 2, width // 2 :] = (10, 250, 10)
    pixels[height // 2 :, : width // 2] = (10, 10, 250)
    pixels[height // 2 :, width // 2 :] = (250, 250, 10)
    return pixels


# How a picture must be stored so that its orientation brings it back upright.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_exactly_once(kind, orientation):
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"{kind} is not built in")
    upright = quarters()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    data = encoded(image, kind, exif=exif, **options)
    pixels = read_image(data)
    assert pixels.shape == upright.shape
    assert np.abs(pixels[8::16, 16::32].astype(int) - upright[8::16, 16::32]).max() < 25
    facts = check_image(data)
    assert (facts.height, facts.width, facts.format) == (32, 64, kind)


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
def test_orientation_in_xmp_does_not_turn_what_the_decoder_has_turned(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("AVIF is not built in")
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if kind == "TIFF":
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        tags = ImageFileDirectory_v2()
        tags[700], tags[ORIENTATION] = xmp, 1
        data = encoded(Image.fromarray(quarters()), "TIFF", tiffinfo=tags)
    else:
        data = encoded(Image.fromarray(quarters()), "AVIF", xmp=xmp)
    assert read_image(data).shape == (32, 64, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_at_least_decodes_smaller_but_never_below(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.new("RGB", (800, 400)), "JPEG", exif=exif)
    full = (400, 800) if orientation == 1 else (800, 400)
    assert read_image(data).shape[:2] == full
    half = read_image(data, at_least=(full[0] // 2, full[1] // 2))
    assert half.shape[:2] == (full[0] // 2, full[1] // 2)
    assert read_image(data, at_least=(full[0] // 2 + 1, 1)).shape[:2] == full
    assert read_image(data, at_least=(1, 1)).shape[:2] == (full[0] // 8, full[1] // 8)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 250), st.integers(1, 250))
def test_draft_keeps_both_sides(width, height, least_height, least_width):
    data = encoded(Image.new("L", (width, height)), "JPEG")
    found_height, found_width, _ = read_image(data, at_least=(least_height, least_width)).shape
    assert found_height >= min(height, least_height)
    assert found_width >= min(width, least_width)


def test_sixteen_bit_gray_keeps_its_mean():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        pixels = read_image(encoded(Image.fromarray(values), kind))
        assert pixels.shape == (64, 64, 1)
        assert abs(pixels.mean() - values.mean() / 257) < 0.5
        assert (pixels.min(), pixels.max()) == (0, 255)
    big_endian = Image.frombytes("I;16B", (64, 64), values.astype(">u2").tobytes())
    assert np.array_equal(read_image(encoded(big_endian, "TIFF"))[..., 0], (values.astype(int) + 128) // 257)


def test_transparent_value_of_a_16_bit_png_is_white():
    values = np.array([[0, 20000], [40000, 65535]], np.uint16)
    pixels = read_image(encoded(Image.fromarray(values), "PNG", transparency=20000))
    assert pixels[0, 1, 0] == 255
    assert pixels[0, 0, 0] == 0


def png16(values, kind, chunks=()):
    """A PNG of 16 bits a channel, of a color type of the format, which Pillow can't write."""
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff16(values, order="<", **tags):
    """A TIFF of 16 bits a channel; `tags` beside the needed ones are named t274 and the like."""
    height, width, channels = values.shape
    numbers = {256: width, 257: height, 259: 1, 262: 2, 277: channels, 278: height, 279: values.nbytes}
    numbers |= {int(name[1:]): value for name, value in tags.items()}
    at = 8 + 2 + 12 * (len(numbers) + 2) + 4
    entries = {tag: (4, 1, value) for tag, value in numbers.items()}
    entries |= {258: (3, channels, at), 273: (4, 1, at + 2 * channels)}
    fields = b"".join(struct.pack(f"{order}HHII", tag, *entries[tag]) for tag in sorted(entries))
    start = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    return start + fields + bytes(4) + bits + values.astype(f"{order}u2").tobytes()


TEN_BITS = np.random.default_rng(0).integers(0, 1024, (6, 9, 3)).astype(np.uint16)
OPAQUE = np.full((6, 9, 1), 65535, np.uint16)
DEEP_COLORS = {
    "png": png16(TEN_BITS, 2),
    "png with alpha": png16(np.dstack((TEN_BITS, OPAQUE)), 6),
    "tiff": tiff16(TEN_BITS),
    "big-endian tiff": tiff16(TEN_BITS, ">"),
    "tiff with alpha": tiff16(np.dstack((TEN_BITS, OPAQUE)), t338=2),
    "tiff with premultiplied alpha": tiff16(np.dstack((TEN_BITS, OPAQUE)), t338=1),
    "tiff with a channel that means nothing": tiff16(np.dstack((TEN_BITS, OPAQUE // 2)), t338=0),
}


@pytest.mark.parametrize("kind", DEEP_COLORS)
def test_all_16_bits_of_colors_are_read(kind):
    """Pillow alone keeps the upper byte: 4 of the 1024 values."""
    data, levels = DEEP_COLORS[kind], (Levels("integer", 0, 1023),)
    expected = np.rint(TEN_BITS * (255 / 1023))
    assert np.array_equal(read_image(data, levels=levels), expected)
    assert np.array_equal(read_image(data), (TEN_BITS.astype(int) + 128) // 257)
    facts = check_image(data)
    assert facts.levels == Levels("integer", float(TEN_BITS.min()), float(TEN_BITS.max()))
    assert (facts.width, facts.height, facts.vanishes) == (9, 6, False)
    assert digest_pixels(data) == digest_pixels(DEEP_COLORS["png"]) != digest_pixels(png16(TEN_BITS ^ 1, 2))
    assert digest_pixels(data).startswith(facts.look)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colors_are_turned_once_in_bands_as_well(monkeypatch, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    note = [(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))]
    small = Image.fromarray((TEN_BITS // 4).astype(np.uint8))
    expected = read_image(encoded(small, "PNG", exif=exif))
    monkeypatch.setattr(decode, "BAND", 20)  # 2 rows or 3
    levels = (Levels("integer", 0, 1020),)
    for data in (png16(TEN_BITS // 4 * 4, 2, note), tiff16(TEN_BITS // 4 * 4, t274=orientation)):
        assert np.array_equal(read_image(data, levels=levels), expected)
        assert digest_pixels(data).startswith(check_image(data).look)


def test_transparent_deep_colors_lie_over_white():
    values = np.array([[[0, 0, 0], [1000, 500, 0], [1000, 500, 0]]], np.uint16)
    alpha = np.array([[[0], [65535], [13107]]], np.uint16)  # the last one: a fifth
    levels = (Levels("integer", 0, 1000),)
    expected = [[255, 255, 255], [255, 128, 0], [255, 230, 204]]
    for data in (png16(np.dstack((values, alpha)), 6), tiff16(np.dstack((values, alpha)), t338=2)):
        assert read_image(data, levels=levels)[0].tolist() == expected
    named = png16(values, 2, [(b"tRNS", values[0, 1].astype(">u2").tobytes())])
    assert read_image(named, levels=levels)[0].tolist() == [[0, 0, 0], [255, 255, 255], [255, 255, 255]]
    gray = np.dstack((values[..., :1] + np.uint16(900), alpha))
    assert check_image(png16(gray, 4)).levels == Levels("integer", 1900, 1900)  # what nobody sees does not count
    assert check_image(png16(np.dstack((values, 0 * alpha)), 6)).vanishes


def test_gray_of_16_bits_that_is_stored_as_color_is_gray():
    gray = TEN_BITS[..., :1]
    assert digest_pixels(png16(gray.repeat(3, 2), 2)) == digest_pixels(encoded(Image.fromarray(gray[..., 0]), "PNG"))


def test_of_deep_colors_that_opencv_reads_otherwise_the_upper_bytes_count(monkeypatch, capfd):
    half = tiff16(np.dstack((TEN_BITS * 32, OPAQUE // 2)), t338=1)  # opencv knows nothing of premultiplied colors
    with Image.open(BytesIO(half)) as image:
        assert np.array_equal(read_image(half), image_pixels(image))
    assert check_image(half).levels is None
    strange = [tiff16(TEN_BITS, t40000=7), png16(TEN_BITS, 2, [(b"iCCP", b"x\0\0" + zlib.compress(b"short"))])]
    for data in strange:
        assert check_image(data).levels is not None
    assert capfd.readouterr().err == ""  # what libpng and libtiff dislike is none of the user's business
    with pytest.raises(BadImage, match=r"more than the limit of 5e-05 for 16-bit color \(--max-pixels\)"):
        read_image(strange[0], max_pixels=126)
    monkeypatch.setattr("imgclf.data.images.deep_color", None)  # of 8 bits nothing goes this way
    for kind in ("PNG", "TIFF"):
        assert read_image(encoded(Image.new("RGBA", (3, 3), (9, 8, 7, 255)), kind)).shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[-100, 100]], np.int32), [0, 255]),
        (np.array([[0, 1_000_000]], np.int32), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[7e5, 7e5]], np.float32), [0, 0]),
    ],
)
def test_integers_and_floats_are_scaled_by_the_rule(values, expected):
    assert read_image(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == expected


DEEP = {"png": np.uint16, "I": np.int32, "F": np.float32}


@pytest.mark.parametrize("kind", DEEP)
def test_levels_are_the_same_for_every_image_and_cut_what_lies_beyond(kind):
    dark, bright = np.array([[0, 100, 1023]]), np.array([[1023, 4095, 5000]])
    levels = (Levels("float" if kind == "F" else "integer", 0, 4095),)
    for values, expected in ((dark, [0, 6, 64]), (bright, [64, 255, 255])):
        image = Image.fromarray(values.astype(DEEP[kind]))
        data = encoded(image, "PNG" if kind == "png" else "TIFF")
        assert read_image(data, levels=levels)[0, :, 0].tolist() == expected
        assert image_pixels(image, levels)[0, :, 0].tolist() == expected
    other = (Levels("integer" if kind == "F" else "float", 0, 9),)
    assert np.array_equal(read_image(data, levels=other), read_image(data))


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (3, 1023, "integer", (0, 1023)),  # 10 bits
        (0, 3000, "integer", (0, 4095)),
        (0, 65000, "integer", (0, 65535)),
        (0, 1, "integer", (0, 1)),  # a mask
        (30000, 30100, "integer", (30000, 30100)),
        (-1024, 3071, "integer", (-1024, 3071)),
        (0, 1e6, "integer", (0, 1e6)),
        (0.1, 0.9, "float", (0, 1)),
        (0, 200, "float", (0, 255)),
        (0, 0.01, "float", (0, 0.01)),
        (-1, 1, "float", (-1, 1)),
        (7, 7, "float", (7, 7)),
    ],
)
def test_the_levels_of_a_set_are_a_usual_depth_or_its_own_values(low, high, kind, expected):
    found = [None, Levels(kind, low, low), Levels(kind, low, high)]
    assert common_levels(found) == (Levels(kind, *expected),)
    assert common_levels([None]) == ()
    both = common_levels([*found, Levels("float" if kind == "integer" else "integer", 0, 255)])
    assert len(both) == 2
    assert Levels(kind, *expected) in both


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (read_image(encoded(clear, "PNG")) == 255).all()
    assert (read_image(encoded(half, "PNG")) == 127).all()
    gray = read_image(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG"))
    assert gray.shape == (4, 4, 1)
    assert (gray == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    for transparency in (0, b"\x00\xff"):
        pixels = read_image(encoded(palette, "PNG", transparency=transparency))
        assert pixels[0, 0].tolist() == [200, 0, 0]
        assert pixels[1, 1].tolist() == [255, 255, 255]
    keyed = read_image(encoded(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert (keyed == 255).all()
    keyed_gray = read_image(encoded(Image.new("L", (2, 2), 5), "PNG", transparency=5))
    assert keyed_gray.shape == (2, 2, 1)
    assert (keyed_gray == 255).all()


def test_tall_transparent_images_are_composited_whole():
    alpha = np.arange(1000, dtype=np.uint16) % 256
    tall = np.zeros((1000, 3, 4), np.uint8)
    tall[..., 3] = alpha[:, None]
    pixels = read_image(encoded(Image.fromarray(tall), "PNG"))
    assert np.array_equal(pixels[:, 0, 0], 255 - alpha)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pixels_belong_to_the_caller(kind):
    pixels = read_image(encoded(Image.fromarray(quarters()), kind))
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_other_color_modes():
    cmyk = read_image(encoded(Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk[8, 8].astype(int) - (200, 30, 30)).max() < 12
    bits = read_image(encoded(Image.new("1", (8, 8), 1), "PNG"))
    assert bits.shape == (8, 8, 1)
    assert (bits == 255).all()
    lab = read_image(encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"))
    assert (lab > 250).all()
    assert read_image(encoded(Image.new("L", (1, 1), 7), "PNG")).tolist() == [[[7]]]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255))]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert read_image(data)[0, 0].tolist() == [255, 0, 0]


def test_mpo_opens_as_jpeg():
    frames = [Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert check_image(data).format == "JPEG"
    assert read_image(data, at_least=(16, 16)).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["BMP", "DIB", "PPM", "PCX", "SGI", "ICO", "DDS", "QOI", "JPEG2000", "TGA"])
def test_rarer_formats(kind, tmp_path):
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(encoded(Image.fromarray(quarters(32, 32)), kind))
    assert np.abs(read_image(path).astype(int) - quarters(32, 32)).max() < 12


def test_documents_and_programs_are_no_images(tmp_path):
    for kind in ("EPS", "PDF", "TGA"):
        with pytest.raises(BadImage):
            read_image(encoded(Image.new("RGB", (8, 8)), kind))


@pytest.mark.parametrize("content", [b"x", b"BM", b"ab\0", b"\x0c", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)])
def test_what_is_no_image_is_called_so_however_short(content, tmp_path):
    (tmp_path / "Thumbs.db").write_bytes(content)
    for read in (check_image, read_image):
        with pytest.raises(BadImage) as caught:
            read(content)
        ends = ("damaged BMP header: it is truncated", "damaged DIB header: it is truncated")
        assert caught.value.reason in ("not an image of a known format", *ends)
    assert has_image_magic(tmp_path / "Thumbs.db") == (content == b"BM")


def test_too_many_pixels_are_refused_from_the_header():
    data = encoded(Image.new("1", (2000, 2000)), "PNG")
    with pytest.raises(BadImage, match="4 megapixels, more than the limit of 1 "):
        read_image(data, max_pixels=1_000_000)
    with pytest.raises(BadImage, match="megapixels"):
        check_image(data, max_pixels=1_000_000)
    header_only = encoded(Image.new("1", (10, 10)), "PNG")
    huge = header_only[:16] + (60_000).to_bytes(4, "big") * 2 + header_only[24:]
    with pytest.raises(BadImage, match=r"megapixels|CRC|broken|damaged"):
        read_image(huge)


def test_the_limit_is_lower_where_a_decoder_takes_much_memory_for_each_pixel():
    image = Image.new("RGB", (10, 9))
    for kind, limit in (("WEBP", 80), ("JPEG2000", 50)):
        data = encoded(image, kind)
        for read in (read_image, check_image):
            with pytest.raises(BadImage, match=rf"10×9 are 9e-05 megapixels, more than .* for {kind} \(--max-pixels\)"):
                read(data, max_pixels=100)
        assert read_image(data, max_pixels=-(-90 * 100 // limit)).shape == (9, 10, 3)
    assert read_image(encoded(image, "PNG"), max_pixels=100).shape == (9, 10, 3)


def test_what_an_icon_and_a_tile_hold_is_measured_before_it_is_decoded(monkeypatch):
    inner = encoded(Image.new("RGB", (20, 10)), "PNG")
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 4, 4, 0, 0, 1, 32, len(inner), 22) + inner
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (277, 1), (322, 20), (323, 10), (324, 200), (325, 200)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiled = (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + fields + bytes(4)).ljust(200, b"\0") + bytes(200)
    assert read_image(tiled).shape == (4, 4, 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for data in (icon, tiled):
        with pytest.raises(BadImage, match=r"20×10 are .* more than the limit"):
            read_image(data, max_pixels=199)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "RGBA", "LA", "I;16", "I", "F"])
def test_a_large_image_is_converted_in_bands_without_a_trace_and_with_little_memory(monkeypatch, mode):
    values = np.random.default_rng(0).integers(0, 256, (300, 200, 4), np.uint8)
    raw = values.tobytes()[: len(Image.new(mode, (200, 300)).tobytes())]
    image = Image.frombytes(mode, (200, 300), np.full(60_000, 0.5, "<f4").tobytes() if mode == "F" else raw)
    expected = image_pixels(image)
    levels = levels_of(image)
    monkeypatch.setattr(decode, "BAND", 900)  # 4 rows, which do not divide the height
    tracemalloc.start()
    found = image_pixels(image)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, expected)
    assert most < 1.3 * found.nbytes + 100_000
    assert levels_of(image) == levels


def test_between_pillows_limit_and_ours_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(encoded(Image.new("L", (40, 40)), "PNG")).shape == (40, 40, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_images_are_bad_for_check_and_read_alike(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    for cut in (len(data) // 2, 30, 3):
        for read in (check_image, read_image):
            with pytest.raises(BadImage) as caught:
                read(data[:cut])
            assert caught.value.reason
            assert "\n" not in caught.value.reason


def test_a_truncated_png_with_exif_lookups_stays_bad():
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8)), "PNG")
    with pytest.raises(BadImage, match="damaged PNG"):
        read_image(data[: len(data) - 2000])


def test_the_checksums_of_a_png_are_verified():
    data = bytearray(encoded(Image.new("L", (50, 50), 3), "PNG"))
    data[-17] ^= 1  # the checksum of the pixels, which the decoder alone does not look at
    for read in (check_image, read_image):
        with pytest.raises(BadImage, match="damaged PNG"):
            read(bytes(data))


@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damage_gives_pixels_or_bad_image_and_check_says_which(kind, draw):
    data = bytearray(encoded(Image.fromarray(quarters(16, 16)), kind))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        facts = check_image(bytes(data))
    except BadImage:
        with pytest.raises(BadImage):
            read_image(bytes(data))
        return
    pixels = read_image(bytes(data))
    assert pixels.dtype == np.uint8
    assert pixels.shape[:2] == (facts.height, facts.width)


def test_broken_exif_neither_warns_nor_makes_an_image_bad():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\xff\xff\0\0\0\0"
    data = encoded(Image.fromarray(quarters()), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data).shape == (32, 64, 3)
        check_image(data)
        filters = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(read_image, [data] * 40))) == 40
        assert warnings.filters == filters


def test_files_that_are_no_regular_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    cases = {
        "empty.jpg": "empty file",
        "link.jpg": "a broken link",
        "none.jpg": "no such file",
        "folder.jpg": "a folder",
        "pipe.jpg": "a pipe",
    }
    for name, reason in cases.items():
        with pytest.raises(BadImage, match=reason) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("s.jpg")
        with pytest.raises(BadImage, match="a socket"):
            open_regular("s.jpg")
    with pytest.raises(BadImage, match="a device"):
        open_regular("/dev/null")
    with pytest.raises(BadImage):
        open_regular("bad\0name.jpg")


def test_bad_image_crosses_processes_and_hides_control_characters():
    error = pickle.loads(pickle.dumps(BadImage("reason", "a\x1b[1m\n.jpg")))
    assert (error.reason, error.path) == ("reason", "a\x1b[1m\n.jpg")
    assert str(error) == "a\\x1b[1m\\n.jpg: reason"


def test_images_that_are_open_already_follow_the_same_rules():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(Image.fromarray(quarters()), "PNG", exif=exif)
    assert np.array_equal(image_pixels(Image.open(BytesIO(data))), read_image(data))
    assert (image_pixels(Image.new("LA", (2, 2), (0, 0))) == 255).all()
    with pytest.raises(BadImage):
        image_pixels(Image.open(BytesIO(data[:150])))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "derive", [lambda image: image, Image.Image.copy, lambda image: image.convert("RGB"), ImageOps.exif_transpose]
)
def test_an_image_that_is_open_is_turned_once_also_where_it_was_copied_or_converted(kind, derive):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(Image.fromarray(quarters()), kind, exif=exif)
    image = derive(Image.open(BytesIO(data)))
    assert np.array_equal(image_pixels(image), read_image(data))
    assert read_image(data).shape == (64, 32, 3)


@pytest.mark.skipif(not features.check("avif"), reason="AVIF is not built in")
def test_reading_an_open_image_changes_nothing_of_it():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.open(BytesIO(encoded(Image.fromarray(quarters()), "AVIF", xmp=xmp)))
    assert image_pixels(image).shape == (32, 64, 3)
    assert image.info["xmp"] == xmp


def test_names_and_magic(tmp_path):
    for name in ("a.JPG", "b.jfif", "c.jpe", "d.Tif", "e.avif", "f.pgm", "g.apng", "h.jp2", "i.tar.png"):
        assert is_image_name(name)
    for name in ("a.txt", "jpg", ".jpg", "a.eps", "a.psd", "a.pdf", "a.jpg.bak"):
        assert not is_image_name(name)
    image = tmp_path / "noext"
    image.write_bytes(encoded(Image.new("L", (4, 4)), "PNG"))
    assert has_image_magic(image)
    for text in (b"P6 notes", b"#define X 1", b"hello", b""):
        image.write_bytes(text)
        assert not has_image_magic(image)


def noise(*shape, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_the_same_pixels_have_the_same_digest_and_look_in_any_lossless_format():
    image = noise(50, 70, 3)
    forms = [encoded(image, kind, **how) for kind, how in LOSSLESS]
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    forms.append(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned))
    forms.append(encoded(Image.merge("RGBA", [*image.split(), Image.new("L", image.size, 255)]), "PNG"))
    assert len(set(forms)) == len(forms)
    assert len({digest_pixels(data) for data in forms}) == 1
    assert len({check_image(data).look for data in forms}) == 1
    assert digest_pixels(forms[0]).startswith(check_image(forms[0]).look)
    assert digest_pixels(encoded(noise(50, 70, 3, seed=1), "PNG")) != digest_pixels(forms[0])
    gray = noise(50, 70)
    assert digest_pixels(encoded(gray, "PNG")) == digest_pixels(encoded(gray.convert("RGB"), "BMP"))


LOSSLESS = (
    ("PNG", {}),
    ("PNG", {"compress_level": 1}),
    ("BMP", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
)


def test_a_jpeg_has_the_digest_of_its_pixels_in_another_format_and_the_look_of_its_saved_again():
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "a camera"
    exif[ExifTags.Base.Orientation] = 3
    image = noise(30, 40, 3).resize((400, 300), Image.Resampling.BICUBIC)
    first = encoded(image, "JPEG", quality=90)
    plain = Image.fromarray(read_image(first))
    assert digest_pixels(first) == digest_pixels(encoded(plain, "PNG"))
    again = encoded(image, "JPEG", quality=90, progressive=True, comment="the same numbers, coded otherwise")
    assert digest_pixels(again) == digest_pixels(first)
    assert check_image(again).look == check_image(first).look
    turned = encoded(image, "JPEG", quality=90, exif=exif)
    assert check_image(turned).look != check_image(first).look
    assert digest_pixels(turned) == digest_pixels(encoded(plain.transpose(Image.Transpose.ROTATE_180), "PNG"))


def test_all_bits_of_deep_pixels_count():
    values = np.arange(60, dtype=np.uint16).reshape(6, 10)
    forms = [encoded(Image.fromarray(values), kind) for kind in ("PNG", "TIFF")]
    other = encoded(Image.fromarray(values + np.uint16(1)), "PNG")
    assert digest_pixels(forms[0]) == digest_pixels(forms[1]) != digest_pixels(other)
    assert check_image(forms[0]).look == check_image(forms[1]).look
