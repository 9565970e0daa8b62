"""What is wrong with this data: files that can't be read, copies, leaks, and odd ones out. Nothing is ever changed."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from hashlib import file_digest, sha256
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import PIL

from imgclf.core.arguments import require, whole
from imgclf.core.config import DataConfig
from imgclf.core.errors import SHOWN_PROBLEMS, DataError
from imgclf.core.files import cache_folder, seal, unseal, write_atomic
from imgclf.core.text import first_few, natural, plural, printable
from imgclf.data.classes import look_alikes
from imgclf.data.dataset import Sample, Source
from imgclf.data.duplicates import describe_duplicates
from imgclf.data.images import LOOK, BadImage, ImageFacts, check_image, file_stamp, open_regular
from imgclf.data.sources.folder import FileReader, Known
from imgclf.data.sources.tar_shards import ShardReader

_CACHE_FORMAT = 9
_CHUNK_IMAGES = 32
_ODD_MIN_IMAGES = 10

Out = TypeVar("Out")


@dataclass(frozen=True)
class UnreadableFile:
    """An image that can't be used, and why, in one line."""

    ref: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """(height, width) in pixels as displayed: the smallest and the largest image by area, and the median sides.

    `aspects` are width by height: of a tenth of the images it is below the first, of a tenth above the second.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    aspects: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Audit:
    """The source without its `unreadable` images, every sample with its sha256; and what looks wrong.

    A file that changes after it was checked is not read from this source.

    `findings` are sentences for people. `sizes` is None for a set that lies in memory.
    """

    source: Source = field(repr=False)
    unreadable: tuple[UnreadableFile, ...] = ()
    findings: tuple[str, ...] = ()
    sizes: Sizes | None = None

    @property
    def all_findings(self) -> tuple[str, ...]:
        """The findings, and before them a sentence on the images that were left out."""
        return (left_out(self.unreadable), *self.findings) if self.unreadable else self.findings


def left_out(files: Sequence[UnreadableFile]) -> str:
    """A sentence on images that can't be used."""
    shown = "; ".join(f"{printable(file.ref)}: {file.reason}" for file in files[:SHOWN_PROBLEMS])
    return f"{plural(len(files), 'image')} left out that can't be read: {shown}{'; …' * (len(files) > SHOWN_PROBLEMS)}"


