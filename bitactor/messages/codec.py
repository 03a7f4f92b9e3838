"""Tokens: values in, bytes out, and back, within limits; msgpack, never pickle.

A *token* is a value as the journal keeps it: an immutable scalar stands for itself, anything else is `Packed` bytes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import islice
from typing import Any, Final, Protocol, TypeVar, Union

import msgpack
from pydantic import BaseModel

from bitactor.errors import InvalidOutcome, MalformedSignal, SignalTooLarge
from bitactor.messages.objects import Classes, Reader, encode_model, encode_object
from bitactor.messages.sets import unpacked
from bitactor.messages.values import (
    DATETIME,
    MAX_TOKEN_BYTES,
    PAYLOAD,
    READABLE_BYTES,
    SCALARS,
    SET,
    TIME,
    NeedsObjects,
    Packed,
    UnknownClass,
    encode_value,
    named_text,
    shown,
    text_of,
    type_name,
)

MAX_DEPTH: Final = 64
"""Deepest nesting of lists and mappings in a token."""


T_co = TypeVar("T_co", covariant=True)


class ListOf(Protocol[T_co]):
    """A list for type checkers: of what it is a list is covariant, and a tuple is none."""

    def __iter__(self) -> Iterator[T_co]: ...

    def reverse(self) -> None: ...


Unchanged = Union[  # it refers to itself
    None, bool, int, float, str, bytes, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal,
    "ListOf[Unchanged]", "Mapping[Any, Unchanged]", "AbstractSet[Unchanged]",
]  # fmt: skip
"""Types whose values are of the same type once they were carried; a model is a mapping then, a tuple a list."""


_PLAIN: Final = Reader()
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1
_SCALARS: Final = frozenset((type(None), bool, int, float, str))
"""The types whose values are tokens that stand for themselves."""
_FIRST_OF_SCALARS: Final = frozenset(
    (*range(0x80), *range(0xE0, 0x100), *range(0xA0, 0xC4), *range(0xCA, 0xD4), *range(0xD9, 0xDC))
)
"""First bytes of values of these types, packed."""
_SMALL: Final = 256
"""Most bytes of tokens that are decoded at once; an `Unpacker` is an object of 40 KB, and takes longer to be made."""
_CONTAINER_BYTES: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))


def encode_token(value: Any, limit: int | None = None) -> Any:
    """The token of `value`: itself if it is a None, bool, int, float or str, else `Packed`.

    Carries what msgpack carries, integers of any size, and the values and objects of `bitactor.messages.objects`.
    Tuples come back as lists, enums as their value, paths as text, unless they are in an object that is restored.

    Raises:
        InvalidOutcome: the value, or something in it, cannot be carried; the message names the type.
        SignalTooLarge: more than `limit` bytes (None: the process's payload limit).
    """
    kind = type(value)
    if kind is int and _INT_MIN <= value <= _INT_MAX:
        return value
    if kind is str:
        most = PAYLOAD.bytes if limit is None else limit
        return value if len(value) * 4 <= most and value.isascii() else _checked_text(value, most)
    if value is None or kind is bool or kind is float:
        return value
    if kind is dict or kind is list:
        return Packed(pack(value, limit))
    # A scalar in disguise (an enum, a subclass of int or str) is the same token before and after a journal.
    return token_from_bytes(pack(value, limit))


def check_token(token: Any, limit: int) -> None:
    """Raises `InvalidOutcome` or `SignalTooLarge` unless `token` is what `encode_token` could have made."""
    kind = type(token)
    if kind is Packed:
        refuse_large(len(token), limit)
        if token and token[0] not in _FIRST_OF_SCALARS:
            return
    elif (
        ((kind is int or kind is str) and encode_token(token, limit) is token)
        or token is None or kind is bool or kind is float
    ):  # fmt: skip
        return
    raise InvalidOutcome(f"a {type_name(token)} where a token should be; encode_token makes one of a value")


def pack(value: Any, limit: int | None = None) -> bytes:
    """`value` as msgpack bytes; raises as `encode_token` does."""
    try:
        data, certain = _packed(value)
    except BaseException as error:  # of the user's objects, which can do anything while they are looked at
        raise InvalidOutcome(f"a {type_name(value)} cannot be carried: {_what_is_wrong(value, error)}") from error
    refuse_large(len(data), PAYLOAD.bytes if limit is None else limit)
    if not certain:
        try:
            unpack(data, READABLE_BYTES)
        except MalformedSignal as error:
            raise InvalidOutcome(f"a {type_name(value)} cannot be carried: {_what_is_wrong(value, error)}") from None
    return data


def pack_plainly(value: Any) -> Packed:
    """`value` as releases of before packed it, objects as plain data.

    Raises:
        InvalidOutcome: they could not carry it.
    """
    try:
        return Packed(msgpack.packb(value, default=_encode_plainly, strict_types=True))
    except BaseException as error:
        raise InvalidOutcome(f"a {type_name(value)} could not be carried: {text_of(error)}") from error


def _encode_plainly(value: Any) -> Any:
    """What releases of before packed for any value: for objects plain data."""
    kind = type(value)
    if issubclass(kind, BaseModel):
        return value.model_dump(mode="python")
    if issubclass(kind, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if issubclass(kind, dt.datetime | dt.time):
        return msgpack.ExtType(DATETIME if issubclass(kind, dt.datetime) else TIME, value.isoformat().encode())
    if issubclass(kind, Mapping):
        return dict(value)
    if issubclass(kind, set | frozenset):
        return msgpack.ExtType(SET, msgpack.packb(list(value), default=_encode_plainly, strict_types=True))
    if hasattr(kind, "__fspath__"):
        return kind.__fspath__(value)
    return encode_value(value)


def _packed(value: Any) -> tuple[bytes, bool]:
    """The bytes, and whether they are known to be decodable by the types in them."""
    kind = type(value)
    if kind is list:
        if value and issubclass(type(value[0]), BaseModel) and _are_models(value):
            models, are_certain = zip(*map(encode_model, value), strict=True)
            is_deep = any(_may_be_deep(model.data, MAX_DEPTH - 1) for model in models)
            return msgpack.packb(models), all(are_certain) and not is_deep
    elif kind is not dict and issubclass(kind, BaseModel):
        model, certain = encode_model(value)
        return msgpack.packb(model), certain and not _may_be_deep(model.data)
    try:
        data = msgpack.packb(value, default=encode_value, strict_types=True)
        return data, len(data) <= MAX_DEPTH or not _may_be_deep(data)
    except NeedsObjects:  # and out of this block, lest it be the context of what is raised
        pass
    return msgpack.packb(value, default=encode_object, strict_types=True), False


def _are_models(items: list[Any]) -> bool:
    return all(issubclass(type(item), BaseModel) for item in items)


# What is wrong with a value that cannot be carried

_NO_KEY: Final = (
    "is an object, or holds one, which is a mapping to readers that do not name its class, and no mapping can be a "
    "key; take a text, a number, an enum or a tuple of these as the key, or return a list of pairs"
)
_HOLDS_ITSELF: Final = "a value cannot hold itself; refer to it by a name or an id there, or leave it out"
_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels; flatten the value"
_OF_DEPTH: Final = ("nested deeper", "within each other")
_MOST_PARTS: Final = 100_000
_MOST_LEVELS: Final = 200


def _what_is_wrong(value: Any, error: BaseException) -> str:
    """Where in a value that cannot be carried, and why: of the innermost part that cannot be carried by itself.

    Args:
        error: what was raised for the whole of it.
    """
    path, around = "", [value]
    with suppress(BaseException):  # of the user's objects, which can do anything while they are looked at
        while len(around) < _MOST_LEVELS and (found := _wrong_part(around)) is not None:
            step, part, why = found
            path += step
            if not isinstance(why, BaseException):
                return why(_middle_out(path))
            error = why
            around.append(part)
    reason = _reason(error)
    if not path or any(word in reason for word in _OF_DEPTH):  # there is no one place for it
        return reason
    return f"its {_middle_out(path)}, a {type_name(around[-1])}: {reason}"


def _wrong_part(around: list[Any]) -> tuple[str, Any, BaseException | Callable[[str], str]] | None:
    """The first part of the last of `around`, each of which is in the one before, that cannot be carried: the step to
    it, itself, and what it raises or, if that is known, what to say of it, given the path; None if there is none."""
    here = around[-1]
    if issubclass(type(here), Mapping):
        for key in here:
            if type(key) is not int and _refusal({key: None}) is not None:
                return "", key, _words_on_key(key)
    for step, part in islice(_parts(here), _MOST_PARTS):
        if any(part is outer for outer in around):
            return step, part, _words_on_circle(part)
        if type(part) not in _HARMLESS and (error := _refusal(part)) is not None:
            return step, part, error
    return None


def _words_on_key(key: Any) -> Callable[[str], str]:
    inner = _refusal(key)
    why = _NO_KEY if inner is None else f"cannot be carried: {_reason(inner)}"
    return lambda path: f"its key {shown(key)}, a {type_name(key)},{f' at {path},' if path else ''} {why}"


def _words_on_circle(part: Any) -> Callable[[str], str]:
    return lambda path: f"its {path} is the {type_name(part)} that it is in: {_HOLDS_ITSELF}"


_HARMLESS: Final = SCALARS - {str}


def _refusal(value: Any) -> BaseException | None:
    """What a value raises when it is carried by itself."""
    try:
        data, certain = _packed(value)
        if not certain:
            unpack(data, max(len(data), READABLE_BYTES))
    except BaseException as error:
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What is directly in a value, and how to get there."""
    kind = type(value)
    if issubclass(kind, BaseModel):
        private = {
            name: item
            for name, item in (value.__pydantic_private__ or {}).items()
            if kind.__private_attributes__[name].default_factory is None
        }
        held = {name: item for name, item in vars(value).items() if name in kind.model_fields}
        yield from (
            (f".{name}", item) for name, item in {**held, **(value.__pydantic_extra__ or {}), **private}.items()
        )
    elif dataclasses.is_dataclass(kind):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(kind))
    elif issubclass(kind, Mapping):
        yield from ((f"[{shown(key, 60)}]", item) for key, item in value.items())
    elif issubclass(kind, enum.Enum):
        yield ".value", value.value
    elif issubclass(kind, set | frozenset):
        yield from ((f"{{{shown(item, 60)}}}", item) for item in value)
    elif issubclass(kind, list | tuple | deque):
        names = getattr(kind, "_fields", None)
        yield from ((f".{names[at]}" if names else f"[{at}]", item) for at, item in enumerate(value))


