"""Values of a graph as plain data: constants, and objects that can be made again from their fields.

null, true, 3, 0.5, "x", [1, 2], {"a": 1}      themselves
{"tuple": [1, 2]}                              a tuple
{"import": "builtins:ValueError"}              a class or function
{"make": "bitactor.patterns:RateLimit", "with": {"name": "api", "per_second": 10}}
{"dict": {"tuple": 1}}                         a mapping that would be mistaken for one of these
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from bitactor.errors import BitActorError, DefinitionError, suggest
from bitactor.forms.paths import at_path, class_at, path_of
from bitactor.messages.codec import decode_token, encode_token

_TAGS: Final = (
    frozenset(("tuple",)),
    frozenset(("import",)),
    frozenset(("make",)),
    frozenset(("make", "with")),
    frozenset(("dict",)),
)


def constant(value: Any, what: str) -> Any:
    """`value` as a constant that steps get, provided that it is plain JSON.

    Raises:
        DefinitionError: it is not.
    """
    try:
        carried = decode_token(encode_token(value))
    except BitActorError as error:
        raise DefinitionError(f"{what}: {error}") from None
    wrong = _unplain(carried)
    if wrong is not None:
        raise DefinitionError(
            f"{what} holds {wrong!r}, a {type(wrong).__name__}, which plain data cannot say; make it in a step, or "
            "with a transform"
        )
    return carried


def _unplain(value: Any) -> Any:
    """The first thing in `value` that JSON cannot hold; None if there is none."""
    if value is None or isinstance(value, bool | int | str):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    if isinstance(value, list):
        return next((wrong for item in value if (wrong := _unplain(item)) is not None), None)
    if isinstance(value, dict):
        key = next((key for key in value if not isinstance(key, str)), None)
        return key if key is not None else _unplain(list(value.values()))
    return value


def data_of(value: Any, what: str) -> Any:
    """A value as plain data, from which `value_of` makes it again.

    Raises:
        DefinitionError: it, or something in it, cannot be written so.
    """
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [data_of(item, what) for item in value]}
    if isinstance(value, list):
        return [data_of(item, what) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        plain = {key: data_of(item, what) for key, item in value.items()}
        return {"dict": plain} if frozenset(plain) in _TAGS else plain
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return {"import": path_of(value, what)}
    if dataclasses.is_dataclass(value):
        return _object_data(value, what)
    raise DefinitionError(f"{what} is {value!r}, which plain data cannot say; use a dataclass, or what JSON has")


def value_of(data: Any, what: str) -> Any:
    """The value that `data_of` wrote.

    Raises:
        DefinitionError: a path leads nowhere, or an object cannot be made so.
    """
    if isinstance(data, list):
        return [value_of(item, what) for item in data]
    if not isinstance(data, Mapping):
        return data
    tag = frozenset(data)
    if tag not in _TAGS:
        return {key: value_of(item, what) for key, item in data.items()}
    if "make" in tag:
        return _make_object(data, what)
    if "import" in tag:
        return at_path(_text(data["import"], what), what)
    return tuple(value_of(item, what) for item in data["tuple"]) if "tuple" in tag else values_of(data["dict"], what)


def values_of(data: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Name → value of each entry of a mapping of data."""
    return {key: value_of(item, what) for key, item in data.items()}


def reference(thing: Any, what: str) -> Any:
    """A function as plain data: its import path, or how to make it if it is an object that can be called.

    Raises:
        DefinitionError: neither can be said.
    """
    return (
        _object_data(thing, what)
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type)
        else path_of(thing, what)
    )


def callable_of(data: Any, what: str) -> Callable[..., Any]:
    """The function that `reference` wrote.

    Raises:
        DefinitionError: there is nothing, or it cannot be called.
    """
    found = at_path(data, what) if isinstance(data, str) else _make_object(data, what)
    if not callable(found):
        raise DefinitionError(f"{what}: {data!r} is {found!r}, which cannot be called")
    function: Callable[..., Any] = found
    return function


def _object_data(value: Any, what: str) -> dict[str, Any]:
    kind = type(value)
    path, kept_as = path_of(kind, f"{what}: the class of {kind.__name__}(…)"), getattr(kind, "_kept_as", {})
    given = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        field = kept_as.get(name, name)
        if not hasattr(value, field):
            raise DefinitionError(
                f"{what}: {value!r} does not keep {name!r}, so it cannot be made again; keep it in a field of that name"
            )
        if getattr(value, field) != parameter.default:
            given[name] = data_of(getattr(value, field), f"{what}: {kind.__name__}.{name}")
    made: dict[str, Any] = {"make": path, "with": given} if given else {"make": path}
    again = _make_object(made, what)
    if again != value:
        raise DefinitionError(
            f"{what}: {value!r} is {again!r} when it is made again from its fields; keep all of it in fields"
        )
    return made


def _make_object(data: Mapping[str, Any], what: str) -> Any:
    unknown = next((key for key in data if key not in ("make", "with")), None)
    if unknown is not None or "make" not in data:
        raise DefinitionError(f'{what}: {dict(data)!r} is no object; write {{"make": "module:Class", "with": {{…}}}}')
    kind = class_at(_text(data["make"], what), what)
    if not dataclasses.is_dataclass(kind):
        raise DefinitionError(f"{what}: {data['make']!r} is no dataclass, and only those are made from data")
    given, known = values_of(data.get("with", {}), what), inspect.signature(kind).parameters
    for name in given:
        if name not in known:
            raise DefinitionError(f"{what}: {kind.__name__} has no {name!r}.{suggest(name, known)}")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"{what}: no {kind.__name__} can be made of {given!r}: {error}") from None


def _text(data: Any, what: str) -> str:
    if not isinstance(data, str):
        raise DefinitionError(f"{what}: {data!r} is no import path; write module:name")
    return data
