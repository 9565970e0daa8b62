"""The fixtures of all tests: tiny data, made for each test."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from typer.testing import CliRunner, Result

from imgclf.cli import app
from imgclf.data.dataset import ArrayReader, Sample, Source
from support import standin_device
from support.photos import copy_of_world, save_photos

# A busy machine is no fault: no deadlines. `IMGCLF_THOROUGH=1` tries more examples, and more kills in `faults`.
settings.register_profile("quick", deadline=None, max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile("thorough" if os.environ.get("IMGCLF_THOROUGH") else "quick")
torch.set_num_threads(1)  # each process that runs tests has a core for itself


@pytest.fixture(autouse=True, scope="session")
def _signals_heard() -> None:
    """Who starts the tests in the background, or under nohup, has them ignore these signals."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """A lack of memory makes Python look for garbage, at each try: not in what the modules before have left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _on_the_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests of CUDA see an accelerator: the others, and the programs that they start, do the same everywhere."""
    if request.node.get_closest_marker("cuda") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    elif not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Operations of torch take two threads, for tests of what threads do to each other."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a device that is there for the test, and refuses what a GPU refuses."""
    standin_device.install(monkeypatch)
    return "cuda"


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> str:
    """The same for Metal."""
    standin_device.install(monkeypatch, "mps")
    return "mps"


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders that are not there yet; all in one, so that `tmp_path` has less to look through."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches, or looks for a network."""
    cache = next(_caches)
    monkeypatch.setenv("IMGCLF_CACHE", str(cache))
    monkeypatch.setenv("IMGCLF_DATA", str(cache / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images, see `save_photos`."""
    return save_photos(tmp_path / "photos")


class World(NamedTuple):
    """A working folder with `photos` and `runs/photos-lenet-1`, and what `imgclf train` answered."""

    root: Path
    result: Result


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny trained classifier that many tests read; who writes takes `here`."""
    root = tmp_path_factory.mktemp("world")
    save_photos(root / "photos")
    heard = signal.getsignal(signal.SIGTERM)  # `train` handles it; the tests must not
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        patch.chdir(root)
        command = (
            "train photos --arch lenet --size 16 --epochs 12 --batch-size 16 --precision fp32 --augment none --json"
        )
        result = CliRunner().invoke(app, command.split())
    signal.signal(signal.SIGTERM, heard)
    assert result.exit_code == 0, result.stderr
    return World(root, result)


@pytest.fixture
def here(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working folder."""
    root = copy_of_world(world.root, tmp_path / "here")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def make_source() -> Callable[..., Source]:
    """Makes a source in memory: `n` images a class of 8×8 pixels, brighter from class to class."""

    def make(n: int = 12, classes: int = 3, channels: int = 1, **options: object) -> Source:
        rng = np.random.default_rng(0)
        names = tuple("abcdefghij"[:classes])
        levels = np.linspace(40, 215, classes)[np.arange(n * classes) % classes]
        noise = rng.integers(-20, 20, (n * classes, 8, 8, channels))
        pixels = (levels[:, None, None, None] + noise).astype(np.uint8)
        reader = ArrayReader({"all": pixels})
        refs = [f"all/{index:05d}" for index in range(n * classes)]
        samples = tuple(
            Sample(ref, names[index % classes], sha256=reader.digest(ref)) for index, ref in enumerate(refs)
        )
        return Source("levels", names, samples, reader, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
