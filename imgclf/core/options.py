"""Options of configs: what a field may hold, said once at the field, for checks, command line, JSON schema and docs."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any

from imgclf.core.errors import ConfigError

NUMBERS: dict[object, Any] = {int: int, float: int | float}
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Option:
    """What a field may hold, and how it is shown.

    Attributes:
        help: what it is, without a full stop; the choices and the special values are added to it.
        panel: where `--help` lists it; a field without one is no option of the command line.
        default: the default in words, where the value alone says too little.
        choices: the words that are allowed.
        ge: the smallest number that is allowed, of each number where there are several; `gt`, `le`, `lt` likewise.
        special: what single numbers stand for, as in `{0: "off"}`.
        pattern: a regular expression that a text matches.
        allowed: what is allowed, in words, where the bounds or the choices don't say it.
        parse: the value of a text of the command line; without it the text is read by the type.
        flags: the names on the command line, where they are not those that follow from the field.
    """

    help: str = ""
    panel: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    special: Mapping[int, str] = field(default_factory=dict)
    pattern: str = ""
    allowed: str = ""
    parse: Callable[[str], Any] | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.allowed:
            object.__setattr__(self, "allowed", ", ".join(self.choices) or self._range())

    def _range(self) -> str:
        low, high = (self.gt, self.ge)[self.ge is not None], (self.lt, self.le)[self.le is not None]
        if low is None:
            return ""
        start = f"above {low:g}" if self.ge is None else self._bound(low)
        if high is None:
            return start if self.ge is None else f"{start} or more"
        return f"{start}{',' * (self.ge is None)} to {'below ' * (self.le is None)}{self._bound(high)}"

    def _bound(self, number: float) -> str:
        meaning = self.special.get(number)  # type: ignore[call-overload]
        return f"{number:,}{f' ({meaning})' if meaning else ''}"

    def holds(self, number: float) -> bool:
        """Whether a number lies within the bounds."""
        bounds = ((name, getattr(self, name)) for name in ("ge", "gt", "le", "lt"))
        return math.isfinite(number) and all(b is None or getattr(operator, name)(number, b) for name, b in bounds)

    def described(self) -> str:
        """The help text as a sentence, with the choices and the special values."""
        words = f": {listed(self.choices)}" if self.choices else ""
        return f"{self.help}{words}{''.join(f'; {number} is {what}' for number, what in self.special.items())}."


def option(value: Any = MISSING, help: str = "", default: str = "", *, like: Option | None = None, **of: Any) -> Any:
    """A field of a config with its `Option`: that of another field (`like`), changed by what is given here.

    Args:
        value: the default of the field.
        help, default: see `Option`.
        like: the option to begin with.
        of: other attributes of the `Option`.
    """
    given = dataclasses.replace(like or Option(), help=help, default=default, **of)
    return field(default=value, metadata={"option": given})


@dataclass(frozen=True)
class OptionField:
    """A field of a config: its name, its type without None, whether None is allowed too, its default, its option."""

    name: str
    type: Any
    optional: bool
    default: Any
    option: Option

    def accepts(self, value: Any) -> bool:
        """Whether a value is of the type and within the bounds."""
        return (value is None and self.optional) or _fits(value, self.type, self.option)

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        kind = {int: "a whole number", float: "a number", bool: "true or false"}.get(self.type, "")
        text = self.option.allowed
        return f"{kind}, {text}" if text and self.type in NUMBERS and kind not in text else text or kind or "a text"


@functools.cache
def option_fields(kind: type) -> dict[str, OptionField]:
    """The fields of a config that hold options, by their names and in their order."""
    hints, found = typing.get_type_hints(kind), {}
    for item in dataclasses.fields(kind):
        if "option" in item.metadata:
            parts = typing.get_args(hints[item.name]) if isinstance(hints[item.name], types.UnionType) else ()
            plain = next((part for part in parts if part is not types.NoneType), hints[item.name])
            default = None if item.default is MISSING else item.default
            found[item.name] = OptionField(item.name, plain, bool(parts), default, item.metadata["option"])
    return found


def require_field(ok: bool, owner: object, name: str, allowed: str) -> None:
    """Raise the `ConfigError` about a field, unless it is `ok`: its name, what was given, what is allowed."""
    if not ok:
        raise ConfigError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}; allowed: {allowed}")


def _fits(value: Any, kind: Any, option: Option) -> bool:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(parts) == len(value) and all(map(_fits, value, parts, [option] * len(parts)))
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool) and option.holds(value)
    if kind is str:
        fits = isinstance(value, str) and re.fullmatch(option.pattern or ".+", value, re.S) is not None
        return fits and (not option.choices or value in option.choices)
    return isinstance(value, typing.get_origin(kind) or kind)


def listed(names: tuple[str, ...]) -> str:
    """Names as `a, b or c`."""
    return ", ".join(names[:-1]) + " or " + names[-1] if len(names) > 1 else names[0]


def json_schema(kind: type, **more: Any) -> dict[str, Any]:
    """The JSON schema of a config: an object with a property for each field; configs within it are objects of their
    own."""
    properties = {}
    for item in dataclasses.fields(kind):
        inner = typing.get_type_hints(kind)[item.name]
        each = option_fields(kind).get(item.name)
        properties[item.name] = json_schema(inner) if each is None else _property(each)
    return {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0],
        "properties": {**more, **properties},
        "additionalProperties": False,
    }


def _property(each: OptionField) -> dict[str, Any]:
    option, parts = each.option, typing.get_args(each.type)
    bounds = {"minimum": option.ge, "exclusiveMinimum": option.gt, "maximum": option.le, "exclusiveMaximum": option.lt}
    limits = {name: bound for name, bound in bounds.items() if bound is not None}
    schema: dict[str, Any]
    if parts:
        schema = {"type": "array", "items": {"type": JSON_TYPES[parts[0]], **limits}}
        if parts[1:] != (...,):
            schema |= {"minItems": len(parts), "maxItems": len(parts)}
    else:
        schema = {"type": JSON_TYPES[each.type], **limits}
    if option.choices:
        schema["enum"] = list(option.choices)
    if option.pattern:
        schema["pattern"] = f"^({option.pattern})$"
    if option.help:
        schema["description"] = option.described()
    if each.default is not None:
        schema["default"] = each.default
    return schema
