"""`imgclf cache`: what is kept to save time, and how to be rid of it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from imgclf.cli.cache import cache
from imgclf.core.config import PreprocessConfig
from imgclf.core.files import cache_folder
from imgclf.data.loading.disk_cache import CachedImage, PixelCache, list_cache
from imgclf.data.loading.pixel_store import CacheFormat


def run(*arguments):
    return CliRunner().invoke(cache, list(arguments))


@pytest.fixture
def filled():
    for side in (8, 16):
        pixels = PixelCache(CacheFormat(PreprocessConfig(size=(side, side)), whole=False).settings())
        pixels.add("ab" * 32, CachedImage(np.zeros((side, side, 3), np.uint8), (100, 100)))
        pixels.seal()
    (cache_folder() / "audit").mkdir()
    (cache_folder() / "audit" / "x.json").write_text("{}")
    return list_cache()


def test_an_empty_cache():
    done = run("list")
    assert done.exit_code == 0
    assert done.stdout == f"0 bytes in {cache_folder()}\n"
    assert run("clear").stdout == "0 bytes freed\n"


def test_the_list(filled):
    text = run("list").stdout
    for entry in filled:
        assert entry.name in text
        assert entry.about in text
    assert str(cache_folder()) in text
    found = json.loads(run("list", "--json").stdout)
    assert found["bytes"] == sum(entry.bytes for entry in filled)
    assert found["folder"] == str(cache_folder())
    assert [entry["images"] for entry in found["entries"]] == [1, 1, None]


def test_clear_one_and_then_all(filled):
    done = run("clear", filled[0].name, "--json")
    assert json.loads(done.stdout) == {"freed": filled[0].bytes}
    assert list_cache() == filled[1:]
    assert run("clear").exit_code == 0
    assert list_cache() == []


def test_a_name_that_is_not_there(filled):
    done = run("clear", "audits")
    assert done.exit_code == 2
    assert "did you mean audit?" in done.stderr
    assert list_cache() == filled
