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
import inspect
import re
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final

import msgpack
import pydantic
from pydantic import BaseModel

from bitactor.messages.sets import set_of, unpacked
from bitactor.messages.values import (
    ADDRESSES,
    BY_BASE,
    BY_TYPE,
    MANY,
    OBJECT,
    SCALARS,
    SET,
    URLS,
    VALUES,
    Carried,
    Hook,
    NeedsObjects,
    carried,
    class_key,
    encode_pattern,
    encode_set,
    fields_of_any,
    is_customised,
    read_pattern,
    tagged,
    without_text,
    zone_name,
)

MAX_LEVELS: Final = 48
"""Deepest nesting of extensions (objects, sets) in each other; each level takes 40 KB of the C stack to decode."""
Classes = Callable[[str], "type | None"]
"""The class of a key (`class_key`), among those that a reader knows; None for one that it does not."""


def encode_object(value: Any) -> Any:
    """What msgpack packs for any value that can be carried, objects included; raises `TypeError` for others."""
    kind: type = type(value)
    return _encoder(kind, False)(value)


class Reader:
    """The `ext_hook` of one reader.

    Args:
        classes: the class of a key (see `class_key`) if the reader knows it.
        exact: whether tuples, paths and the like are restored, as in the state of an object; plain data else.
        lenient: whether objects of classes that are not known are plain data among what is exact.
        levels: how many extensions may still nest.
    """

    __slots__ = ("classes", "exact", "lenient", "levels")

    def __init__(
        self, classes: Classes | None = None, exact: bool = False, levels: int = MAX_LEVELS, lenient: bool = False
    ) -> None:
        self.classes = classes
        self.exact = exact
        self.levels = levels
        self.lenient = lenient

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
            return set_of(self.same_within(data))
        if code != OBJECT:
            raise ValueError(f"unknown extension type {code}")
        tag, *parts = msgpack.unpackb(data)
        if self.classes is carried and tag in _RESTORED:
            return Carried(data)
        return _OBJECTS[tag](self, *parts)

    def within(self, data: bytes, exact: bool) -> Any:
        """The value that an extension has within it."""
        return unpacked(data, Reader(self.classes, exact, self.levels - 1))

    def same_within(self, data: bytes) -> Any:
        """The value that a container has within it, read as this reader reads."""
        return unpacked(data, Reader(self.classes, self.exact, self.levels - 1, self.lenient))

    def refuse_inexact(self, key: str) -> None:
        """Raises `_Inexact` where an object of that key, which is not known, cannot be plain data."""
        if self.exact and not self.lenient:
            raise _Inexact(key)

    def found(self, key: str, kind: type) -> type | None:
        """The reader's class of that key, if it is of that kind."""
        found = self.classes(key) if self.classes is not None else None
        return found if found is not None and issubclass(found, kind) else None


_NOTHING: Final = object()
_UNDEFINED: Final = pydantic.PrivateAttr().default


class _Inexact(Exception):
    """An object's state holds what this reader cannot restore."""


class _Lost(TypeError):
    """A part of an object is not there, or is private, cannot be carried and would not be made anew."""


def _encode_exactly(value: Any) -> Any:
    """As `encode_object`, within an object's state: tuples, paths, enums and so on come back as what they were."""
    kind: type = type(value)
    return _encoder(kind, True)(value)


def _encode_certainly(value: Any) -> Any:
    """As `_encode_exactly`, for values that are known by their type to come back; raises `NeedsObjects` for others."""
    encode = _CERTAIN.get(type(value))
    if encode is None:
        raise NeedsObjects
    return encode(value)


