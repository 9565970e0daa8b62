"""Tar shards: found, indexed once, read by position, near and through fsspec."""

import json
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

import imgclf
from imgclf.core.errors import DataError, MissingExtra
from imgclf.data.audit import Audit, UnreadableFile, audit
from imgclf.data.images import BadImage, read_image
from imgclf.data.sources import tar_shards as shards
from imgclf.data.sources.tar_shards import names_shards, open_shards, write_index
from imgclf.data.split import make_split
from support.tars import encoded, make_tar

NAMES = ["blue", "green", "red"]
PIXELS = encoded()


def numbered(start, n, kind="PNG"):
    """Members of `n` images of three classes, by number."""
    members = []
    for i in range(start, start + n):
        members += [(f"{i:04d}.{kind.lower()}", encoded(NAMES[i % 3], i, kind)), (f"{i:04d}.cls", b"%d" % (i % 3))]
    return members


@pytest.fixture
def folder(tmp_path):
    """Two tars of 9 images each and the names of the classes."""
    root = tmp_path / "set"
    root.mkdir()
    for i in range(2):
        (root / f"s-{i:04d}.tar").write_bytes(make_tar(numbered(9 * i, 9)))
    (root / "classes.json").write_text(json.dumps(NAMES))
    return root


@pytest.fixture
def far():
    """An empty file system in memory, as what lies far away."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture
def passes(monkeypatch):
    """The names of the tars that are read through."""
    seen = []

    def counted(file, name, *rest):
        seen.append(name)
        return index_tar(file, name, *rest)

    index_tar = shards.index_tar
    monkeypatch.setattr(shards, "index_tar", counted)
    return seen


def test_a_pattern_is_a_source(folder):
    source = open_shards(f"{folder}/s-{{0000..0001}}.tar")
    assert (source.name, source.classes, len(source)) == ("s", ("blue", "green", "red"), 18)
    assert source.counts() == {"blue": 6, "green": 6, "red": 6}
    assert [sample.ref for sample in source.samples[8:10]] == ["s-0000.tar/0008.png", "s-0001.tar/0009.png"]
    assert source.notes == ("2 shards",)
    for i in (0, 7, 17):
        expected = read_image(encoded(NAMES[i % 3], i))
        assert source.samples[i].label == NAMES[i % 3]
        assert (source.open(source.samples[i].ref) == expected).all()


def test_a_folder_of_tars_is_the_same_source(folder):
    (folder / ".hidden.tar").write_bytes(b"")
    whole = open_shards(str(folder))
    assert whole.name == "set"
    assert whole.samples == open_shards(f"{folder}/s-{{0000..0001}}.tar").samples
    assert names_shards(str(folder))
    (folder / "cat").mkdir()
    assert not names_shards(str(folder))


def test_what_exists_is_no_pattern(folder):
    (folder / "s-0000.tar").rename(folder / "s-{0..1}.tar")
    assert len(open_shards(f"{folder}/s-{{0..1}}.tar")) == 9


def test_threads_read_the_same(folder):
    source = open_shards(str(folder))
    refs = [sample.ref for sample in source.samples] * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda ref: source.open(ref).tobytes(), refs))
    assert found == [source.open(ref).tobytes() for ref in refs[:18]] * 20


def test_a_tar_is_read_through_once_and_again_when_it_changed(folder, passes):
    told = []
    first = open_shards(str(folder), progress=lambda *state: told.append(state))
    assert (sorted(passes), told) == (["s-0000.tar", "s-0001.tar"], [(1, 2), (2, 2)])
    assert open_shards(str(folder)).samples == first.samples
    assert len(passes) == 2
    (folder / "s-0001.tar").write_bytes(make_tar(numbered(20, 9)))
    assert open_shards(str(folder)).samples != first.samples
    assert passes[2:] == ["s-0001.tar"]
    open_shards(str(folder), max_pixels=40, strict=False)  # the verdicts are others
    assert len(passes) == 5


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_a_pass(folder, passes, tmp_path, monkeypatch):
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    first = open_shards(str(folder))
    for file in (tmp_path / "cache" / "shards").iterdir():
        file.write_bytes(b"{}")
    assert open_shards(str(folder)).samples == first.samples
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "file"))
    assert open_shards(str(folder)).samples == first.samples
    assert len(passes) == 6


def test_an_index_beside_the_tar_saves_the_pass(folder, passes):
    for path in sorted(folder.glob("*.tar")):
        write_index(path)
    assert len(passes) == 2
    assert sorted(os.listdir(folder))[1:3] == ["s-0000.index.json", "s-0000.tar"]
    assert len(open_shards(str(folder))) == 18
    assert len(passes) == 2


def test_an_index_of_another_tar_is_not_believed(folder, passes):
    path = folder / "s-0000.tar"
    write_index(path)
    path.write_bytes(make_tar([*numbered(0, 9), ("0.npy", b"0" * 20_000)]))
    assert len(open_shards(str(path))) == 9
    assert passes == ["s-0000.tar"] * 2


def test_bytes_that_are_not_those_of_the_index_are_refused(folder):
    """Also where a tar of the same length took the place of another one: its labels may be others."""
    source = open_shards(str(folder))
    path = folder / "s-0000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = tar.getmember("0003.png")
    data[member.offset_data + member.size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadImage, match=r"s-0000\.tar/0003\.png: s-0000\.tar has changed since it was indexed"):
        source.open("s-0000.tar/0003.png")
    source.open("s-0000.tar/0004.png")
    path.unlink()
    with pytest.raises(BadImage, match="cannot be read"):
        source.open("s-0000.tar/0004.png")


def test_the_audit_takes_its_facts_from_the_index(folder, monkeypatch):
    members = numbered(30, 6)
    members[0] = (members[0][0], members[0][1][:-30])
    (folder / "s-0002.tar").write_bytes(make_tar([*members, ("copy.png", encoded("blue", 0)), ("copy.cls", b"0")]))
    source = open_shards(str(folder))
    monkeypatch.setattr(shards.ShardReader, "read", None)  # nothing is read again
    audited: Audit = audit(source, allow_unreadable=0.1)
    assert audited.unreadable == (
        UnreadableFile("s-0002.tar/0030.png", source.reader.facts("s-0002.tar/0030.png").reason),
    )
    assert audited.findings == ("exact copies within a class: 1 image (s-0000.tar/0000.png = s-0002.tar/copy.png)",)
    assert audited.sizes.median == (6, 8)
    assert all(len(sample.sha256) == 64 for sample in audited.source.samples)
    with pytest.raises(DataError, match=r"4\.0%"):
        audit(source, allow_unreadable=0.01)


def test_a_bad_image_is_named_when_it_is_opened(folder):
    (folder / "bad.tar").write_bytes(make_tar([("a/1.png", PIXELS[:-20]), ("a/2.png", PIXELS)]))
    (folder / "classes.json").unlink()
    source = open_shards(str(folder / "bad.tar"), strict=False)
    with pytest.raises(BadImage, match=r"^bad\.tar/a/1\.png: "):
        source.open("bad.tar/a/1.png")


def test_the_split_of_shards_is_that_of_the_images(folder, tmp_path):
    """Content decides: in other tars, under other names, each image is where it was."""
    (tmp_path / "one.tar").write_bytes(make_tar([(f"x{name}", data) for name, data in numbered(0, 18)]))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    splits = [make_split(audit(open_shards(str(path))).source) for path in (folder, tmp_path / "one.tar")]
    assert splits[0].digest == splits[1].digest


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-0", "val-0"), ("train", "valid")),
        (("imagenet1k-train-07", "imagenet1k-validation-7"), ("train", "valid")),
        (("TRAIN_1", "testing.3"), ("train", "test")),
        (("a", "training-and-test"), (None, None)),
        (("trainer-1", "contest-2"), (None, None)),
    ],
)
def test_the_names_of_tars_say_the_split(tmp_path, names, splits):
    for i, name in enumerate(names):
        (tmp_path / f"{name}.tar").write_bytes(make_tar(numbered(6 * i, 6)))
    source = open_shards(f"{tmp_path}/{{{','.join(names)}}}.tar")
    assert [source.samples[0].split, source.samples[-1].split] == list(splits)


def test_folders_may_say_the_split_too(tmp_path):
    for i, name in enumerate(("train", "val")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(make_tar(numbered(6 * i, 6)))
    source = open_shards(f"{tmp_path}/{{train,val}}/0.tar")
    assert [source.samples[0].ref, source.samples[0].split] == ["train/0.tar/0000.png", "train"]
    assert [source.samples[-1].ref, source.samples[-1].split] == ["val/0.tar/0011.png", "valid"]


def test_classes_without_names_go_by_their_numbers(tmp_path):
    members = [(f"{i}.png", encoded("red", i)) for i in range(4)] + [
        (f"{i}.cls", b"%d" % (9 + i // 2)) for i in range(4)
    ]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    source = open_shards(str(tmp_path / "a.tar"))
    assert source.classes == ("9", "10")
    assert source.notes[1] == "no classes.json or classes.txt: classes are named by their numbers"


def test_names_of_classes_may_lie_in_the_first_tar_and_only_those_with_images_count(tmp_path):
    names = json.dumps(["ant", "red", "bee", "blue"]).encode()
    members = [("classes.json", names)]
    for i in range(4):
        members += [(f"{i}.png", encoded("red", i)), (f"{i}.cls", b"3" if i % 2 else b"red")]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    source = open_shards(str(tmp_path / "a.tar"))
    assert source.classes == ("red", "blue")
    assert source.counts() == {"red": 2, "blue": 2}


def test_groups_stay_together(tmp_path):
    members = [(f"{c}/{i}.png", encoded(c, i)) for c in NAMES for i in range(6)]
    members += [(f"{c}/{i}.json", json.dumps({"group": f"{c}{i // 2}"}).encode()) for c in NAMES for i in range(6)]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    split = make_split(audit(open_shards(str(tmp_path / "a.tar"))).source)
    places = {}
    for row in split.rows:
        places.setdefault(row.group, set()).add(row.split)
    assert len(places) == 9
    assert all(len(found) == 1 for found in places.values())


def test_problems_with_labels_are_listed_together(folder):
    members = [("1.png", PIXELS), ("1.cls", b"3"), ("2.png", PIXELS), ("2.cls", b"cow"), ("3.png", PIXELS)]
    members += [("4.png", PIXELS), ("4.cls", b"-1"), ("5.png", PIXELS), ("5.jpg", PIXELS), ("5.cls", b"1")]
    (folder / "a.tar").write_bytes(make_tar([*members, ("6.png", PIXELS), ("6.cls", b"0")]))
    with pytest.raises(DataError, match="these shards can't be used") as caught:
        open_shards(str(folder))
    assert caught.value.problems == (
        "a.tar/3 has no label: expected .cls, .txt, or .json with a label",
        "a.tar/5 has several images: 5.png, 5.jpg",
        "a.tar/1.png: the label is 3; expected 0 to 2",
        "a.tar/2.png: the label 'cow' is not one of the 3 named classes",
        "a.tar/4.png: the label is -1; expected 0 to 2",
    )


def test_damaged_tars_are_named_and_looked_at_again(folder, passes):
    good = (folder / "s-0001.tar").read_bytes()
    (folder / "s-0001.tar").write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"s-0001\.tar can't be read as a tar"):
        open_shards(str(folder))
    (folder / "s-0001.tar").write_bytes(good)
    assert len(open_shards(str(folder))) == 18


def test_what_is_missing_or_no_tar_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="expected tar shards") as caught:
        open_shards(f"{folder}/s-{{0001..0003}}.tar")
    assert caught.value.problems == ("s-0002.tar: no such file", "s-0003.tar: no such file")
    with pytest.raises(DataError, match="named 2 times"):
        open_shards(f"{folder}/{{s-0000,s-0000}}.tar")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="not a regular file"):
        open_shards(str(tmp_path / "pipe.tar"))
    with pytest.raises(DataError, match="can't be found"):
        open_shards(f"{folder}/s-{{0000..0001.tar")
    for name in ("a.tar.gz", "a.tgz"):
        with pytest.raises(DataError, match="is compressed"):
            open_shards(name)
    (tmp_path / "empty.tar").write_bytes(make_tar([]))
    with pytest.raises(DataError, match="they contain no images"):
        open_shards(str(tmp_path / "empty.tar"), strict=False)
    (folder / "classes.json").write_text("[")
    with pytest.raises(DataError, match=r"classes\.json beside s-0000\.tar"):
        open_shards(str(folder))


def test_sets_that_cannot_be_trained_on(folder):
    (folder / "classes.json").unlink()
    for name, members, problem in (
        ("one", [("a/1.png", PIXELS), ("a/2.png", encoded("red", 1))], "at least 2 classes"),
        ("test", numbered(0, 6), "no tar has train in its name"),
        ("{test,s-0000}", numbered(0, 6), "some tars have a split in their name"),
    ):
        if "," not in name:
            (folder / f"{name}.tar").write_bytes(make_tar(members))
        with pytest.raises(DataError, match=problem):
            open_shards(f"{folder}/{name}.tar")
        assert len(open_shards(f"{folder}/{name}.tar", strict=False)) > 0


def test_nothing_is_written_and_no_name_becomes_a_path(folder, tmp_path):
    evil = [(name, PIXELS) for name in ("../../evil/1.png", "/tmp/evil/2.png", "evil/\x1b[31m.png", "evil/a\\b.png")]
    (folder / "classes.json").unlink()
    (folder / "evil.tar").write_bytes(make_tar(evil))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = open_shards(str(folder / "evil.tar"), strict=False)
    assert {sample.label for sample in source.samples} == {"tmp", "evil"}
    assert all(source.open(sample.ref).shape == (6, 8, 3) for sample in source.samples)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_shards_that_lie_far_away(far, folder, passes):
    for path in folder.iterdir():
        far.pipe(f"/bucket/set/{path.name}", path.read_bytes())
    near = open_shards(str(folder))
    del passes[:]
    for url in ("memory://bucket/set/s-{0000..0001}.tar", "memory://bucket/set", "memory://bucket/set/"):
        source = open_shards(url)
        assert source.samples == near.samples
        assert source.classes == near.classes
        for sample in source.samples[::5]:
            assert (source.open(sample.ref) == near.open(sample.ref)).all()
    assert len(passes) == 2
    assert names_shards("memory://bucket/set")


def test_an_index_far_away_saves_reading_all_of_it(far, folder, passes, monkeypatch):
    for path in sorted(folder.glob("*.tar")):
        write_index(path)
    for path in folder.iterdir():
        far.pipe(f"/bucket/{path.name}", path.read_bytes())
    monkeypatch.setattr(type(far), "open", None)
    del passes[:]
    assert len(open_shards("memory://bucket/s-{0000..0001}.tar")) == 18
    assert passes == []


def test_whole_tars_can_be_copied_near_as_they_are_used(far, folder, tmp_path):
    far.pipe("/bucket/s-0000.tar", (folder / "s-0000.tar").read_bytes())
    source = open_shards("simplecache::memory://bucket/s-0000.tar")
    assert (source.open("s-0000.tar/0001.png") == read_image(encoded("green", 1))).all()


def test_file_systems_that_are_not_there(far):
    for url, problem in (("nowhere://x/a.tar", "can't be found"), ("memory://x/a.tar", "no such file")):
        with pytest.raises(DataError, match=problem):
            open_shards(url)
    with pytest.raises(DataError, match="no tar files found"):
        open_shards("memory://bucket/nothing")


def test_errors_of_a_file_system_name_the_tar(far, folder, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("the line is dead")

    far.pipe("/b/s-0000.tar", (folder / "s-0000.tar").read_bytes())
    source = open_shards("memory://b/s-0000.tar")
    monkeypatch.setattr(type(far), "cat_file", fail)
    with pytest.raises(BadImage, match=r"s-0000\.tar/0000\.png: cannot be read: the line is dead"):
        source.open("s-0000.tar/0000.png")
    with pytest.raises(DataError, match=r"beside s-0000\.tar: the line is dead"):
        open_shards("memory://b/s-0000.tar")
    monkeypatch.undo()
    far.pipe("/b/s-0001.tar", (folder / "s-0001.tar").read_bytes())
    far.pipe("/b/classes.json", b'["a", "b", "c"]')
    with monkeypatch.context() as patch:
        patch.setattr(type(far), "open", fail)
        patch.setattr(type(far), "cat_file", lambda self, path, *_: self.store[path].getvalue())
        with pytest.raises(DataError, match=r"s-0001\.tar can't be opened: the line is dead"):
            open_shards("memory://b/s-0001.tar", max_pixels=99)
    monkeypatch.setattr(type(far), "info", fail)
    with pytest.raises(DataError, match=r"s-0001\.tar: can't be opened: the line is dead"):
        open_shards("memory://b/s-0001.tar")


def test_sizes_that_are_not_known(far, monkeypatch):
    monkeypatch.setattr(type(far), "info", lambda *_args, **_options: {"type": "file", "size": None})
    with pytest.raises(DataError, match="its size is unknown"):
        open_shards("memory://b/a.tar")


def test_without_the_extra(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(
        MissingExtra, match=r"tar shards need the extra \"webdataset\": pip install \"imgclf\[webdataset\]"
    ):
        open_shards(str(folder))


@pytest.mark.parametrize("place", ["near", "far"])
def test_a_network_learns_from_shards(far, folder, place):
    if place == "far":
        for path in folder.iterdir():
            far.pipe(f"/bucket/{path.name}", path.read_bytes())
    data = str(folder) if place == "near" else "memory://bucket/s-{0000..0001}.tar"
    config = {"data": {"cache": "off"}} if place == "far" else {}
    classifier = imgclf.Classifier("lenet", weights="none", size=16, augment="none", config=config)
    classifier.fit(data, epochs=2, batch_size=4)
    assert list(classifier.classes_) == NAMES
    assert [record.epoch for record in classifier.history_] == [1, 2]
    assert np.isfinite([record.train_loss for record in classifier.history_]).all()
    assert {row.ref.partition("/")[0] for row in classifier.split_.rows} == {"s-0000.tar", "s-0001.tar"}
    assert sum(sum(counts.values()) for counts in classifier.split_.counts().values()) == 18
