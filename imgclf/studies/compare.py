"""Two runs side by side on the same test images: how far they differ, and on which images."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from imgclf.core.arguments import as_path
from imgclf.core.errors import DataError, ModelFileError
from imgclf.core.text import nfc, printable
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.predictions import Predictions, read_predictions
from imgclf.storage.model_file import weights_digest
from imgclf.storage.run_folder import CONFIG, PREDICTIONS, ROOT, Run, find_run, read_config
from imgclf.storage.run_list import RunEntry, entry_of

Differences = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Paired:
    """How many of the same images two models get right: `both`, `only_a`, `only_b` or `neither`."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """How many images there are."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """The accuracy of b minus that of a."""
        return (self.only_b - self.only_a) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, by method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635–2650):
        the Wilson intervals of the two accuracies, put together by how the models agree."""
        a, b = self.both + self.only_a, self.both + self.only_b
        (low_a, high_a), (low_b, high_b) = wilson_interval(a, self.n), wilson_interval(b, self.n)
        down_a, up_a, down_b, up_b = a / self.n - low_a, high_a - a / self.n, b / self.n - low_b, high_b - b / self.n
        agreement = 2 * self._agreement
        low = self.difference - math.sqrt(max(0.0, down_b**2 - agreement * down_b * up_a + up_a**2))
        high = self.difference + math.sqrt(max(0.0, up_b**2 - agreement * up_b * down_a + down_a**2))
        return low, high

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how often models that are equally good would differ at least as much by chance."""
        from scipy.stats import binomtest

        discordant = self.only_a + self.only_b
        return float(binomtest(self.only_a, discordant).pvalue) if discordant else 1.0

    @property
    def _agreement(self) -> float:
        """The correlation of right and wrong, with a correction for continuity where it is positive."""
        a, b = self.both + self.only_a, self.both + self.only_b
        scale = math.sqrt(a * (self.n - a) * b * (self.n - b))
        if scale == 0:
            return 0.0
        excess = self.both * self.neither - self.only_a * self.only_b
        return (excess if excess <= 0 else max(0.0, excess - self.n / 2)) / scale

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        figures = {name: getattr(self, name) for name in ("n", "difference", "interval", "p_value")}
        return {**asdict(self), **figures, "interval": list(self.interval)}


@dataclass(frozen=True)
class Change:
    """An image that one of two models gets right: its `path`, the sha256 of its `content`, its `true` class, what each
    model calls it, and the `gain`: by how much the probability (0…1) that b gives to the true class is above a's."""

    path: str
    content: str
    true: str
    a: str
    b: str
    gain: float = 0.0

    @property
    def better(self) -> bool:
        """Whether it is b that is right."""
        return self.b == self.true


@dataclass(frozen=True)
class Comparison:
    """Two runs, `a` and `b`, by their answers to the test images that both have, which `digest` stands for.

    `left_out` is how many test images of a and of b the other was not tested on, `alone` the classes that only a and
    only b know. `changed` are the images that one of them gets right. `settings` maps what differs in their
    configurations to the values of a and b (None where there is none), `surroundings` what differs in versions, machine
    and first weights.
    `same_answers` says that both answer the same to every image, and `same_weights` that their weights are equal, too.
    """

    a: RunEntry
    b: RunEntry
    paired: Paired
    changed: tuple[Change, ...] = field(repr=False)
    settings: Differences
    surroundings: Differences
    digest: str
    same_answers: bool = False
    same_weights: bool = False
    left_out: tuple[int, int] = (0, 0)
    alone: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def fixed(self) -> tuple[Change, ...]:
        """The images that a gets wrong and b right: the classes in turn, the largest gain of each first."""
        return _in_turn(change for change in self.changed if change.better)

    @property
    def broken(self) -> tuple[Change, ...]:
        """The images that a gets right and b wrong: the classes in turn, the largest loss of each first."""
        return _in_turn(change for change in self.changed if not change.better)

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            **self.paired.to_dict(),
            "fixed": [asdict(change) for change in self.fixed],
            "broken": [asdict(change) for change in self.broken],
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "surroundings": {name: list(pair) for name, pair in self.surroundings.items()},
            "digest": self.digest,
            "same_answers": self.same_answers,
            "same_weights": self.same_weights,
            "left_out": list(self.left_out),
            "alone": [list(names) for names in self.alone],
        }


def compare_runs(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, runs: str | os.PathLike[str] = ROOT
) -> Comparison:
    """Compare two runs, given as folders or as names under `runs`, by their answers to the test images that both have.

    Classes are matched by name, images by content. Raises `UnknownName` or `DataError` for what is no run, and
    `DataError` for a run without answers and where no test image is the same.
    """
    root = as_path("runs", runs)
    first, second = find_run(a, root), find_run(b, root)
    both = _answers_of(first), _answers_of(second)
    answers = common_answers(*both)
    if not len(answers[0]):
        raise _nothing_in_common(first, second, *both)
    paired, changed = compare_answers(*answers)
    same = all(one.called == other.called for one, other in zip(*map(_rows, answers), strict=True))
    surroundings = _different(_surroundings(first), _surroundings(second))
    return Comparison(
        a=_tested(first, answers[0]),
        b=_tested(second, answers[1]),
        paired=paired,
        changed=changed,
        settings=_different(_settings(first), _settings(second)),
        surroundings=surroundings,
        digest=answers[0].digest,
        same_answers=same,
        same_weights=same and _have_equal_weights(first, second),
        left_out=(len(both[0]) - len(answers[0]), len(both[1]) - len(answers[1])),
        alone=_alone(*both),
    )


