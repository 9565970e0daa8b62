"""One pass over a tar: what lies in it by the conventions of WebDataset, and tars that mean harm."""

import io
import json
import tarfile
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.config import Levels
from imgclf.core.errors import DataError
from imgclf.core.files import seal, unseal
from imgclf.data.images import ImageFacts
from imgclf.data.sources import tar_index as tarindex
from imgclf.data.sources.tar_index import (
    MAX_HEADER,
    MAX_LABEL,
    Entry,
    ShardIndex,
    index_tar,
    pack_index,
    parse_classes,
    unpack_index,
)
from support.tars import encoded, make_tar


def indexed(data):
    return index_tar(io.BytesIO(data), "s.tar", len(data))


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PIXELS = encoded()


def test_an_entry_says_where_an_image_lies_and_what_it_is():
    jpeg = encoded(kind="JPEG")
    data = make_tar([("a/1.jpg", jpeg), ("a/1.cls", b"3\n"), ("2.PNG", PIXELS), ("2.txt", b" cat \n")])
    index = indexed(data)
    assert [
        (e.name, e.label, e.facts.format, e.facts.height, e.facts.width, e.facts.reason) for e in index.entries
    ] == [
        ("a/1.jpg", 3, "JPEG", 6, 8, ""),
        ("2.PNG", "cat", "PNG", 6, 8, ""),
    ]
    assert [data[e.offset : e.offset + e.size] for e in index.entries] == [jpeg, PIXELS]
    assert [e.facts.sha256 for e in index.entries] == [sha256(jpeg).hexdigest(), sha256(PIXELS).hexdigest()]
    assert (index.problems, index.passed_over, index.classes) == ((), {}, ())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(form):
    name = "ä/" + "n" * 90 + "/1.png"
    assert [(e.name, e.label) for e in indexed(make_tar([(name, PIXELS)], format=form)).entries] == [(name, "ä")]


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"cls": b"7", "txt": b"seven", "json": b'{"label": 9}'}, 7),
        ({"txt": b"a long caption", "json": b'{"label": "cat"}'}, "cat"),
        ({"txt": b"dog", "json": b'{"width": 8}'}, "dog"),
        ({"json": b'{"label": 12}'}, 12),
        ({"json": b"[1, 2]"}, "folder"),
        ({"cls": b"-1"}, -1),
        ({"cls": "Käfer".encode()}, "Käfer"),
        ({"cls": b"12345678901234"}, "12345678901234"),
        ({}, "folder"),
    ],
)
def test_the_label(members, label):
    members = [("folder/k.png", PIXELS), *((f"./folder/k.{kind}", data) for kind, data in members.items())]
    index = indexed(make_tar(members))
    assert [entry.label for entry in index.entries] == [label]
    assert index.problems == ()


def test_a_group_comes_from_the_json():
    index = indexed(make_tar([("a/1.png", PIXELS), ("a/1.json", b'{"group": 4}'), ("a/2.png", PIXELS)]))
    assert [(entry.label, entry.group) for entry in index.entries] == [("a", "4"), ("a", None)]


def test_problems_are_collected():
    members = [("none.png", PIXELS)]
    members += [("two.png", PIXELS), ("two.left.jpg", PIXELS), ("two.cls", b"0")]
    members += [
        ("x.png", PIXELS),
        ("x.cls", b" "),
        ("y.json", b'{"label": true}'),
        ("z.json", b"{"),
        ("u.txt", b"\xff"),
    ]
    members += [("big.txt", b"x" * (MAX_LABEL + 1)), ("deep.json", b"[" * 100_000), ("classes.json", b'"cat"')]
    problems = indexed(make_tar(members)).problems
    assert [problem.split(":")[0] for problem in problems] == [
        *("s.tar/x.cls", "s.tar/y.json", "s.tar/z.json", "s.tar/u.txt", "s.tar/big.txt", "s.tar/deep.json"),
        *("s.tar/classes.json", "s.tar/none has no label", "s.tar/two has several images", "s.tar/x has no label"),
    ]


def test_what_is_no_image_and_no_label_is_passed_over_and_counted():
    members = [("a/1.png", PIXELS), ("a/1.npy", b"0"), ("a/2.npy", b"0"), ("README", b"0"), ("lonely.cls", b"0")]
    members += [("a/._1.png", PIXELS), ("__meta__/1.png", PIXELS), special("a", tarfile.DIRTYPE)]
    index = indexed(make_tar(members))
    assert [entry.name for entry in index.entries] == ["a/1.png"]
    assert index.problems == ()
    assert index.passed_over == {
        "members ending .npy: neither image nor label": 2,
        "members without an extension: neither image nor label": 1,
        "hidden members": 2,
        "keys without an image": 1,
    }


def test_an_image_that_does_not_decode_keeps_its_place_with_the_reason():
    index = indexed(make_tar([("a/1.png", PIXELS[:-20]), ("a/2.png", b""), ("a/3.png", PIXELS)]))
    assert [bool(entry.facts.reason) for entry in index.entries] == [True, True, False]
    assert index.entries[1].facts.reason == "empty file"
    assert index.entries[0].facts.sha256 == sha256(PIXELS[:-20]).hexdigest()


def test_a_file_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(tarindex, "MAX_IMAGE", len(PIXELS) - 1)
    [entry] = indexed(make_tar([("a/1.png", PIXELS)])).entries
    assert entry.facts.reason == f"a file of {len(PIXELS)} bytes; at most {len(PIXELS) - 1} are read"
    assert entry.facts.sha256 == ""


