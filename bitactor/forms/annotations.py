"""Types of input fields as text, as one would annotate with them: `list[int] | None`, `Literal['a', 'b']`,
`shop.orders:Line`.

A class that is no builtin is named by its import path, within other types in quotes: `list['shop.orders:Line']`.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin

from bitactor.errors import DefinitionError, suggest
from bitactor.forms.paths import PATH, at_path, path_of

_KNOWN: Final[Mapping[str, Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, bytes, list, dict, tuple, set, frozenset, object)
} | {"Any": Any}


def type_text(annotation: Any, what: str) -> str:
    """The text of a type annotation.

    Raises:
        DefinitionError: it has no such text.
    """
    text = _text(annotation, what)
    return text[1:-1] if PATH.fullmatch(text[1:-1]) and text.startswith("'") else text


def type_of(text: str, what: str) -> Any:
    """The type that a text stands for.

    Raises:
        DefinitionError: it says none.
    """
    if PATH.fullmatch(text):
        return at_path(text, what)
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise DefinitionError(
            f"{what}: {text!r} is no type; write for example int, list[str] or 'str | None'"
        ) from None
    return _read(tree, f"{what}: {text!r}")


def _text(annotation: Any, what: str) -> str:
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Any:
        return "Any"
    if annotation is Ellipsis:
        return "..."
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal and all(type(argument) in (str, int, bool, bytes, type(None)) for argument in arguments):
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (Union, types.UnionType):
        return " | ".join(_text(argument, what) for argument in arguments)
    if isinstance(origin, type) and arguments:
        return f"{_text(origin, what)}[{', '.join(_text(argument, what) for argument in arguments)}]"
    if isinstance(annotation, type) and origin is None:
        kind: type[Any] = annotation
        return kind.__name__ if _KNOWN.get(kind.__name__) is kind else repr(path_of(kind, what))
    raise DefinitionError(
        f"{what} is {annotation!r}, which has no name as text; declare the input as a pydantic model at the top of a "
        "module"
    )


def _read(node: ast.expr, what: str) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str() as path):
            return at_path(path, what)
        case ast.Name(id=name):
            if name not in _KNOWN:
                raise DefinitionError(
                    f"{what}: no type {name!r}; name a class as module:Class.{suggest(name, [*_KNOWN, 'Literal'])}"
                )
            return _KNOWN[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_read(left, what), _read(right, what)]  # noqa: UP007 - the members are known only now
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            return _literal(values, what)
        case ast.Subscript(value=generic, slice=inner):
            members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _generic(_read(generic, what), tuple(_member(member, what) for member in members), what)
    raise DefinitionError(f"{what} is no type; write for example int, list[str] or 'str | None'")


def _member(node: ast.expr, what: str) -> Any:
    return Ellipsis if isinstance(node, ast.Constant) and node.value is Ellipsis else _read(node, what)


def _literal(values: ast.expr, what: str) -> Any:
    try:
        found = ast.literal_eval(values)
    except ValueError:
        raise DefinitionError(f"{what}: Literal takes constants") from None
    return Literal[found if isinstance(found, tuple) else (found,)]


def _generic(kind: Any, members: tuple[Any, ...], what: str) -> Any:
    try:
        return types.GenericAlias(kind, members) if kind in _KNOWN.values() else kind[members]
    except TypeError as error:
        raise DefinitionError(f"{what}: {error}") from None
