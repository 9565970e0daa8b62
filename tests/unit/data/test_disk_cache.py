"""Pixels on the disk: whole or not there, whatever happens to the process or the file."""

import json
import os
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.core.files import cache_folder, unseal
from imgclf.data.loading import disk_cache as pixelcache
from imgclf.data.loading.disk_cache import (
    CachedImage,
    PixelCache,
    clear_cache,
    disk_room,
    form_key,
    list_cache,
    pixel_folder,
)
from imgclf.data.loading.pixel_store import CacheFormat

FORM = CacheFormat(PreprocessConfig(size=(8, 8)), whole=False).settings()


def image(number, shape=(8, 8, 3)):
    rng = np.random.default_rng(number)
    return CachedImage(rng.integers(0, 256, shape, np.uint8), (100 + number, 200))


def name(number):
    return sha256(str(number).encode()).hexdigest()


def fill(numbers, form=FORM, **options):
    cache = PixelCache(form, **options)
    for number in numbers:
        if cache.find(name(number)) is None:
            cache.add(name(number), image(number))
    cache.seal()
    return cache


def same(kept, other):
    return kept is not None and (kept.pixels == other.pixels).all() and kept.shape == other.shape


def segments():
    return sorted(pixel_folder().glob("*/*.pixels"))


def test_what_was_sealed_is_found_by_every_later_cache():
    for cache in (fill(range(5)), PixelCache(FORM)):
        assert all(same(cache.find(name(i)), image(i)) for i in range(5))
        assert cache.find(name(5)) is None
        assert cache.holds(map(name, range(9))) == 5
        assert not cache.find(name(0)).pixels.flags.writeable
    assert (
        PixelCache(CacheFormat(PreprocessConfig(size=(8, 8), channels=1), whole=False).settings()).find(name(0)) is None
    )


def test_images_of_any_shape():
    cache = PixelCache(FORM)
    for number in range(1, 6):
        cache.add(name(number), image(number, (number, 3 * number, 1)))
    cache.seal()
    assert all(same(cache.find(name(i)), image(i, (i, 3 * i, 1))) for i in range(1, 6))


def test_what_is_not_sealed_is_not_there():
    cache = PixelCache(FORM)
    cache.add(name(1), image(1))
    assert cache.find(name(1)) is None
    assert PixelCache(FORM).find(name(1)) is None
    assert not segments()
    cache.seal()
    assert same(PixelCache(FORM).find(name(1)), image(1))


CHILD = """
import hashlib, json, os, sys
import numpy as np
from imgclf.data.loading.disk_cache import CachedImage, PixelCache

def fill(first, last):
    cache = PixelCache(json.loads(sys.argv[1]))
    for i in range(first, last):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        cache.add(hashlib.sha256(str(i).encode()).hexdigest(), CachedImage(pixels, (100 + i, 200)))
    cache.seal()
"""


def child(script):
    """Another process that runs `script` with `fill(first, last)`; without torch, which takes long to import."""
    command = [sys.executable, "-c", CHILD + script, json.dumps(FORM)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", ["rename", "fsync"])
def test_a_kill_before_the_file_has_its_name_leaves_nothing_that_looks_whole(moment):
    fill(range(2))
    process = child(f"os.{moment} = lambda *arguments: os.kill(os.getpid(), 9)\nfill(0, 5)")
    process.communicate(timeout=60)
    assert process.returncode == -9
    cache = PixelCache(FORM)
    assert [cache.find(name(i)) is not None for i in range(5)] == [True, True, False, False, False]
    assert len(segments()) == 1
    (orphan,) = pixel_folder().glob("*/.*.tmp")
    os.utime(orphan, (0, 0))
    fill(range(2, 5))  # the next one to write removes what the dead one left
    assert not list(pixel_folder().glob("*/.*.tmp"))
    assert PixelCache(FORM).holds(map(name, range(5))) == 5


def test_a_temporary_file_of_a_living_process_stays():
    living, other = PixelCache(FORM), PixelCache(FORM)
    living.add(name(1), image(1))
    other.add(name(2), image(2))
    living.seal()
    other.seal()
    assert PixelCache(FORM).holds([name(1), name(2)]) == 2


def test_two_processes_build_one_cache_at_once():
    script = "print('ready', flush=True)\nsys.stdin.readline()\nfill"
    both = [child(f"{script}{span}") for span in ((0, 60), (30, 90))]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    cache = PixelCache(FORM)
    assert all(same(cache.find(name(i)), image(i)) for i in range(90))


def test_what_others_have_sealed_meanwhile_is_not_kept_twice():
    slow = PixelCache(FORM)
    for number in range(3):
        slow.add(name(number), image(number))
    fill(range(4))
    slow.seal()
    assert len(segments()) == 1
    assert same(slow.find(name(3)), image(3))


@given(st.data())
def test_a_file_that_is_cut_short_or_changed_gives_no_wrong_pixels(data):
    clear_cache()
    fill(range(3))
    (path,) = segments()
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.unlink()
    path.write_bytes(content)
    cache = PixelCache(FORM)
    found = [cache.find(name(i)) for i in range(3)]
    assert all(kept is None or same(kept, image(i)) for i, kept in enumerate(found))
    assert None in found
    cache = fill(range(3))  # what is missing is written again, and found from then on
    for again in (cache, PixelCache(FORM)):
        assert all(same(again.find(name(i)), image(i)) for i in range(3))


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 5000])
def test_a_foreign_file_is_passed_over(content):
    fill(range(2))
    folder = pixel_folder() / form_key(FORM)[0]
    (folder / "zz.pixels").write_bytes(content)
    assert PixelCache(FORM).holds(map(name, range(2))) == 2


