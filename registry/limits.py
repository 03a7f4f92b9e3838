"""The limits of names, holder ids and values, and the patterns that select names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import translate
from types import MappingProxyType
from typing import Any, Final

from bitactor.errors import InvalidOutcome, SignalTooLarge
from bitactor.messages.codec import pack, unpack
from registry.entry import InvalidEntry

MAX_NAME_CHARACTERS: Final = 255
MAX_VALUE_BYTES: Final = 64 * 1024
"""Largest value, in bytes once packed."""
MAX_NAMES_PER_HOLDER: Final = 100_000

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_name(name: str, what: str = "a name") -> None:
    """Raise `InvalidEntry` unless `name` has 1 to 255 characters, none of them a control character or lone
    surrogate."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        shown = f"{len(name):,} characters" if isinstance(name, str) else f"a {type(name).__name__}"
        raise InvalidEntry(f"{what} is a str of 1 to {MAX_NAME_CHARACTERS} characters, not {shown}")
    if not name.isprintable() and _CONTROL.search(name):
        raise InvalidEntry(f"{what} has no control characters: {name!r}")


def normal_value(value: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], int]:
    """`value` as every reader will see it (a read-only copy, as msgpack carries it) and its packed size in bytes.

    Raises:
        InvalidEntry: no mapping of str to what msgpack carries, too deep, or larger than `MAX_VALUE_BYTES`.
    """
    if not value:
        if value is not None and not isinstance(value, Mapping):
            raise InvalidEntry(f"a value is a mapping, not a {type(value).__name__}")
        return NOTHING, 1
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidEntry(f"a value is a mapping with str keys, not a {type(value).__name__}: {str(value)[:80]}")
    try:
        # One level more than the value itself: it must still fit where an entry's other fields surround it.
        packed = pack([value], MAX_VALUE_BYTES + 1)
    except SignalTooLarge as error:
        raise InvalidEntry(f"a value has at most {MAX_VALUE_BYTES:,} bytes packed: {error}") from error
    except InvalidOutcome as error:
        raise InvalidEntry(f"a value is what msgpack carries: {error}") from error
    return MappingProxyType(unpack(packed)[0]), len(packed) - 1


def name_filter(pattern: str) -> Callable[[str], bool]:
    """A function that says whether a name matches `pattern` as `fnmatch.fnmatchcase` would have it.

    `*` is any run of characters (dots and slashes too), `?` any one, `[ab]` and `[!ab]` one of, or none of, a set; case
    counts; everything else stands for itself, and `[*]`, `[?]`, `[[]` for the special characters.
    """
    if pattern == "*":
        return lambda _name: True
    if not any(special in pattern for special in "*?["):
        return pattern.__eq__
    matching = re.compile(translate(pattern)).match
    return lambda name: matching(name) is not None
