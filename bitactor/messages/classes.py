"""The classes that an annotation names, for tokens whose objects are to be restored."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any, Final, ForwardRef, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import TypeAliasType

from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.objects import Classes
from bitactor.messages.values import UnknownClass, class_key, class_text


class AnnotatedClasses:
    """The restorable classes that an annotation leads to, with their subclasses, by key.

    They are looked for when the first object comes, since a class may be completed after it was named.
    """

    __slots__ = ("_annotation", "_found", "_known")

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._known: dict[str, list[type]] | None = None
        self._found: dict[str, type | None] = {}

    def __call__(self, key: str) -> type | None:
        """The class of that key; None for one that the annotation does not lead to.

        Raises:
            UnknownClass: it leads to several that are alike, or to a generic class of which nobody here has made this.
        """
        if key not in self._found:
            found = self._look_for(key)
            if len(self._found) >= _MANY:
                return found
            self._found[key] = found
        return self._found[key]

    def _look_for(self, key: str) -> type | None:
        name, fields, *module = key.split(":")
        alike = f"{name}:{fields}"
        if self._known is None or alike not in self._known:
            self._known = self._collect() | (self._known or {})  # a subclass may have been defined since
        kinds = self._known.get(alike, [])
        if not kinds:
            return _parametrised(name, key, chain.from_iterable(self._known.values())) if "[" in name else None
        if len(kinds) > 1:
            kinds = [kind for kind in kinds if not module or class_key(kind) == key]
            kinds = [kind for kind in kinds if _is_named(kind)] or kinds
        if len(kinds) != 1:
            raise UnknownClass(
                f"several classes are named {name} and have the same fields, so that nobody can tell which one this "
                "object is of; define the class once, at module level, or name them differently"
            )
        return kinds[0]

    def _collect(self) -> dict[str, list[type]]:
        known: dict[str, list[type]] = {}
        for kind in _reachable(self._annotation):
            alike = known.setdefault(class_key(kind).rpartition(":")[0], [])
            # `dataclass(slots=True)` makes a class anew, and the first one may live on.
            twin = next((other for other in alike if _shares_fields(kind, other)), None)
            if twin is None:
                alike.append(kind)
            elif "__slots__" in vars(kind):
                alike[alike.index(twin)] = kind
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
    """Its subclasses, and those of a generic class that are as one of its parametrised classes asks; none for what all
    the world inherits from."""
    if kind in (object, type, enum.Enum, enum.IntEnum, enum.StrEnum, tuple) or kind.__module__ == "builtins":
        return []
    found: list[Any] = type.__subclasses__(kind)[:_MANY]
    origin = generic_origin(kind)
    if kind is BaseModel:
        return _descendants(BaseModel)
    return found if origin is None else found + [other for other in _descendants(origin) if fits(other, kind)]


def _descendants(kind: type) -> list[type]:
    found: dict[type, None] = {kind: None}
    waiting = [kind]
    while waiting and len(found) < _MANY:
        below: list[type] = type.__subclasses__(waiting.pop())
        new = [other for other in below if other not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return [*found]


def generic_origin(kind: Any) -> type[BaseModel] | None:
    """The generic model of which `kind` is one with its types given; None if it is none."""
    if not isinstance(kind, type) or not issubclass(kind, BaseModel) or kind is BaseModel:
        return None
    origin: type[BaseModel] | None = kind.__pydantic_generic_metadata__["origin"]
    return origin


def fits(kind: type, annotation: type) -> bool:
    """Whether an object of class `kind` is one of class `annotation`; a subclass of a generic model is one of those
    whose fields have the same types, though pydantic knows of no such inheritance."""
    if issubclass(kind, annotation):
        return True
    origin = generic_origin(annotation)
    return origin is not None and issubclass(kind, origin) and _has_fields_of(kind, annotation)


@lru_cache(_MANY)
def _has_fields_of(kind: type[BaseModel], annotation: type[BaseModel]) -> bool:
    own = kind.model_fields
    return all(
        name in own and own[name].annotation == field.annotation for name, field in annotation.model_fields.items()
    )


def _parametrised(name: str, key: str, known: Iterable[type]) -> type | None:
    """The class `Box[int]` that nobody here has made yet, of a generic model whose relatives are known.

    Raises:
        UnknownClass: it is of a known generic model, but the types given to it are not known here.
    """
    kinds = [*known]
    origins = {origin for kind in kinds if (origin := generic_origin(kind)) is not None}
    generics = {other for origin in origins for other in _descendants(origin)} | {*kinds}
    title, _, inner = name.partition("[")
    wanted = [kind for kind in generics if kind.__name__ == title and _type_parameters(kind)]
    if not wanted:
        return None
    types = {kind.__qualname__: kind for kind in (*kinds, *_SIMPLE)}
    arguments = [types.get(part) for part in inner[:-1].split(", ")]
    for kind in wanted if None not in arguments else ():
        made: Any = kind
        with suppress(Exception):  # those arguments are not for it
            made = made[tuple(arguments)]
            if class_key(made).split(":")[:2] == key.split(":")[:2]:
                return made if any(fits(made, other) for other in kinds) else None
    raise UnknownClass(f"nothing here has made the class {name} of this object; name it in the annotation")


_SIMPLE: Final = (bool, int, float, str, bytes, dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID)


def _type_parameters(kind: Any) -> bool:
    return issubclass(kind, BaseModel) and bool(kind.__pydantic_generic_metadata__["parameters"])


def _is_named(kind: type) -> bool:
    """Whether the class is the one that its module has under its name now: a module may have been loaded anew."""
    here: Mapping[str, Any] = vars(sys.modules.get(class_text(kind, "__module__"), enum))
    for part in kind.__qualname__.split("."):
        found = here.get(part)
        if not isinstance(found, type):
            return False
        here = vars(found)
    return found is kind


def _shares_fields(kind: type, other: type) -> bool:
    fields = vars(kind).get("__dataclass_fields__")
    return fields is not None and fields is vars(other).get("__dataclass_fields__")


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
            parts += _hints(annotation) if getattr(annotation, "__private_attributes__", None) else []
        elif issubclass(annotation, enum.Enum):
            parts += {type(member.value) for member in annotation}
        elif annotation.__module__ != "builtins":
            parts += _hints(annotation)
    return [part for part in parts if part is not None]


def _hints(kind: type) -> list[Any]:
    """The types of the fields of a dataclass, a named tuple or a typed dictionary, or of what is private in a model."""
    if not (
        dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)
        or hasattr(kind, "_fields") or hasattr(kind, "__total__")
    ):  # fmt: skip
        return []
    try:
        return list(get_type_hints(kind, include_extras=True).values())
    except Exception:  # a name that is not known there
        return []
