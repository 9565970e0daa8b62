"""The standard streams: what can't be written on them is replaced or left out, and ends no work."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Any

# What stands for the characters of our own texts where the encoding has none for them.
PLAIN = {"→": "->", "↓": "v", "–": "-", "−": "-", "·": "*", "×": "x", "±": "+-", "…": "...", "“": '"', "”": '"'}
ERRORS = "imgclf-plain"


class Stream:
    """A standard stream that never fails: after a `fault` (a full disk, a closed pipe) nothing more gets through."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text, or leave it out."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._try(self._stream.flush)

    def _try(self, method: Callable[..., object], *values: object) -> None:
        try:
            method(*values)
        except OSError as error:
            self.fault = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for what is in the buffer, when Python ends
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Let no standard stream end the work: neither by its encoding, nor as it is closed or full."""
    # A file that is opened next would else get the number of a closed stream, and what is printed would go into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    codecs.register_error(ERRORS, _plain)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (open to the end)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        stream.reconfigure(errors=ERRORS)
        setattr(sys, name, Stream(stream))


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that an encoding lacks: a codec's error handler."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end
