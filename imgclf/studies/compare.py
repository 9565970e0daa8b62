"""Compare two runs on the same test images: how much their accuracy differs, and on which images."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgclf.core.arguments import as_path
from imgclf.core.errors import DataError, ModelFileError
from imgclf.core.text import nfc, printable
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.predictions import Predictions, read_predictions
from imgclf.storage.model_file import weights_digest
from imgclf.storage.run_folder import CONFIG, HISTORY, PREDICTIONS, ROOT, Run, find_run, read_config, read_history
from imgclf.storage.run_list import RunEntry, entry_of

Differences = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Paired:
    """How many of the same images are classified correctly by `both` models, `only_a`, `only_b` or `neither`."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """The number of images."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """The accuracy of b minus that of a."""
        return (self.only_b - self.only_a) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference: method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635–2650).

        It combines the Wilson intervals of the two accuracies, given how far the models agree."""
        a, b = self.both + self.only_a, self.both + self.only_b
        (low_a, high_a), (low_b, high_b) = wilson_interval(a, self.n), wilson_interval(b, self.n)
        down_a, up_a, down_b, up_b = a / self.n - low_a, high_a - a / self.n, b / self.n - low_b, high_b - b / self.n
        scale = math.sqrt(a * (self.n - a) * b * (self.n - b))
        excess: float = self.both * self.neither - self.only_a * self.only_b
        if excess > 0:  # a correction for continuity
            excess = max(0.0, excess - self.n / 2)
        agreement = 2 * excess / scale if scale else 0.0  # twice the correlation of the hits
        low = self.difference - math.sqrt(max(0.0, down_b**2 - agreement * down_b * up_a + up_a**2))
        high = self.difference + math.sqrt(max(0.0, up_b**2 - agreement * up_b * down_a + down_a**2))
        return low, high

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how often two equally good models would differ at least this much by chance."""
        from scipy.stats import binomtest

        discordant = self.only_a + self.only_b
        return float(binomtest(self.only_a, discordant).pvalue) if discordant else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        figures = {name: getattr(self, name) for name in ("n", "difference", "interval", "p_value")}
        return {**asdict(self), **figures, "interval": list(self.interval)}


@dataclass(frozen=True)
class Change:
    """An image that one of two models classifies correctly: its `path`, the sha256 of its `content`, its `true` class.

    `a` and `b` are the classes that the models predict; `gain` is the probability (0…1) of the true class by b minus
    that by a.
    """

    path: str
    content: str
    true: str
    a: str
    b: str
    gain: float = 0.0

    @property
    def better(self) -> bool:
        """Whether b is correct."""
        return self.b == self.true


@dataclass(frozen=True)
class Comparison:
    """Two runs, `a` and `b`, compared by their predictions for the test images that both have.

    Attributes:
        changed: The images that exactly one of them classifies correctly.
        settings: What differs in their configurations: the values of a and b, None where there is none.
        environment: What differs in versions, machine and initial weights.
        digest: The sha256 of the images that they are compared on.
        same_predictions: Whether both predict the same class for every image.
        same_weights: Whether their weights are equal, too.
        kept_probe: Whether they are equal because both runs kept the linear probe.
        left_out: The number of test images of a, and of b, that the other was not tested on.
        other_classes: The classes that only a, and only b, knows.
    """

    a: RunEntry
    b: RunEntry
    paired: Paired
    changed: tuple[Change, ...] = field(repr=False)
    settings: Differences
    environment: Differences
    digest: str
    same_predictions: bool = False
    same_weights: bool = False
    kept_probe: bool = False
    left_out: tuple[int, int] = (0, 0)
    other_classes: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def fixed(self) -> tuple[Change, ...]:
        """The images that only b classifies correctly: the classes in turn, the largest gain of each first."""
        return _in_turn(change for change in self.changed if change.better)

    @property
    def broken(self) -> tuple[Change, ...]:
        """The images that only a classifies correctly: the classes in turn, the largest loss of each first."""
        return _in_turn(change for change in self.changed if not change.better)

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        values = {name: value for name, value in asdict(self).items() if name not in ("paired", "changed")}
        values |= {"a": self.a.to_dict(), "b": self.b.to_dict(), **self.paired.to_dict()}
        return {**values, "fixed": list(map(asdict, self.fixed)), "broken": list(map(asdict, self.broken))}


def compare_runs(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, runs: str | os.PathLike[str] = ROOT
) -> Comparison:
    """Compare two runs by their predictions for the test images that both have.

    Classes are matched by name, images by content.

    Args:
        a: A run folder, or the name of a run.
        b: The other one.
        runs: The folder with the runs that are given by name.

    Raises:
        UnknownName: There is no run of this name.
        DataError: A folder is no run or has no predictions, or no test image is the same.

    Example:
        >>> from imgclf import compare_runs
        >>> compare_runs("runs/first", "runs/second").paired.n
        270
    """
    root = as_path("runs", runs)
    first, second = find_run(a, root), find_run(b, root)
    all_a, all_b = _predictions_of(first), _predictions_of(second)
    shared_a, shared_b = shared_images(all_a, all_b)
    if not len(shared_a):
        raise _nothing_in_common(first, second, all_a, all_b)
    paired, changed = compare_predictions(shared_a, shared_b)
    same = bool((_names(shared_a, shared_a.predicted) == _names(shared_b, shared_b.predicted)).all())
    equal = same and _have_equal_weights(first, second)
    return Comparison(
        a=_tested(first, shared_a),
        b=_tested(second, shared_b),
        paired=paired,
        changed=changed,
        settings=differences(_settings(first), _settings(second)),
        environment=differences(_environment(first), _environment(second)),
        digest=shared_a.digest,
        same_predictions=same,
        same_weights=equal,
        kept_probe=equal and _kept_probe(first) and _kept_probe(second),
        left_out=(len(all_a) - len(shared_a), len(all_b) - len(shared_b)),
        other_classes=_other_classes(all_a, all_b),
    )


def shared_images(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    """The predictions of two models for the images that both have, in one order: of equal content and true class."""
    found: list[dict[tuple[str, str], list[int]]] = []
    for predictions in (a, b):
        places = defaultdict(list)
        true = _names(predictions, predictions.targets)
        for place, (content, ref) in enumerate(zip(predictions.contents, predictions.refs, strict=True)):
            places[content or ref, true[place]].append(place)
        found.append(places)
    pairs = [pair for key, mine in found[0].items() for pair in zip(mine, found[1].get(key, ()), strict=False)]
    return a.take([one for one, _ in pairs]), b.take([other for _, other in pairs])


def compare_predictions(a: Predictions, b: Predictions) -> tuple[Paired, tuple[Change, ...]]:
    """How two models do on the same images, in one order, and the images that exactly one classifies correctly."""
    true, said_a, said_b = _names(a, a.targets), _names(a, a.predicted), _names(b, b.predicted)
    right_a, right_b = said_a == true, said_b == true
    sure_a, sure_b = (each.probabilities[np.arange(len(each)), each.targets] for each in (a, b))
    changed = [
        Change(a.refs[i], a.contents[i], true[i], said_a[i], said_b[i], round(float(sure_b[i] - sure_a[i]), 6))
        for i in np.flatnonzero(right_a != right_b)
    ]
    both, only_a, only_b = (int(hits.sum()) for hits in (right_a & right_b, right_a & ~right_b, right_b & ~right_a))
    paired = Paired(both, only_a, only_b, len(a) - both - only_a - only_b)
    return paired, tuple(sorted(changed, key=lambda change: change.path))


def _names(predictions: Predictions, indices: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.array(predictions.classes, object)[indices]


def _in_turn(changes: Iterable[Change]) -> tuple[Change, ...]:
    """By turns one of each true class, those first whose probability changed most."""
    found = defaultdict(list)
    for change in sorted(changes, key=lambda change: (change.true, -abs(change.gain), change.path)):
        found[change.true].append(change)
    return tuple(change for turn in zip_longest(*found.values()) for change in turn if change is not None)


def _other_classes(a: Predictions, b: Predictions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that only one of two models knows."""
    mine, theirs = set(a.classes), set(b.classes)
    return tuple(c for c in a.classes if c not in theirs), tuple(c for c in b.classes if c not in mine)


