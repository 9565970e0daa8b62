"""The front door of data."""

import tarfile

import pytest
from PIL import Image

from imgclf.core.errors import DataError
from imgclf.data.images import BadImage
from imgclf.data.sources.open import open_source


@pytest.fixture
def photos(tmp_path):
    for label in "ab":
        for i in range(2):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(tmp_path / f"photos/{label}/{i}.png")
    return tmp_path / "photos"


def test_folders_tables_names_and_sources(photos, tmp_path):
    folder = open_source(photos)
    assert folder.classes == ("a", "b")
    assert open_source(str(photos)).samples == folder.samples
    assert open_source(folder) is folder
    table = tmp_path / "list.CSV"
    table.write_text("path,label\n" + "".join(f"photos/{c}/{i}.png,{c}\n" for c in "ab" for i in range(2)))
    assert open_source(table).counts() == {"a": 2, "b": 2}
    assert len(open_source("digits")) == 1797


def test_what_exists_goes_before_a_name(photos, monkeypatch):
    photos.rename(photos.with_name("digits"))
    monkeypatch.chdir(photos.parent)
    assert open_source("digits").classes == ("a", "b")


def test_limits_reach_the_reader(photos):
    source = open_source(photos, max_pixels=10)
    with pytest.raises(BadImage, match="megapixels"):
        source.open("a/0.png")


def test_evaluation_accepts_less(photos):
    with pytest.raises(DataError):
        open_source(photos / "a")
    (photos / "a/only").mkdir()
    (photos / "a/0.png").rename(photos / "a/only/0.png")
    assert open_source(photos / "a", strict=False).classes == ("only",)


def test_errors_say_what_was_looked_for(photos, tmp_path):
    with pytest.raises(DataError, match=r"'mnits'; did you mean mnist\? Named sets: digits, mnist"):
        open_source("mnits")
    with pytest.raises(DataError, match=r"no folder, CSV file or named data set is called './nowhere'\. Named"):
        open_source("./nowhere")
    with pytest.raises(DataError, match=rf"did you mean {photos}\?"):
        open_source(f"{photos.parent}/phtos/")
    (photos.parent / ".photo").mkdir()
    with pytest.raises(DataError, match=rf"did you mean {photos}\?"):  # a hidden folder, as .git, is nobody's data
        open_source(f"{photos.parent}/photo")
    with pytest.raises(DataError, match=rf"did you mean {photos.parent}/.photo or "):
        open_source(f"{photos.parent}/.photos")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        open_source(photos / "a/0.png")
    (tmp_path / "photos.ZIP").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"photos.ZIP is an archive; unpack it, and pass the folder"):
        open_source(tmp_path / "photos.ZIP")


def test_tar_shards(photos, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos, ".")
    source = open_source(tmp_path / "a.tar", max_pixels=10, strict=False)
    assert source.counts() == {"a": 2, "b": 2}
    with pytest.raises(BadImage, match="megapixels"):
        source.open("a.tar/a/0.png")
    told = []
    assert len(open_source(f"{tmp_path}/{{a..a}}.tar", progress=lambda *state: told.append(state))) == 4
    assert told == [(1, 1)]
    with pytest.raises(DataError, match="expected tar shards"):
        open_source("nowhere-{00..01}.tar")


def test_class_folders_that_hold_tars_are_a_folder(photos):
    (photos / "backup.tar").write_bytes(b"")
    source = open_source(photos)
    assert source.classes == ("a", "b")
    assert any("backup.tar" in passed for passed in source.skipped)