def test_only_regular_members_count():
    links = [
        special("a/2.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("a/3.png", tarfile.LNKTYPE, "a/1.png"),
        special("a/4.png", tarfile.FIFOTYPE),
        special("a/5.png", tarfile.CHRTYPE),
    ]
    index = indexed(make_tar([("a/1.png", PIXELS), *links]))
    assert [entry.name for entry in index.entries] == ["a/1.png"]
    assert sum(index.passed_over.values()) == 4


@pytest.mark.parametrize("cut", [-10240, 1024 + 300, 700, 100, 0])
def test_a_tar_that_is_cut_off_is_refused(cut):
    data = make_tar([("a/1.png", PIXELS), ("a/2.png", PIXELS)])
    end = 2 * (512 + 512 * -(-len(PIXELS) // 512))
    part = data[: end if cut == -10240 else cut]
    with pytest.raises(DataError, match=r"s\.tar can't be read as a tar"):
        indexed(part)


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end():
    data = bytearray(make_tar([("a/1.png", PIXELS), ("a/2.png", PIXELS)]))
    second = 512 + 512 * -(-len(PIXELS) // 512)
    data[second + 3] ^= 1
    with pytest.raises(DataError, match="damaged or truncated at byte"):
        indexed(bytes(data))


def test_two_tars_in_one_file_are_refused():
    data = make_tar([("a/1.png", PIXELS)])
    with pytest.raises(DataError, match="damaged or truncated"):
        indexed(data + data)


def claim(size, kind=tarfile.REGTYPE):
    """A tar whose one header claims a size."""
    info = tarfile.TarInfo("a/1.png")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + PIXELS.ljust(1024, b"\0") + b"\0" * 1024


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"Z"])
@pytest.mark.parametrize("size", [-512, -1, 10**6, 10**12])
def test_a_header_that_claims_more_than_there_is_is_refused(kind, size):
    if kind == tarfile.DIRTYPE and size > 0:
        assert indexed(claim(size, kind)[:512] + b"\0" * 1024).entries == ()  # a folder has no content
    else:
        with pytest.raises(DataError, match="can't be read as a tar"):
            indexed(claim(size, kind))


def test_a_header_never_takes_much_memory():
    class Endless(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            self.largest = max(self.largest, size)
            return super().read(size)

    file = Endless(claim(10**11, tarfile.XHDTYPE))
    with pytest.raises(DataError, match="a header claims 100,000,000,000 bytes"):
        index_tar(file, "s.tar", 10**12)
    assert file.largest <= MAX_HEADER


def test_headers_that_never_end_are_refused():
    header = special("x", tarfile.XGLTYPE).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match="can't be read as a tar"):
        indexed(header * 5000 + b"\0" * 1024)


SAMPLE = make_tar([("a/1.png", PIXELS), ("a/1.cls", b"3"), ("b/2.png", PIXELS), ("b/2.json", b'{"label": "b"}')])


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damage_is_refused_or_gives_entries_within_the_tar(changes):
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position] = value
    try:
        index = indexed(bytes(data))
    except DataError:
        return
    for entry in index.entries:
        assert sha256(data[entry.offset : entry.offset + entry.size]).hexdigest() == entry.facts.sha256


def test_an_index_is_packed_and_unpacked():
    levels = Levels("integer", 0.0, 4095.0)
    first = Entry("a/1.png", 512, 9, 0, "g", ImageFacts(8, 6, "PNG", "cd", True, "ab" * 32, levels=levels))
    entries = (first, Entry("\udcff.png", 0, 9, "x", None, ImageFacts(sha256="a")))
    index = ShardIndex(entries, ("cat", "dog"), {"hidden members": 2}, ("no",))
    packed = pack_index(index, 1000, 99, "stamp")
    assert unpack_index(packed, 1000, 99, "stamp") == index
    assert [unpack_index(packed, *other) for other in ((1001, 99, "stamp"), (1000, 98, "stamp"), (1000, 99))] == [
        None
    ] * 3


GOOD = Entry("a/1.png", 512, 9, 0, None, ImageFacts(sha256="ab" * 32))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"null"])
def test_no_index_is_none(data):
    assert unpack_index(data, 1000, 99) is None
    assert unpack_index(data + seal(data), 1000, 99) is None


def test_columns_that_are_missing_or_too_many_are_none():
    content = json.loads(bytes(unseal(pack_index(ShardIndex((GOOD,)), 1000, 99))))
    for rows in ([["a"]], [[*content["images"][0], 1]], [5], None):
        data = json.dumps({**content, "images": rows}).encode()
        assert unpack_index(data + seal(data), 1000, 99) is None


def test_a_bit_that_flips_in_an_index_makes_it_none():
    packed = pack_index(ShardIndex((GOOD,)), 1000, 99)
    for position in range(len(packed)):
        damaged = bytearray(packed)
        damaged[position] ^= 1
        assert unpack_index(bytes(damaged), 1000, 99) is None


def test_names_of_classes():
    assert parse_classes("classes.json", b'["a", "b c"]') == ("a", "b c")
    assert parse_classes("classes.txt", "\ufeffa\r\n b c \n\n".encode()) == ("a", "b c")
    for name, data in (("classes.json", b'{"a": 1}'), ("classes.json", b"[1]"), ("classes.txt", b"a\n\nb")):
        with pytest.raises(ValueError, match="a list of class names"):
            parse_classes(name, data)
    with pytest.raises(ValueError, match="twice"):
        parse_classes("classes.txt", b"a\na")