def _reason(error: BaseException) -> str:
    text = text_of(error)
    if issubclass(type(error), RecursionError) or "recursion" in text or "nested" in text:
        return _TOO_DEEP
    if issubclass(type(error), MalformedSignal):
        return f"{text}; flatten the value"
    if issubclass(type(error), UnicodeEncodeError):
        return f"{text}; carry such a text as bytes"
    return text if issubclass(type(error), (TypeError, ValueError)) else named_text(error)


def _middle_out(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:100]}…{path[-80:]}"


def decode_token(token: Any, classes: Classes | None = None) -> Any:
    """The value of a token, a fresh one at each call, so that no two readers share a mutable object.

    Objects of `classes` are restored, others are plain data.
    """
    return unpack(token, classes=classes) if type(token) is Packed else token


def unpack(data: bytes, limit: int = READABLE_BYTES, classes: Classes | None = None) -> Any:
    """The value in msgpack bytes that may come from a stranger.

    Raises:
        SignalTooLarge: more than `limit` bytes.
        MalformedSignal: not msgpack, trailing bytes, or nested deeper than `MAX_DEPTH`.
    """
    if len(data) > limit:
        raise SignalTooLarge(f"{len(data):,} bytes, the limit is {limit:,}")
    try:
        value = unpacked(data, _PLAIN if classes is None else Reader(classes))
    except RecursionError as error:
        raise MalformedSignal("nested too deep") from error
    except UnknownClass as error:
        raise MalformedSignal(str(error)) from None
    except BaseException as error:  # also of a user's class that is restored
        raise MalformedSignal(f"not a packed value: {named_text(error)}") from error
    if len(data) > MAX_DEPTH and _may_be_deep(data) and _is_deep(value):
        raise MalformedSignal(f"nested deeper than {MAX_DEPTH} levels")
    return value