@lru_cache(MANY)
def _encoder(kind: type, exactly: bool) -> Hook:
    """What encodes values of a type, `exactly` as within an object's state; raises `TypeError` if nothing can."""
    encode = (_EXACTLY if exactly else BY_TYPE).get(kind)
    if encode is not None:
        return encode
    if issubclass(kind, BaseModel):
        return lambda value: encode_model(value, exactly)[0]
    if dataclasses.is_dataclass(kind):
        return lambda value: _encode_dataclass(value, exactly)
    if issubclass(kind, enum.Enum):
        return _encode_enum if exactly else _encode_member
    if exactly and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return lambda value: tagged("named", class_key(kind), _pack_exactly(list(value)))
    if exactly and issubclass(kind, PurePath):
        return lambda value: tagged("path", kind.__name__ if kind in _PATHS.values() else "Path", str(value))
    for base, encode in (*BY_BASE, *_VALUE_OBJECTS):
        if issubclass(kind, base):
            return encode
    if issubclass(kind, set | frozenset):
        return lambda value: encode_set(value, _encode_exactly if exactly else encode_object)
    if issubclass(kind, Mapping):
        return dict
    if hasattr(kind, "__fspath__"):
        return lambda value: kind.__fspath__(value)
    raise TypeError(f"no way to carry a {kind.__module__}.{kind.__qualname__}; return plain data or a model")


def _pack(value: Any, default: Hook) -> bytes:
    return bytes(msgpack.packb(value, default=default, strict_types=True))


def _pack_exactly(value: Any) -> bytes:
    return _pack(value, _encode_exactly)


def _pack_plainly(value: Any) -> bytes:
    return _pack(value, encode_object)


def _pack_any(value: Any) -> Any:
    """What stands where any value may: objects in it of classes that a reader does not know are plain data there."""
    return value if type(value) in SCALARS else tagged("any", _pack_exactly(value))


def _encode_member(value: enum.Enum) -> Any:
    return value.value if type(value.value) in SCALARS else _encode_enum(value)


def _encode_enum(value: enum.Enum) -> msgpack.ExtType:
    return tagged("enum", class_key(type(value)), _pack_exactly(value.value))


def encode_model(value: BaseModel, exactly: bool = False) -> tuple[msgpack.ExtType, bool]:
    """A model, and whether it is known by the types in it to come back."""
    kind, certain = type(value), False
    try:
        parts = _model_state(value)
        try:
            state, certain = _pack(parts, _encode_certainly), True
        except NeedsObjects:
            state = _pack_exactly(_with_any(kind, parts))
    except (TypeError, ValueError, OverflowError) as error:
        if exactly or type(error) is _Lost:
            raise
        state = None
    if state is not None and not is_customised(kind):
        return tagged("model", class_key(kind), state, None), certain
    return tagged("model", class_key(kind), state, _pack_plainly(_dumped(value))), False


def _dumped(value: BaseModel) -> dict[str, Any]:
    """A model as plain data; a field that pydantic cannot dump, for a set of mappings is none, as it is."""
    try:
        return value.model_dump(mode="python")
    except TypeError:
        fields = type(value).model_fields
        kept = {name: value.__dict__[name] for name in fields if not _can_be_dumped(value, name)}
        return {**value.model_dump(mode="python", exclude={*kept}), **kept}


def _can_be_dumped(value: BaseModel, name: str) -> bool:
    with suppress(TypeError):
        return value.model_dump(mode="python", include={name}) is not None
    return False


def _with_any(kind: type[BaseModel], parts: list[Any]) -> list[Any]:
    """A model's state, marked where it may hold anything: fields of any type, what is extra, and what is private."""
    fields, names, extra, private = parts
    marked = {name: _pack_any(fields[name]) for name in fields_of_any(kind)}
    extra = extra and {name: _pack_any(item) for name, item in extra.items()}
    return [fields | marked, names, extra, private and _kept_private(kind, private)]


def _kept_private(kind: type[BaseModel], private: dict[str, Any]) -> dict[str, Any]:
    """What is private and can be carried; what its factory makes (a lock) is made anew where the model is read."""
    kept = {}
    for name, item in private.items():
        try:
            kept[name] = _pack_any(item)
        except (TypeError, ValueError, OverflowError) as error:
            if kind.__private_attributes__[name].default_factory is None:
                raise _Lost(f"{name} of a {kind.__name__}: {error}") from None
    return kept


def _model_state(value: BaseModel) -> list[Any]:
    names, private = type(value).model_fields, value.__pydantic_private__
    fields = value.__dict__  # and what is cached there
    if fields.keys() != names.keys():
        if missing := names.keys() - fields.keys():
            raise _Lost(without_text(type(value), sorted(missing)))
        fields = {name: fields[name] for name in names}
    if private is not None:
        private = BaseModel.__getstate__(value)["__pydantic_private__"]  # those that are set
    return [fields, sorted(value.__pydantic_fields_set__), value.__pydantic_extra__, private]


