"""Values whose type says all: a datetime, a UUID, a Decimal, …; they come back as they were for every reader.

A moment keeps its zone and its fold, as RFC 9557 writes them: `2026-10-25T02:30:00+01:00[Europe/Berlin]`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import ipaddress
import re
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack
from pydantic import BaseModel, PlainSerializer, RootModel, WrapSerializer, networks
from typing_extensions import override

from bitactor.messages.pulse import masked

DATETIME: Final = 1
_DATE: Final = 2
TIME: Final = 3
_TIMEDELTA: Final = 4
_UUID: Final = 5
_DECIMAL: Final = 6
_BIG_INT: Final = 7
SET: Final = 8
OBJECT: Final = 9
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1


MAX_TOKEN_BYTES: Final = 4 * 1024 * 1024
"""Largest payload of one step, input or emitted signal, if nothing else is said."""
READABLE_BYTES: Final = 16 * 1024 * 1024
"""Largest value that is read: a limit bounds what comes to be, not what was kept or sent under another."""
MAX_SHOWN: Final = 5
"""Most arguments of an exception that are shown for want of a message."""

Hook = Callable[[Any], Any]


def carried(key: str) -> None:
    """The classes of a reader that only passes objects on: it knows none of them, and keeps each as `Carried`."""


class Carried:
    """An object of a user's class on its way from one token into another, as it was, whatever its class."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @override
    def __eq__(self, other: object) -> bool:
        return type(other) is Carried and other.data == self.data

    @override
    def __hash__(self) -> int:
        return hash(self.data)

    @override
    def __repr__(self) -> str:
        return "<an object that is passed on>"


class NeedsObjects(Exception):
    """A value holds what `encode_value` does not know."""


class UnknownClass(ValueError):
    """An object that a reader asks for is of a class that cannot be told."""


def class_text(kind: type, attribute: str) -> str:
    """`__name__`, `__qualname__` or `__module__` of a class, whatever its metaclass does."""
    text = vars(type)[attribute].__get__(kind)
    return str.__str__(text) if issubclass(type(text), str) else "?"


MANY: Final = 2_000
"""Classes about which something is remembered."""


@lru_cache(MANY)
def class_key(kind: type) -> str:
    """The key of a class: its name, a digest of its fields and their types, so that a class that was changed since is
    another one, and a digest of its module, which tells two apart that are alike in these."""
    said = re.sub(r" at 0x[0-9a-f]+", "", repr(sorted(_field_types(kind).items())))
    return f"{kind.__qualname__}:{_short_digest(said)}:{_short_digest(class_text(kind, '__module__'))}"


def _short_digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _field_types(kind: type) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return dict.fromkeys(getattr(kind, "_fields", ()))


def type_name(value: Any) -> str:
    """The name of a value's type, whatever its metaclass does."""
    return class_text(type(value), "__name__")


def exact_text(text: str) -> str:
    """`text` as a `str` itself: a subclass, as `__str__` and `__repr__` may return too, has methods of its own."""
    return text if type(text) is str else str.__str__(text)


def is_text(given: Any) -> bool:
    """Whether this is a string that every store can keep: one without lone surrogates, which are no characters."""
    if not isinstance(given, str):
        return False
    try:
        exact_text(given).encode()
    except UnicodeEncodeError:
        return False
    return True


def exact_number(given: Any) -> int | float | None:
    """`given` as an `int` or `float` itself, whatever a subclass makes of comparing and counting; None if it is
    neither."""
    kind = type(given)
    if kind is int or kind is float:
        return given  # type: ignore[no-any-return]
    if issubclass(kind, int):
        return int.__add__(given, 0)
    return float.__float__(given) if issubclass(kind, float) else None


def shown(value: Any, limit: int = 200) -> str:
    """The `repr` of a value for a message, cut off beyond `limit` characters, whatever its `__repr__` does."""
    try:
        text = exact_text(repr(value))
    except BaseException as broken:
        return f"<a {type_name(value)} whose repr raises {type_name(broken)}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class PayloadLimit:
    """How many bytes one value may take that a transaction carries: a number of this process, for a value is encoded
    wherever a step runs in it."""

    def __init__(self) -> None:
        self.bytes = MAX_TOKEN_BYTES


PAYLOAD: Final = PayloadLimit()