def join_packed_lists(parts: Iterable[bytes]) -> Packed:
    """One packed list of the items of many, which are not decoded."""
    count, bodies = 0, []
    for part in parts:
        size, begin = _list_header(part)
        count += size
        bodies.append(part[begin:])
    return Packed(msgpack.Packer().pack_array_header(count) + b"".join(bodies))


def _list_header(data: bytes) -> tuple[int, int]:
    """The number of items of a packed list, and where the first of them begins."""
    first = data[0] if data else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, 1
    if first not in (0xDC, 0xDD):
        raise ValueError("not a packed list")
    begin = 3 if first == 0xDC else 5
    return int.from_bytes(data[1:begin], "big"), begin


def pack_tokens(tokens: dict[str, Any]) -> Packed:
    """The packed mapping of names to the values of tokens, which are not decoded."""
    if Packed not in map(type, tokens.values()):
        return Packed(msgpack.packb(tokens))
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(tokens))]
    for name, token in tokens.items():
        parts += packer.pack(name), token_bytes(token)
    return Packed(b"".join(parts))


def unpack_tokens(token: Any) -> dict[str, Any]:
    """The tokens of the values of a packed mapping of names, which are not decoded; of no mapping, none."""
    if type(token) is not Packed:
        return {}
    if len(token) <= _SMALL:
        try:
            values = msgpack.unpackb(token)
        except Exception:
            values = None  # what is wrong is said below
        if type(values) is dict and _SCALARS.issuperset(map(type, values.values())):
            return values
    unpacker = msgpack.Unpacker(max_buffer_size=len(token))
    unpacker.feed(token)
    found = {}
    for _ in range(unpacker.read_map_header()):
        name = unpacker.unpack()
        begin = unpacker.tell()
        unpacker.skip()
        found[name] = token_from_bytes(token[begin : unpacker.tell()])
    return found