def _encode_dataclass(value: Any, exactly: bool) -> msgpack.ExtType:
    kind: type = type(value)
    names = [field.name for field in dataclasses.fields(kind)]
    fields = {name: item for name in names if (item := getattr(value, name, _NOTHING)) is not _NOTHING}
    if len(fields) < len(names):
        raise TypeError(without_text(kind, [name for name in names if name not in fields]))
    others = getattr(value, "__dict__", {}).keys() - {*names, "__orig_class__"}
    others = {name for name in others if type(inspect.getattr_static(kind, name, None)) is not cached_property}
    rest = {name: _pack_any(value.__dict__[name]) for name in sorted(others)}  # or it is refused, for it would be lost
    try:
        marked = {name: _pack_any(fields[name]) for name in fields_of_any(kind)}
        state = _pack_exactly([fields | marked, rest])
        shown = None
    except (TypeError, ValueError, OverflowError):
        if exactly:
            raise
        state, shown = None, _pack_plainly(fields)
    return tagged("dataclass", class_key(kind), state, shown)


def _made_anew(kind: Any, private: dict[str, Any]) -> dict[str, Any]:
    """What a model makes itself of its private attributes that were not carried."""
    attributes = {name: item for name, item in kind.__private_attributes__.items() if name not in private}
    made = {name: item.default_factory() if item.default_factory else item.default for name, item in attributes.items()}
    return {name: item for name, item in made.items() if item is not _UNDEFINED}


def _read_model(reader: Reader, key: str, state: bytes | None, shown: bytes | None) -> Any:
    kind = reader.found(key, BaseModel)
    if kind is not None and state is not None and (parts := _exact(reader, state)) is not _NOTHING:
        fields, names, extra, private = parts
        if private is not None:
            private = _made_anew(kind, private) | private
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
    reader.refuse_inexact(key)
    if shown is not None:
        return reader.within(shown, False)
    fields, _, extra, _ = reader.within(state or b"", False)
    return fields | (extra or {})


def _read_dataclass(reader: Reader, key: str, state: bytes | None, shown: bytes | None) -> Any:
    kind = reader.found(key, object)
    if kind is not None and state is not None and (parts := _exact(reader, state)) is not _NOTHING:
        made: Any = (BaseException if issubclass(kind, BaseException) else object).__new__(kind)
        for name, item in {**parts[0], **parts[1]}.items():
            object.__setattr__(made, name, item)
        return made
    reader.refuse_inexact(key)
    return reader.within(shown, False) if shown is not None else reader.within(state or b"", False)[0]


def _exact(reader: Reader, state: bytes) -> Any:
    """The state of an object as it was; `_NOTHING` if it holds an object of a class that the reader does not know."""
    try:
        return reader.within(state, True)
    except _Inexact:
        if reader.exact and not reader.lenient:
            raise
        return _NOTHING


def _read_enum(reader: Reader, key: str, value: bytes) -> Any:
    kind = reader.found(key, enum.Enum)
    if kind is not None and (inner := _exact(reader, value)) is not _NOTHING:
        return kind(inner)
    reader.refuse_inexact(key)
    return reader.within(value, False)


def _read_named(reader: Reader, key: str, items: bytes) -> Any:
    kind = reader.found(key, tuple)
    if kind is not None and reader.exact and (inner := _exact(reader, items)) is not _NOTHING:
        return tuple.__new__(kind, inner)
    reader.refuse_inexact(key)
    return reader.within(items, False)


def _read_any(reader: Reader, data: bytes) -> Any:
    return unpacked(data, Reader(reader.classes, reader.exact, reader.levels - 1, lenient=True))


def _read_secret(reader: Reader, name: str, value: bytes) -> Any:
    return _SECRETS[name](reader.within(value, True))


def _read_items(kind: Callable[..., Any], plain: Callable[..., Any] | None = None) -> Callable[..., Any]:
    def read(reader: Reader, items: bytes, *more: Any) -> Any:
        value = reader.same_within(items)
        return kind(value, *more) if reader.exact or plain is None else plain(value)

    return read


