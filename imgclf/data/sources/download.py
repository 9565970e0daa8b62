"""Downloads that end with a verified file or with nothing: locked, checked, renamed into place."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from imgclf.core.errors import DataError
from imgclf.core.text import printable

CONNECT_SECONDS = 2.0
STALL_SECONDS = 30.0
TRIES = 3
PAUSE_SECONDS = 0.5
LIMIT_BYTES = 512 * 2**20
_CHUNK = 2**20


class _Refused(Exception):
    """This address will not do, now or later: there is no use in trying it again."""


def download(urls: Sequence[str], md5: str, target: Path) -> None:
    """Bring one file here: from the first of `urls` that serves it with the right MD5.

    Only https is used (http for this machine itself). The file is written beside `target`, verified and then renamed;
    of two processes that ask at once, one downloads and the other waits. An address that can't be reached is given up
    at once, a broken transfer is tried again. Raises `DataError`, in one line.
    """
    folders = (target.parent, *target.parent.parents)
    created = [folder for folder in folders if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _fetch_any(urls, md5, target)
    except BaseException:
        for folder in created:
            with suppress(OSError):  # another process may use it by now
                folder.rmdir()
        raise


def _fetch_any(urls: Sequence[str], md5: str, target: Path) -> None:
    failures: dict[str, str] = {}
    left = list(urls)
    for attempt in range(TRIES):
        time.sleep(attempt * PAUSE_SECONDS if left else 0)
        for url in tuple(left):
            try:
                _fetch(url, md5, target)
                return
            except _Refused as error:
                failures[url] = str(error)
                left.remove(url)
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures[url] = str(error) or type(error).__name__
    raise DataError(printable("; ".join(dict.fromkeys(failures.values()))))


def _fetch(url: str, md5: str, target: Path) -> None:
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with _open(url) as answer, open(part, "wb") as file:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if size > LIMIT_BYTES:
                    raise _Refused(f"{url} sends more than {LIMIT_BYTES:,} bytes")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != md5:
            raise ValueError(f"{url} sent another file than expected: MD5 {digest.hexdigest()} instead of {md5}")
        os.replace(part, target)
    except TimeoutError:
        raise _Refused(f"{url} sent nothing for {STALL_SECONDS:g} s") from None
    finally:
        part.unlink(missing_ok=True)


def _open(url: str) -> IO[bytes]:
    """Start a request; what can't be reached or does not have the file raises `_Refused`."""
    opener = urllib.request.build_opener(_Https, _Http, _Redirects)
    try:
        _require_safe(url)
        answer: IO[bytes] = opener.open(url, timeout=STALL_SECONDS)
        return answer
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise OSError(f"{url} answers {error.code}") from None
        raise _Refused(f"{url} answers {error.code}") from None
    except urllib.error.URLError as error:
        host = urllib.parse.urlsplit(url).hostname
        raise _Refused(f"{host} can't be reached: {str(error.reason) or type(error.reason).__name__}") from None


def _require_safe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
        raise _Refused(f"only https is allowed, not {url}")


# A host that does not answer shows within seconds; a transfer that has begun may pause for longer.
class _HttpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()
        self.sock.settimeout(STALL_SECONDS)


class _HttpsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()
        self.sock.settimeout(STALL_SECONDS)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system frees it when its holder dies.

    Where the system has no such locks two processes may download the same file; the checks above still hold.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits for it looks for the finished file first