def common_answers(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    """The answers of two models to the images that both were asked about: of the same content and true class."""
    keys = [[(row.content or row.path, row.true) for row in _unsorted(answers)] for answers in (a, b)]
    shared = Counter(keys[0]) & Counter(keys[1])
    return a.take(_positions(keys[0], shared)), b.take(_positions(keys[1], shared))


def _positions(keys: Sequence[tuple[str, str]], wanted: Counter[tuple[str, str]]) -> list[int]:
    """Where these keys are, each as often as it is wanted."""
    left, found = Counter(wanted), []
    for position, key in enumerate(keys):
        if left[key] > 0:
            left[key] -= 1
            found.append(position)
    return found


def _alone(a: Predictions, b: Predictions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that only one of two models knows."""
    shared = set(a.classes) & set(b.classes)
    one, other = (tuple(name for name in answers.classes if name not in shared) for answers in (a, b))
    return one, other


def compare_answers(a: Predictions, b: Predictions) -> tuple[Paired, tuple[Change, ...]]:
    """How two models do on the same images, which may stand in another order, and the images that one gets right."""
    rows = list(zip(_rows(a), _rows(b), strict=True))
    right = np.array([(one.called == one.true, other.called == other.true) for one, other in rows])
    both, only_a = int(right.all(1).sum()), int((right[:, 0] & ~right[:, 1]).sum())
    only_b = int((right[:, 1] & ~right[:, 0]).sum())
    changed = [
        Change(one.path, one.content, one.true, one.called, other.called, round(other.sure - one.sure, 6))
        for (one, other), (hit, other_hit) in zip(rows, right, strict=True)
        if hit != other_hit
    ]
    changed.sort(key=lambda change: change.path)
    return Paired(both, only_a, only_b, len(rows) - both - only_a - only_b), tuple(changed)


class _Row(NamedTuple):
    """What a model says of an image, and the probability that it gives to the true class."""

    content: str
    true: str
    path: str
    called: str
    sure: float


def _rows(answers: Predictions) -> list[_Row]:
    """The answer to each image, in an order that depends on the images."""
    return sorted(_unsorted(answers), key=lambda row: (row.content or row.path, row.true, row.path))


def _unsorted(answers: Predictions) -> Iterator[_Row]:
    names = [answers.classes[index] for index in answers.targets.tolist()]
    called = [answers.classes[index] for index in answers.predicted.tolist()]
    sure = answers.probabilities[np.arange(len(answers)), answers.targets].tolist()
    return map(_Row, answers.contents, names, answers.refs, called, sure)


def _in_turn(changes: Iterable[Change]) -> tuple[Change, ...]:
    """By turns one of each true class, those first whose probability changed most."""
    ranked = sorted(changes, key=lambda change: (-abs(change.gain), change.path))
    seen: Counter[str] = Counter()
    turns = []
    for change in ranked:
        turns.append((seen[change.true], change.true))
        seen[change.true] += 1
    return tuple(ranked[i] for i in sorted(range(len(ranked)), key=turns.__getitem__))


def _have_equal_weights(a: Run, b: Run) -> bool:
    """Whether both have a model file that can be read, with the same weights."""
    try:
        return a.model.is_file() and b.model.is_file() and weights_digest(a.model) == weights_digest(b.model)
    except ModelFileError:
        return False


def _answers_of(run: Run) -> Predictions:
    if not (run.path / PREDICTIONS).exists():
        raise DataError(
            f"{printable(str(run.path))} holds no answers to test images ({PREDICTIONS}): write them with "
            f"`imgclf evaluate --model {printable(str(run.path))}`"
        )
    answers = read_predictions(run.path / PREDICTIONS)
    return replace(answers, classes=tuple(map(nfc, answers.classes)))


def _nothing_in_common(a: Run, b: Run, first: Predictions, second: Predictions) -> DataError:
    if not set(first.classes) & set(second.classes):
        alone = ((run, name) for run, names in zip((a, b), _alone(first, second), strict=True) for name in names)
        return DataError(
            "the two runs don't tell the same classes apart, so they can't be compared",
            [f"{printable(str(run.path))} alone: {printable(name)}" for run, name in alone],
        )
    return DataError(
        "the two runs were tested on different images, so they can't be compared; train with the same test part: "
        f"--split {printable(str(a.path))}/split.csv",
        [
            f"{printable(str(run.path))}: {len(answers):,} images, digest {answers.digest}"
            for run, answers in ((a, first), (b, second))
        ],
    )


def _tested(run: Run, answers: Predictions) -> RunEntry:
    """The run with the figures of its answers."""
    hits, n = int((answers.predicted == answers.targets).sum()), len(answers)
    return replace(entry_of(run), part="test", n=n, accuracy=hits / n, interval=wilson_interval(hits, n))


def _settings(run: Run) -> dict[str, Any]:
    """What the run was asked to do, the keys of tables joined by dots."""
    values, source = read_config(run.path / CONFIG)
    return {"source": source, **dict(_flat(values))}


def _surroundings(run: Run) -> dict[str, Any]:
    """What the run started from, and what it was trained with and on."""
    weights = run.info.get("weights") or {}
    facts = {**(run.info.get("versions") or {}), **(run.info.get("machine") or {})}
    return {"weights": weights.get("source"), **facts}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> Differences:
    names = [*a, *(name for name in b if name not in a)]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
