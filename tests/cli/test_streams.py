"""The standard streams: what can't be shown ends no work."""

import io
import subprocess
import sys

import pytest

from imgclf.cli._streams import Stream, guard_streams


@pytest.fixture
def full():
    """A stream to a disk without room."""
    with open("/dev/full", "w", encoding="utf-8") as file:
        yield Stream(file)


def test_a_full_disk_is_a_fault_and_no_error(full):
    for _ in range(3):
        assert full.write("a line\n") == 7
        full.flush()
    assert full.fault.strerror == "No space left on device"


def test_a_reader_who_has_gone_is_a_fault_and_no_error():
    reader = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, text=True)
    reader.wait()
    stream = Stream(reader.stdin)
    stream.write("x" * 100_000)
    stream.flush()
    assert isinstance(stream.fault, BrokenPipeError)
    reader.stdin.close()  # what is left of it gets nowhere, without an error


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", 'true v  called -> 86.7-90.1 x "\\xe9\\u732b"'), ("cp1252", "true v  called -> 86.7–90.1 × “é\\u732b”")],
)
def test_what_an_encoding_lacks_is_replaced(monkeypatch, encoding, shown):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding))
    guard_streams()
    sys.stdout.write("true ↓  called → 86.7–90.1 × “é猫”")
    sys.stdout.flush()
    assert written.getvalue().decode(encoding) == shown


def test_commands_run_without_any_stream():
    code = "import os\nfor number in range(3): os.close(number)\nos.execvp({0!r}, [{0!r}, '-m', 'imgclf', '--version'])"
    assert subprocess.run([sys.executable, "-c", code.format(sys.executable)]).returncode == 0