def audit(
    source: Source,
    *,
    on_unreadable: str = DataConfig.on_unreadable,
    allow_unreadable: float = DataConfig.allow_unreadable,
    strict: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read and decode every image once, and say what is wrong with the set.

    What was found is remembered in the cache folder by path, size, times and inode; the data folder is only read. For
    tar shards the index is enough.

    Args:
        source: What to check.
        on_unreadable: `skip` leaves out images that can't be read, `error` refuses them.
        allow_unreadable: The largest share of unreadable images, 0 to 1.
        strict: Whether every class must keep an image.
        workers: Threads that read; by default one for each core, at most 8.
        progress: Called with the number of images done and of all.

    Raises:
        ConfigError: For a value that is not allowed.
        DataError: Where too many images can't be read, or a class has none left.
    """
    require("source", source, Source)
    config = DataConfig(on_unreadable=on_unreadable, allow_unreadable=allow_unreadable)
    workers = min(8, os.cpu_count() or 1) if workers is None else whole("workers", workers, 1)
    facts = _facts(source, workers, progress or (lambda done, total: None))
    found = [UnreadableFile(s.ref, fact.reason) for s, fact in zip(source.samples, facts, strict=True) if fact.reason]
    unreadable = tuple(sorted(found, key=lambda file: natural(file.ref)))
    good = [(s, fact) for s, fact in zip(source.samples, facts, strict=True) if not fact.reason]
    clean = source.with_samples(
        replace(s, sha256=fact.sha256, pixels=fact.pixels, levels=fact.levels) for s, fact in good
    )
    if isinstance(source.reader, FileReader):
        clean = replace(
            clean, reader=source.reader.holding({s.ref: Known(fact.sha256, fact.stamp) for s, fact in good})
        )
    _judge_unreadable(source, unreadable, config)
    if strict:
        _judge_classes(source, clean)
    findings = (*describe_duplicates(clean.samples), *_odd_format(good), *_vanished(good), *look_alikes(clean.classes))
    findings += _alone(clean) if strict else ()
    return Audit(clean, unreadable, findings, _sizes([fact for _, fact in good if fact.format]))


def _facts(source: Source, workers: int, progress: Callable[[int, int], None]) -> list[ImageFacts]:
    reader = source.reader
    if isinstance(reader, ShardReader):
        indexed = [reader.facts(sample.ref) for sample in source.samples]
        return _compared(source, reader, indexed, workers)
    if not isinstance(reader, FileReader):
        return [ImageFacts(sha256=reader.digest(sample.ref)) for sample in source.samples]
    cache = _cache_path(reader)
    known, refs = _read_cache(cache), [sample.ref for sample in source.samples]
    facts: list[ImageFacts] = []
    for fact in _mapped(lambda ref: _look(reader, ref, known.get(ref)), refs, workers):
        facts.append(fact)
        if len(facts) % _CHUNK_IMAGES == 0 or len(facts) == len(refs):
            progress(len(facts), len(refs))
    facts = _compared(source, reader, facts, workers)
    now = dict(zip(refs, facts, strict=True))
    if any(known.get(ref) != fact for ref, fact in now.items()):
        _write_cache(cache, {**known, **now})
    return facts


def _mapped(look: Callable[[str], Out], refs: Sequence[str], workers: int) -> Iterator[Out]:
    """What `look` finds in each image, in order."""
    chunks = [refs[i : i + _CHUNK_IMAGES] for i in range(0, len(refs), _CHUNK_IMAGES)]
    with ThreadPoolExecutor(workers) as pool:
        yield from chain.from_iterable(pool.map(lambda chunk: [look(ref) for ref in chunk], chunks))


def _compared(
    source: Source, reader: FileReader | ShardReader, facts: list[ImageFacts], workers: int
) -> list[ImageFacts]:
    """The facts with the digest of the pixels of each image that another file may hold too.

    The looks of most show that none does. Those of JPEGs are comparable only to each other, so a JPEG is decoded in
    full where there is an image of another format with its sides.
    """
    kinds: dict[tuple[int, int], set[bool]] = defaultdict(set)
    for fact in facts:
        kinds[fact.height, fact.width].add(fact.format == "JPEG")
    mixed = {sides for sides, found in kinds.items() if len(found) > 1}

    def look_closer(wanted: list[int]) -> None:
        unknown = [i for i in wanted if facts[i].look and not facts[i].pixels]
        refs = [source.samples[i].ref for i in unknown]
        for i, digest in zip(unknown, _mapped(lambda ref: _pixels(reader, ref), refs, workers), strict=True):
            facts[i] = replace(facts[i], pixels=digest)

    if mixed:
        look_closer([i for i, f in enumerate(facts) if f.format == "JPEG" and (f.height, f.width) in mixed])
    alike: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for i, fact in enumerate(facts):
        in_full = fact.format == "JPEG" and (fact.height, fact.width) in mixed
        look = (in_full and fact.pixels[:LOOK]) or fact.look
        alike[fact.height, fact.width, look].append(i)
    look_closer([i for same in alike.values() if len({facts[i].sha256 for i in same}) > 1 for i in same])
    return facts


def _pixels(reader: FileReader | ShardReader, ref: str) -> str:
    try:
        return reader.digest_pixels(ref)
    except BadImage:  # it has changed since it was looked at: whoever reads it next says so
        return ""


def _look(reader: FileReader, ref: str, known: ImageFacts | None) -> ImageFacts:
    path = reader.path(ref)
    try:
        if known is not None and known.stamp == file_stamp(os.stat(path)):
            return known
        with open_regular(path) as file:
            stamp = file_stamp(os.fstat(file.fileno()))
            digest = file_digest(file, "sha256").hexdigest()
            try:
                found = check_image(file, os.path.splitext(path)[1], reader.max_pixels)
            except BadImage as error:
                found = ImageFacts(reason=error.reason)
            if file_stamp(os.fstat(file.fileno())) != stamp:  # on some network drives it always does
                file.seek(0)
                if file_digest(file, "sha256").hexdigest() != digest:
                    return ImageFacts(reason="it changed while it was checked")
        return replace(found, sha256=digest, stamp=stamp)
    except BadImage as error:
        return ImageFacts(reason=error.reason)
    except OSError as error:
        return ImageFacts(reason=f"cannot be opened: {(error.strerror or str(error)).lower()}")


def _cache_path(reader: FileReader) -> Path:
    """A verdict depends on where the files lie, on the limit, on Pillow, and on the rules of this module."""
    key = "\0".join((reader.root, str(reader.max_pixels), PIL.__version__, str(_CACHE_FORMAT)))
    return cache_folder() / "audit" / f"{sha256(os.fsencode(key)).hexdigest()[:24]}.json"


def _read_cache(path: Path) -> dict[str, ImageFacts]:
    """What earlier audits found; a cache that can't be read or is damaged is as good as none."""
    try:
        rows: Mapping[str, list[Any]] = json.loads(bytes(unseal(path.read_bytes())))
        return {ref: ImageFacts.from_row(row) for ref, row in rows.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _write_cache(path: Path, facts: Mapping[str, ImageFacts]) -> None:
    rows = {ref: astuple(fact) for ref, fact in facts.items()}
    data = json.dumps(rows, separators=(",", ":")).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, seal(data))
    except OSError:  # a full or read-only disk costs the next run some time, no more
        pass


def _judge_unreadable(source: Source, files: tuple[UnreadableFile, ...], config: DataConfig) -> None:
    problems = [f"{printable(file.ref)}: {file.reason}" for file in files]
    which = f"{plural(len(files), 'image')} of {len(source)}"
    if files and config.on_unreadable == "error":
        raise DataError(f"{which} can't be read; repair or remove them", problems)
    share = len(files) / max(1, len(source))
    if share > config.allow_unreadable:
        raise DataError(
            f"{which} ({share:.1%}) can't be read; at most {config.allow_unreadable:.1%} are allowed: repair or remove "
            f"them, or pass --allow-unreadable {math.ceil(share * 100)}%",
            problems,
        )


def _judge_classes(source: Source, clean: Source) -> None:
    before, after = source.counts(), clean.counts()
    problems = [
        f"class {printable(label)!r}: none of its {plural(before[label], 'image')} can be read"
        for label in source.classes
        if not after[label]
    ]
    if problems:
        raise DataError(f"{source.name}: classes without usable images", problems)


def _alone(source: Source) -> tuple[str, ...]:
    """A sentence on classes of one image."""
    names = [label for label, count in source.counts().items() if count == 1]
    have = "class has" if len(names) == 1 else "classes have"
    return (f"{len(names):,} {have} only 1 image ({first_few(names)}): used for training only",) if names else ()


def _odd_format(good: list[tuple[Sample, ImageFacts]]) -> list[str]:
    """One file of another format than all others is often no photo at all: an error page, a placeholder."""
    formats = Counter(fact.format for _, fact in good if fact.format)
    ranked = formats.most_common()
    if [count for _, count in ranked[1:]] != [1] or formats.total() <= _ODD_MIN_IMAGES:
        return []
    (common, many), (odd, _) = ranked
    ref = next(sample.ref for sample, fact in good if fact.format == odd)
    return [f"{printable(ref)} is the only {odd} among {many} {common} files: is it one of your photos?"]


def _vanished(good: list[tuple[Sample, ImageFacts]]) -> list[str]:
    refs = [sample.ref for sample, fact in good if fact.vanishes]
    what = f"{plural(len(refs), 'transparent image')} all white on a white background"
    return [f"{what}: {first_few(refs)}"] if refs else []


def _sizes(facts: list[ImageFacts]) -> Sizes | None:
    if not facts:
        return None
    sides = sorted(((fact.height, fact.width) for fact in facts), key=lambda side: (side[0] * side[1], side))
    middle = (round(median(height for height, _ in sides)), round(median(width for _, width in sides)))
    aspects = sorted(width / height for height, width in sides)
    tenth = len(aspects) // 10
    return Sizes(sides[0], middle, sides[-1], (aspects[tenth], aspects[-1 - tenth]))
