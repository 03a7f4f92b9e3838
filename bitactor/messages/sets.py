"""Members of sets and keys of mappings, as they are decoded: what can be changed, in a form that has a hash."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
from typing_extensions import override


def hashable(value: Any) -> Any:
    """A decoded value as the member of a set or the key of a mapping: a tuple or frozenset in place of a list or
    set."""
    if type(value) is list:
        return tuple(hashable(inner) for inner in value)
    return frozenset(value) if type(value) is set else value


class FrozenDict(dict[Any, Any]):
    """Plain data of an object in a set: a mapping that cannot be changed, and has a hash therefore."""

    __slots__ = ()

    @override
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    @override
    def __reduce__(self) -> Any:
        return type(self), (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this object in a set is plain data that cannot be changed; take a copy of it: dict(…)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


class _Alike(FrozenDict):
    """One of several objects in a set that are the same plain data: it is none of the others, so that they stay
    several."""

    __slots__ = ()
    __hash__ = FrozenDict.__hash__

    @override
    def __eq__(self, other: object) -> bool:
        return self is other if type(other) is _Alike else dict.__eq__(self, other)

    @override
    def __ne__(self, other: object) -> bool:
        return not self == other


def _member(value: Any, mapping: type[FrozenDict] = FrozenDict) -> Any:
    """A decoded value as the member of a set: as `hashable`, and a mapping, the plain data of an object, frozen."""
    kind = type(value)
    if kind is dict or kind is FrozenDict:
        return mapping({key: _member(item, mapping) for key, item in value.items()})
    if kind is list or kind is tuple or kind is deque:
        return tuple(_member(item, mapping) for item in value)
    return frozenset(_member(item, mapping) for item in value) if kind is set or kind is frozenset else value


def set_of(items: list[Any]) -> set[Any] | list[Any]:
    """The set of the items; their list if there are some that no set can hold, in a stranger's bytes."""
    try:
        found = {_member(item) for item in items}
        return found if len(found) == len(items) else {_member(item, _Alike) for item in items}
    except TypeError:
        return items


def unpacked(data: bytes, hook: Callable[[int, bytes], Any]) -> Any:
    """The value in `data`, whose extensions `hook` decodes."""
    try:
        return msgpack.unpackb(data, ext_hook=hook, strict_map_key=False)
    except TypeError:  # a tuple or a set as a key
        return msgpack.unpackb(data, ext_hook=hook, strict_map_key=False, object_pairs_hook=_with_hashable_keys)


def _with_hashable_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {hashable(key): value for key, value in pairs}
