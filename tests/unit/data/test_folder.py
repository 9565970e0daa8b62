"""Folders as data: what becomes a class, a split, an image, and what is only listed."""

import os
import shutil
import sys
import unicodedata

import pytest
from PIL import Image

from imgclf.core.errors import DataError
from imgclf.data.images import BadImage
from imgclf.data.sources.folder import FileReader, image_files, open_folder


def image(path, value=0, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path, kind)


def fill(root, *classes, count=2):
    for label in classes:
        for i in range(count):
            image(root / label / f"{i}.png")


def refs(source):
    return [sample.ref for sample in source.samples]


def test_each_sub_folder_is_a_class_and_nested_files_belong_to_it(tmp_path):
    fill(tmp_path, "b", "a")
    image(tmp_path / "a/deep/er/x.JPG", kind="JPEG")
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert refs(source) == ["a/0.png", "a/1.png", "a/deep/er/x.JPG", "b/0.png", "b/1.png"]
    assert source.counts() == {"a": 3, "b": 2}
    assert source.open("a/0.png").shape == (4, 4, 1)
    assert (source.location, source.notes, source.skipped) == (str(tmp_path), (), ())
    assert all(sample.split is None for sample in source.samples)


def test_junk_never_becomes_a_class_and_is_listed(tmp_path):
    fill(tmp_path, "a", "b")
    for folder in ("__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", "a/.ipynb_checkpoints", "System Volume Information"):
        image(tmp_path / folder / "0.png")
    (tmp_path / "empty").mkdir()
    for name in ("Thumbs.db", "a/desktop.ini", "a/.DS_Store", "b/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    for i in range(12):
        (tmp_path / f"a/{i}.txt").write_text("x")
    (tmp_path / "a/README").write_text("x")
    (tmp_path / "a/clip.MOV").write_text("x")
    image(tmp_path / "beside.png")
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert len(source) == 4
    ignored = "\n".join(source.skipped)
    for line in (
        "__MACOSX/: left by an operating system",
        ".git/: hidden",
        "empty/: a folder without images",
        "2 files named .DS_Store: hidden",
        "12 files ending .txt: not a supported image type",
        "a/README: not a supported image type",
        "a/clip.MOV: a video: save its frames as images",
        "beside.png: not inside a class folder",
        "Thumbs.db: left",
    ):
        assert line in ignored


def test_images_without_an_extension_are_found_by_their_content(tmp_path):
    fill(tmp_path, "a", "b")
    image(tmp_path / "a/plain")
    assert "a/plain" in refs(open_folder(tmp_path))


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (("train", "val", "test"), "train/, val/ and test/ found"),
        (("Training", "DEV"), "Training/ and DEV/ found"),
        (("train", "testing"), "train/ and testing/ found"),
        (("train",), "train/ found"),
        (("Training Set", "val_images", "test-data"), "Training Set/, val_images/ and test-data/ found"),
    ],
)
def test_split_folders_are_recognized(tmp_path, folders, note):
    for folder in folders:
        fill(tmp_path / folder, "a", "b")
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert source.notes == (note,)
    meaning = {"train": "train", "val": "valid", "test": "test"}
    expected = {"Training": "train", "DEV": "valid", "testing": "test", **meaning}
    expected |= {"Training Set": "train", "val_images": "valid", "test-data": "test"}
    assert {s.ref.split("/")[0]: s.split for s in source.samples} == {f: expected[f] for f in folders}


def test_a_class_folder_may_be_called_like_a_split(tmp_path):
    fill(tmp_path, "train", "bus", "bullet train", "test tube")
    assert open_folder(tmp_path).classes == ("bullet train", "bus", "test tube", "train")
    fill(tmp_path / "train", "wagon")
    assert open_folder(tmp_path / "train", strict=False).classes == ("wagon",)


def test_split_folders_may_be_wrapped_once_more(tmp_path):
    for split in ("training_set", "test_set"):
        fill(tmp_path / split / split, "a", "b")
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert source.notes == ("training_set/training_set/ and test_set/test_set/ found",)
    assert {s.split for s in source.samples} == {"train", "test"}


