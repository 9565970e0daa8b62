"""What is wrong with this data."""

import json
import os
import threading
import time
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

import imgclf.data.audit as module
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.files import unseal
from imgclf.data.audit import Sizes, UnreadableFile, audit
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.images import read_image
from imgclf.data.sources.folder import FileReader, open_folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IMGCLF_CACHE", str(folder))
    return folder


def image(path, value=0, size=(6, 4), kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path, kind)


def photos(root, count=12):
    for c, label in enumerate("ab"):
        for i in range(count):
            image(root / label / f"{i:02d}.png", value=100 * c + i)
    return root


def truncate(path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    buffer = BytesIO()
    noise.save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:600])


def test_a_clean_folder(tmp_path):
    source = open_folder(photos(tmp_path))
    found = audit(source)
    assert (found.unreadable, found.findings) == ((), ())
    assert [s.ref for s in found.source.samples] == [s.ref for s in source.samples]
    assert all(s.sha256 == source.reader.digest(s.ref) for s in found.source.samples)
    assert found.sizes == Sizes((4, 6), (4, 6), (4, 6), (1.5, 1.5))


def test_bad_files_are_left_out_by_name_and_reason(tmp_path):
    photos(tmp_path)
    truncate(tmp_path / "a/03.png")
    (tmp_path / "b/05.png").write_bytes(b"")
    source = open_folder(tmp_path)
    found = audit(source, allow_unreadable=0.1)
    assert [file.ref for file in found.unreadable] == ["a/03.png", "b/05.png"]
    assert found.unreadable[1] == UnreadableFile("b/05.png", "empty file")
    assert "damaged PNG" in found.unreadable[0].reason
    assert len(found.source) == 22
    assert not {"a/03.png", "b/05.png"} & {s.ref for s in found.source.samples}


def test_too_many_bad_files_end_it_either_way(tmp_path):
    photos(tmp_path)
    for i in range(2):
        (tmp_path / f"a/{i:02d}.png").write_bytes(b"no image")
    source = open_folder(tmp_path)
    with pytest.raises(DataError, match=r"2 images of 24 \(8\.3%\).*--allow-unreadable 9%") as caught:
        audit(source)
    assert caught.value.problems[0] == "a/00.png: not an image of a known format"
    with pytest.raises(DataError, match="1 image of"):
        audit(
            source.with_samples(s for s in source.samples if s.ref != "a/01.png"),
            on_unreadable="error",
            allow_unreadable=1.0,
        )


def test_a_class_that_keeps_one_image_is_named_and_one_that_keeps_none_is_refused(tmp_path):
    photos(tmp_path, count=2)
    (tmp_path / "a/00.png").write_bytes(b"no image")
    checked = audit(open_folder(tmp_path), allow_unreadable=0.5)
    assert checked.findings == ("1 class has only 1 image (a): used for training only",)
    (tmp_path / "a/01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="class 'a': none of its 2 images can be read"):
        audit(open_folder(tmp_path), allow_unreadable=0.5)
    checked = audit(open_folder(tmp_path), allow_unreadable=0.5, strict=False)
    assert (len(checked.source), checked.findings) == (2, ())


def test_names_of_classes_that_look_alike_are_named_for_every_kind_of_data():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)
    samples = tuple(Sample(f"x/{i}", ("cat", "Cat")[i % 2]) for i in range(4))
    (finding,) = audit(Source("mine", ("cat", "Cat"), samples, ArrayReader({"x": pixels}))).findings
    assert "'cat' and 'Cat' differ only in case" in finding


def test_a_file_that_vanished_is_bad(tmp_path):
    source = open_folder(photos(tmp_path))
    (tmp_path / "a/00.png").unlink()
    assert [file.ref for file in audit(source).unreadable] == ["a/00.png"]


def test_the_limit_of_the_source_holds(tmp_path):
    source = open_folder(photos(tmp_path), max_pixels=20)
    with pytest.raises(DataError, match="megapixels"):
        audit(source)


