"""The bytes of a model file: safetensors, with a manifest and a checksum over all that it holds.

The format is that of https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header as JSON,
the tensors. Errors here are `ModelFileError` without the file's name, which the caller adds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from operator import index
from typing import Any, BinaryIO, NamedTuple, NoReturn, TypeVar

from imgclf.core.errors import ModelFileError
from imgclf.core.text import shorten

T = TypeVar("T")

MAX_HEADER = 8_000_000  # bytes; a network with 1,000 classes and 1,000 tensors needs some 200,000
BESIDE = "ood:"  # how the tensors are called that are no weights; no layer's name has a colon
CHUNK = 1 << 20
SHOWN_TENSORS = 3  # in a message
DTYPES = {  # the name in the file: (the name in torch, bytes an element)
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
FOREIGN = {  # how files that are no safetensors begin
    b"PK": "a zip archive, as torch.save writes it",
    b"\x80": "a pickle",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
}


@dataclass(frozen=True)
class Stored:
    """One tensor in the file; its bytes lie from `begin` to `end`, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What comes before the tensors, `size` bytes in all: the manifest (JSON), the checksum, where each tensor lies."""

    size: int
    manifest: str
    sha256: str
    tensors: Mapping[str, Stored]


class Raw(NamedTuple):
    """A tensor to be written: its type by the name in the file, its shape, its bytes (little-endian, in C order)."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def read_header(stream: BinaryIO) -> Header:
    """The header of the file in `stream`: the manifest, and what the checksum is over, which tells any damage.

    What it says of the tensors is checked by `read_tensors`. Raises `ModelFileError`.
    """
    start = stream.read(9)
    size = int.from_bytes(start[:8], "little")
    if len(start) == 9 and (start[8:] != b"{" or size > MAX_HEADER):
        _refuse(start, size)
    text = start[8:] + (stream.read(size - 1) if len(start) == 9 else b"")
    if len(text) < max(size, 1):
        raise ModelFileError("truncated: the file ends within its header; copy it again or train again")
    entries = parse_json(text, "header")
    texts = entries.pop("__metadata__", None)
    if not isinstance(texts, dict) or not isinstance(texts.get("imgclf"), str):
        raise ModelFileError("has no imgclf manifest: a safetensors file, but not a model that imgclf saved")
    if texts.keys() != {"imgclf", "sha256"} or not texts["imgclf"].isascii():
        raise ModelFileError("corrupt: the metadata are not an ASCII manifest and its sha256")
    tensors = {name: _parse_entry(name, entry) for name, entry in entries.items()}
    return Header(8 + size, texts["imgclf"], texts["sha256"], tensors)


def _parse_entry(name: str, entry: Any) -> Stored:
    try:
        stored = Stored(entry["dtype"], tuple(entry["shape"]), *map(index, entry["data_offsets"]))
        if stored.dtype in DTYPES and 0 <= stored.begin <= stored.end:
            return stored
    except (TypeError, KeyError):
        pass
    raise ModelFileError(f"corrupt: the header's entry for the tensor {shorten(repr(name))} is malformed")


def read_tensors(stream: BinaryIO, load: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
    """All tensors of a file, as `load` of `safetensors.torch` or `safetensors.numpy` gives them."""
    from safetensors import SafetensorError

    stream.seek(0)
    try:
        return load(stream.read())
    except SafetensorError as error:
        raise ModelFileError(f"corrupt: {error}") from None


def checksum(stream: BinaryIO, header: Header) -> str:
    """The sha256 (hex) over the manifest and, sorted by name, each tensor's name, dtype, shape and bytes."""
    parts = (
        (name, one.dtype, one.shape, _chunks(stream, header.size + one.begin, one.end - one.begin))
        for name, one in sorted(header.tensors.items())
    )
    return _digest(header.manifest, parts)


def pack(tensors: Mapping[str, Raw], manifest: str) -> list[bytes | memoryview]:
    """The parts of a file, one after the other: its header, with the manifest and the checksum, and each tensor.

    The writer of safetensors copies all tensors twice and puts metadata in a random order; here equal models give equal
    files. As there, types of more bytes come first, so that each tensor begins at a multiple of its own.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-DTYPES[item[1].dtype][1], item[0]))
    ends = list(accumulate(len(raw.data) for _, raw in ordered))
    entries = {
        name: {"dtype": raw.dtype, "shape": raw.shape, "data_offsets": (end - len(raw.data), end)}
        for (name, raw), end in zip(ordered, ends, strict=True)
    }
    digest = _digest(manifest, ((name, raw.dtype, raw.shape, [raw.data]) for name, raw in sorted(tensors.items())))
    texts = {"imgclf": manifest, "sha256": digest}
    header = json.dumps({"__metadata__": texts, **entries}, separators=(",", ":")).encode("ascii")
    header = header.ljust(math.ceil(len(header) / 8) * 8)  # the tensors start at a multiple of 8 bytes
    return [len(header).to_bytes(8, "little") + header, *(raw.data for _, raw in ordered)]


def require_fit(found: Mapping[str, str], wanted: Mapping[str, str], problem: str) -> None:
    """Raise a `ModelFileError` that begins with `problem`, unless tensors are those that a network wants.

    Both map the name of a tensor to its shape (and type) as text.
    """
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{shorten(name)} is not part of the network" for name in sorted(found.keys() - wanted.keys())]
    both = sorted(wanted.keys() & found.keys())
    problems += [f"{name} is {found[name]}, expected {wanted[name]}" for name in both if found[name] != wanted[name]]
    if problems:
        more = f"; and {len(problems) - SHOWN_TENSORS:,} more" if len(problems) > SHOWN_TENSORS else ""
        raise ModelFileError(f"{problem}: {'; '.join(problems[:SHOWN_TENSORS])}{more}")


def _digest(manifest: str, tensors: Iterable[tuple[str, str, tuple[int, ...], Iterable[bytes | memoryview]]]) -> str:
    digest = sha256(manifest.encode("ascii"))
    for name, dtype, shape, chunks in tensors:
        digest.update(json.dumps([name, dtype, shape]).encode("ascii"))
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(stream: BinaryIO, begin: int, left: int) -> Iterator[bytes]:
    stream.seek(begin)
    while left:
        chunk = stream.read(min(left, CHUNK))
        if not chunk:
            raise ModelFileError("truncated: the file ends within a tensor; copy it again or train again")
        yield chunk
        left -= len(chunk)


def parse_json(source: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object in which every number is finite; `what` names it in the `ModelFileError`."""
    try:
        value = json.loads(source, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ModelFileError(f"corrupt: the {what} is nested too deeply") from None
    except ValueError as error:
        raise ModelFileError(f"corrupt: the {what} is not JSON ({shorten(str(error))})") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"corrupt: the {what} is not a JSON object")
    return value


def _refuse(start: bytes, size: int) -> NoReturn:
    if start[8:] == b"{":
        raise ModelFileError(f"has a header of {size:,} bytes; imgclf reads up to {MAX_HEADER:,}")
    look = next((f" (it looks like {what})" for magic, what in FOREIGN.items() if start.startswith(magic)), "")
    raise ModelFileError(
        f"is not a safetensors file{look}; other formats can run code when they are opened, so they are never opened: "
        "give a model.safetensors that imgclf saved"
    )


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shorten(text)} is not a finite number")
    return number
