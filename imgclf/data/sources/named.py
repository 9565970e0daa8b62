"""Data sets that are known by name. To add one, write a function under `@named("its-name")`."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from imgclf.core.errors import DataError
from imgclf.core.files import cache_folder
from imgclf.core.registry import Registry
from imgclf.core.text import printable
from imgclf.data.dataset import ArrayReader, Pixels, Sample, Source

Opener = Callable[[Path], Source]
NAMED: Registry[Opener] = Registry("data set")

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MIRRORS = ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",)
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

# MD5 of the .gz as it is published, and of what is in it where that is known: packed again, the .gz differs.
IdxFiles = Mapping[str, tuple[str, str | None]]
Part = tuple[Pixels, NDArray[np.integer[Any]]]
MNIST_FILES: IdxFiles = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
FASHION_FILES: IdxFiles = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", None),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", None),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", None),
}
IDX_SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
CIFAR_FOLDER, CIFAR_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
CIFAR_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR_BATCH = 10_000
CIFAR_MAX_BYTES = 40_000_000
CONNECT_SECONDS, STALL_SECONDS = 2.0, 30.0
DOWNLOAD_TRIES = 3
_AGAIN = "delete it to download it again"


def default_data_dir() -> Path:
    """Where named data sets are looked for and kept: `IMGCLF_DATA`, else `data` in the user's cache folder."""
    return Path(os.environ.get("IMGCLF_DATA") or cache_folder() / "data")


def open_named(name: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """A data set by its name, from `data_dir` (torchvision's layout), downloaded if it is missing.

    Raises `UnknownName`, and `DataError` where it can be neither found nor downloaded.
    """
    return NAMED.get(name)(Path(data_dir) if data_dir is not None else default_data_dir())


def named(name: str) -> Callable[[Opener], Opener]:
    """Register a function that opens a data set from a data folder."""

    def register(opener: Opener) -> Opener:
        NAMED.add(name, opener)
        return opener

    return register


@named("digits")
def _digits(data_dir: Path) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, which come with the package: nothing is downloaded."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    samples = _samples("digits", [DIGITS[label] for label in bunch.target], split=None)
    reader = ArrayReader({"digits": pixels})
    return Source("digits", DIGITS, samples, reader, mirror=False, default_recipe="digits")


@named("mnist")
def _mnist(data_dir: Path) -> Source:
    """MNIST: 60,000 and 10,000 handwritten digits of 28×28 pixels, gray."""
    parts = _idx_parts("mnist", data_dir / "MNIST" / "raw", MNIST_MIRRORS, MNIST_FILES)
    return _in_memory("mnist", DIGITS, parts, mirror=False, recipe="mnist")


@named("fashion-mnist")
def _fashion_mnist(data_dir: Path) -> Source:
    """Fashion-MNIST: 60,000 and 10,000 articles of clothing of 28×28 pixels, gray."""
    parts = _idx_parts("fashion-mnist", data_dir / "FashionMNIST" / "raw", FASHION_MIRRORS, FASHION_FILES)
    return _in_memory("fashion-mnist", FASHION, parts, mirror=True, recipe="mnist")


@named("cifar10")
def _cifar10(data_dir: Path) -> Source:
    """CIFAR-10: 50,000 and 10,000 photos of 32×32 pixels, RGB."""
    *train, test = [_unpickle_batch(name, data) for name, data in _cifar_files(data_dir).items()]
    parts = {"train": (np.concatenate([p for p, _ in train]), np.concatenate([y for _, y in train])), "test": test}
    return _in_memory("cifar10", CIFAR10, parts, mirror=True, recipe="speedrun")


def _in_memory(name: str, classes: tuple[str, ...], parts: Mapping[str, Part], *, mirror: bool, recipe: str) -> Source:
    samples: tuple[Sample, ...] = ()
    for split, (pixels, labels) in parts.items():
        if len(pixels) != len(labels) or labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"{name}: {len(pixels)} images of {split} do not fit its {len(labels)} labels")
        samples += _samples(split, [classes[label] for label in labels], split)
    reader = ArrayReader({split: pixels for split, (pixels, _) in parts.items()})
    return Source(name, classes, samples, reader, mirror=mirror, default_recipe=recipe)


def _samples(key: str, labels: list[str], split: str | None) -> tuple[Sample, ...]:
    return tuple(Sample(f"{key}/{i:05d}", label, split=split) for i, label in enumerate(labels))


def _obtain(name: str, there: Path, mirrors: tuple[str, ...], md5: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):  # of two processes one downloads, the other waits
            problems = [] if target.exists() else _download([mirror + target.name for mirror in mirrors], md5, target)
    except OSError as error:
        problems = [str(error)]
    if problems:
        raise DataError(
            f"{name} is not in {printable(str(there))}, and it could not be downloaded "
            f"({printable('; '.join(problems))}): put {target.name} there, or pass --data-dir"
        )


