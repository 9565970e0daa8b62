"""A registry: the names that a user may type, and what each one stands for."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Generic, TypeVar

from imgclf.errors import UnknownName

T = TypeVar("T")
CLOSE = 0.6
FEW, SHOWN = 6, 12  # names: all are listed, some are


def close_matches(name: str, known: list[str]) -> list[str]:
    """Up to three known names that look like `name`, best first, equally good ones in their order; case is ignored."""
    matcher = SequenceMatcher(b=name.lower())
    scores = []
    for item in known:
        matcher.set_seq1(item.lower())
        if matcher.real_quick_ratio() >= CLOSE and matcher.quick_ratio() >= CLOSE:
            scores.append((matcher.ratio(), item))
    scores.sort(key=lambda scored: -scored[0])
    return [item for score, item in scores[:3] if score >= CLOSE]


def unknown_name(kind: str, name: str, known: list[str]) -> UnknownName:
    """The error for a name that is not known, with close matches or, failing these, what there is."""
    close = close_matches(name, known)
    there = f"there is {', '.join(known[:SHOWN])}{', …' if len(known) > SHOWN else ''}"
    hint = f"did you mean {' or '.join(close)}?" if close else there
    if close and len(known) <= FEW:
        hint += f" ({there})"
    return UnknownName(f"no {kind} is called {name!r}; {hint}")


class Registry(Generic[T]):
    """Maps names to things of one kind; refuses duplicates, and answers an unknown name with close matches."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> None:
        """Register `item`; a name that is taken raises `ValueError`, since that is a bug and not bad input."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item

    def get(self, name: str) -> T:
        """The item called `name`, or `UnknownName`."""
        try:
            return self._items[name]
        except KeyError:
            raise unknown_name(self.kind, name, self.names()) from None

    def names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)