def _have_equal_weights(a: Run, b: Run) -> bool:
    """Whether both have a readable model file, with the same weights."""
    try:
        return a.model.is_file() and b.model.is_file() and weights_digest(a.model) == weights_digest(b.model)
    except ModelFileError:
        return False


def _kept_probe(run: Run) -> bool:
    """Whether a run began with a linear probe and kept no epoch of fine-tuning."""
    probed = read_config(run.path / CONFIG)[0].get("train", {}).get("probe", False)
    return probed is True and read_history(run.path / HISTORY).best is None


def _predictions_of(run: Run) -> Predictions:
    if not (run.path / PREDICTIONS).exists():
        raise DataError(
            f"{printable(str(run.path))} has no predictions of test images ({PREDICTIONS}): write them with "
            f"`imgclf evaluate --model {printable(str(run.path))}`"
        )
    predictions = read_predictions(run.path / PREDICTIONS)
    return replace(predictions, classes=tuple(map(nfc, predictions.classes)))


def _nothing_in_common(a: Run, b: Run, all_a: Predictions, all_b: Predictions) -> DataError:
    if not set(all_a.classes) & set(all_b.classes):
        classes = zip((a, b), _other_classes(all_a, all_b), strict=True)
        return DataError(
            "the two runs have no class in common, so they can't be compared",
            [f"{printable(str(run.path))}: {printable(name)}" for run, names in classes for name in names],
        )
    return DataError(
        "the two runs have no test image in common, so they can't be compared; train with the same test part: "
        f"--split {printable(str(a.path))}/split.csv",
        [f"{printable(str(run.path))}: {len(each):,} images, {each.digest}" for run, each in ((a, all_a), (b, all_b))],
    )


def _tested(run: Run, predictions: Predictions) -> RunEntry:
    """The run with the accuracy of its predictions."""
    hits, n = int((predictions.predicted == predictions.targets).sum()), len(predictions)
    return replace(entry_of(run), part="test", n=n, accuracy=hits / n, interval=wilson_interval(hits, n))


def _settings(run: Run) -> dict[str, Any]:
    """The configuration of a run, the keys of tables joined by dots."""
    values, source = read_config(run.path / CONFIG)
    return {"source": source, **dict(_flat(values))}


def _environment(run: Run) -> dict[str, Any]:
    """The initial weights of a run, its versions and its machine."""
    return {"weights": run.info.weights.get("source"), **run.info.versions, **run.info.machine}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Differences:
    """The values of two mappings by name where they differ; None where one has none."""
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}
