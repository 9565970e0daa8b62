"""The names of classes: which of them are one name, and which only look like one."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from imgclf.core.text import nfc, printable
from imgclf.data.dataset import Sample, Source


def in_one_form(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples, with one name where the names of classes, or of groups, are equal in NFC; and notes on the classes.

    A Mac may store `Café` in another form than Linux. The form that training images have stands for all.
    """
    found = {(s.label, s.split in (None, "train")) for s in samples}
    labels = _first_forms(label for label, _ in sorted(found, key=lambda pair: (not pair[1], os.fsencode(pair[0]))))
    groups = _first_forms(sorted({s.group for s in samples if s.group}, key=os.fsencode))
    if not labels and not groups:
        return list(samples), []
    notes = [
        f"the class {printable(name)!r} is written in {others + 1} Unicode forms, which count as one class"
        for name, others in Counter(labels.values()).items()
    ]
    return [
        replace(s, label=labels.get(s.label, s.label), group=groups.get(s.group or "", s.group)) for s in samples
    ], notes


def class_problems(samples: list[Sample]) -> list[str]:
    """What is wrong with the classes of labeled samples, one line each."""
    classes = {sample.label for sample in samples}
    trained = {s.label for s in samples if s.split in (None, "train")} or classes
    few = [f"at least 2 classes are needed; found {', '.join(map(printable, trained)) or 'none'}"]
    missing = sorted(classes - trained, key=os.fsencode)
    return few * (len(trained) < 2) + [f"class {printable(label)!r} has no image in train" for label in missing]


def spelled_as(source: Source, known: Iterable[str]) -> Source:
    """The source with its classes in the form in which `known` has them, where they are equal in NFC."""
    forms = {nfc(name): name for name in known}
    names = {name: forms.get(nfc(name), name) for name in source.classes}
    if all(name == form for name, form in names.items()):
        return source
    samples = tuple(replace(s, label=names.get(s.label, s.label)) for s in source.samples)
    return replace(source, classes=tuple(names.values()), samples=samples)


def look_alikes(classes: Iterable[str]) -> list[str]:
    """Sentences on classes whose names differ in nothing that is meant: in case, blanks or what can't be seen."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[_as_read(name)].append(name)
    return [
        f"the classes {' and '.join(map(repr, names))} differ only in case, blanks, width or invisible letters: "
        "if they are one class, give it one name"
        for names in alike.values()
        if len(names) > 1
    ]


def _as_read(name: str) -> str:
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if not _is_invisible(c))
    return " ".join(unicodedata.normalize("NFKC", seen.casefold()).split())


def _is_invisible(letter: str) -> bool:
    """Zero-width letters and joiners, soft hyphens, marks of direction, and variants of the letter before."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def _first_forms(names: Iterable[str]) -> dict[str, str]:
    """The first of the names that are equal in NFC, by each of the others."""
    first: dict[str, str] = {}
    return {name: form for name in names if (form := first.setdefault(nfc(name), name)) != name}