def test_copies_conflicts_and_leaks_are_found(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        for c, label in enumerate("ab"):
            for i in range(4):
                image(root / split / label / f"{i}.png", value=c * 100 + i + 50 * (split == "test"))
    image(root / "train/a/copy.png", value=0)
    image(root / "train/b/conflict.png", value=1)
    image(root / "test/a/leak.png", value=2)
    findings = audit(open_folder(root)).findings
    assert findings == (
        "exact copies within a class: 1 image (train/a/0.png = train/a/copy.png)",
        "identical images with different labels: 1 image (train/a/1.png = train/b/conflict.png)",
        "train and test share 1 image (test/a/leak.png = train/a/2.png): "
        "results on test will look better than they are",
    )


def test_one_image_in_other_files_is_a_copy(tmp_path, monkeypatch):
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for split, label, i in ((s, c, i) for s in ("train", "test") for c in "ab" for i in range(3)):
        path = root / split / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    Image.open(root / "train/a/0.png").save(root / "train/a/again.png", compress_level=1)
    Image.open(root / "train/a/1.png").save(root / "test/a/other.bmp")
    Image.open(root / "train/b/1.png").save(root / "train/b/lossy.jpg", quality=50)
    Image.fromarray(read_image(root / "train/b/lossy.jpg")).save(root / "test/b/lossless.png")
    alike = np.array(Image.open(root / "test/a/2.png"))
    alike[0, 1, 0] ^= 1  # between the pixels that the quick look takes
    Image.fromarray(alike).save(root / "test/b/nearly.png")
    found = audit(open_folder(root), allow_unreadable=0)
    assert found.findings == (
        "exact copies within a class: 1 image (train/a/0.png = train/a/again.png)",
        "train and test share 2 images (test/a/other.bmp = train/a/1.png; test/b/lossless.png = train/b/lossy.jpg): "
        "results on test will look better than they are",
    )
    decoded = []
    monkeypatch.setattr(FileReader, "digest_pixels", lambda reader, ref: decoded.append(ref))
    assert audit(open_folder(root)).source.samples == found.source.samples
    assert decoded == []


def test_groups_in_two_splits_are_counted_and_named():
    samples = [Sample(f"x/{i}", "ab"[i % 2], f"g{i // 4}", ("train", "test")[i > 9]) for i in range(16)]
    pixels = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1)
    assert audit(Source("set", ("a", "b"), tuple(samples), ArrayReader({"x": pixels}))).findings == (
        "train and test share 1 group (g2): results on test will look better than they are",
    )


def test_the_one_file_of_another_format_is_named(tmp_path):
    photos(tmp_path)
    image(tmp_path / "a/notFound.gif", value=7, kind="GIF")
    odd = "a/notFound.gif is the only GIF among 24 PNG files: is it one of your photos?"
    assert odd in audit(open_folder(tmp_path)).findings
    image(tmp_path / "b/second.gif", value=9, kind="GIF")
    assert not any("GIF" in finding for finding in audit(open_folder(tmp_path)).findings)


def test_control_characters_in_names_are_escaped(tmp_path):
    photos(tmp_path)
    image(tmp_path / "a/x\x1b[1m.png", value=0)
    assert "\\x1b[1m" in audit(open_folder(tmp_path)).findings[0]


def test_sizes(tmp_path):
    photos(tmp_path, count=3)
    image(tmp_path / "a/big.png", size=(50, 20))
    image(tmp_path / "a/small.png", size=(1, 2))
    assert audit(open_folder(tmp_path)).sizes == Sizes((2, 1), (4, 6), (20, 50), aspects=(0.5, 2.5))


def test_a_second_audit_reads_nothing_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    photos(tmp_path)
    first = audit(open_folder(tmp_path))
    opened = []
    real = module.open_regular
    monkeypatch.setattr(module, "open_regular", lambda path: opened.append(path) or real(path))
    assert audit(open_folder(tmp_path)).source.samples == first.source.samples
    assert opened == []
    image(tmp_path / "a/00.png", value=250, size=(9, 9))
    again = audit(open_folder(tmp_path))
    assert [os.path.basename(name) for name in opened] == ["00.png"]
    assert again.source.samples[0].sha256 != first.source.samples[0].sha256


