"""Which images belong together: files that hold the same image, and images of one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from imgclf.core.text import first_few, plural, printable
from imgclf.data.dataset import SPLIT_NAMES, Sample

_SHOWN_FILES = 3

Keys = Callable[[Sample], Iterable[tuple[str, str]]]


def content_keys(sample: Sample) -> list[tuple[str, str]]:
    """What a sample shares with every other file of the same image: its bytes, or its pixels."""
    named = (("bytes", sample.sha256), ("pixels", sample.pixels))
    return [(name, digest) for name, digest in named if digest]


def unit_keys(sample: Sample) -> list[tuple[str, str]]:
    """What a sample shares with every other one that must not be in another split: its content, or its group."""
    keys = content_keys(sample)
    return keys if sample.group is None else [("group", sample.group), *keys]


def joined(samples: Sequence[Sample], keys: Keys) -> list[int]:
    """For each sample the position of the first one that it shares a key with, directly or by way of others."""
    parent = list(range(len(samples)))
    first: dict[tuple[str, str], int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, sample in enumerate(samples):
        for key in keys(sample):
            one, other = sorted((root(first.setdefault(key, i)), root(i)))
            parent[other] = one
    return [root(i) for i in range(len(samples))]


def find_copies(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each image that several files hold."""
    together: dict[int, list[Sample]] = defaultdict(list)
    for sample, image in zip(samples, joined(samples, content_keys), strict=True):
        together[image].append(sample)
    return [files for files in together.values() if len(files) > 1]


def describe_duplicates(samples: Sequence[Sample]) -> list[str]:
    """Sentences on files of the same image: in one class, with different labels, and in different splits."""
    copies = find_copies(samples)
    conflicts = [files for files in copies if len({s.label for s in files}) > 1]
    spare = sum(len(files) - len({(s.label, s.split) for s in files}) for files in copies)
    doubled = [files for files in copies if len(files) > len({(s.label, s.split) for s in files})]
    found = []
    if spare:
        found.append(f"exact copies within a class: {plural(spare, 'image')} ({_files(doubled)})")
    if conflicts:
        found.append(f"identical images with different labels: {plural(len(conflicts), 'image')} ({_files(conflicts)})")
    return [*found, *_leaks(samples, copies)]


def describe_leaks(samples: Sequence[Sample]) -> list[str]:
    """Sentences on what two splits share: images, and groups."""
    return _leaks(samples, find_copies(samples))


def _leaks(samples: Sequence[Sample], copies: list[list[Sample]]) -> list[str]:
    groups: dict[str, set[str | None]] = defaultdict(set)
    for sample in samples:
        if sample.group is not None:
            groups[sample.group].add(sample.split)
    found = []
    for first, second in combinations(SPLIT_NAMES, 2):
        both = {first, second}
        images = [files for files in copies if both <= {s.split for s in files}]
        named = [group for group, splits in groups.items() if both <= splits]
        better = f"results on {second} will look better than they are"
        if images:
            found.append(f"{first} and {second} share {plural(len(images), 'image')} ({_files(images)}): {better}")
        if named:
            found.append(f"{first} and {second} share {plural(len(named), 'group')} ({first_few(named)}): {better}")
    return found


def _files(copies: list[list[Sample]]) -> str:
    shown = "; ".join(" = ".join(printable(s.ref) for s in files[:_SHOWN_FILES]) for files in copies[:_SHOWN_FILES])
    return f"{shown}; …" if len(copies) > _SHOWN_FILES else shown
