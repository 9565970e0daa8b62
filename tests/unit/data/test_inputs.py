"""What `predict` accepts."""

import os

import numpy as np
import pytest
from PIL import Image

from imgclf.core.errors import DataError
from imgclf.data.images import BadImage
from imgclf.data.sources.folder import open_folder
from imgclf.data.sources.inputs import inputs_source
from support.photos import color_image

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def refs(images):
    return [sample.ref for sample in inputs_source(images).samples]


def test_a_path_may_be_text_or_a_path(photos):
    file = photos / "red" / "00.png"
    assert refs(file) == refs(str(file)) == refs([file]) == [str(file)]
    expected = np.asarray(Image.open(file))
    assert (inputs_source(file).open(str(file)) == expected).all()


def test_a_path_is_tried_whatever_it_is_called(tmp_path):
    color_image("red", 0).save(tmp_path / "picture.dat", "PNG")
    assert inputs_source(tmp_path / "picture.dat").open(str(tmp_path / "picture.dat")).shape == (24, 32, 3)
    assert refs(tmp_path / "not there") == [str(tmp_path / "not there")]


def test_a_folder_gives_the_images_below_it_in_order(photos):
    for name in (".hidden", "__MACOSX", "red/deep"):
        (photos / name).mkdir()
        color_image("red", 0).save(photos / name / "x.png")
    (photos / "notes.txt").write_text("no image")
    color_image("red", 0).save(photos / "red" / ".hidden.png")
    found = refs(photos)
    assert found == sorted(found)
    assert len(found) == 61
    assert str(photos / "red" / "deep" / "x.png") in found


def test_images_and_arrays_come_as_they_are():
    image = Image.fromarray(ARRAY)
    source = inputs_source([image, ARRAY, ARRAY[..., 0]])
    assert [sample.ref for sample in source.samples] == ["image 0", "image 1", "image 2"]
    assert (source.open("image 0") == ARRAY).all()
    assert (source.open("image 1") == ARRAY).all()
    assert (source.open("image 2") == ARRAY[..., :1]).all()
    assert refs(image) == refs(ARRAY) == ["image 0"]


def test_the_order_is_kept_and_an_image_may_come_twice(photos):
    one, two = photos / "red" / "00.png", photos / "blue" / "00.png"
    assert refs([one, ARRAY, two, one]) == [str(one), "image 1", str(two), str(one)]
    assert refs(iter([two, one])) == [str(two), str(one)]


def test_nobody_knows_the_labels(photos):
    source = inputs_source(photos)
    assert source.classes == ()
    assert {sample.label for sample in source.samples} == {""}


def test_equal_pixels_have_equal_digests():
    source = inputs_source([ARRAY, ARRAY.copy(), ARRAY[::-1]])
    first, second, third = (source.reader.digest(sample.ref) for sample in source.samples)
    assert first == second != third


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images to predict"),
        ([3], "image 0 is int; expected a path, a PIL image, the bytes"),
        (None, "NoneType; expected"),
        (7, "int; expected"),
        ([ARRAY, None], "image 1 is NoneType"),
        (ARRAY / 255, "image 0 is an array of float64 and shape .2, 4, 3.; expected uint8"),
        (ARRAY[None], "shape .1, 2, 4, 3.; expected uint8"),
        (ARRAY[:0], "shape .0, 4, 3.; expected uint8"),
    ],
)
def test_what_is_no_image(images, message):
    with pytest.raises(DataError, match=message):
        inputs_source(images)


def test_a_folder_without_images_is_one_bad_image_and_the_others_stay(photos, tmp_path):
    empty, file = tmp_path / "empty", photos / "red" / "00.png"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    source = inputs_source([empty, file, f"{empty}/", empty])
    assert [sample.ref for sample in source.samples] == [str(empty), str(file), f"{empty}/", str(empty)]
    assert source.open(str(file)).shape == (24, 32, 3)
    for ref in (str(empty), f"{empty}/"):
        with pytest.raises(BadImage, match=r"empty/?: contains no images"):
            source.open(ref)


def test_a_folder_that_cannot_be_read_is_named(photos, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(os.path.normpath(path)) == "red":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for given, named in ((photos, photos / "red"), (photos / "red", photos / "red")):
        source = inputs_source(given)
        assert len(source) == (41 if given == photos else 1)
        with pytest.raises(BadImage, match="red: can't be read: permission denied"):
            source.open(str(named))


def test_paths_stay_as_they_were_given(photos, monkeypatch):
    monkeypatch.chdir(photos)
    given = ["./red/00.png", "red//00.png", "../photos/red/00.png", "", "./gone.png"]
    assert refs(given) == given
    names = [f"{index:02d}.png" for index in range(20)]
    for folder, start in (
        ("./red", "./red/"),
        ("red/", "red/"),
        ("red//", "red//"),
        ("../photos/red", "../photos/red/"),
    ):
        assert refs(folder) == [start + name for name in names]
    assert refs(".")[0] == "./blue/00.png"


def test_what_a_folder_gives_is_what_training_would_take(photos):
    for name in ("Thumbs.db", "@eaDir", "red/.ipynb_checkpoints"):
        (photos / name).mkdir()
        color_image("red", 0).save(photos / name / "x.png")
    (photos / "red" / "again").symlink_to(photos)
    (photos / "red" / "nothing.png").symlink_to(photos / "gone")
    color_image("red", 0).save(photos / "red" / "plain", "PNG")
    (photos / "red" / "README").write_text("no image")
    assert refs(photos) == [str(photos / sample.ref) for sample in open_folder(photos).samples]
    assert str(photos / "red" / "plain") in refs(photos)


def test_too_many_pixels_are_a_bad_image(photos):
    file = str(photos / "red" / "00.png")
    assert inputs_source(file, max_pixels=24 * 32).open(file).shape == (24, 32, 3)
    with pytest.raises(BadImage, match="more than the limit"):
        inputs_source(file, max_pixels=24 * 32 - 1).open(file)


def test_a_file_called_like_a_nameless_image_stays_itself(in_folder):
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(in_folder / "named.png")
    (in_folder / "named.png").rename(in_folder / "image 1")
    dark = np.zeros((4, 4, 3), np.uint8)
    for images, place in ((["image 1", dark], 0), ([1 + dark, dark, "image 1"], 2)):
        source = inputs_source(images)
        assert source.samples[place].ref == "image 1"
        assert source.open(source.samples[place].ref).max() == 200
        assert source.open(source.samples[1].ref).max() == 0
