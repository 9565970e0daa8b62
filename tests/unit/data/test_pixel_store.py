"""Pixels that are decoded once and stay in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgclf.core.config import RESIZE_MODES, Levels, PreprocessConfig
from imgclf.data.dataset import ArrayReader, Sample, Source, open_prepared
from imgclf.data.loading.disk_cache import CachedImage
from imgclf.data.loading.pixel_store import CacheFormat, DenseStore, RaggedStore, memory_budget
from imgclf.data.sources.folder import FileReader
from imgclf.transforms.crop import kept_side
from imgclf.transforms.preprocess import decode_size, prepare
from imgclf.transforms.presets import preset_steps

SQUARE = PreprocessConfig(size=(8, 8), channels=1)
TWELVE = (Levels("integer", 0, 4095),)
CROPS = PreprocessConfig(size=(8, 8), steps=preset_steps("standard"))


class Files(ArrayReader):
    """Reads as a folder does: one image at a time."""


def source_of(shape=(10, 8, 8, 1), reader=ArrayReader):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    samples = tuple(Sample(f"all/{i}", "a") for i in range(len(pixels)))
    return Source("s", ("a",), samples, reader({"all": pixels}))


@given(st.lists(st.lists(st.integers(0, 9), unique=True), max_size=6))
def test_what_is_filled_comes_back_and_the_rest_is_missing(batches):
    source = source_of(reader=Files)
    dense = DenseStore(source, source.samples, CacheFormat(SQUARE, whole=False))
    filled = set()
    for batch in batches:
        index = np.array(batch, np.int64)
        assert set(dense.missing(index).tolist()) == set(batch) - filled
        for i in dense.missing(index).tolist():
            assert dense.row(i) is None
            dense.put(i, CachedImage(source.open(f"all/{i}"), (8, 8)))
        filled |= set(batch)
        found, positions = dense.select(np.arange(10))
        assert set(positions.tolist()) == filled
        found, positions = dense.select(index)
        assert positions.tolist() == batch
        assert found.tolist() == [source.open(f"all/{i}").tolist() for i in batch]
    dense.move_to(torch.device("cpu"))
    assert dense.full == (len(filled) == 10)


@pytest.mark.parametrize(
    ("recipe", "reader", "at_once"),
    [
        (SQUARE, ArrayReader, True),
        (SQUARE, Files, False),
        (PreprocessConfig(size=(8, 8), channels=3), ArrayReader, False),
        (PreprocessConfig(size=(9, 8), channels=1), ArrayReader, False),
        (PreprocessConfig(size=(8, 8), channels=1, crop_pct=0.5), ArrayReader, False),
    ],
)
def test_only_what_needs_no_change_is_taken_at_once(recipe, reader, at_once):
    source, form = source_of(reader=reader), CacheFormat(recipe, whole=False)
    dense = DenseStore(source, source.samples, form)
    assert dense.full == at_once
    for i, sample in enumerate(source.samples):
        if not at_once:
            dense.put(i, form.read(source, sample.ref))
        kept = dense.row(i)
        assert (kept.pixels == prepare(source.open(sample.ref), recipe)).all()
        assert kept.shape == recipe.size


def test_a_stacked_set_is_not_the_one_it_comes_from():
    source = source_of()
    dense = DenseStore(source, source.samples, CacheFormat(SQUARE, whole=False))
    dense.put(0, CachedImage(np.zeros((8, 8, 1), np.uint8), (8, 8)))
    assert source.open("all/0").any()


def test_whole_images_keep_their_ratio_and_know_their_size():
    source = source_of((2, 40, 61, 3))
    form = CacheFormat.of(CROPS, train=True)
    kept = form.read(source, "all/1")
    assert form.whole
    assert min(kept.pixels.shape[:2]) == kept_side(CROPS)
    assert kept.shape == (40, 61)
    ragged = RaggedStore(2)
    ragged.put(1, kept)
    assert ragged.row(0) is None
    assert ragged.row(1) is kept
    assert form.bytes_each(source, source.samples) == pytest.approx(kept.pixels.nbytes, rel=0.05)


@pytest.mark.parametrize("recipe", [SQUARE, CROPS, PreprocessConfig(steps=preset_steps("standard"), resize_mode="pad")])
def test_evaluation_starts_from_prepared_pixels(recipe):
    assert not CacheFormat.of(recipe, train=False).whole
    assert CacheFormat.of(recipe, train=True).whole == (recipe is CROPS)


def test_settings_tell_pixels_apart():
    recipes = [
        *(
            SQUARE,
            PreprocessConfig(size=(9, 8), channels=1),
            PreprocessConfig(size=(8, 8)),
            PreprocessConfig(size=(8, 8), resize_mode="squash"),
        ),
        *(
            PreprocessConfig(size=(8, 8), interpolation="bicubic"),
            PreprocessConfig(size=(8, 8), crop_pct=0.9),
            PreprocessConfig(size=(8, 8), resize_mode="pad"),
        ),
        PreprocessConfig(size=(8, 8), resize_mode="pad", mean=(0.1,)),
        PreprocessConfig(size=(8, 8), levels=TWELVE),
    ]
    wholes = [CROPS, replace(CROPS, levels=TWELVE)]
    forms = [
        *(CacheFormat(recipe, whole=False) for recipe in recipes),
        *(CacheFormat(recipe, whole=True) for recipe in wholes),
    ]
    assert len({str(form.settings()) for form in forms}) == len(forms)
    same = PreprocessConfig(size=(8, 8), mean=(0.1,), steps=preset_steps("light"))
    assert (
        CacheFormat(same, whole=False).settings() == CacheFormat(PreprocessConfig(size=(8, 8)), whole=False).settings()
    )


def test_a_loader_takes_a_share_of_the_memory():
    assert 2**20 < memory_budget() < 2**44
    assert CachedImage(np.zeros((1, 1, 1), np.uint8), (1, 1)).shape == (1, 1)


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", [(256, 384), (257, 385), (257, 191), (135, 514)])
def test_what_a_scaled_decoding_rounds_up_moves_nothing(tmp_path, shape, resize_mode):
    rows, columns = np.linspace(0, 9, shape[0])[:, None], np.linspace(0, 9, shape[1])[None]
    waves = [127 * (1 + np.sin(rows + c) * np.cos(columns - c)) for c in range(3)]
    (tmp_path / "a").mkdir()
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    image.save(tmp_path / "a" / "0.jpg", quality=95, subsampling=0)
    recipe = PreprocessConfig(size=(20, 20), resize_mode=resize_mode, crop_pct=0.9)
    source = Source("s", ("a",), (Sample("a/0.jpg", "a"),), FileReader(tmp_path))
    whole = source.open("a/0.jpg")
    assert source.open("a/0.jpg", decode_size(recipe)).shape != whole.shape
    difference = np.abs(open_prepared(source, "a/0.jpg", recipe).astype(int) - prepare(whole, recipe))
    assert difference.mean() < 0.4
