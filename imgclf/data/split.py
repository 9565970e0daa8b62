"""Splits a data set into train, valid and test, as a function of the files' content and a seed.

Neither the order of the files nor their names matter. Each class is split to the exact count, images of one group or
of equal content (bytes or pixels) never part, and every class keeps an image in train.
"""

from __future__ import annotations

import base64
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b, sha256
from math import floor, isclose
from typing import Any

from imgclf.core.arguments import as_path, plain, require, whole
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.files import csv_text, write_text
from imgclf.core.text import first_few, natural, nfc, plural, printable
from imgclf.data.dataset import SPLIT_NAMES, Sample, Source
from imgclf.data.duplicates import describe_leaks, joined, unit_keys
from imgclf.data.sources.csv_table import read_rows, spellings
from imgclf.data.sources.split_names import split_meant

COLUMNS = ("path", "label", "group", "split", "sha256")
FRACTIONS = (0.7, 0.15, 0.15)

Counts = dict[str, int]
Held = Counter[tuple[str, str]]  # images by their split and class

KEY_BYTES = 8  # of a sha256: two of 200,000 images agree by chance once in 10^9 sets
MAX_PACKED = 200_000


@dataclass(frozen=True)
class Split:
    """Every sample with its split and sha256, how it came about and, as sentences for people, what was assumed
    (`notes`) and what looks wrong (`findings`)."""

    rows: tuple[Sample, ...] = field(repr=False)
    seed: int = 0
    fractions: tuple[float, float, float] = FRACTIONS
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def samples(self, split: str) -> tuple[Sample, ...]:
        """The samples of "train", "valid" or "test"."""
        if split not in SPLIT_NAMES:
            raise ConfigError(f"split is {split!r}; allowed: {', '.join(SPLIT_NAMES)}")
        return tuple(sample for sample in self.rows if sample.split == split)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many samples of each class each split holds: `counts()["cat"]["train"]`."""
        counts = {label: dict.fromkeys(SPLIT_NAMES, 0) for label in sorted({s.label for s in self.rows})}
        for sample in self.rows:
            counts[sample.label][str(sample.split)] += 1
        return counts

    @property
    def digest(self) -> str:
        """The sha256 (hex) of who is where, by content: equal digests mean equal splits, whatever the files' names."""
        lines = sorted(f"{s.sha256}\0{s.label}\0{s.split}" for s in self.rows)
        return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def make_split(
    source: Source,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
    file: str | os.PathLike[str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Split:
    """Assign every sample to train, valid or test.

    What the source itself assigns stays; a valid or test split that it lacks is cut from its train.

    Stratified: round(fraction × n) images go to test and to valid, and each class gives its share of them, by largest
    remainder. Within a class the units are ranked by a keyed hash (BLAKE2b, RFC 7693) of their content, so that the
    same content and seed give the same place.

    Args:
        source: The samples; their content decides, not their names.
        fractions: The shares of train, valid and test, which sum to 1; by default 0.7, 0.15 and 0.15.
        seed: Another one gives another split.
        file: An earlier split.csv; its files keep their place, new ones are assigned, changes are named.
        known: Where a model has seen images before, by `content_key`; it counts if neither source nor file decides.

    Raises:
        DataError: Where there is nothing to train on, or the file does not fit.
        ConfigError: For fractions that don't sum to 1, or that ask for a share of what the source brings.

    Example:
        >>> from imgclf import make_split, open_source
        >>> split = make_split(open_source("digits"), (0.8, 0.1, 0.1), seed=1)
        >>> [len(split.samples(part)) for part in ("train", "valid", "test")]
        [1437, 180, 180]
    """
    require("source", source, Source)
    seed, fractions = whole("seed", seed, 0), FRACTIONS if fractions is None else _asked(fractions, source)
    rows = [s if s.sha256 else replace(s, sha256=source.reader.digest(s.ref)) for s in source.samples]
    given = brought(source)
    if given and any(s.split is None for s in rows):
        raise DataError(f"{source.name}: some samples have a split and others have none; set it for all or for none")
    shares = _shares(fractions, given)
    cut = {name for name, share in zip(SPLIT_NAMES, shares, strict=True) if share and name != "train"}
    fixed = {s.ref: str(s.split) for s in rows if s.split and not (s.split == "train" and cut)}
    places = {s.ref: known[content_key(s)] for s in rows if content_key(s) in known} if known and not given else {}
    fixed |= places
    notes = [f"images that keep their earlier split: {len(places):,}"] if places else []
    earlier: tuple[Sample, ...] = ()
    if file is not None:
        file = as_path("file", file)
        earlier = fit_split(read_split(file), source.with_samples(rows), file)
        fixed |= {row.ref: str(row.split) for row in earlier}
    elif given:
        notes += [
            f"no {name} split found: {share:.0%} of the train images are held out as {name}"
            for name, share in zip(SPLIT_NAMES, map(float, shares), strict=True)
            if name in cut
        ]
    placed = _assign(rows, fixed, earlier, {*given} - {"train"}, shares, seed)
    if "train" not in placed.values():
        raise DataError(f"{source.name}: no image is left for train")
    rows = [replace(s, split=placed[s.ref]) for s in rows]
    fresh, findings = _changes(rows, earlier) if file is not None else ([], [])
    if file is not None or known:
        findings += describe_leaks(rows)  # of what the data bring, the audit says so
    return Split(tuple(rows), seed, fractions, (*notes, *fresh), tuple(findings))


def brought(source: Source) -> tuple[str, ...]:
    """The splits that the data themselves bring."""
    given = {sample.split for sample in source.samples}
    return tuple(name for name in SPLIT_NAMES if name in given)


def open_fractions(
    given: Collection[str], fractions: tuple[float, float, float] = FRACTIONS
) -> tuple[float, float, float]:
    """The fractions with nothing for valid and test where these are given, the others in proportion."""
    train, valid, test = map(float, _shares(fractions, given))
    return train, valid, test


def require_open(source: Source, fractions: tuple[float, float, float]) -> None:
    """Raise `ConfigError` where a share is asked for of what the data bring: it would change nothing."""
    given = [name for name in brought(source) if name != "train"]
    shares = zip(SPLIT_NAMES, fractions, strict=True)
    if not (asked := [f"{100 * share:g}% {name}" for name, share in shares if share and name in given]):
        return
    open_to = in_percent(open_fractions(given, fractions))
    use = "drop --split" if len(given) == 2 else f"use --split {open_to}, or drop --split"
    held_out, own = " and ".join(asked), " and ".join(given)
    raise ConfigError(f"the split asks for {held_out}, but {source.name} has its own {own} images: {use}")


def in_percent(fractions: tuple[float, float, float]) -> str:
    """The fractions as `--split` takes them, in whole numbers."""
    _, valid, test = (round(100 * share) for share in fractions)
    return f"{100 - valid - test}/{valid}/{test}"


def match_rows(rows: Iterable[Sample], samples: Iterable[Sample]) -> list[tuple[Sample, Sample | None]]:
    """Each row of an earlier split with the sample that it is about: of its class and content, and of its name if there
    is one; None if it is missing or has changed. No sample stands for two rows."""
    rows, left = list(rows), defaultdict[tuple[str, str], dict[str, Sample]](dict)
    for sample in samples:
        left[nfc(sample.label), sample.sha256][sample.ref] = sample
    keys = [(nfc(row.label), row.sha256) for row in rows]
    named = [left[key].pop(row.ref, None) for key, row in zip(keys, rows, strict=True)]
    renamed = {key: iter(alike.values()) for key, alike in left.items()}
    return [(row, sample or next(renamed[key], None)) for key, row, sample in zip(keys, rows, named, strict=True)]


def follow_split(rows: Sequence[Sample], source: Source) -> tuple[Source, Split]:
    """The images of an earlier split among those of a source, in its order and in its places; see `match_rows`.

    Images that are new since are left out, which is noted. Raises `DataError` with those that are gone or have changed.
    """
    matched, refs = match_rows(rows, source.samples), {sample.ref for sample in source.samples}
    lost = [row.ref for row, sample in matched if sample is None]
    if lost:
        problems = [f"{printable(ref)}: {'changed' if ref in refs else 'missing'}" for ref in sorted(lost, key=natural)]
        raise DataError(f"{source.name} has changed since then: restore these images", problems)
    found = [(row, sample) for row, sample in matched if sample is not None]
    known = {sample.ref for _, sample in found}
    changes = {
        "new and left out": [sample.ref for sample in source.samples if sample.ref not in known],
        "renamed": [sample.ref for row, sample in found if row.ref != sample.ref],
    }
    placed = tuple(replace(sample, group=row.group, split=row.split) for row, sample in found)
    return source.with_samples(sample for _, sample in found), Split(placed, notes=tuple(_named(changes)))


def _asked(fractions: Any, source: Source) -> tuple[float, float, float]:
    """The shares of train, valid and test, of whatever kind of numbers; `ConfigError` where they are none, or where the
    source brings its own."""
    parts = plain(fractions)
    numbers = isinstance(parts, list | tuple) and all(type(part) in (int, float) for part in parts)
    ok = numbers and len(parts) == 3 and min(parts) >= 0 and parts[0] > 0 and isclose(sum(parts), 1, abs_tol=1e-6)
    if not ok:
        raise ConfigError(
            f"fractions are {parts!r}; allowed: (train, valid, test) that sum to 1, train above 0, as in "
            "(0.7, 0.15, 0.15)"
        )
    train, valid, test = map(float, parts)
    require_open(source, (train, valid, test))
    return train, valid, test


def choose_samples(source: Source, split: Split | None, seen: frozenset[str], part: str | None) -> list[Sample]:
    """The samples of a source to evaluate on, each once; a split knows them by name and content, else by content.

    Without a `part` these are the ones that are not `seen` (see `pack_contents`), and only the test part where the
    source is divided.
    """
    if part == "all":
        return list(source.samples)
    matched = [] if split is None else match_rows(split.rows, source.samples)
    known = {sample.ref: row.split for row, sample in matched if sample is not None}
    placed = [(sample, known.get(sample.ref, sample.split)) for sample in source.samples]
    if part is not None:
        return [sample for sample, place in placed if place == part]
    divided = any(sample.split == "test" for sample in source.samples)
    again = seen_refs(source, seen)
    return [sample for sample, place in placed if sample.ref not in again and (place == "test" or not divided)]


def seen_refs(source: Source, seen: frozenset[str]) -> frozenset[str]:
    """The refs of the samples whose content is `seen` (see `pack_contents`), or whose pixels equal those of one."""
    known = {sample.ref for sample in source.samples if content_key(sample) in seen}
    pixels = {sample.pixels for sample in source.samples if sample.pixels and sample.ref in known}
    return frozenset(known | {sample.ref for sample in source.samples if sample.pixels in pixels})


def seen_positions(refs: Sequence[str], source: Source, seen: frozenset[str]) -> tuple[int, ...]:
    """Which of these images of a source are among the `seen`; see `seen_refs`."""
    again = seen_refs(source, seen)
    return tuple(position for position, ref in enumerate(refs) if ref in again)


def pack_contents(rows: Iterable[Sample]) -> str:
    """The contents of samples as one text: 8 bytes of each sha256, sorted, in base64; "" beyond 200,000 of them."""
    return pack_keys(content_key(row) for row in rows if row.sha256)


def pack_keys(contents: Iterable[str]) -> str:
    """The same for contents that `content_key` names."""
    keys = sorted({bytes.fromhex(key) for key in contents})
    return base64.b64encode(b"".join(keys)).decode() if len(keys) <= MAX_PACKED else ""


def content_key(sample: Sample) -> str:
    """The beginning of a sample's sha256 by which `unpack_contents` knows it: 16 hex digits."""
    return sample.sha256[: 2 * KEY_BYTES]


def unpack_contents(text: str) -> frozenset[str]:
    """The beginnings (16 hex digits) of the sha256 in a text of `pack_contents`; none where it is no such text."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return frozenset()
    return frozenset(data[i : i + KEY_BYTES].hex() for i in range(0, len(data), KEY_BYTES))


def write_split(split: Split, path: str | os.PathLike[str]) -> None:
    """Write split.csv: path, label, group, split, sha256; safe to open in a spreadsheet."""
    rows = ((s.ref, s.label, s.group or "", s.split, s.sha256) for s in split.rows)
    write_text(path, csv_text([COLUMNS, *rows]))


def read_split(path: str | os.PathLike[str]) -> tuple[Sample, ...]:
    """The rows of a split.csv; group and sha256 may be missing. Raises `DataError` with the lines that are wrong."""
    rows, _ = read_rows(path, ("path", "label", "split"))
    problems: list[str] = []
    samples: dict[str, Sample] = {}
    for line, cells in rows:
        ref, word = cells["path"], cells["split"].strip()
        split = split_meant(word)
        if split is None:
            problems.append(f"line {line}: split is {printable(word)!r}; expected {', '.join(SPLIT_NAMES)}")
        if ref in samples:
            problems.append(f"line {line}: {printable(ref)} is listed twice")
        samples[ref] = Sample(ref, cells["label"], cells.get("group") or None, split, cells.get("sha256", ""))
    if problems:
        raise DataError(f"{printable(os.fspath(path))} can't be used as a split", problems)
    return tuple(samples.values())


def fit_split(rows: Sequence[Sample], source: Source, file: str | os.PathLike[str]) -> tuple[Sample, ...]:
    """The rows of a split file with the paths by which the source knows the images.

    A path may be written as the source has it, with `./` or backslashes, absolute, or relative to the file's folder.
    Raises `DataError` for rows without a sha256 that name nothing, and for a file of which no row fits.
    """
    refs, contents = {s.ref for s in source.samples}, {s.sha256 for s in source.samples}
    folder, root = os.path.dirname(os.path.abspath(file)), getattr(source.reader, "root", "")
    fitted: dict[str, Sample] = {}
    problems: list[str] = []
    for row in rows:
        written = [row.ref] if row.ref in refs else _written(row.ref, folder, root)
        ref = next((ref for ref in written if ref in refs), os.path.normpath(row.ref))
        if ref in fitted:
            problems.append(f"{printable(row.ref)} and another row are the same image")
        elif ref not in refs and not row.sha256 and not _is_there(source, ref):
            problems.append(f"{printable(row.ref)} is not an image of {source.name}")
        fitted[ref] = replace(row, ref=ref)
    if not problems and not any(row.ref in refs or row.sha256 in contents for row in fitted.values()):
        problems = [f"{printable(ref)} is not an image of {source.name}" for ref in fitted] or ["it lists no image"]
    if problems:
        place = f"relative to {printable(root)}, or absolute" if root else "as the data set names them"
        raise DataError(f"{printable(os.fspath(file))} does not fit the data; expected paths {place}", problems)
    return tuple(fitted.values())


def _written(ref: str, folder: str, root: str) -> Iterator[str]:
    """The ways in which a source below `root` may name what a split file in `folder` calls `ref`."""
    for way in dict.fromkeys(map(os.path.normpath, spellings(ref))):
        yield way
        for base in filter(None, (root, root and folder)):
            path = os.path.join(base, way)
            yield path
            yield os.path.relpath(path, root)
            yield os.path.relpath(os.path.realpath(path), os.path.realpath(root))


def _is_there(source: Source, ref: str) -> bool:
    """Whether there is something of this name, though it may be no image that can be used."""
    try:
        source.reader.digest(ref)
    except (DataError, LookupError, ValueError):
        return False
    return True


def _shares(fractions: tuple[float, float, float], given: Iterable[str | None]) -> tuple[Fraction, ...]:
    """The shares of train, valid and test among what is still to be divided: none for a split that is given."""
    exact = [
        Fraction(0) if name in given and name != "train" else Fraction(share).limit_denominator(1_000_000)
        for name, share in zip(SPLIT_NAMES, fractions, strict=True)
    ]
    return tuple(share / sum(exact) for share in exact)


def _changes(rows: list[Sample], earlier: tuple[Sample, ...]) -> tuple[list[str], list[str]]:
    """What differs between a split and an earlier one, as sentences: what is new, and what looks wrong."""
    before, now = {row.ref: row for row in earlier}, {row.ref: row for row in rows}
    both = [ref for ref in now if ref in before]
    new = [ref for ref in now if ref not in before]
    contents, known = {row.sha256 for row in rows}, {(row.sha256, row.split) for row in earlier}
    moved = {ref for ref in new if (now[ref].sha256, now[ref].split) in known}
    added = {
        "newly assigned": [ref for ref in new if ref not in moved],
        "renamed, in the same split": [ref for ref in new if ref in moved],
    }
    changed = {
        "missing or unreadable": [ref for ref in before if ref not in now and before[ref].sha256 not in contents],
        "changed, in the same split": [
            ref for ref in both if before[ref].sha256 and before[ref].sha256 != now[ref].sha256
        ],
        "relabeled, in the same split": [ref for ref in both if nfc(before[ref].label) != nfc(now[ref].label)],
    }
    return _named(added), _named(changed)


def _named(groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{plural(len(refs), 'file')} {what}: {first_few(sorted(refs, key=natural))}"
        for what, refs in groups.items()
        if refs
    ]


def _assign(
    rows: list[Sample],
    fixed: Mapping[str, str],
    earlier: tuple[Sample, ...],
    outside: set[str],
    shares: tuple[Fraction, ...],
    seed: int,
) -> dict[str, str]:
    """The split of every ref. `outside` are splits that the data brings and that no target counts.

    What has no place of its own goes where the first of its unit has one: an earlier row, or one that is `fixed`.
    """
    unit_of = joined([*rows, *earlier], unit_keys)
    settled = [(unit, fixed[s.ref]) for unit, s in zip(unit_of, rows, strict=False) if s.ref in fixed]
    settled = [(unit, split) for unit, split in settled if split not in outside]
    settled += [(unit, str(row.split)) for unit, row in zip(unit_of[len(rows) :], earlier, strict=True)]
    home = dict(reversed(settled))
    placed: dict[str, str] = {}
    units: dict[int, list[Sample]] = defaultdict(list)
    for unit, sample in zip(unit_of, rows, strict=False):
        split = fixed.get(sample.ref) or home.get(unit)
        if split:
            placed[sample.ref] = split
        else:
            units[unit].append(sample)
    inside = [s for s in rows if placed.get(s.ref) not in outside]
    have = Counter((placed[s.ref], s.label) for s in inside if s.ref in placed)
    targets = _targets(Counter(s.label for s in inside), shares)
    ranked = sorted(units.values(), key=lambda members: _rank(members, seed))
    grouped = [members for members in ranked if _is_group(members)]
    _place_groups(grouped, targets, have, placed)
    _place_contents([members for members in ranked if not _is_group(members)], targets, have, placed)
    _keep_in_train(grouped, have, placed)
    return placed


def _is_group(members: list[Sample]) -> bool:
    """Whether a unit may hold several classes, or many images."""
    return any(s.group is not None or s.label != members[0].label for s in members)


def _rank(members: list[Sample], seed: int) -> bytes:
    keyed = blake2b(key=sha256(str(seed).encode()).digest(), digest_size=16)
    for digest in sorted({s.sha256 for s in members}):
        keyed.update(digest.encode())
    return keyed.digest()


def _targets(sizes: Mapping[str, int], shares: tuple[Fraction, ...]) -> dict[str, Counts]:
    """How many images of each class each split should hold.

    Valid's quota counts what test took: a class that was too small for test comes first now.
    """
    total = sum(sizes.values())
    _, for_valid, for_test = shares
    test = _apportion(
        {c: for_test * n for c, n in sizes.items()},
        floor(for_test * total + Fraction(1, 2)),
        {c: n - 1 for c, n in sizes.items()},
    )
    valid = _apportion(
        {c: (for_valid + for_test) * n - test[c] for c, n in sizes.items()}
        if for_valid
        else dict.fromkeys(sizes, Fraction(0)),
        floor(for_valid * total + Fraction(1, 2)),
        {c: n - 1 - test[c] for c, n in sizes.items()},
    )
    return {"train": {c: n - test[c] - valid[c] for c, n in sizes.items()}, "valid": valid, "test": test}


def _apportion(quotas: Mapping[str, Fraction], total: int, limits: Counts) -> Counts:
    """Whole numbers near the quotas that sum to `total`, none above its limit (Hamilton's largest remainder)."""
    seats = {c: max(0, min(floor(quota), limits[c])) for c, quota in quotas.items()}
    while missing := total - sum(seats.values()):
        step = 1 if missing > 0 else -1
        open_to = [c for c in seats if 0 <= seats[c] + step <= limits[c]]
        if not open_to:
            break
        open_to.sort(key=lambda c: (step * (seats[c] - quotas[c]), c))
        for c in open_to[: abs(missing)]:
            seats[c] += step
    return seats


def _place_groups(units: list[list[Sample]], targets: dict[str, Counts], have: Held, placed: dict[str, str]) -> None:
    """Whole groups, the large ones first, each to the split that lacks most of what it holds."""
    for members in sorted(units, key=len, reverse=True):  # stable: equal sizes stay in the order of their hash
        holds = Counter(s.label for s in members)
        lack = {
            name: sum(
                Fraction(n * (targets[name][c] - have[name, c]), sum(t[c] for t in targets.values()))
                for c, n in holds.items()
            )
            for name in SPLIT_NAMES
        }
        _put(members, max(SPLIT_NAMES, key=lambda name: lack[name]), have, placed)


def _place_contents(units: list[list[Sample]], targets: dict[str, Counts], have: Held, placed: dict[str, str]) -> None:
    """Images by their rank: test is filled first, then valid; what is left trains."""
    by_class: dict[str, list[list[Sample]]] = defaultdict(list)
    for members in units:
        by_class[members[0].label].append(members)
    for label, ranked in by_class.items():
        spare = sum(map(len, ranked)) - (not have["train", label])
        for name in ("test", "valid"):
            lack = min(targets[name][label] - have[name, label], spare)
            rest = []
            for members in ranked:
                if len(members) <= lack:
                    _put(members, name, have, placed)
                    lack -= len(members)
                    spare -= len(members)
                else:
                    rest.append(members)
            ranked = rest
        for members in ranked:
            _put(members, "train", have, placed)


def _keep_in_train(grouped: list[list[Sample]], have: Held, placed: dict[str, str]) -> None:
    """A class whose groups all went to valid or test gives its smallest one back."""
    for label in sorted({s.label for members in grouped for s in members}):
        if not have["train", label]:
            smallest = min((m for m in grouped if any(s.label == label for s in m)), key=len)
            for sample in smallest:
                have[placed[sample.ref], sample.label] -= 1
            _put(smallest, "train", have, placed)


def _put(members: list[Sample], name: str, have: Held, placed: dict[str, str]) -> None:
    for sample in members:
        placed[sample.ref] = name
        have[name, sample.label] += 1