def test_splits_below_each_class_are_taken(tmp_path):
    for label in ("a", "b"):
        fill(tmp_path / label, "Train", "test")
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert source.notes == ("Train/ and test/ found below each class",)
    assert {(s.ref.split("/")[1], s.split) for s in source.samples} == {("Train", "train"), ("test", "test")}


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (("train/a", "train/b", "sketches"), r"train/ may be a split or a class: it holds folders \(a and b\)"),
        (("train/a", "train/b", "unlabeled"), "and unlabeled/ is beside it"),
        (("test/a", "test/b", "c", "d"), "c/ and d/ are beside it"),
        (("test/a", "test/b", "c", "d", "e", "f"), "c/, d/, e/, … are beside it"),
        (("train", "test"), "test/ and train/ are named like splits"),
        (("train2017/a", "train2017/b", "val2017/a"), "train2017/ and val2017/ are named like splits"),
        (("seg_pred", "seg_test/a", "seg_train/a"), "seg_pred/, seg_test/ and seg_train/ are named like splits"),
        (("monday/a", "monday/b", "tuesday/a", "tuesday/b"), "monday/ and tuesday/ all hold a/ and b/"),
        (("a/train", "a/test", "b"), "a/ holds test/ and train/, and not every class folder"),
        (("a/train", "a/test", "b/train", "b/good"), "a/ holds test/ and train/, and not every class folder"),
    ],
)
def test_training_stops_where_classes_look_like_splits(tmp_path, folders, problem):
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=problem) as caught:
        open_folder(tmp_path)
    assert len(caught.value.problems) == 1
    assert "list the images in a CSV" in str(caught.value)
    open_folder(tmp_path, strict=False)


@pytest.mark.parametrize(
    "folders", [("a/images", "b/images"), ("a/1", "a/2", "b/1", "b/2", "b"), ("a/x", "a/y", "b/z")]
)
def test_sub_folders_of_classes_are_no_splits(tmp_path, folders):
    fill(tmp_path, *folders)
    assert open_folder(tmp_path).classes == ("a", "b")


def test_other_folders_beside_the_splits_are_listed(tmp_path):
    fill(tmp_path / "train", "a", "b")
    fill(tmp_path / "val", "a", "b")
    fill(tmp_path, "sketches")
    image(tmp_path / "train/loose.png")
    source = open_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert "sketches/: beside the split folders" in source.skipped
    assert any(line.startswith("train/loose.png: not inside a class folder") for line in source.skipped)


def test_folders_without_images_or_classes_beside_train_count_as_missing(tmp_path):
    fill(tmp_path / "train", "a", "b")
    image(tmp_path / "test/1.png")
    (tmp_path / "docs/more").mkdir(parents=True)
    (tmp_path / "docs/more/readme.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    source = open_folder(tmp_path)
    assert source.notes == ("train/ found",)
    assert len(source) == 4
    assert "test/: a split folder without class folders" in source.skipped
    assert {"docs/: beside the split folders", "empty/: beside the split folders"} <= set(source.skipped)


def test_all_problems_come_in_one_error(tmp_path):
    fill(tmp_path / "train", "a", count=1)
    fill(tmp_path / "val", "zebra")
    fill(tmp_path / "dev", "a")
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path)
    text = "\n".join(caught.value.problems)
    assert "dev/ and val/ both mean valid" in text
    assert "class 'zebra' has no image in train" in text
    assert "at least 2 classes" in text


def test_a_class_may_have_one_image(tmp_path):
    fill(tmp_path, "a", "b")
    fill(tmp_path, "c", count=1)
    assert open_folder(tmp_path).counts() == {"a": 2, "b": 2, "c": 1}


def test_a_class_that_valid_lacks_is_only_noted(tmp_path):
    fill(tmp_path / "train", "a", "b", "c")
    fill(tmp_path / "val", "a", "c")
    assert "valid holds no image of b" in open_folder(tmp_path).notes


def test_the_folder_that_was_meant_is_named(tmp_path):
    fill(tmp_path / "wrap/chairs", "red", "gray")
    with pytest.raises(DataError, match=r"did you mean .*wrap/chairs"):
        open_folder(tmp_path / "wrap")
    for split in ("train", "val"):
        fill(tmp_path / "wrap/chairs" / split, "red", "gray")
    (note,) = open_folder(tmp_path / "wrap/chairs/train").notes
    assert note == f"val/ beside it is not used: for that, name {tmp_path / 'wrap/chairs'}"
    shutil.rmtree(tmp_path / "wrap/chairs/val")
    assert open_folder(tmp_path / "wrap/chairs/train").notes == ()


def test_splits_without_train(tmp_path):
    fill(tmp_path / "val", "a", "b")
    fill(tmp_path / "test", "a", "b")
    with pytest.raises(DataError, match="no train folder"):
        open_folder(tmp_path)
    source = open_folder(tmp_path, strict=False)
    assert source.classes == ("a", "b")
    assert {sample.split for sample in source.samples} == {"valid", "test"}


def test_paths_that_are_no_data(tmp_path):
    (tmp_path / "file").write_text("x")
    for name, reason in (("file", "it is a file"), ("none", "does not exist"), ("", "no images found")):
        with pytest.raises(DataError, match=reason):
            open_folder(tmp_path / name)


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path, monkeypatch):
    fill(tmp_path, "a", "b", "c")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("c"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="c can't be read: permission denied"):
        open_folder(tmp_path)