class Packed(bytes):
    """A value packed as msgpack.  Its own type, so that a user's `bytes` is never mistaken for one."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return repr(masked(bytes(self)))

    __str__ = __repr__


def message_of(error: BaseException) -> str:
    """The message of an exception, whatever its `__str__` does, or those of its arguments; empty if it has none."""
    try:
        return exact_text(str(error))
    except BaseException as broken:
        given = vars(BaseException)["args"].__get__(error)
        return " ".join((f"<its message cannot be made: {type_name(broken)}>", *map(shown, given[:MAX_SHOWN])))


def text_of(error: BaseException) -> str:
    """The message of an exception; of one that has none, the name of its type."""
    return message_of(error) or type_name(error)


def named_text(error: BaseException) -> str:
    """The name of an exception's type, and its message if it has one."""
    message = message_of(error)
    return f"{type_name(error)}: {message}" if message else type_name(error)


def without_text(kind: type, names: list[str]) -> str:
    """What is said of an object that lacks fields."""
    return f"a {kind.__qualname__} without its {', '.join(names)}, as model_construct() leaves it; set all its fields"


def encode_value(value: Any) -> Any:
    """What msgpack packs for a value whose type says that it comes back; tuples become lists, enums their scalar
    value, paths text.

    Raises:
        NeedsObjects: it is of another type; `encode_object` may know it.
        TypeError: it cannot be carried.
    """
    kind = type(value)
    encode = BY_TYPE.get(kind)
    if encode is not None:
        return encode(value)
    if issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind):
        raise NeedsObjects
    if issubclass(kind, enum.Enum):
        if type(value.value) in SCALARS:
            return value.value
        raise NeedsObjects
    for base, encode in BY_BASE:
        if issubclass(kind, base):
            return encode(value)
    raise NeedsObjects


def takes_any(annotation: Any) -> bool:
    """Whether a value of an annotation may hold objects of any class: `Any`, `object`, `list`, `dict[str, Any]`."""
    if annotation in (Any, object, list, dict, tuple, set, frozenset):
        return True
    if isinstance(annotation, TypeVar):  # of a generic class without its parameter
        return annotation.__bound__ is None and not annotation.__constraints__
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin not in (Union, types.UnionType, Annotated, list, dict, tuple, set, frozenset, Sequence, Mapping):
        return False
    open_ones = [takes_any(part) for part in parts[: 1 if origin is Annotated else None]]
    return any(open_ones) and all(
        is_open or part is ... or (isinstance(part, type) and part.__module__ == "builtins")
        for part, is_open in zip(parts, open_ones, strict=False)
    )


@lru_cache(MANY)
def fields_of_any(kind: Any) -> tuple[str, ...]:
    """The fields of a model or dataclass that may hold objects of any class."""
    if issubclass(kind, BaseModel):
        return tuple(name for name, field in kind.model_fields.items() if takes_any(field.annotation))
    try:
        hints = get_type_hints(kind, include_extras=True)
    except Exception:  # a name that is not known there
        hints = {}
    return tuple(field.name for field in dataclasses.fields(kind) if takes_any(hints.get(field.name, Any)))


@lru_cache(MANY)
def is_customised(kind: type[BaseModel]) -> bool:
    """Whether plain data of the model are something else than its fields."""
    decorators = kind.__pydantic_decorators__
    return bool(
        issubclass(kind, RootModel)
        or decorators.field_serializers
        or decorators.model_serializers
        or decorators.computed_fields
        or kind.model_dump is not BaseModel.model_dump
        or any(
            field.exclude or any(isinstance(note, PlainSerializer | WrapSerializer) for note in field.metadata)
            for field in kind.model_fields.values()
        )
    )


# Values: their type says all

SCALARS: Final = frozenset((bool, int, float, str, bytes, type(None)))


def _extension(code: int, text: str) -> msgpack.ExtType:
    return msgpack.ExtType(code, text.encode())


def _encode_int(value: int) -> Any:
    value = int(value)
    if _INT_MIN <= value <= _INT_MAX:
        return value
    return msgpack.ExtType(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def encode_set(value: Iterable[Any], default: Hook) -> msgpack.ExtType:
    return msgpack.ExtType(SET, msgpack.packb(list(value), default=default, strict_types=True))


_NOTE: Final = re.compile(r"\[([^\]]*)\]\Z")
"""The zone behind a moment as RFC 9557 writes it: `2026-10-25T02:30:00+01:00[Europe/Berlin]`; `[fold]` behind a moment
of no zone that comes for the second time."""


def _encode_moment(value: dt.datetime | dt.time) -> msgpack.ExtType:
    zone, fold = value.tzinfo, value.fold
    code, note = (DATETIME if isinstance(value, dt.datetime) else TIME), "[fold]" if fold else ""
    if zone is not None and type(zone) is not dt.timezone:
        name = zone_name(zone, value)
        note = f"[{name}]{note}" if name else note
        if isinstance(value, dt.datetime) and name:
            value = dt.datetime.combine(value.date(), value.time(), dt.timezone(value.utcoffset() or dt.timedelta()))
    return _extension(code, value.isoformat() + note)


@lru_cache(1_000)
def _is_known(zone: str) -> bool:
    try:
        zoneinfo.ZoneInfo(zone)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return True


def zone_name(zone: dt.tzinfo, at: dt.datetime | dt.time) -> str:
    """The zone's name in the IANA database; empty for one whose offset never changes.

    Raises:
        TypeError: there is no way to name it.
    """
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if isinstance(name, str) and _is_known(name):
        return name
    year = at.year if isinstance(at, dt.datetime) else 2026
    offsets = {zone.utcoffset(dt.datetime(year, month, 1, tzinfo=zone)) for month in range(1, 13)}
    if len(offsets) == 1 and None not in offsets and isinstance(at, dt.datetime):
        return ""
    raise TypeError(f"no way to carry the time zone {zone!r}; use zoneinfo.ZoneInfo or datetime.timezone")


def _decode_datetime(data: bytes) -> dt.datetime:
    text = data.decode()
    return dt.datetime.fromisoformat(text) if text[-1:] != "]" else _decode_noted(dt.datetime, text)


def _decode_time(data: bytes) -> dt.time:
    text = data.decode()
    return dt.time.fromisoformat(text) if text[-1:] != "]" else _decode_noted(dt.time, text)


def _decode_noted(kind: Any, text: str) -> Any:
    notes: list[str] = []
    while (note := _NOTE.search(text)) is not None:
        notes.append(note[1])
        text = text[: note.start()]
    value = kind.fromisoformat(text)
    fold = int("fold" in notes)
    name = next((note for note in notes if note != "fold"), None)
    return value.replace(fold=fold, tzinfo=value.tzinfo if name is None else zoneinfo.ZoneInfo(name))


def _decode_timedelta(data: bytes) -> dt.timedelta:
    days, seconds, microseconds = msgpack.unpackb(data)
    return dt.timedelta(days, seconds, microseconds)


def tagged(tag: str, *parts: Any) -> msgpack.ExtType:
    """An extension of several parts, told by its tag: an object, or a value with no code of its own."""
    return msgpack.ExtType(OBJECT, msgpack.packb([tag, *parts]))


MAX_PATTERN: Final = 10_000


def encode_pattern(value: re.Pattern[Any]) -> msgpack.ExtType:
    if len(value.pattern) > MAX_PATTERN:
        raise TypeError(
            f"a pattern of {len(value.pattern):,} characters cannot be carried, the limit is {MAX_PATTERN:,}"
        )
    return tagged("pattern", value.pattern, value.flags)


def read_pattern(reader: Any, pattern: Any, flags: int) -> re.Pattern[Any]:
    if len(pattern) > MAX_PATTERN:
        raise ValueError("a pattern that is too long")
    return re.compile(pattern, flags)


ADDRESSES: Final[Mapping[str, Any]] = {
    kind.__name__: kind
    for kind in (
        ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
        ipaddress.IPv4Interface, ipaddress.IPv6Interface,
    )
}  # fmt: skip
URLS: Final[Mapping[str, Any]] = {
    kind.__name__: kind
    for kind in vars(networks).values()
    if isinstance(kind, type) and hasattr(kind, "unicode_string")
}

VALUES: Final[Mapping[int, Callable[[bytes], Any]]] = {
    DATETIME: _decode_datetime,
    _DATE: lambda data: dt.date.fromisoformat(data.decode()),
    TIME: _decode_time,
    _TIMEDELTA: _decode_timedelta,
    _UUID: lambda data: uuid.UUID(bytes=data),
    _DECIMAL: lambda data: decimal.Decimal(data.decode()),
    _BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
}

BY_BASE: Final[tuple[tuple[Any, Hook], ...]] = (
    ((tuple, list), list),
    (dt.datetime, _encode_moment),
    (dt.date, lambda value: _extension(_DATE, value.isoformat())),
    (dt.time, _encode_moment),
    (dt.timedelta, lambda v: msgpack.ExtType(_TIMEDELTA, msgpack.packb([v.days, v.seconds, v.microseconds]))),
    (uuid.UUID, lambda value: msgpack.ExtType(_UUID, value.bytes)),
    (decimal.Decimal, lambda value: _extension(_DECIMAL, str(value))),
    (Carried, lambda value: msgpack.ExtType(OBJECT, value.data)),
    (bool, bool),
    (int, _encode_int),
    (str, str.__str__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), bytes),
)
BY_TYPE: Final[Mapping[type, Hook]] = {
    kind: encode for kinds, encode in BY_BASE for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
}


def mapping_of(values: Any) -> dict[str, Any] | None:
    """What is in a mapping; None if it is none, or cannot be read."""
    try:
        return dict(values) if issubclass(type(values), Mapping) else None
    except BaseException:  # of a user's mapping
        return None
