"""A digest of a request as it was sent, to tell whether two requests are the same: in any process, by any release."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgpack
from pydantic import BaseModel

from bitactor.errors import InvalidInput
from bitactor.messages.objects import encode_object
from bitactor.messages.values import class_key, text_of, type_name

MAX_DEPTH: Final = 200
"""Deepest nesting that is looked at: more than tokens may have, where objects in them count once."""


Rows = Callable[[Any], "tuple[bytes, dict[str, Any]]"]
"""The class of a model or dataclass, in bytes, and its fields."""


def request_digest(given: Any) -> str:
    """128 bits, in hex, of what a caller gave, before defaults are filled in.

    The order of mappings and sets does not count, nor whether a whole number is an int or a float, a sequence a list or
    a tuple; of a model its class and the fields that were set count.

    Raises:
        InvalidInput: there is something in it that cannot be carried.
    """
    return _digest(given, lambda value: (_class_of(value), _set_fields(value)))


def valid_digest(values: Mapping[str, Any]) -> str:
    """As `request_digest`, of an input that is valid: of a model all fields count."""
    return _digest(values, lambda value: (_class_of(value), _all_fields(value)))


def classless_digest(given: Any) -> str:
    """The digest that releases of before took of both: classes of models and dataclasses did not count."""
    return _digest(given, lambda value: (b"", _set_fields(value)))


def _class_of(value: Any) -> bytes:
    kind: type = type(value)
    return f"({class_key(kind).rpartition(':')[0]})".encode()


def _set_fields(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in value.model_fields_set}
    return _all_fields(value)


def _all_fields(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return dict(BaseModel.__iter__(value))
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _digest(given: Any, rows_of: Rows) -> str:
    try:
        return blake2b(_canonical({} if given is None else given, MAX_DEPTH, rows_of), digest_size=16).hexdigest()
    except BaseException as error:  # of the user's objects, which can do anything while they are looked at
        raise InvalidInput(f"a {type_name(given)} cannot be carried: {text_of(error)}") from error


def _canonical(value: Any, levels: int, rows_of: Rows) -> bytes:
    """Bytes that are equal for equal requests."""
    if levels == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is bool or value is None:
        return b"\xc3" if value else b"\xc2" if value is False else b"\xc0"
    if issubclass(kind, float) and value.is_integer():
        value = int(value)
    made = b""
    if issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind):
        made, value = rows_of(value)

    def within(item: Any) -> bytes:
        return _canonical(item, levels - 1, rows_of)

    if isinstance(value, Mapping):
        return made + b"{" + _joined(sorted(within(key) + within(item) for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return b"<" + _joined(sorted(map(within, value)))
    if isinstance(value, list | tuple):
        return b"[" + _joined([*map(within, value)])
    data: bytes = msgpack.packb(value, default=encode_object, strict_types=True)
    return data


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in (len(parts).to_bytes(4, "big"), *parts))