def _read_default_dict(reader: Reader, factory: str | None, items: bytes) -> dict[Any, Any]:
    value: dict[Any, Any] = reader.same_within(items)
    return defaultdict(_FACTORIES[factory] if factory else None, value) if reader.exact else value


_PATHS: Final = {kind.__name__: kind for kind in (Path, PosixPath, PurePosixPath, PureWindowsPath, PurePath)}
_SECRETS: Final[Mapping[str, Any]] = {
    kind.__name__: kind for kind in (pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret)
}
_FACTORIES: Final[Mapping[str, Any]] = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}


def _encode_secret(value: Any) -> msgpack.ExtType:
    kind = next(base for base in type(value).__mro__ if base in _SECRETS.values())
    return tagged("secret", kind.__name__, _pack_exactly(value.get_secret_value()))


def _encode_default_dict(value: defaultdict[Any, Any]) -> msgpack.ExtType:
    factory = value.default_factory
    if factory is not None and factory not in _FACTORIES.values():
        raise TypeError(f"no way to carry a defaultdict of {factory!r}")
    return tagged("defaultdict", factory and factory.__name__, _pack_exactly(dict(value)))


_RESTORED: Final = frozenset(("model", "dataclass", "enum", "named"))
_VALUE_OBJECTS: Final[tuple[tuple[Any, Hook], ...]] = (
    (deque, lambda value: tagged("deque", _pack_plainly(list(value)), value.maxlen)),
    ((pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret), _encode_secret),
    (tuple(set(ADDRESSES.values())), lambda value: tagged("address", type(value).__name__, str(value))),
    (tuple(set(URLS.values())), lambda value: tagged("url", type(value).__name__, str(value))),
    (re.Pattern, encode_pattern),
    (complex, lambda value: tagged("complex", value.real, value.imag)),
    (fractions.Fraction, lambda value: tagged("fraction", str(value))),
    (range, lambda value: tagged("range", _pack_plainly([value.start, value.stop, value.step]))),
    (zoneinfo.ZoneInfo, lambda value: tagged("zone", zone_name(value, dt.time()))),
    (dt.timezone, lambda value: tagged("offset", _pack_plainly(value.utcoffset(None)))),
)
_EXACTLY: Final[Mapping[type, Hook]] = {
    **BY_TYPE,
    tuple: lambda value: tagged("tuple", _pack_exactly(list(value))),
    frozenset: lambda value: tagged("frozenset", _pack_exactly(list(value))),
    deque: lambda value: tagged("deque", _pack_exactly(list(value)), value.maxlen),
    OrderedDict: lambda value: tagged("ordered", _pack_exactly(dict(value))),
    Counter: lambda value: tagged("counter", _pack_exactly(dict(value))),
    defaultdict: _encode_default_dict,
}
_CERTAIN: Final[Mapping[type, Hook]] = {
    **BY_TYPE,
    tuple: lambda value: tagged("tuple", _pack(list(value), _encode_certainly)),
    frozenset: lambda value: tagged("frozenset", _pack(list(value), _encode_certainly)),
}
_OBJECTS: Final[Mapping[str, Callable[..., Any]]] = {
    "model": _read_model,
    "dataclass": _read_dataclass,
    "enum": _read_enum,
    "named": _read_named,
    "any": _read_any,
    "secret": _read_secret,
    "tuple": _read_items(tuple, list),
    "frozenset": _read_items(lambda items: frozenset(set_of(items)), set_of),
    "deque": _read_items(deque),
    "ordered": _read_items(OrderedDict, dict),
    "counter": _read_items(Counter, dict),
    "defaultdict": _read_default_dict,
    "path": lambda reader, kind, text: _PATHS[kind](text) if reader.exact else text,
    "address": lambda reader, kind, text: ADDRESSES[kind](text),
    "url": lambda reader, kind, text: URLS[kind](text),
    "pattern": read_pattern,
    "complex": lambda reader, real, imaginary: complex(real, imaginary),
    "fraction": lambda reader, text: fractions.Fraction(text),
    "range": lambda reader, parts: range(*reader.within(parts, True)),
    "zone": lambda reader, name: zoneinfo.ZoneInfo(name),
    "offset": lambda reader, offset: dt.timezone(reader.within(offset, True)),
}
