"""A digest of a request as it was sent, to tell whether two requests are the same: in any process, by any release."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgpack
from pydantic import BaseModel

from bitactor.errors import InvalidInput
from bitactor.messages.objects import encode_object
from bitactor.messages.values import text_of, type_name

MAX_DEPTH: Final = 200
"""Deepest nesting that is looked at: more than tokens may have, where objects in them count once."""


def request_digest(given: Any) -> str:
    """128 bits, in hex, of what a caller gave, before defaults are filled in.

    The order of mappings and sets does not count, nor whether a whole number is an int or a float, a sequence a list or
    a tuple; of a model only the fields that were set count.

    Raises:
        InvalidInput: there is something in it that cannot be carried.
    """
    try:
        return blake2b(_canonical({} if given is None else given, MAX_DEPTH), digest_size=16).hexdigest()
    except BaseException as error:  # of the user's objects, which can do anything while they are looked at
        raise InvalidInput(f"a {type_name(given)} cannot be carried: {text_of(error)}") from error


def _canonical(value: Any, levels: int) -> bytes:
    """Bytes that are equal for equal requests."""
    if levels == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is bool or value is None:
        return b"\xc3" if value else b"\xc2" if value is False else b"\xc0"
    if issubclass(kind, float) and value.is_integer():
        value = int(value)
    if issubclass(kind, BaseModel):
        value = {name: getattr(value, name) for name in value.model_fields_set}
    elif dataclasses.is_dataclass(kind):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if isinstance(value, Mapping):
        rows = sorted(_canonical(key, levels - 1) + _canonical(item, levels - 1) for key, item in value.items())
        return b"{" + _joined(rows)
    if isinstance(value, set | frozenset):
        return b"<" + _joined(sorted(_canonical(item, levels - 1) for item in value))
    if isinstance(value, list | tuple):
        return b"[" + _joined([_canonical(item, levels - 1) for item in value])
    data: bytes = msgpack.packb(value, default=encode_object, strict_types=True)
    return data


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in (len(parts).to_bytes(4, "big"), *parts))
