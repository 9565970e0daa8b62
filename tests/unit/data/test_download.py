"""Downloads: verified or nothing, once."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import pytest

import imgclf.data.sources.download as module
from imgclf.core.errors import DataError
from imgclf.data.sources.download import download

CONTENT = b"data" * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        status, body = 200, CONTENT
        if self.path == "/once-broken":
            body = CONTENT if server.asked.count(self.path) > 1 else CONTENT[:-1] + b"x"
        elif self.path == "/html":
            body = b"<html>log in</html>"
        elif self.path == "/short":
            body = CONTENT[:-10]
        elif self.path == "/missing":
            status = 404
        elif self.path == "/busy":
            status = 503
        elif self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x")
            self.end_headers()
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (10 if self.path == "/short" else 0)))
        self.end_headers()
        if self.path == "/stalled":
            self.wfile.write(body[:10])
            self.wfile.flush()
            server.release.wait(5)
            return
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.release = [], threading.Event()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)


def url(server, path):
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_a_file_arrives_whole_and_alone(server, tmp_path):
    target = tmp_path / "new/folder/file"
    download([url(server, "/good")], MD5, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_what_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    download([url(server, "/good")], MD5, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert server.asked == []


def test_a_broken_transfer_is_tried_again(server, tmp_path):
    download([url(server, "/once-broken")], MD5, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_the_next_address_is_tried(server, tmp_path):
    download([url(server, "/missing"), url(server, "/good")], MD5, tmp_path / "file")
    assert server.asked == ["/missing", "/good"]


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("/html", "another file than expected", 3),
        ("/short", "another file|bytes read", 3),
        ("/busy", "answers 503", 3),
        ("/missing", "answers 404", 1),
        ("/elsewhere", "only https|ftp", 1),
    ],
)
def test_failures_leave_nothing(server, tmp_path, path, reason, requests):
    with pytest.raises(DataError, match=reason) as caught:
        download([url(server, path)], MD5, tmp_path / "new/file")
    assert "\n" not in str(caught.value)
    assert len(server.asked) == requests
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_transfer_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"sent nothing for 0\.2 s"):
        download([url(server, "/stalled")], MD5, tmp_path / "file")
    assert len(server.asked) == 1


def test_more_than_the_limit_is_not_taken(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMIT_BYTES", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        download([url(server, "/good")], MD5, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["http://example.org/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_only_https_or_this_machine(tmp_path, address):
    with pytest.raises(DataError, match="only https"):
        download([address], MD5, tmp_path / "file")


def test_nobody_listens(tmp_path):
    with pytest.raises(DataError, match=r"127\.0\.0\.1 can't be reached"):
        download(["https://127.0.0.1:9/x"], MD5, tmp_path / "file")


def test_threads_and_processes_share_one_download(server, tmp_path):
    target = tmp_path / "file"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download([url(server, "/good")], MD5, target), range(4)))
    assert server.asked == ["/good"]
    target.unlink()
    context = get_context("spawn")
    processes = [context.Process(target=download, args=([url(server, "/good")], MD5, target)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert target.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [target]
