"""The classes that an annotation names, for tokens whose objects are to be restored."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator
from typing import Any, Final, ForwardRef, TypeVar, get_args, get_origin, get_type_hints

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
        if self._known is None:
            self._known = self._collect()
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