def test_image_files_come_in_natural_order(tmp_path):
    names = ["IMG_2.png", "IMG_10.png", "img_1.png", "img_01.png", "x10/3.png", "x10/20.png", "x9.png"]
    for name in names:
        image(tmp_path / name)
    assert image_files(tmp_path)[0] == [*names[:2], "img_01.png", "img_1.png", "x9.png", *names[4:6]]


def test_image_files_are_relative_and_sorted_and_unreadable_folders_are_named(tmp_path, monkeypatch):
    fill(tmp_path, "b", "a", "a/deep", count=1)
    image(tmp_path / "beside.png")
    image(tmp_path / ".hidden/0.png")
    (tmp_path / "z-link").symlink_to(tmp_path / "a")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    files = ["a/0.png", "a/deep/0.png", "b/0.png", "beside.png"]
    assert image_files(tmp_path) == (files, [])
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(os.path.normpath(path)) == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    reason = "can't be read: permission denied"
    assert image_files(tmp_path) == ([file for file in files if "deep" not in file], [("a/deep", reason)])
    assert image_files(tmp_path / "a/deep") == ([], [("", reason)])


def test_links_are_followed_once_and_loops_end(tmp_path):
    root = tmp_path / "data"
    fill(root, "a", "b")
    fill(tmp_path / "elsewhere", "c")
    (root / "a/loop").symlink_to(root)
    (root / "a/other").symlink_to(root / "b")
    (root / "c").symlink_to(tmp_path / "elsewhere/c")
    (root / "b/dangling.png").symlink_to(tmp_path / "nowhere")
    (root / "b/circle.png").symlink_to(root / "b/circle.png")
    os.mkfifo(root / "b/pipe.png")
    source = open_folder(root)
    assert source.counts() == {"a": 2, "b": 2, "c": 2}
    ignored = "\n".join(source.skipped)
    assert "a/loop/: a link to a folder that was read already" in ignored
    assert "a/other/: a link to a folder that was read already" in ignored
    assert "2 files ending .png: a broken link" in ignored
    assert "b/pipe.png: a pipe, not a regular file" in ignored


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_names_work_and_round_trip(tmp_path):
    fill(tmp_path, "plain")
    odd = ["new\nline", "esc\x1b[1m", "[bold]", "=cmd", "-rf", "é" * 60, os.fsdecode(b"\xff\xfe")]
    for name in odd:
        for i in range(2):
            image(tmp_path / name / f"{name[:20]}{i}.png")
    source = open_folder(tmp_path)
    assert set(source.classes) == {*odd, "plain"}
    assert list(source.classes) == sorted(source.classes, key=os.fsencode)
    for sample in source.samples:
        assert source.open(sample.ref).shape == (4, 4, 1)
        assert len(source.reader.digest(sample.ref)) == 64
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path / "new\nline")
    assert caught.value.args[0].splitlines()[0].count("\\n") == 1


def test_the_unicode_forms_of_a_name_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    fill(tmp_path / "train", "bar", apart)
    fill(tmp_path / "val", "bar", composed)
    source = open_folder(tmp_path)
    assert source.classes == (apart, "bar")
    assert [s.ref for s in source.samples if s.label == apart and s.split == "valid"] == [
        f"val/{composed}/0.png",
        f"val/{composed}/1.png",
    ]
    assert source.notes[1:] == (f"the class {apart!r} is written in 2 Unicode forms, which count as one class",)


def test_reader_says_which_file_is_bad(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    reader = FileReader(tmp_path)
    with pytest.raises(BadImage, match=r"x\.png: not an image"):
        reader.open("x.png")
    with pytest.raises(BadImage, match="no such file"):
        reader.digest("y.png")


def test_a_reader_holds_a_file_to_what_was_found_in_it(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (4, 4), 7).save(path)
    reader, content = FileReader(tmp_path), path.read_bytes()
    known = reader.digest("x.png")
    path.write_bytes(content)  # the same bytes, another time
    assert reader.digest("x.png") == known
    assert (reader.open("x.png") == 7).all()
    Image.new("L", (4, 4), 9).save(path)
    with pytest.raises(BadImage, match=r"x\.png: has changed since it was checked"):
        reader.open("x.png")
    assert reader.digest("x.png") != known
    with pytest.raises(BadImage, match="has changed"):  # who asks for the digest has not agreed to the change
        reader.open("x.png")
    path.write_bytes(content)
    with pytest.raises(BadImage, match="has changed"), reader.opened("x.png"):
        Image.new("L", (4, 4), 9).save(path)
    assert (FileReader(tmp_path).open("x.png") == 9).all()


def test_scanning_changes_nothing(tmp_path):
    fill(tmp_path, "a", "b")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = open_folder(tmp_path)
    source.open(refs(source)[0])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
