"""A CSV that lists images with their labels, and optionally their split and group."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from pathlib import Path

from imgclf._files import csv_plain, printable, read_text
from imgclf.data.folder import SPLIT_WORDS, FileReader
from imgclf.data.images import MAX_PIXELS
from imgclf.data.source import Sample, Source
from imgclf.errors import DataError

REQUIRED = ("path", "label")
OPTIONAL = ("group", "split", "sha256")

Row = tuple[int, dict[str, str]]


def read_rows(path: str | os.PathLike[str], required: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    """The rows of a CSV with a header, as (line number, cells by column), and the names of all its columns.

    Empty lines are skipped, a byte-order mark is allowed, names of columns count in any case, and the apostrophe that
    guards a cell against spreadsheets is taken off. Raises `DataError` where a column is missing or a row is short.
    """
    shown = printable(os.fspath(path))
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        header = [cell.strip().lower() for cell in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise DataError(f"{shown} can't be read: {error.strerror or error}") from None
    except csv.Error as error:
        raise DataError(f"{shown} is no CSV: line {reader.line_num}: {error}") from None
    missing = [name for name in required if name not in header]
    if missing or len(set(header)) < len(header):
        found = printable(", ".join(header)) or "nothing"
        raise DataError(
            f"{shown}: the first line must name the columns {', '.join(required)}, each once, with commas between; "
            f"found {found}"
        )
    uneven = [f"line {line}: {len(row)} cells" for line, row in rows if len(row) != len(header)]
    if uneven:
        raise DataError(f"{shown}: the header names {len(header)} columns, and these rows do not fit it", uneven)
    cells = [(line, dict(zip(header, map(csv_plain, row), strict=True))) for line, row in rows]
    return cells, header


def open_table(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, strict: bool = True) -> Source:
    """The images that a CSV lists, as `Source`; nothing is decoded yet.

    Columns: path (absolute, or relative to the CSV's folder) and label, in any order; split (train, valid or test, or
    a synonym that folders may have) and group where they are given, for all rows or for none. `strict=False` accepts
    a single class and single images, for evaluation. Raises one `DataError` that lists all problems with their lines.
    """
    rows, header = read_rows(path, REQUIRED)
    reader = FileReader(Path(path).parent, max_pixels)
    problems: list[str] = []
    first: dict[str, tuple[int, Sample]] = {}
    repeated = 0
    for line, cells in rows:
        sample, wrong = _sample(cells, reader)
        problems.extend(f"line {line}: {text}" for text in wrong)
        earlier, known = first.setdefault(sample.ref, (line, sample))
        repeated += earlier != line
        if known != sample:
            problems.append(f"line {line}: {printable(sample.ref)} is listed otherwise in line {earlier}")
    samples = [sample for _, sample in first.values()]
    problems += _split_problems(samples, [line for line, _ in first.values()])
    if strict:
        problems += class_problems(samples)
    if problems:
        raise DataError(f"{printable(os.fspath(path))} can't be used", problems)
    extra = [name for name in header if name not in (*REQUIRED, *OPTIONAL)]
    notes = [f"columns that are not used: {', '.join(map(printable, extra))}"] if extra else []
    notes += [f"rows that repeat an earlier one: {repeated}"] if repeated else []
    return Source(
        name=Path(path).stem,
        classes=tuple(sorted({s.label for s in samples}, key=os.fsencode)),
        samples=tuple(sorted(samples, key=lambda sample: os.fsencode(sample.ref))),
        reader=reader,
        location=os.fspath(path),
        notes=tuple(notes),
    )


def _sample(cells: dict[str, str], reader: FileReader) -> tuple[Sample, list[str]]:
    """The sample of one row, and what is wrong with it."""
    problems = []
    path, label, word = cells["path"], cells["label"].strip(), cells.get("split", "").strip()
    ref = os.path.normpath(path).replace(os.sep, "/") if path else ""
    if not path:
        problems.append("the path is empty")
    elif "\0" in path or not os.path.lexists(reader.path(ref)):
        problems.append(f"{printable(path)} does not exist")
    if not label:
        problems.append("the label is empty")
    split = SPLIT_WORDS.get(word.lower())
    if word and split is None:
        problems.append(f"split is {printable(word)!r}; expected train, valid or test")
    return Sample(ref, label, group=cells.get("group", "").strip() or None, split=split), problems


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


def class_problems(samples: list[Sample]) -> list[str]:
    """What is wrong with the classes of labelled samples, one line each."""
    counts = Counter(sample.label for sample in samples)
    problems = [
        f"class {printable(label)!r} has 1 image; at least 2 are needed" for label in counts if counts[label] < 2
    ]
    trained = {s.label for s in samples if s.split in (None, "train")}
    if len(counts) < 2:
        problems.append(f"at least 2 classes are needed; found {', '.join(map(printable, counts)) or 'none'}")
    if trained:
        strangers = sorted(set(counts) - trained, key=os.fsencode)
        problems += [f"class {printable(label)!r} has no image in train" for label in strangers]
    return problems