def _download(urls: list[str], md5: str, target: Path) -> list[str]:
    """Bring a file here, whole, from the first of `urls` that serves it with this MD5; else why each did not."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    get = pooch.HTTPDownloader(timeout=(CONNECT_SECONDS, STALL_SECONDS))
    problems: dict[str, str] = {}
    for url in urls:
        for _ in range(DOWNLOAD_TRIES):
            try:
                pooch.retrieve(url, f"md5:{md5}", target.name, target.parent, downloader=get)
                return []
            except requests.HTTPError as error:
                problems[url] = str(error)  # such as 404 Not Found
                break
            except (requests.ConnectionError, requests.Timeout):
                problems[url] = f"{urlsplit(url).hostname} can't be reached, or stopped sending"
                break
            except (requests.RequestException, ValueError) as error:  # a broken transfer, another file
                problems[url] = f"{url}: {error}"
    return list(problems.values())


def _idx_parts(name: str, folder: Path, mirrors: tuple[str, ...], files: IdxFiles) -> dict[str, Part]:
    contents = {}
    for file, (packed_md5, md5) in files.items():
        plain, packed = folder / file, folder / f"{file}.gz"
        if not plain.exists() and not packed.exists():
            _obtain(name, folder, mirrors, packed_md5, packed)
        contents[file] = _read_idx(plain if plain.exists() else packed, md5)
    parts: dict[str, Part] = {}
    for split, (prefix, count) in IDX_SPLITS.items():
        pixels, labels = contents[f"{prefix}-images-idx3-ubyte"], contents[f"{prefix}-labels-idx1-ubyte"]
        if pixels.shape != (count, 28, 28) or labels.shape != (count,):
            raise DataError(
                f"{name}: expected {count} images of 28×28 and their labels, found {pixels.shape} and "
                f"{labels.shape} in {printable(str(folder))}"
            )
        parts[split] = (pixels[..., None], labels)
    return parts


def _read_idx(path: Path, md5: str | None) -> Pixels:
    """An IDX file of bytes (yann.lecun.com/exdb/mnist), plain or .gz: magic, sides, then exactly that many bytes."""
    shown = printable(str(path))
    limit = 60_000 * 28 * 28 + 16
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown} is damaged: {error}; {_AGAIN}") from None
    dims = data[3] if data[:3] == b"\0\0\x08" else 0
    sides = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims]) if 1 <= dims <= 3 and len(data) >= 4 + 4 * dims else ()
    if not sides or len(data) != 4 + 4 * dims + int(np.prod(sides, dtype=object)):
        raise DataError(f"{shown} is damaged: its length does not fit its header; {_AGAIN}")
    _verify(shown, data, md5)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(sides).copy()


def _verify(shown: str, data: bytes, md5: str | None) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise DataError(f"{shown} is not the published file: MD5 {found} instead of {md5}; {_AGAIN}")


def _cifar_files(data_dir: Path) -> dict[str, bytes]:
    """The verified batches in order, from the unpacked folder or straight from the archive."""
    folder, archive = data_dir / CIFAR_FOLDER, data_dir / CIFAR_ARCHIVE
    if all((folder / name).is_file() for name in CIFAR_FILES):
        files = {name: (folder / name).read_bytes() for name in CIFAR_FILES}
    else:
        if not archive.exists():
            _obtain("cifar10", data_dir, CIFAR_MIRRORS, CIFAR_ARCHIVE_MD5, archive)
        files = _read_archive(archive)
    for name, md5 in CIFAR_FILES.items():
        if name not in files:
            raise DataError(f"{printable(str(archive))} lacks {name}; {_AGAIN}")
        _verify(printable(f"{data_dir}: {name}"), files[name], md5)
    return {name: files[name] for name in CIFAR_FILES}


def _read_archive(archive: Path) -> dict[str, bytes]:
    """The batches in a tar.gz; nothing is unpacked to the disk."""
    files = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix(f"{CIFAR_FOLDER}/")
                wanted = name in CIFAR_FILES and member.isfile() and member.size <= CIFAR_MAX_BYTES
                if wanted and (content := tar.extractfile(member)):
                    files[name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{printable(str(archive))} is damaged: {error}; {_AGAIN}") from None
    return files


class _ArraysOnly(pickle.Unpickler):
    """Loads NumPy arrays and plain values; any other global in the file, and so any code, is refused."""

    allowed: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how newer Pythons write bytes for older ones
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")
        return self.allowed[module, name]


def _unpickle_batch(name: str, data: bytes) -> Part:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(CIFAR_BATCH, 3, 32, 32)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    except Exception as error:
        raise DataError(f"cifar10: {name} can't be read: {error}; {_AGAIN}") from None
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels
