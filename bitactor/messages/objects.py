"""Objects that msgpack does not know, as data that can be carried, and back.

A *value* (a datetime, a UUID, an IP address, a secret, …) comes back as it was wherever it is read.  An *object* of a
user's class (a model, a dataclass, an enum, a named tuple) comes back as itself where the reader's annotation names its
class, by its state and without validation; to any other reader it is plain data: a mapping, a list, the enum's value.
A stranger's bytes never name a class to import: they pick one of those that the annotation knows.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import fractions
import ipaddress
import re
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final

import msgpack
import pydantic
from pydantic import BaseModel, PlainSerializer, RootModel, WrapSerializer, networks

from bitactor.messages.values import (
    BY_TYPE,
    OBJECT,
    SET,
    VALUES,
    Carried,
    Hook,
    NeedsObjects,
    carried,
    class_text,
    encode_set,
    encode_value,
    set_of,
    unpacked,
    zone_name,
)

MAX_LEVELS: Final = 48
"""Deepest nesting of extensions (objects, sets) in each other; each level takes 40 KB of the C stack to decode."""
MAX_PATTERN: Final = 10_000
MANY: Final = 2_000
"""Classes about which something is remembered."""


Classes = Callable[[str], "type | None"]
"""The class of a key (`class_key`), among those that a reader knows; None for one that it does not."""


def encode_object(value: Any) -> Any:
    """The same for any value that can be carried, objects included.

    Raises:
        TypeError: it cannot be carried.
    """
    if isinstance(value, BaseModel):
        return _encode_model(value, False)
    try:
        return encode_value(value)
    except NeedsObjects:
        pass
    return _encode_object(value)


class Reader:
    """The `ext_hook` of one reader.

    Args:
        classes: the class of a key (see `class_key`) if the reader knows it.
        exact: whether tuples, paths and the like are restored, as in the state of an object; plain data else.
        levels: how many extensions may still nest.
    """

    __slots__ = ("classes", "exact", "levels")

    def __init__(self, classes: Classes | None = None, exact: bool = False, levels: int = MAX_LEVELS) -> None:
        self.classes = classes
        self.exact = exact
        self.levels = levels

    def __call__(self, code: int, data: bytes) -> Any:
        """The value of an extension.

        Raises:
            ValueError: there is no such extension, its data are wrong, or it nests too deep.
        """
        decode = VALUES.get(code)
        if decode is not None:
            return decode(data)
        if self.levels <= 0:
            raise ValueError(f"objects and sets within each other, more than {MAX_LEVELS} of them")
        if code == SET:
            return set_of(self.within(data, self.exact))
        if code != OBJECT:
            raise ValueError(f"unknown extension type {code}")
        tag, *parts = msgpack.unpackb(data)
        if self.classes is carried and tag in _RESTORED:
            return Carried(data)
        return _OBJECTS[tag](self, *parts)

    def within(self, data: bytes, exact: bool) -> Any:
        """The value that an extension has within it."""
        return unpacked(data, Reader(self.classes, exact, self.levels - 1))

    def found(self, key: str, kind: type) -> type | None:
        """The reader's class of that key, if it is of that kind."""
        found = self.classes(key) if self.classes is not None else None
        return found if found is not None and issubclass(found, kind) else None


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


_NOTHING: Final = object()


class _Inexact(Exception):
    """An object's state holds what this reader cannot restore."""


def _object(tag: str, *parts: Any) -> msgpack.ExtType:
    return msgpack.ExtType(OBJECT, msgpack.packb([tag, *parts]))


def _pack_exactly(value: Any) -> bytes:
    return bytes(msgpack.packb(value, default=_encode_exactly, strict_types=True))


def _pack_plainly(value: Any) -> bytes:
    return bytes(msgpack.packb(value, default=encode_object, strict_types=True))


def _encode_exactly(value: Any) -> Any:
    """As `encode_object`, within an object's state: tuples, paths, enums and so on come back as what they were."""
    kind = type(value)
    encode = _EXACTLY.get(kind)
    if encode is not None:
        return encode(value)
    if issubclass(kind, enum.Enum):
        return _encode_enum(value)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _object("named", class_key(kind), _pack_exactly(list(value)))
    if issubclass(kind, PurePath):
        return _object("path", kind.__name__ if kind in _PATHS.values() else "Path", str(value))
    if issubclass(kind, set):
        return encode_set(value, _encode_exactly)
    try:
        return encode_value(value)
    except NeedsObjects:
        pass
    return _encode_object(value, exactly=True)


def _encode_object(value: Any, exactly: bool = False) -> Any:
    kind = type(value)
    if issubclass(kind, BaseModel):
        return _encode_model(value, exactly)
    if dataclasses.is_dataclass(kind):
        return _encode_dataclass(value, exactly)
    if issubclass(kind, enum.Enum):
        return _encode_enum(value)
    for base, encode in _VALUE_OBJECTS:
        if issubclass(kind, base):
            return encode(value)
    if issubclass(kind, set | frozenset):
        return encode_set(value, encode_object)
    if issubclass(kind, Mapping):
        return dict(value)
    if hasattr(kind, "__fspath__"):
        return kind.__fspath__(value)
    raise TypeError(f"no way to carry a {kind.__module__}.{kind.__qualname__}; return plain data or a model")


def _encode_enum(value: enum.Enum) -> msgpack.ExtType:
    return _object("enum", class_key(type(value)), _pack_exactly(value.value))


def _encode_model(value: BaseModel, exactly: bool) -> msgpack.ExtType:
    kind = type(value)
    try:
        state = _pack_exactly(_model_state(value))
    except (TypeError, ValueError, OverflowError):
        if exactly:
            raise
        state = None
    shown = _pack_plainly(value.model_dump(mode="python")) if state is None or _is_customised(kind) else None
    return _object("model", class_key(kind), state, shown)


def _model_state(value: BaseModel) -> list[Any]:
    names, private = type(value).model_fields, value.__pydantic_private__
    fields = value.__dict__  # and what is cached there
    if fields.keys() != names.keys():
        fields = {name: fields[name] for name in names}
    if private is not None:
        private = BaseModel.__getstate__(value)["__pydantic_private__"]  # those that are set
    return [fields, sorted(value.__pydantic_fields_set__), value.__pydantic_extra__, private]


@lru_cache(MANY)
def _is_customised(kind: type[BaseModel]) -> bool:
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


def _encode_dataclass(value: Any, exactly: bool) -> msgpack.ExtType:
    kind: type = type(value)
    names = [field.name for field in dataclasses.fields(kind)]
    try:
        fields = {name: getattr(value, name) for name in names}
    except AttributeError as error:
        raise TypeError(f"a {kind.__qualname__} without all of its fields: {error}") from None
    rest = {
        name: item for name, item in getattr(value, "__dict__", {}).items() if name not in (*names, "__orig_class__")
    }
    try:
        state = _pack_exactly([fields, rest])
        shown = None
    except (TypeError, ValueError, OverflowError):
        if exactly:
            raise
        state, shown = None, _pack_plainly(fields)
    return _object("dataclass", class_key(kind), state, shown)


def _read_model(reader: Reader, key: str, state: bytes | None, shown: bytes | None) -> Any:
    kind = reader.found(key, BaseModel)
    if kind is not None and state is not None and (parts := _exact(reader, state)) is not _NOTHING:
        fields, names, extra, private = parts
        made: Any = object.__new__(kind)
        BaseModel.__setstate__(
            made,
            {
                "__dict__": fields,
                "__pydantic_fields_set__": set(names),
                "__pydantic_extra__": extra,
                "__pydantic_private__": private,
            },
        )
        return made
    if reader.exact:
        raise _Inexact(key)
    if shown is not None:
        return reader.within(shown, False)
    fields, _, extra, _ = reader.within(state or b"", False)
    return fields | (extra or {})


def _read_dataclass(reader: Reader, key: str, state: bytes | None, shown: bytes | None) -> Any:
    kind = reader.found(key, object)
    if kind is not None and state is not None and (parts := _exact(reader, state)) is not _NOTHING:
        made: Any = object.__new__(kind)
        for name, item in {**parts[0], **parts[1]}.items():
            object.__setattr__(made, name, item)
        return made
    if reader.exact:
        raise _Inexact(key)
    return reader.within(shown, False) if shown is not None else reader.within(state or b"", False)[0]


def _exact(reader: Reader, state: bytes) -> Any:
    """The state of an object as it was; `_NOTHING` if it holds an object of a class that the reader does not know."""
    try:
        return reader.within(state, True)
    except _Inexact:
        if reader.exact:
            raise
        return _NOTHING


def _read_enum(reader: Reader, key: str, value: bytes) -> Any:
    kind = reader.found(key, enum.Enum)
    if kind is not None and (inner := _exact(reader, value)) is not _NOTHING:
        return kind(inner)
    if reader.exact:
        raise _Inexact(key)
    return reader.within(value, False)


def _read_named(reader: Reader, key: str, items: bytes) -> Any:
    kind = reader.found(key, tuple)
    if kind is not None and reader.exact:
        return tuple.__new__(kind, reader.within(items, True))
    if reader.exact:
        raise _Inexact(key)
    return reader.within(items, False)


def _read_secret(reader: Reader, name: str, value: bytes) -> Any:
    return _SECRETS[name](reader.within(value, True))


def _read_items(kind: Callable[..., Any], plain: Callable[..., Any] | None = None) -> Callable[..., Any]:
    def read(reader: Reader, items: bytes, *more: Any) -> Any:
        value = reader.within(items, reader.exact)
        return kind(value, *more) if reader.exact or plain is None else plain(value)

    return read


def _read_default_dict(reader: Reader, factory: str | None, items: bytes) -> dict[Any, Any]:
    value: dict[Any, Any] = reader.within(items, reader.exact)
    return defaultdict(_FACTORIES[factory] if factory else None, value) if reader.exact else value


def _encode_pattern(value: re.Pattern[Any]) -> msgpack.ExtType:
    if len(value.pattern) > MAX_PATTERN:
        raise TypeError(
            f"a pattern of {len(value.pattern):,} characters cannot be carried, the limit is {MAX_PATTERN:,}"
        )
    return _object("pattern", value.pattern, value.flags)


def _read_pattern(reader: Reader, pattern: Any, flags: int) -> re.Pattern[Any]:
    if len(pattern) > MAX_PATTERN:
        raise ValueError("a pattern that is too long")
    return re.compile(pattern, flags)


_PATHS: Final = {kind.__name__: kind for kind in (Path, PosixPath, PurePosixPath, PureWindowsPath, PurePath)}
_SECRETS: Final[Mapping[str, Any]] = {
    kind.__name__: kind for kind in (pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret)
}
_ADDRESSES: Final[Mapping[str, Any]] = {
    kind.__name__: kind
    for kind in (
        ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
        ipaddress.IPv4Interface, ipaddress.IPv6Interface,
    )
}  # fmt: skip
_URLS: Final[Mapping[str, Any]] = {
    kind.__name__: kind
    for kind in vars(networks).values()
    if isinstance(kind, type) and hasattr(kind, "unicode_string")
}
_FACTORIES: Final[Mapping[str, Any]] = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}


SECRET_MARK: Final = bytes(msgpack.packb(["secret"]))[1:]
"""What the bytes of whatever holds a secret have in them."""
MASKED: Final = "**********"


def _encode_secret(value: Any) -> msgpack.ExtType:
    kind = next(base for base in type(value).__mro__ if base in _SECRETS.values())
    return _object("secret", kind.__name__, _pack_exactly(value.get_secret_value()))


def _encode_default_dict(value: defaultdict[Any, Any]) -> msgpack.ExtType:
    factory = value.default_factory
    if factory is not None and factory not in _FACTORIES.values():
        raise TypeError(f"no way to carry a defaultdict of {factory!r}")
    return _object("defaultdict", factory and factory.__name__, _pack_exactly(dict(value)))


_RESTORED: Final = frozenset(("model", "dataclass", "enum", "named"))
_VALUE_OBJECTS: Final[tuple[tuple[Any, Hook], ...]] = (
    (deque, lambda value: _object("deque", _pack_plainly(list(value)), value.maxlen)),
    ((pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret), _encode_secret),
    (tuple(set(_ADDRESSES.values())), lambda value: _object("address", type(value).__name__, str(value))),
    (tuple(set(_URLS.values())), lambda value: _object("url", type(value).__name__, str(value))),
    (re.Pattern, _encode_pattern),
    (complex, lambda value: _object("complex", value.real, value.imag)),
    (fractions.Fraction, lambda value: _object("fraction", str(value))),
    (range, lambda value: _object("range", _pack_plainly([value.start, value.stop, value.step]))),
    (zoneinfo.ZoneInfo, lambda value: _object("zone", zone_name(value, dt.time()))),
    (dt.timezone, lambda value: _object("offset", _pack_plainly(value.utcoffset(None)))),
)
_EXACTLY: Final[Mapping[type, Hook]] = {
    **BY_TYPE,
    tuple: lambda value: _object("tuple", _pack_exactly(list(value))),
    frozenset: lambda value: _object("frozenset", _pack_exactly(list(value))),
    deque: lambda value: _object("deque", _pack_exactly(list(value)), value.maxlen),
    OrderedDict: lambda value: _object("ordered", _pack_exactly(dict(value))),
    Counter: lambda value: _object("counter", _pack_exactly(dict(value))),
    defaultdict: _encode_default_dict,
}
_OBJECTS: Final[Mapping[str, Callable[..., Any]]] = {
    "model": _read_model,
    "dataclass": _read_dataclass,
    "enum": _read_enum,
    "named": _read_named,
    "secret": _read_secret,
    "tuple": _read_items(tuple, list),
    "frozenset": _read_items(frozenset, set_of),
    "deque": _read_items(deque),
    "ordered": _read_items(OrderedDict, dict),
    "counter": _read_items(Counter, dict),
    "defaultdict": _read_default_dict,
    "path": lambda reader, kind, text: _PATHS[kind](text) if reader.exact else text,
    "address": lambda reader, kind, text: _ADDRESSES[kind](text),
    "url": lambda reader, kind, text: _URLS[kind](text),
    "pattern": _read_pattern,
    "complex": lambda reader, real, imaginary: complex(real, imaginary),
    "fraction": lambda reader, text: fractions.Fraction(text),
    "range": lambda reader, parts: range(*reader.within(parts, True)),
    "zone": lambda reader, name: zoneinfo.ZoneInfo(name),
    "offset": lambda reader, offset: dt.timezone(reader.within(offset, True)),
}
