"""A CSV that lists images with their labels, and optionally their split and group."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from imgclf.core.errors import DataError
from imgclf.core.files import csv_plain
from imgclf.core.text import printable
from imgclf.data.classes import class_problems, in_one_form
from imgclf.data.dataset import Sample, Source
from imgclf.data.images import MAX_PIXELS
from imgclf.data.sources.folder import FileReader
from imgclf.data.sources.split_names import split_meant

REQUIRED = ("path", "label")
OPTIONAL = ("group", "split", "sha256")
_DELIMITERS = (",", ";", "\t")  # a spreadsheet takes the second where the decimal point is a comma
_SAVE_AGAIN = "save it as “CSV UTF-8” in the spreadsheet or editor"

_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as `_text` gives them

Row = tuple[int, dict[str, str]]


def read_rows(path: str | os.PathLike[str], required: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    """The rows of a CSV with a header, as (line number, cells by column), and the names of its columns.

    It is UTF-8, or UTF-16 with a byte-order mark; commas, semicolons or tabs divide the cells. Empty lines and columns
    are skipped, names of columns count in any case, and the apostrophe that guards a cell against spreadsheets is
    taken off. A column without a name that holds something is called "". Raises `DataError` where a column is missing
    or a row is short.
    """
    shown = printable(os.fspath(path))
    lines = io.StringIO(_text(path), newline="")
    first = lines.readline()
    lines.seek(0)
    delimiter = next((d for d in _DELIMITERS if set(required) <= set(_names(first, d))), ",")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{shown} is not a CSV file: line {reader.line_num}: {error}") from None
    named = [name for name in header if name]
    if not set(required) <= set(named) or len(set(named)) < len(named):
        found = printable(", ".join(header)) or "nothing"
        raise DataError(
            f"{shown}: the first line must name the columns {', '.join(required)}, each once, separated by commas; "
            f"found {found}"
        )
    rows = [(line, _fitted(row, header)) for line, row in rows]
    uneven = [f"line {line}: {len(row)} cells" for line, row in rows if len(row) != len(header)]
    if uneven:
        raise DataError(f"{shown}: the header names {len(header)} columns, but these rows have others", uneven)
    used = [place for place, name in enumerate(header) if name or any(row[place].strip() for _, row in rows)]
    return [(line, {header[i]: csv_plain(row[i]) for i in used}) for line, row in rows], [header[i] for i in used]


def _fitted(row: list[str], header: list[str]) -> list[str]:
    """The row with as many cells as the header, where what it lacks has no name and what it has more is empty."""
    width = len(header)
    return row if any(header[len(row) :]) or "".join(row[width:]).strip() else (row + [""] * width)[:width]


def _names(line: str, delimiter: str) -> list[str]:
    """What a header names where this divides it; nothing where it is none."""
    try:
        return [cell.strip().lower() for row in csv.reader([line], delimiter=delimiter) for cell in row]
    except csv.Error:
        return []


def _text(path: str | os.PathLike[str]) -> str:
    """What a CSV says; bytes that are no UTF-8 come as surrogates, since a name of a file may hold them."""
    shown = printable(os.fspath(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{shown} can't be read: {error.strerror or error}") from None
    if data.startswith(b"PK\3\4"):
        raise DataError(f"{shown} is a workbook (.xlsx, .ods), not a CSV file: {_SAVE_AGAIN}")
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
    except UnicodeDecodeError:
        raise DataError(f"{shown} starts as UTF-16 but is not valid UTF-16: {_SAVE_AGAIN}") from None
    if b"\0" in data:
        raise DataError(f"{shown} holds zero bytes: UTF-16 without a byte-order mark, or not text: {_SAVE_AGAIN}")
    return data.decode("utf-8-sig", "surrogateescape")


def open_table(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, strict: bool = True) -> Source:
    """The images that a CSV lists, as `Source`; nothing is decoded yet.

    Columns: path (absolute, or relative to the CSV's folder) and label, in any order; split (train, valid or test, or
    a synonym that folders may have) and group where they are given, for all rows or for none. A path that does not
    exist as it is written is tried without blanks around it, with / for \\, and in the other Unicode form. Labels that
    are equal in NFC are one class. `strict=False` accepts a single class, for evaluation. Raises one `DataError` that
    lists all problems with their lines.
    """
    rows, header = read_rows(path, REQUIRED)
    reader = FileReader(os.path.dirname(path), max_pixels)
    _require_utf8(rows, reader, printable(os.fspath(path)))
    problems: list[str] = []
    first: dict[str, tuple[int, Sample]] = {}
    repeated = 0
    for line, cells in rows:
        sample, wrong = _sample(cells, reader)
        problems.extend(f"line {line}: {text}" for text in wrong)
        earlier, known = first.setdefault(sample.ref, (line, sample))
        repeated += earlier != line
        if known != sample:
            problems.append(f"line {line}: {printable(sample.ref)} is listed differently in line {earlier}")
    samples, spelling = in_one_form([sample for _, sample in first.values()])
    problems += _split_problems(samples, [line for line, _ in first.values()])
    problems += _splits_elsewhere(rows, header)
    if strict:
        problems += class_problems(samples)
    if problems:
        raise DataError(f"{printable(os.fspath(path))} can't be used", problems)
    extra = sorted({name or "one without a name" for name in header} - {*REQUIRED, *OPTIONAL})
    notes = [f"unused columns: {', '.join(map(printable, extra))}"] if extra else []
    notes += [f"repeated rows: {repeated}"] if repeated else []
    return Source(
        name=Path(path).stem,
        classes=tuple(sorted({s.label for s in samples}, key=os.fsencode)),
        samples=tuple(sorted(samples, key=lambda sample: os.fsencode(sample.ref))),
        reader=reader,
        location=os.fspath(path),
        notes=(*notes, *spelling),
    )


def _require_utf8(rows: list[Row], reader: FileReader, shown: str) -> None:
    """Raise `DataError` where a label, a group, or the path of no file holds bytes that are no UTF-8."""
    wrong = [
        (line, cells[name])
        for line, cells in rows
        for name in ("label", "group", "path")
        if _UNDECODED.search(cells.get(name, "")) and not (name == "path" and _spelling_of_file(cells[name], reader))
    ]
    if wrong:
        line, text = wrong[0]
        text = printable(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        more = f" and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        raise DataError(f"{shown} is not UTF-8 but Latin-1 or the like (line {line}: {text!r}{more}): {_SAVE_AGAIN}")


def _sample(cells: dict[str, str], reader: FileReader) -> tuple[Sample, list[str]]:
    """The sample of one row, and what is wrong with it."""
    problems = []
    path, label, word = cells["path"], cells["label"].strip(), cells.get("split", "").strip()
    found = _spelling_of_file(path, reader)
    if not path.strip():
        problems.append("the path is empty")
    elif found is None:
        problems.append(f"{printable(path)} does not exist")
    if not label:
        problems.append("the label is empty")
    elif cells["label"].lstrip() != cells["label"] and label.startswith('"'):
        problems.append(f"a space before a quote makes the quote part of the label {printable(label)}: remove it")
    split = split_meant(word)
    if word and split is None:
        problems.append(f"split is {printable(word)!r}; expected train, valid or test")
    ref = os.path.normpath(found or path).replace(os.sep, "/") if path else ""
    return Sample(ref, label, group=cells.get("group", "").strip() or None, split=split), problems


def _spelling_of_file(path: str, reader: FileReader) -> str | None:
    """The path in the first spelling under which there is a file; None where there is none."""
    return next((way for way in spellings(path) if way.strip() and os.path.lexists(reader.path(way))), None)


def spellings(path: str) -> Iterator[str]:
    """The ways in which a path may be meant: as it is, without blanks, with slashes, in either form of its accents."""
    yield path
    bare = path.strip()
    for way in (bare, bare.replace("\\", "/")):
        yield way
        if not way.isascii():
            yield from (unicodedata.normalize(form, way) for form in ("NFC", "NFD"))


def _split_problems(samples: list[Sample], lines: list[int]) -> list[str]:
    given = Counter(sample.split for sample in samples)
    if len(given) == 1 and None in given:
        return []
    problems = [
        f"line {line}: split is empty, though other rows have one"
        for line, sample in zip(lines, samples, strict=True)
        if sample.split is None
    ]
    return problems if not given or "train" in given else [*problems, "no row has the split train"]


def _splits_elsewhere(rows: list[Row], header: list[str]) -> list[str]:
    """A line for each column that names the splits under another name, where none is called split."""
    others = [] if "split" in header else [name for name in header if name not in (*REQUIRED, *OPTIONAL)]
    words = {name: {cells[name].strip() for _, cells in rows} for name in others}
    return [
        f"column {printable(name)!r} holds {', '.join(map(printable, sorted(found)))}: rename it to split, or remove it"
        for name, found in words.items()
        if all(map(split_meant, found)) and {"train"} < set(map(split_meant, found))
    ]
