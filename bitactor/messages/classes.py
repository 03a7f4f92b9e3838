"""The classes that an annotation names, for tokens whose objects are to be restored."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, ForwardRef, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import TypeAliasType

from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.objects import Classes, class_key


class AnnotatedClasses:
    """The restorable classes that an annotation leads to, with their subclasses, by key.

    They are looked for when the first object comes, since a class may be completed after it was named.
    """

    __slots__ = ("_annotation", "_known")

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._known: dict[str, type | None] | None = None

    def __call__(self, key: str) -> type | None:
        """The class of that key; None for one that the annotation does not lead to, or for one of two alike."""
        if self._known is None or (key not in self._known and len(self._known) < _MANY):
            self._known = self._collect() | (self._known or {})  # a subclass may have been defined since
            self._known.setdefault(key, None)
        return self._known.get(key)

    def _collect(self) -> dict[str, type | None]:
        known: dict[str, type | None] = {}
        for kind in _reachable(self._annotation):
            key = class_key(kind)
            known[key] = kind if known.get(key, kind) is kind else None
        return known


class Kept:
    """A value that is given out again and again, each time a fresh one with its objects restored.

    Raises:
        InvalidOutcome, SignalTooLarge: it cannot be carried.
    """

    __slots__ = ("_classes", "_token")

    def __init__(self, value: Any) -> None:
        self._token = encode_token(value)
        self._classes = AnnotatedClasses(list(_types_in(value)))

    def __call__(self) -> Any:
        """The value."""
        return decode_token(self._token, self._classes)


def first_of(several: Iterable[Classes | None]) -> Classes | None:
    """The classes of several readers, as one reader's; None if none of them knows any."""
    known = [classes for classes in several if classes is not None]
    if len(known) < 2:
        return known[0] if known else None
    return lambda key: next((kind for classes in known if (kind := classes(key)) is not None), None)


def kept_type(annotation: Any) -> Callable[[Any], bool] | None:
    """Whether a value is of the annotation's type by the types of what is in it, so that nothing is to be checked in
    objects that were restored; None for an annotation that asks for more, or has no objects."""
    rule, has_objects = _kept(annotation)
    return rule if has_objects else None


Rule = Callable[[Any], bool]


def _kept(annotation: Any) -> tuple[Rule | None, bool]:
    """The rule of an annotation, if there is one, and whether there are objects in it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    kind = type(None) if annotation is None else annotation
    if isinstance(kind, type) and kind in _ATOMS:
        return (lambda value: type(value) is kind), kind in _VALUES
    if isinstance(annotation, type) and origin is None:
        if issubclass(annotation, BaseModel | enum.Enum) or dataclasses.is_dataclass(annotation):
            return (lambda value: issubclass(type(value), annotation)), True
        return None, False
    if origin not in (Union, types.UnionType, list, dict):
        return None, False
    rules, have_objects = zip(*map(_kept, parts), strict=True)
    if None in rules:
        return None, False
    if origin is list:
        (rule,) = rules
        return (lambda value: type(value) is list and all(map(rule, value))), any(have_objects)
    if origin is dict:
        key, item = rules
        return (lambda value: type(value) is dict and all(map(key, value)) and all(map(item, value.values()))), any(
            have_objects
        )
    return (lambda value: any(rule(value) for rule in rules)), any(have_objects)


_VALUES: Final = frozenset(
    (dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, fractions.Fraction)
)
_ATOMS: Final = frozenset((bool, int, float, str, bytes, type(None))) | _VALUES


def _types_in(value: Any) -> set[type]:
    """The types of the objects in a value's lists, tuples, sets and mappings."""
    found: set[type] = set()
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if type(here) in (list, tuple, set, frozenset):
            waiting += here
        elif type(here) is dict:
            waiting += [*here, *here.values()]
        else:
            found.add(type(here))
    return found


def _reachable(annotation: Any) -> Iterator[type]:
    seen: set[int] = set()
    waiting, kept = [annotation], []
    while waiting:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        kept.append(here)  # or another object might get the same id
        waiting += _parts(here)
        if isinstance(here, type):
            waiting += _subclasses(here)
            if issubclass(here, BaseModel | enum.Enum | tuple) or dataclasses.is_dataclass(here):
                yield here


_MANY: Final = 1_000


def _subclasses(kind: type) -> list[Any]:
    """Its subclasses; none for what all the world inherits from."""
    if kind in (object, type, BaseModel, enum.Enum, enum.IntEnum, enum.StrEnum, tuple) or kind.__module__ == "builtins":
        return []
    return type.__subclasses__(kind)[:_MANY]


def _parts(annotation: Any) -> list[Any]:
    if isinstance(annotation, str | ForwardRef):
        return []
    parts = list(annotation if isinstance(annotation, list) else get_args(annotation))
    origin = get_origin(annotation)
    if origin is not None:
        parts.append(origin)
    if isinstance(annotation, enum.Enum):  # of a Literal
        parts.append(type(annotation))
    if isinstance(annotation, TypeVar):
        parts += [annotation.__bound__, *annotation.__constraints__]
    if isinstance(annotation, TypeAliasType):
        parts.append(annotation.__value__)
    parts.append(getattr(annotation, "__supertype__", None))  # of a NewType
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            parts += [field.annotation for field in annotation.model_fields.values()]
            parts.append(annotation.model_config.get("extra") and annotation.__annotations__.get("__pydantic_extra__"))
        elif issubclass(annotation, enum.Enum):
            parts += {type(member.value) for member in annotation}
        elif annotation.__module__ != "builtins":
            parts += _hints(annotation)
    return [part for part in parts if part is not None]


def _hints(kind: type) -> list[Any]:
    """The types of the fields of a dataclass, a named tuple or a typed dictionary."""
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields") or hasattr(kind, "__total__")):
        return []
    try:
        return list(get_type_hints(kind, include_extras=True).values())
    except Exception:  # a name that is not known there
        return []
