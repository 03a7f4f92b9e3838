"""Tokens: values in, bytes out, and back, within limits; msgpack, never pickle.

A *token* is a value as the journal keeps it: an immutable scalar stands for itself, anything else is `Packed` bytes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, Union, runtime_checkable

import msgpack
from pydantic import BaseModel

from bitactor.errors import InvalidOutcome, MalformedSignal, SignalTooLarge

MAX_TOKEN_BYTES: Final = 4 * 1024 * 1024
"""Largest payload of one step, input or emitted signal."""
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


class Packed(bytes):
    """A value packed as msgpack.  Its own type, so that a user's `bytes` is never mistaken for one."""

    __slots__ = ()


_EXT_BIG_INT: Final = 7
_EXT_SET: Final = 8
_MAX_SETS_IN_SETS: Final = 4

_SCALARS: Final = frozenset((bool, float, type(None)))
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1
_CONTAINER_BYTES: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))


def encode_token(value: Any, limit: int = MAX_TOKEN_BYTES) -> Any:
    """The token of `value`: itself if it is a None, bool, int, float or str, else `Packed`.

    Carries what msgpack carries, and datetime, date, time, timedelta, UUID, Decimal, integers of any size, sets, enums
    (as their value), paths (as text), dataclasses and pydantic models (as mappings).  Tuples come back as lists.

    Raises:
        InvalidOutcome: the value, or something in it, cannot be carried; the message names the type.
        SignalTooLarge: more than `limit` bytes.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is str:
        if len(value) * 4 <= limit and value.isascii():
            return value
        return _checked_text(value, limit)
    if kind is int and _INT_MIN <= value <= _INT_MAX:
        return value
    if kind is dict or kind is list:
        return Packed(pack(value, limit))
    # A scalar in disguise (an enum, a subclass of int or str) is the same token before and after a journal.
    return token_from_bytes(pack(value, limit))


def check_token(token: Any) -> None:
    """Raises `InvalidOutcome` or `SignalTooLarge` unless `token` is what `encode_token` could have made."""
    kind = type(token)
    if kind is Packed:
        if len(token) > MAX_TOKEN_BYTES:
            raise SignalTooLarge(
                f"{len(token):,} bytes packed, the limit is {MAX_TOKEN_BYTES:,}; keep large data elsewhere and pass a "
                "reference"
            )
        with suppress(MalformedSignal):
            if type(token_from_bytes(token[:9])) is Packed:  # else it is a scalar, which stands for itself
                return
    elif kind in _SCALARS or ((kind is str or kind is int) and encode_token(token) is token):
        return
    raise InvalidOutcome(f"a {kind.__name__} where a token should be; encode_token makes one of a value")


def pack(value: Any, limit: int = MAX_TOKEN_BYTES) -> bytes:
    """`value` as msgpack bytes; raises as `encode_token` does."""
    try:
        data: bytes = msgpack.packb(value, default=_encode_extra, strict_types=True)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidOutcome(f"a {type(value).__name__} cannot be carried: {error}") from error
    if len(data) > limit:
        raise SignalTooLarge(
            f"{len(data):,} bytes packed, the limit is {limit:,}; keep large data elsewhere and pass a reference"
        )
    if _may_be_deep(data):
        try:
            unpack(data, limit)
        except MalformedSignal as error:
            raise InvalidOutcome(f"a {type(value).__name__} cannot be carried: {error}; flatten the value") from None
    return data


def decode_token(token: Any) -> Any:
    """The value of a token, a fresh one at each call, so that no two readers share a mutable object."""
    return unpack(token) if type(token) is Packed else token


def unpack(data: bytes, limit: int = MAX_TOKEN_BYTES) -> Any:
    """The value in msgpack bytes that may come from a stranger.

    Raises:
        SignalTooLarge: more than `limit` bytes.
        MalformedSignal: not msgpack, trailing bytes, or nested deeper than `MAX_DEPTH`.
    """
    if len(data) > limit:
        raise SignalTooLarge(f"{len(data):,} bytes, the limit is {limit:,}")
    try:
        try:
            value = msgpack.unpackb(data, ext_hook=_decode_extra, strict_map_key=False)
        except TypeError:  # a tuple or a set as a key
            value = msgpack.unpackb(
                data, ext_hook=_decode_extra, strict_map_key=False, object_pairs_hook=_with_hashable_keys
            )
    except RecursionError as error:
        raise MalformedSignal("nested too deep") from error
    except (ValueError, TypeError, KeyError, OverflowError, ArithmeticError, msgpack.UnpackException) as error:
        raise MalformedSignal(f"not a packed value: {type(error).__name__}: {error}") from error
    if _may_be_deep(data) and _is_deep(value):
        raise MalformedSignal(f"nested deeper than {MAX_DEPTH} levels")
    return value


def join_packed_lists(parts: Iterable[bytes]) -> Packed:
    """One packed list of the items of many, which are not decoded."""
    count, bodies = 0, []
    for part in parts:
        unpacker = msgpack.Unpacker(max_buffer_size=len(part))
        unpacker.feed(part[:9])
        count += unpacker.read_array_header()
        bodies.append(part[unpacker.tell() :])
    return Packed(msgpack.Packer().pack_array_header(count) + b"".join(bodies))


def token_bytes(token: Any) -> bytes:
    """A token as bytes for a wire or a disk; `token_from_bytes` gives it back."""
    return token if type(token) is Packed else msgpack.packb(token)


def token_from_bytes(data: bytes) -> Any:
    """The token `token_bytes` was given: scalars as themselves, the rest still packed."""
    first = data[0] if data else 0xC1
    if first < 0x80 or first >= 0xE0 or 0xA0 <= first <= 0xC3 or 0xCA <= first <= 0xD3 or 0xD9 <= first <= 0xDB:
        return unpack(data)
    return Packed(data)


def _checked_text(value: str, limit: int) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidOutcome(f"a str cannot be carried: {error}") from error
    if size > limit:
        raise SignalTooLarge(
            f"{size:,} bytes of text, the limit is {limit:,}; keep large data elsewhere and pass a reference"
        )
    return value


def _encode_extra(value: Any) -> Any:
    encode = _EXACT.get(type(value))
    if encode is not None:
        return encode(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="python")
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for kind, encode in _ENCODERS:
        if isinstance(value, kind):
            return encode(value)
    raise TypeError(
        f"no way to carry a {type(value).__module__}.{type(value).__qualname__}; return plain data or a model"
    )


def _encode_set(value: Iterable[Any]) -> msgpack.ExtType:
    data = pack(list(value))
    _decode_set(data, _MAX_SETS_IN_SETS)  # what would not come back (a model in a set, say) is refused here and now
    return msgpack.ExtType(_EXT_SET, data)


def _encode_int(value: int) -> Any:
    if _INT_MIN <= value <= _INT_MAX:
        return value
    return msgpack.ExtType(_EXT_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _decode_set(data: bytes, levels: int) -> set[Any]:
    if levels == 0:
        raise ValueError(f"sets within sets, more than {_MAX_SETS_IN_SETS} of them")
    values = msgpack.unpackb(
        data, ext_hook=lambda code, inner: _decode_extra(code, inner, levels - 1), strict_map_key=False
    )
    return {_hashable(value) for value in values}


def _hashable(value: Any) -> Any:
    """A decoded value as the member of a set or the key of a mapping: a tuple or frozenset in place of a list or
    set."""
    if type(value) is list:
        return tuple(_hashable(inner) for inner in value)
    return frozenset(value) if type(value) is set else value


def _with_hashable_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in pairs}


def _decode_extra(code: int, data: bytes, levels: int = _MAX_SETS_IN_SETS) -> Any:
    decode = _DECODERS.get(code)
    if decode is not None:
        return decode(data)
    if code == _EXT_SET:
        return _decode_set(data, levels)
    raise ValueError(f"unknown extension type {code}")


def _timedelta(data: bytes) -> dt.timedelta:
    days, seconds, microseconds = msgpack.unpackb(data)
    return dt.timedelta(days, seconds, microseconds)


def _extension(code: int, to_bytes: Callable[[Any], bytes]) -> Callable[[Any], msgpack.ExtType]:
    return lambda value: msgpack.ExtType(code, to_bytes(value))


@runtime_checkable
class _Path(Protocol):
    def __fspath__(self) -> Any: ...


# Type, code, its bytes, and back. The order counts: a datetime is a date.
_EXTENSIONS: Final[Sequence[tuple[type, int, Callable[[Any], bytes], Callable[[bytes], Any]]]] = (
    (dt.datetime, 1, lambda value: value.isoformat().encode(), lambda data: dt.datetime.fromisoformat(data.decode())),
    (dt.date, 2, lambda value: value.isoformat().encode(), lambda data: dt.date.fromisoformat(data.decode())),
    (dt.time, 3, lambda value: value.isoformat().encode(), lambda data: dt.time.fromisoformat(data.decode())),
    (dt.timedelta, 4, lambda value: msgpack.packb([value.days, value.seconds, value.microseconds]), _timedelta),
    (uuid.UUID, 5, lambda value: value.bytes, lambda data: uuid.UUID(bytes=data)),
    (decimal.Decimal, 6, lambda value: str(value).encode(), lambda data: decimal.Decimal(data.decode())),
)
_DECODERS: Final[Mapping[int, Callable[[bytes], Any]]] = {
    **{code: decode for _, code, _, decode in _EXTENSIONS},
    _EXT_BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
}
_ENCODERS: Final[Sequence[tuple[type, Callable[[Any], Any]]]] = (
    (tuple, list),
    (list, list),
    (Mapping, dict),
    (set, _encode_set),
    (frozenset, _encode_set),
    *((kind, _extension(code, encode)) for kind, code, encode, _ in _EXTENSIONS),
    (_Path, lambda value: value.__fspath__()),
    (int, lambda value: _encode_int(int(value))),
    (str, str.__str__),
    (float, float),
    *((kind, bytes) for kind in (bytes, bytearray, memoryview)),
)
_EXACT: Final = dict(_ENCODERS)


def _may_be_deep(data: bytes) -> bool:
    """Whether containers could nest deeper than `MAX_DEPTH`.

    The number of bytes that could open a container bounds the depth from above, and counting them is one pass in C;
    only where that does not settle it are the values themselves looked at.
    """
    return len(data) > MAX_DEPTH and len(data) - len(data.translate(None, _CONTAINER_BYTES)) > MAX_DEPTH


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
    "pack", "token_bytes", "token_from_bytes", "unpack",
]  # fmt: skip
