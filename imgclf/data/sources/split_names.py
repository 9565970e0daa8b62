"""What names say about the parts of a data set: which ones mean train, valid or test, and which only sound like it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
_FILLER = "(?:sets?|data|dataset|images?|imgs?|photos?|pictures?|split|folder)?"
_SPLIT = re.compile(f"{_FILLER}({'|'.join(_WORDS)}){_FILLER}")
_OTHER_PARTS = frozenset(("unlabeled", "unlabelled", "holdout", "eval", "evaluation", "pred"))
_HUMP = re.compile("(?<=[a-z])(?=[A-Z])")
_LETTERS = re.compile(r"[^\W\d_]+")


def split_meant(name: str) -> str | None:
    """The split that a name stands for: train for `train`, `Training` and `train_set`, valid for `val-images`, test for
    `Test Data`; None for any other name, also for `train2017`.
    """
    found = _SPLIT.fullmatch(re.sub(r"[\W_]", "", name.lower()))
    return _WORDS[found[1]] if found else None


def named_like_splits(names: Iterable[str]) -> list[str]:
    """Those of the names that differ only in the part that they speak of, in their order: `train2017` and `val2017`,
    `seg_train` and `seg_test`, `train` and `unlabeled`. `bullet train` and `test tube` differ in more.
    """
    alike: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    order = list(names)
    for name in order:
        words = [word.lower() for word in _LETTERS.findall(_HUMP.sub("_", name))]
        parts = {word: word if word in _OTHER_PARTS else split_meant(word) for word in words}
        meant = {part for part in parts.values() if part}
        if len(meant) == 1:
            rest = tuple(word for word in words if not parts[word] and not re.fullmatch(_FILLER, word))
            alike[rest][meant.pop()].append(name)
    found = {name for parts in alike.values() if len(parts) > 1 for named in parts.values() for name in named}
    return [name for name in order if name in found]
