"""What a caller may pass: NumPy's numbers as Python's own, paths of any kind. The rest is refused, by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgclf.core.errors import ConfigError


def plain(value: Any) -> Any:
    """A value as JSON would hold it: numbers and arrays of NumPy as Python's numbers and tuples, paths as text; also
    where they are within mappings, lists and tuples. Anything else stays as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(plain, value))
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    listed = getattr(value, "tolist", None)  # a number or an array, of whichever library
    return _frozen(listed()) if callable(listed) else value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def whole(name: str, value: Any, low: int) -> int:
    """A value as a whole number, `low` or more; `ConfigError` where it is none, which calls it `name`."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < low:
        raise ConfigError(f"{name} is {number!r}; allowed: a whole number, {low} or more")
    return number


def as_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A value as a mapping with text keys; else `ConfigError`, in which the value is called `name`."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} is {type(value).__name__}; allowed: a dict, as in {{'train': {{'lr': 0.01}}}}")
    return value


def require(name: str, value: Any, kind: type) -> None:
    """Raise `ConfigError`, which calls the value `name`, where it is not of a kind."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {type(value).__name__}; expected {kind.__name__}")


def as_path(name: str, value: Any) -> Path:
    """A value as a path; `ConfigError` where it is none, which calls it `name`."""
    try:
        return Path(value)
    except TypeError:
        raise ConfigError(f"{name} is {type(value).__name__}; allowed: a path, as text or a Path") from None
