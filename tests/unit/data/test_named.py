"""Data sets by name, from tiny files in the published layouts."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import imgclf.data.sources.named as module
from imgclf.core.errors import DataError, UnknownName
from imgclf.data.sources.named import NAMED, default_data_dir, open_named

RNG = np.random.default_rng(0)


def idx(values):
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A data folder whose MNIST has 20 and 10 images; gives the folder and its arrays."""
    monkeypatch.setattr(module, "IDX_SPLITS", {"train": ("train", 20), "test": ("t10k", 10)})
    arrays, files = {}, {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        arrays[prefix] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[f"{prefix}-images-idx3-ubyte"] = idx(arrays[prefix])
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, data in files.items():
        (raw / name).write_bytes(data)
    sums = {name: ("0" * 32, hashlib.md5(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(module, "MNIST_FILES", sums)
    monkeypatch.setattr(module, "MNIST_MIRRORS", ("https://127.0.0.1:9/",))
    return tmp_path, arrays


def pack(folder):
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def test_digits_come_with_the_package(tmp_path):
    source = open_named("digits", tmp_path / "nowhere")
    assert len(source) == 1797
    assert source.classes == tuple("0123456789")
    pixels = np.stack([source.open(s.ref) for s in source.samples[:200]])
    assert (pixels.shape, pixels.dtype, pixels.min(), pixels.max()) == ((200, 8, 8, 1), np.uint8, 0, 255)
    assert not source.mirror
    assert (source.default_recipe, source.samples[12].ref, source.samples[12].split) == ("digits", "digits/00012", None)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files(mnist, packed):
    folder, arrays = mnist
    if packed:
        pack(folder / "MNIST/raw")
    source = open_named("mnist", folder)
    assert [(s.ref, s.label, s.split) for s in source.samples[:2]] == [
        ("train/00000", "0", "train"), ("train/00001", "1", "train"),
    ]  # fmt: skip
    assert source.samples[-1].ref == "test/00009"
    assert np.array_equal(source.open("test/00003")[..., 0], arrays["t10k"][3])
    assert source.reader.digest("test/00003") != source.reader.digest("test/00004")


def test_fashion_mnist_has_its_own_folder_and_names(mnist, monkeypatch):
    folder, _ = mnist
    (folder / "FashionMNIST").mkdir()
    (folder / "MNIST/raw").rename(folder / "FashionMNIST/raw")
    source = open_named("fashion-mnist", folder)
    assert source.classes[0] == "T-shirt/top"
    assert source.mirror
    assert source.samples[9].label == "Ankle boot"


def test_damaged_files_are_refused(mnist):
    folder, _ = mnist
    images = folder / "MNIST/raw/t10k-images-idx3-ubyte"
    good = images.read_bytes()
    for data, reason in (
        (good[:-1], "length does not fit"),
        (good + b"x", "length does not fit"),
        (b"\0\0\x09" + good[3:], "length does not fit"),
        (b"", "length does not fit"),
        (good[:-1] + bytes([good[-1] ^ 1]), "not the published file"),
    ):
        images.write_bytes(data)
        with pytest.raises(DataError, match=reason):
            open_named("mnist", folder)
    images.unlink()
    images.with_name(images.name + ".gz").write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(DataError, match="is damaged"):
        open_named("mnist", folder)


def test_labels_that_do_not_fit(mnist, monkeypatch):
    folder, _ = mnist
    labels = folder / "MNIST/raw/t10k-labels-idx1-ubyte"
    monkeypatch.setattr(module, "MNIST_FILES", {name: (a, None) for name, (a, _) in module.MNIST_FILES.items()})
    labels.write_bytes(idx(np.full(10, 77, np.uint8)))
    with pytest.raises(DataError, match="do not fit its 10 labels"):
        open_named("mnist", folder)
    labels.write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(DataError, match="expected 10 images"):
        open_named("mnist", folder)


def test_what_is_missing_and_cannot_be_had_is_one_line(mnist):
    folder, _ = mnist
    (folder / "MNIST/raw/train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        open_named("mnist", folder)
    text = str(caught.value)
    assert "\n" not in text
    assert f"mnist is not in {folder}/MNIST/raw, and it could not be downloaded" in text
    assert "put train-labels-idx1-ubyte.gz there, or pass --data-dir" in text


class Handler(BaseHTTPRequestHandler):
    """A mirror of the labels, which a test tells how to behave."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        body = server.content
        if server.mood == "missing" or self.path.startswith("/elsewhere/"):
            self.send_error(404)
            return
        if server.mood == "once broken":
            server.mood, body = "", body[:-1] + b"x"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 10 * (server.mood == "short")))
        self.end_headers()
        self.wfile.write(body[:10] if server.mood == "stalled" else body)
        self.wfile.flush()
        if server.mood == "stalled":
            server.release.wait(5)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(mnist, monkeypatch):
    """The labels of MNIST are not there; a server in this machine has them."""
    folder, _ = mnist
    labels = folder / "MNIST/raw/train-labels-idx1-ubyte"
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.asked, server.mood, server.folder = gzip.compress(labels.read_bytes()), [], "", folder
        server.release, md5 = threading.Event(), hashlib.md5(server.content).hexdigest()
        monkeypatch.setattr(module, "MNIST_FILES", module.MNIST_FILES | {labels.name: (md5, None)})
        monkeypatch.setattr(module, "MNIST_MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
        labels.unlink()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def test_a_missing_file_is_downloaded_once_by_threads_that_need_it(mirror):
    with ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(lambda _: open_named("mnist", mirror.folder), range(4)))
    assert [len(source) for source in sources] == [30] * 4
    assert mirror.asked == ["/train-labels-idx1-ubyte.gz"]
    assert len(open_named("mnist", mirror.folder)) == 30
    assert len(mirror.asked) == 1


def test_a_broken_transfer_is_tried_again(mirror):
    mirror.mood = "once broken"
    assert len(open_named("mnist", mirror.folder)) == 30
    assert len(mirror.asked) == 2


def test_the_next_mirror_is_tried(mirror, monkeypatch):
    monkeypatch.setattr(module, "MNIST_MIRRORS", (module.MNIST_MIRRORS[0] + "elsewhere/", *module.MNIST_MIRRORS))
    assert len(open_named("mnist", mirror.folder)) == 30
    assert mirror.asked == ["/elsewhere/train-labels-idx1-ubyte.gz", "/train-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize(
    ("mood", "reason", "requests"),
    [
        ("missing", "404", 1),
        ("short", "IncompleteRead", 3),
        ("stalled", "127.0.0.1 can't be reached, or stopped sending", 1),
    ],
)
def test_a_failed_download_leaves_no_file(mirror, monkeypatch, mood, reason, requests):
    monkeypatch.setattr(module, "STALL_SECONDS", 0.2)
    mirror.mood = mood
    with pytest.raises(DataError, match=reason) as caught:
        open_named("mnist", mirror.folder)
    assert "\n" not in str(caught.value)
    assert len(mirror.asked) == requests
    assert len(list((mirror.folder / "MNIST/raw").glob("[!.]*"))) == 3, "the other files of MNIST"


def test_another_file_than_the_published_one_is_not_taken(mirror):
    mirror.content += b"x"
    with pytest.raises(DataError, match="hash"):
        open_named("mnist", mirror.folder)


def as_python_2(batch):
    """The pickle of a batch, as the published files hold it: protocol 2 and the old name of NumPy's module."""
    return pickle.dumps(batch, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CIFAR_BATCH", 10)
    monkeypatch.setattr(module, "CIFAR_MIRRORS", ("https://127.0.0.1:9/",))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    arrays = {}
    for name in module.CIFAR_FILES:
        arrays[name] = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(as_python_2({b"data": arrays[name], b"labels": list(range(10))}))
    publish(folder, monkeypatch)
    return tmp_path, arrays


def publish(folder, monkeypatch):
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in module.CIFAR_FILES}
    monkeypatch.setattr(module, "CIFAR_FILES", sums)


def archive(root):
    folder = root / "cifar-10-batches-py"
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    for path in list(folder.iterdir()):
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(cifar, packed):
    root, arrays = cifar
    if packed:
        archive(root)
    source = open_named("cifar10", root)
    assert len(source) == 60
    assert source.classes[:2] == ("airplane", "automobile")
    expected = arrays["data_batch_2"][3].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(source.open("train/00013"), expected)
    assert np.array_equal(source.open("test/00000"), arrays["test_batch"][0].reshape(3, 32, 32).transpose(1, 2, 0))
    assert (source.samples[-1].label, source.samples[-1].split) == ("truck", "test")
    assert sorted(path.name for path in root.iterdir()) == [
        "cifar-10-python.tar.gz" if packed else "cifar-10-batches-py"
    ]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_never_runs_code(cifar, monkeypatch):
    root, _ = cifar
    folder = root / "cifar-10-batches-py"
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Payload(root / "ran"), b"labels": []}))
    with pytest.raises(DataError, match="data_batch_3 is not the published file"):
        open_named("cifar10", root)
    publish(folder, monkeypatch)
    with pytest.raises(DataError, match="mkdir is not allowed"):
        open_named("cifar10", root)
    assert not (root / "ran").exists()


def test_damaged_archives_are_refused(cifar):
    root, _ = cifar
    archive(root)
    path = root / "cifar-10-python.tar.gz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"is damaged|lacks"):
        open_named("cifar10", root)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="lacks data_batch_1"):
        open_named("cifar10", root)


def test_cifar10_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CIFAR_MIRRORS", ("https://127.0.0.1:9/",))
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz there"):
        open_named("cifar10", tmp_path / "none")
    assert not (tmp_path / "none/cifar-10-python.tar.gz").exists()


def test_where_data_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path))
    monkeypatch.delenv("IMGCLF_DATA", raising=False)
    assert default_data_dir() == tmp_path / "data"
    monkeypatch.setenv("IMGCLF_DATA", str(tmp_path / "mine"))
    assert default_data_dir() == tmp_path / "mine"


def test_unknown_names():
    with pytest.raises(UnknownName, match="did you mean mnist"):
        open_named("mnits")
    assert NAMED.names() == ["digits", "mnist", "fashion-mnist", "cifar10"]
