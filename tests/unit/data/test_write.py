"""Images written out: resized copies and single samples."""

import csv
import gc
import json
import os
import sys
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from imgclf.cli import app
from imgclf.cli.prepare import SHARD_SIZE
from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError, DataError, MissingExtra
from imgclf.data.audit import audit
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.images import read_image
from imgclf.data.sources import tar_shards as shards
from imgclf.data.sources.open import open_source
from imgclf.data.split import make_split
from imgclf.data.write import ShardSize, parse_shard_size, prepare_folder, prepare_shards, save_samples, write_image
from imgclf.transforms.preprocess import prepare
from support.photos import color_image

RECIPE = PreprocessConfig(size=(8, 16), resize_mode="squash")


def tree(folder):
    """Every path below a folder with its content and its time."""
    return {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in folder.rglob("*")}


def places(source):
    return sorted((sample.label, sample.split, os.path.splitext(sample.ref)[0]) for sample in source.samples)


def in_memory(refs, labels=None, splits=None):
    pixels = np.arange(len(refs), dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)

    class Reader(ArrayReader):
        def open(self, ref, at_least=None):
            return pixels[refs.index(ref)]

    labels, splits = labels or ["a"] * len(refs), splits or [None] * len(refs)
    samples = tuple(Sample(*row) for row in zip(refs, labels, [None] * len(refs), splits, strict=True))
    return Source("memory", tuple(sorted(set(labels))), samples, Reader({}))


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_copy_has_the_size_and_the_classes_and_the_data_stay_as_they_are(photos, tmp_path, kind):
    before, told = tree(photos), []
    source = open_source(photos)
    n = prepare_folder(source, tmp_path / "new" / "out", RECIPE, kind, lambda *state: told.append(state))
    assert n == 60
    assert told[-1] == (60, 60)
    assert tree(photos) == before
    copy = open_source(tmp_path / "new" / "out")
    assert copy.classes == source.classes
    assert places(copy) == places(source)
    assert all(sample.ref.endswith(f".{kind}") for sample in copy.samples)
    for old, new in zip(source.samples[::7], copy.samples[::7], strict=True):
        expected = prepare(source.open(old.ref), RECIPE).astype(int)
        difference = np.abs(copy.open(new.ref).astype(int) - expected)
        assert difference.shape == (8, 16, 3)
        assert difference.max() == 0 if kind == "png" else difference.mean() < 10
    assert os.listdir(tmp_path / "new") == ["out"]


def test_splits_and_deeper_folders_are_kept(tmp_path):
    for index, folder in enumerate(["train/cat", "train/cat/deep", "train/dog", "val/cat", "test/dog"]):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for n in range(2):
            color_image("red", 10 * index + n).save(tmp_path / "data" / folder / f"{n}.png")
    source = open_source(tmp_path / "data")
    prepare_folder(source, tmp_path / "out", RECIPE, "png")
    assert places(open_source(tmp_path / "out")) == places(source)


def test_what_exists_is_not_written_to(photos, tmp_path):
    (tmp_path / "out").mkdir()
    for out, problem in ((tmp_path / "out", "choose a new folder"), (photos, "never written to")):
        before = tree(out)
        with pytest.raises(DataError, match=problem):
            prepare_folder(open_source(photos), out, RECIPE)
        assert tree(out) == before


def test_a_copy_never_lies_inside_the_data(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    before = tree(photos)
    for out in (photos / "out", photos / "red" / "out", tmp_path / "link" / "out", photos / "red" / ".." / "out"):
        with pytest.raises(DataError, match="inside the data folder, which is never written to"):
            prepare_folder(open_source(photos), out, RECIPE)
    assert tree(photos) == before


def test_images_that_differ_in_their_extension_stay_apart(tmp_path):
    refs = ["a/x.png", "a/x.jpg", "a/x.bmp", "a/x.png.gif", "a/x.png.bmp"]
    prepare_folder(in_memory(refs), tmp_path / "out", PreprocessConfig(size=(4, 4)), "png")
    written = [np.asarray(Image.open(path)) for path in (tmp_path / "out" / "a").iterdir()]
    assert sorted(int(pixels[0, 0, 0]) for pixels in written) == [0, 1, 2, 3, 4]


def test_a_csv_may_name_images_anywhere_and_none_of_them_is_written_over(photos, tmp_path):
    (tmp_path / "lists").mkdir()
    rows = [
        (photos / name / f"{i:02d}.png", "warm" if name == "red" else "cold")
        for name in ("red", "blue")
        for i in (0, 1)
    ]
    paths = [str(path) if i % 2 else os.path.relpath(path, tmp_path / "lists") for i, (path, _) in enumerate(rows)]
    with open(tmp_path / "lists" / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *zip(paths, (label for _, label in rows), strict=True)])
    before = tree(photos)
    out = tmp_path / "elsewhere" / "warm" / "out"
    prepare_folder(open_source(tmp_path / "lists" / "labels.csv"), out, RECIPE)
    assert tree(photos) == before
    assert open_source(out).counts() == {"cold": 2, "warm": 2}


def test_images_of_no_folder_come_below_their_split_and_class(tmp_path):
    refs = ["train/00000", "train/00001", "train/00002", "train/00003", "test/00000", "test/00001"]
    source = in_memory(refs, ["7", "3", "7", "3", "3", "7"], ["train"] * 4 + ["test"] * 2)
    prepare_folder(source, tmp_path / "out", PreprocessConfig(size=(4, 4)), "png")
    copy = open_source(tmp_path / "out")
    assert {sample.ref for sample in copy.samples} == {
        "train/7/00000.png",
        "train/3/00001.png",
        "train/7/00002.png",
        "train/3/00003.png",
        "test/3/00000.png",
        "test/7/00001.png",
    }


def test_images_that_a_csv_names_lie_in_their_class_folders(photos, tmp_path):
    """Wherever they were: deep, in folders called otherwise, or under one name in several of them."""
    rows = [("photos/red/00.png", "red", "train"), ("photos/blue/00.png", "red", "train")]
    rows += [("photos/green/00.png", "red", "train"), ("photos/red/01.png", "blue", "train")]
    rows += [("photos/blue/01.png", "blue", "valid"), (str(photos / "blue/02.png"), "blue", "test")]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    source = open_source(tmp_path / "labels.csv")
    prepare_folder(source, tmp_path / "out", RECIPE, "png")
    copy = open_source(tmp_path / "out")
    assert [sample.ref for sample in copy.samples] == [
        *("test/blue/02.png", "train/blue/01.png", "train/red/00-2.png", "train/red/00-3.png", "train/red/00.png"),
        "valid/blue/01.png",
    ]
    contents = {copy.open(sample.ref).tobytes() for sample in copy.samples}
    assert contents == {prepare(source.open(sample.ref), RECIPE).tobytes() for sample in source.samples}


@pytest.mark.parametrize("label", ["..", "cats/dogs", ".", "/tmp", "a\x1b/b"])
def test_a_class_that_can_be_no_folder(tmp_path, label):
    with pytest.raises(DataError, match="can't be folder names; rename them") as caught:
        prepare_folder(in_memory(["x.png"], [label]), tmp_path / "out", RECIPE)
    assert "\x1b" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_copy_that_fails_leaves_nothing(photos, tmp_path):
    source = open_source(photos)
    (photos / source.samples[-1].ref).write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        prepare_folder(source, tmp_path / "out", RECIPE)
    assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_samples_are_the_first_of_each_class(photos, tmp_path):
    source = open_source(photos)
    folder = save_samples(source, source.samples, tmp_path / "samples", most=2)
    assert sorted(os.listdir(folder)) == ["blue.png", "green.png"]
    expected = source.open(next(s.ref for s in source.samples if s.label == "blue"))
    assert (np.asarray(Image.open(folder / "blue.png")) == expected).all()


def test_samples_of_classes_whose_names_are_no_file_names(tmp_path):
    save_samples(in_memory(["x"], ["a/../b c"]), in_memory(["x"], ["a/../b c"]).samples, tmp_path / "samples")
    assert os.listdir(tmp_path / "samples") == ["a----b-c.png"]


def test_a_gray_image_stays_gray(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    write_image(tmp_path / "new" / "gray.png", pixels)
    image = Image.open(tmp_path / "new" / "gray.png")
    assert image.mode == "L"
    assert (np.asarray(image) == pixels[..., 0]).all()


def contents(source):
    """The images of a source by their content, with class, split and group."""
    return sorted((sample.sha256, sample.label, sample.split, sample.group) for sample in audit(source).source.samples)


def test_shards_hold_the_same_images_classes_and_split(photos, tmp_path, monkeypatch):
    before, told = tree(photos), []
    source = audit(open_source(photos)).source
    n = prepare_shards(
        source, tmp_path / "new" / "50% out", size=ShardSize(images=25), progress=lambda *s: told.append(s)
    )
    assert n == 60
    assert told == [(i, 60) for i in range(1, 61)]
    assert tree(photos) == before
    folder = tmp_path / "new" / "50% out"
    stems = [f"shard-00000{i}{suffix}" for i in range(3) for suffix in (".index.json", ".tar")]
    assert sorted(os.listdir(folder)) == ["classes.json", *stems]
    assert os.listdir(tmp_path / "new") == ["50% out"]
    monkeypatch.setattr(shards, "index_tar", None)  # the indices are enough
    copy = open_source(folder)
    assert copy.classes == source.classes
    assert contents(copy) == contents(source)
    assert make_split(audit(copy).source).digest == make_split(source).digest
    assert {len({s.label for s in copy.samples[i : i + 25]}) for i in (0, 25)} == {3}  # in no order of classes


def test_the_webdataset_library_reads_what_is_written(tmp_path):
    for index, name in enumerate(("red", "blue")):
        for i in range(3):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            color_image(name, 10 * index + i).save(tmp_path / "data" / name / f"a photo.{i}.jpg")
    source = audit(open_source(tmp_path / "data")).source
    prepare_shards(source, tmp_path / "out", size=ShardSize(images=4))
    urls = f"{tmp_path}/out/shard-{{000000..000001}}.tar"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # that library leaves its files open
        raw = list(webdataset.WebDataset(urls, shardshuffle=False).to_tuple("__key__", "jpg", "cls"))
        decoded = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
        gc.collect()
    assert [key for key, _, _ in raw] == [f"{i:09d}" for i in range(6)]
    assert {data for _, data, _ in raw} == {path.read_bytes() for path in (tmp_path / "data").rglob("*.jpg")}
    copy = open_source(tmp_path / "out")
    for (image, number), sample in zip(decoded, copy.samples, strict=True):
        assert source.classes[number] == sample.label
        assert (np.asarray(image) == copy.open(sample.ref)).all()


def test_splits_and_groups_go_into_shards(tmp_path, make_source):
    source = make_source(12)
    splits = ["train", "valid", "test", "train"]
    source = source.with_samples(
        replace(sample, split=splits[i // 9], group=f"g{i // 2}") for i, sample in enumerate(source.samples)
    )
    prepare_shards(source, tmp_path / "out")
    names = [f"{split}-000000.tar" for split in ("test", "train", "valid")]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == names
    copy = open_source(tmp_path / "out")

    def described(source):
        return sorted((s.label, s.split, s.group, source.open(s.ref).tobytes()) for s in source.samples)

    assert described(copy) == described(source)  # of arrays the PNG gives the same pixels


def test_other_formats_become_png_and_sizes_are_made(tmp_path):
    for kind in ("bmp", "jpg", "webp", "png"):
        for i in range(2):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            color_image("red", i).save(tmp_path / "data" / kind / f"{i}.{kind}")
    (tmp_path / "data" / "jpg" / "0.jpg").rename(tmp_path / "data" / "jpg" / "0.png")  # content decides
    source = audit(open_source(tmp_path / "data")).source
    prepare_shards(source, tmp_path / "out")
    copy = open_source(tmp_path / "out")
    kinds = {sample.label: os.path.splitext(sample.ref)[1] for sample in copy.samples}
    assert kinds == {"bmp": ".png", "jpg": ".jpg", "webp": ".webp", "png": ".png"}
    pixels = {(s.label, copy.open(s.ref).tobytes()) for s in copy.samples}
    assert pixels == {(s.label, source.open(s.ref).tobytes()) for s in source.samples}
    prepare_shards(copy, tmp_path / "small", RECIPE, "png")
    small = open_source(tmp_path / "small")
    expected = {prepare(source.open(s.ref), RECIPE).tobytes() for s in source.samples}
    assert {small.open(sample.ref).tobytes() for sample in small.samples} == expected


def test_a_shard_ends_where_it_is_full(photos, tmp_path):
    source = audit(open_source(photos)).source
    prepare_shards(source, tmp_path / "out", size=parse_shard_size("20KB"))
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(sizes) > 5
    assert all(20_000 < size < 50_000 for size in sizes[:-1])
    assert parse_shard_size("1gb") == ShardSize(1e9, float("inf"))
    assert parse_shard_size("500").images == 500
    assert parse_shard_size(SHARD_SIZE) == ShardSize()
    for wrong in ("", "0", "0MB", "1TB", "-1", "1.5GB", "²"):
        with pytest.raises(ConfigError, match="shard size is"):
            parse_shard_size(wrong)


def test_shards_are_whole_or_not_there(photos, tmp_path):
    source = audit(open_source(photos)).source
    for out, problem in ((photos / "out", "never written to"), (tmp_path, "already exists")):
        with pytest.raises(DataError, match=problem):
            prepare_shards(source, out)
    path = photos / source.samples[-1].ref
    path.write_bytes(path.read_bytes()[:-40])  # it became unreadable meanwhile
    with pytest.raises(DataError, match=r"19\.png: has changed since it was checked"):
        prepare_shards(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"shard-000000\.tar: 59 of 60 images can be read back") as caught:
        prepare_shards(open_source(photos), tmp_path / "out")  # nothing was ever checked
    assert len(caught.value.problems) == 1
    assert os.listdir(tmp_path) == ["photos"]


def test_shards_need_the_extra(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingExtra, match="webdataset"):
        prepare_shards(open_source(photos), tmp_path / "out")
    assert os.listdir(tmp_path) == ["photos"]


def test_the_same_data_give_the_same_shards(photos, tmp_path):
    for name in ("one", "two"):
        prepare_shards(audit(open_source(photos)).source, tmp_path / name)
    assert [p.read_bytes() for p in sorted((tmp_path / "one").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "two").iterdir())
    ]


def test_the_command_writes_shards(photos, tmp_path):
    (photos / "red" / "00.png").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["prepare", str(photos), str(tmp_path / "out"), "--shards", "--shard-size", "30"])
    assert result.exit_code == 1
    assert result.stdout == f"59 images in 2 shards in {tmp_path}/out\n"
    assert "red/00.png" in result.stderr
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        name = tar.getnames()[1]
        assert read_image(tar.extractfile(name).read()).shape == (24, 32, 3)
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["blue", "green", "red"]
    args = ["prepare", str(tmp_path / "out"), str(tmp_path / "small"), "--shards", "--size", "8"]
    assert CliRunner().invoke(app, args).stdout == f"59 images of 8×8 in 1 shard in {tmp_path}/small\n"
    args = ["prepare", str(tmp_path / "out"), str(tmp_path / "folder"), "--size", "8"]
    assert CliRunner().invoke(app, args).stdout == f"59 images of 8×8 in {tmp_path}/folder\n"
    assert open_source(tmp_path / "folder").counts() == {"blue": 20, "green": 20, "red": 19}
    for options, problem in (
        (["--shard-size", "5"], "needs --shards"),
        (["--shards", "--shard-size", "x"], "shard size is"),
    ):
        result = CliRunner().invoke(app, ["prepare", str(photos), str(tmp_path / "new"), *options])
        assert result.exit_code == 2
        assert problem in result.stderr