def token_bytes(token: Any) -> bytes:
    """A token as bytes for a wire or a disk; `token_from_bytes` gives it back."""
    return token if type(token) is Packed else msgpack.packb(token)


def token_from_bytes(data: bytes) -> Any:
    """The token `token_bytes` was given: scalars as themselves, the rest still packed."""
    return unpack(data) if not data or data[0] in _FIRST_OF_SCALARS else Packed(data)


def refuse_large(size: int, limit: int) -> None:
    """Raise `SignalTooLarge` if a value of `size` bytes is more than `limit` allows."""
    if size > limit:
        raise SignalTooLarge(f"{size:,} bytes packed, {_limit_text(limit)}")


def _checked_text(value: str, limit: int) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidOutcome(f"a str cannot be carried: {error}") from error
    if size > limit:
        raise SignalTooLarge(f"{size:,} bytes of text, {_limit_text(limit)}")
    return value


def _limit_text(limit: int) -> str:
    """What the limit is, with the setting that raises it if it is that of values, and what to do."""
    cure = "keep large data elsewhere and pass a reference"
    raised = f" (payload_limit); {cure}, or raise that on all nodes" if limit == PAYLOAD.bytes else f"; {cure}"
    return f"the limit is {limit:,}{raised}"


def _may_be_deep(data: bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether containers could nest deeper than `limit`.

    The number of bytes that could open a container bounds the depth from above, and counting them is one pass in C;
    only where that does not settle it are the values themselves looked at.
    """
    return len(data) > limit and len(data) - len(data.translate(None, _CONTAINER_BYTES)) > limit


def _is_deep(value: Any) -> bool:
    """Whether lists and mappings in a decoded value nest deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if type(outer) is list or type(outer) is dict
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if type(inner) is list or type(inner) is dict
        ]
        if not level:
            return False
    return True


__all__ = [
    "MAX_DEPTH", "MAX_TOKEN_BYTES", "Packed", "check_token", "decode_token", "encode_token", "join_packed_lists",
    "pack", "pack_plainly", "pack_tokens", "refuse_large", "token_bytes", "token_from_bytes", "unpack", "unpack_tokens",
]  # fmt: skip
