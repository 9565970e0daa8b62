"""The one way to save, and text that is safe to print or to open in a spreadsheet."""

import csv
import errno
import io
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core import files as _files
from imgclf.core.files import (
    FORMULA_STARTS,
    atomic_file,
    cache_folder,
    csv_plain,
    csv_safe,
    csv_text,
    read_text,
    seal,
    unseal,
    write_atomic,
    write_text,
)

posix = pytest.mark.skipif(os.name == "nt", reason="modes and byte file names are POSIX's")
cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12) | st.builds(
    str.__add__, st.sampled_from(FORMULA_STARTS), st.text("ab=+'\t\r\n,\"", max_size=4)
)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"a long first content")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_a_folder_that_is_not_there_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        write_atomic(tmp_path / "nowhere" / "file", b"content")


@given(st.binary(max_size=100), st.data())
def test_what_is_unsealed_is_what_was_sealed_or_an_error(content, data):
    stored = content + seal(content)
    assert unseal(stored) == content
    place = data.draw(st.integers(0, len(stored) - 1))
    flipped = stored[:place] + bytes([stored[place] ^ (1 << data.draw(st.integers(0, 7)))]) + stored[place + 1 :]
    with pytest.raises(ValueError, match="checksum"):
        unseal(stored[:place] if data.draw(st.booleans()) else flipped)


def test_a_seal_covers_what_stands_before_it_as_far_as_it_counts():
    assert unseal(b"free" + b"sealed" + seal(b"sealed")) == b"sealed"
    with pytest.raises(ValueError, match="checksum"):
        unseal(b"ealed" + seal(b"sealed"))


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch, name, error):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, name, fail)
        with pytest.raises(type(error)):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_name_points_to_it(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(_files.os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(_files.os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_atomic(tmp_path / "file", b"new")
    assert events[:2] == ["fsync", "replace"]


def test_a_file_written_in_pieces_appears_when_it_is_whole(tmp_path):
    with atomic_file(tmp_path / "file") as file:
        file.write(b"one, ")
        assert not (tmp_path / "file").exists()
        file.write(b"two")
    assert (tmp_path / "file").read_bytes() == b"one, two"
    assert os.listdir(tmp_path) == ["file"]


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    write_atomic(tmp_path / ("n" * 255), b"content")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"content"


def test_text_keeps_newlines_and_names_that_are_no_utf8(tmp_path):
    text = "größe\r\n\udcff"
    write_text(tmp_path / "file", text)
    assert (tmp_path / "file").read_bytes() == "größe\r\n".encode() + b"\xff"
    assert read_text(tmp_path / "file") == text


def test_the_byte_order_mark_of_a_spreadsheet_is_no_text(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfpath,label")
    assert read_text(tmp_path / "file") == "path,label"


@given(cells)
def test_a_safe_cell_is_no_formula_and_can_be_undone(cell):
    assert csv_plain(csv_safe(cell)) == cell
    assert not csv_safe(cell).startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.lists(st.lists(cells, min_size=2, max_size=3), max_size=4))
def test_rows_come_back_from_csv_as_they_were(rows):
    read = csv.reader(io.StringIO(csv_text(rows), newline=""))
    assert [[csv_plain(cell) for cell in row] for row in read] == rows


def test_numbers_stay_numbers():
    assert csv_text([[-1, -0.5, "-1"]]) == "-1,-0.5,'-1\n"


def test_the_cache_lies_where_the_user_says(monkeypatch):
    monkeypatch.setenv("IMGCLF_CACHE", "own")
    monkeypatch.setenv("XDG_CACHE_HOME", "shared")
    assert cache_folder() == Path("own")
    monkeypatch.delenv("IMGCLF_CACHE")
    assert cache_folder() == Path("shared/imgclf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "imgclf"


@pytest.mark.parametrize(("code", "more"), [(errno.ENOSPC, ", 1,000 bytes are needed"), (errno.EIO, "")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch, call, code, more):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its parts are looked at
        write_atomic(path, b"x" * 1000)
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert caught.value.strerror == os.strerror(code) + more
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