def test_the_budget_is_kept(monkeypatch):
    each = image(0).pixels.nbytes + pixelcache.ENTRY.itemsize
    monkeypatch.setenv("IMGCLF_CACHE_BUDGET", str(3 * each + 1000))
    cache = fill(range(9))
    assert 1 <= cache.holds(map(name, range(9))) <= 7
    assert sum(path.stat().st_size for path in pixel_folder().glob("*/*")) < 3 * each + 2000
    monkeypatch.setenv("IMGCLF_CACHE_BUDGET", "0")
    assert disk_room() == 0
    monkeypatch.delenv("IMGCLF_CACHE_BUDGET")
    assert disk_room() > 0


@pytest.mark.parametrize("budget", ["abc", "1e9", "-5", "2 GB"])
def test_a_budget_is_a_number_of_bytes(monkeypatch, budget):
    monkeypatch.setenv("IMGCLF_CACHE_BUDGET", budget)
    with pytest.raises(ConfigError, match=r"IMGCLF_CACHE_BUDGET is .* expected a number of bytes"):
        disk_room()


def test_a_disk_that_is_full_costs_no_run(monkeypatch):
    cache = PixelCache(FORM)
    cache.add(name(1), image(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.seal()
    assert cache.find(name(1)) is None
    cache.add(name(2), image(2))
    cache.seal()
    assert not segments()
    assert not list(pixel_folder().glob("*/.*.tmp"))


def test_a_cache_that_is_cleared_while_it_is_built_or_read():
    cache = fill(range(2))
    cache.add(name(7), image(7))
    assert clear_cache() > 0
    assert same(cache.find(name(0)), image(0))  # a run goes on with what it has open
    cache.seal()
    assert PixelCache(FORM).holds(map(name, (0, 1, 7))) == 0


def test_the_list_names_forms_and_the_audit():
    assert list_cache() == []
    fill(range(3))
    large = PixelCache(FORM | {"size": [16, 16]})
    large.add(name(0), image(0))
    large.seal()
    audit = cache_folder() / "audit"
    audit.mkdir()
    (audit / "x.json").write_text("{}")
    *forms, checked = list_cache()
    assert {(form.about, form.images) for form in forms} == {
        ("8×8 crop, 3 channels", 3),
        ("16×16 crop, 3 channels", 1),
    }
    assert (checked.name, checked.images, checked.bytes) == ("audit", None, 2)
    assert sum(form.bytes for form in forms) == sum(p.stat().st_size for p in pixel_folder().glob("*/*"))
    assert all(form.used > 1e9 for form in forms)
    assert clear_cache(forms[0].name) == forms[0].bytes
    assert [entry.name for entry in list_cache()] == [forms[1].name, "audit"]
    assert clear_cache("audit") == 2
    assert clear_cache() == forms[1].bytes
    assert list_cache() == []


def test_a_form_that_tells_nothing_of_itself_is_listed_all_the_same():
    fill(range(3))
    (about,) = pixel_folder().glob("*/form.json")
    assert json.loads(bytes(unseal(about.read_bytes())))["size"] == [8, 8]
    about.write_text("[")
    assert [(form.about, form.images) for form in list_cache()] == [("unknown", 3)]