def test_where_the_values_of_deep_images_lie_is_known_and_remembered(tmp_path, monkeypatch):
    photos(tmp_path)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1024, (64, 64)).astype(np.uint16)
    bits[0, 0] = 65535  # a hot pixel
    for name, values in (("a/x.png", bits), ("b/y.tif", (bits.clip(0, 1023) - 500.0).astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
    cv2.imwrite(str(tmp_path / "b/z.png"), np.dstack((bits, bits // 2, bits // 4)))
    first = audit(open_folder(tmp_path)).source.samples
    deep = {sample.ref: sample.levels for sample in first if sample.levels is not None}
    assert {ref: (found.kind, found.low) for ref, found in deep.items()} == {
        "a/x.png": ("integer", 0),
        "b/y.tif": ("float", -500),
        "b/z.png": ("integer", 0),
    }
    assert (deep["a/x.png"].high, deep["b/y.tif"].high) == (1023, 523)
    assert 1000 < deep["b/z.png"].high <= 1023
    monkeypatch.setattr(module, "open_regular", lambda path: pytest.fail("read again"))
    assert audit(open_folder(tmp_path)).source.samples == first


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_cache_is_as_good_as_none(tmp_path, cache, content):
    photos(tmp_path)
    expected = audit(open_folder(tmp_path))
    (file,) = (cache / "audit").iterdir()
    assert len(json.loads(bytes(unseal(file.read_bytes())))) == 24
    file.write_bytes(content)
    assert audit(open_folder(tmp_path)).source.samples == expected.source.samples


def test_a_bit_that_flips_in_the_cache_changes_no_verdict(tmp_path, cache):
    photos(tmp_path, count=2)
    (tmp_path / "a/00.png").write_bytes(b"no image")
    expected = audit(open_folder(tmp_path), allow_unreadable=1.0, strict=False)
    (file,) = (cache / "audit").iterdir()
    content = file.read_bytes()
    for position in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[position] ^= 1  # another digit of a sha256, or a letter of a reason
        file.write_bytes(damaged)
        found = audit(open_folder(tmp_path), allow_unreadable=1.0, strict=False)
        assert (found.source.samples, found.unreadable) == (expected.source.samples, expected.unreadable)


def test_a_file_whose_size_time_and_inode_are_as_before_is_read_again_when_its_content_changed(tmp_path):
    path, other = photos(tmp_path / "data") / "a/00.bmp", tmp_path / "other.bmp"
    image(path, value=7, kind="BMP")
    image(other, value=9, kind="BMP")
    first, before = audit(open_folder(tmp_path / "data")), os.stat(path)
    time.sleep(0.02)  # the clock of a file system moves on in steps
    with open(path, "r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after, same = os.stat(path), ("st_size", "st_mtime_ns", "st_ino")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    again = audit(open_folder(tmp_path / "data"))
    assert again.source.samples[0].sha256 != first.source.samples[0].sha256


def test_copies_are_found_whatever_an_earlier_audit_compared(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for label in "ab":
        (tmp_path / label).mkdir()
        image(tmp_path / label / "other.png", size=(6, 4))
    Image.fromarray(noise).save(tmp_path / "a" / "1.jpg")
    image(tmp_path / "b" / "of-its-sides.png", size=(48, 40))
    audit(open_folder(tmp_path))
    (tmp_path / "b" / "of-its-sides.png").unlink()
    (tmp_path / "a" / "2.jpg").write_bytes((tmp_path / "a" / "1.jpg").read_bytes() + b"\0")
    assert any("exact copies within a class: 1 image" in finding for finding in audit(open_folder(tmp_path)).findings)


def test_a_file_that_changes_between_its_digest_and_its_pixels_is_bad_and_looked_at_again(tmp_path, monkeypatch):
    path, real = photos(tmp_path) / "a/00.png", module.check_image

    def check(file, *options):
        if file.name == str(path):
            time.sleep(0.02)
            image(path, value=200)
        return real(file, *options)

    monkeypatch.setattr(module, "check_image", check)
    assert audit(open_folder(tmp_path)).unreadable == (UnreadableFile("a/00.png", "it changed while it was checked"),)
    monkeypatch.undo()
    assert audit(open_folder(tmp_path)).unreadable == ()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache, monkeypatch):
    (cache / "audit").write_text("a file where the folder should be")
    assert len(audit(open_folder(photos(tmp_path))).source) == 24


def test_the_data_folder_is_not_touched(tmp_path):
    photos(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    audit(open_folder(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


def test_the_number_of_threads_does_not_matter_and_progress_ends_at_the_total(tmp_path, monkeypatch):
    photos(tmp_path, count=50)
    truncate(tmp_path / "a/03.png")
    calls = []
    one = audit(open_folder(tmp_path), workers=1, progress=lambda done, total: calls.append((done, total)))
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path.parent / "other"))
    four = audit(open_folder(tmp_path), workers=4)
    assert (one.source.samples, one.unreadable, one.sizes) == (four.source.samples, four.unreadable, four.sizes)
    assert calls[-1] == (100, 100)
    assert calls == sorted(calls)


def test_an_interrupt_ends_it_at_once(tmp_path, cache):
    photos(tmp_path, count=100)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(open_folder(tmp_path), workers=1, progress=interrupt)
    assert not (cache / "audit").exists()


def test_sets_in_memory_are_only_hashed():
    pixels = np.arange(8, dtype=np.uint8).reshape(4, 1, 2, 1)
    samples = tuple(Sample(f"x/{i}", "ab"[i % 2]) for i in range(4))
    found = audit(Source("set", ("a", "b"), samples, ArrayReader({"x": pixels})))
    assert found.sizes is None
    assert len({s.sha256 for s in found.source.samples}) == 4


def test_unknown_choice(tmp_path):
    with pytest.raises(ConfigError, match="skip, error"):
        audit(open_folder(photos(tmp_path)), on_unreadable="replace")


@pytest.mark.slow
def test_threads_take_over_where_files_are_slow(tmp_path, monkeypatch):
    photos(tmp_path, 125)
    quick = audit(open_folder(tmp_path))
    seen = set()
    look = module._look

    def slow(reader, ref, known):
        seen.add(threading.get_ident())
        time.sleep(0.005)
        return look(reader, ref, None)

    monkeypatch.setattr(module, "_look", slow)
    found = audit(open_folder(tmp_path), workers=4)
    assert (found.source.samples, found.findings) == (quick.source.samples, quick.findings)
    assert len(seen) > 1


def test_what_turns_all_white_on_white_is_named(tmp_path):
    photos(tmp_path, 3)
    drawing = np.zeros((40, 50, 4), np.uint8)
    drawing[10:12, 5:40] = 255
    Image.fromarray(drawing).save(tmp_path / "a/white.png")
    drawing[10, 5, :3] = 0
    Image.fromarray(drawing).save(tmp_path / "a/dark.png")
    assert audit(open_folder(tmp_path)).findings == (
        "1 transparent image all white on a white background: a/white.png",
    )
