"""Users' functions as plans call them: what each parameter is given, and what a callback may take in its role."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bitactor.declare.backoff import Backoff
from bitactor.declare.context import Context
from bitactor.declare.functions import called, is_coroutine_function, refuse_generator, warn_of_near_misses, written
from bitactor.declare.resource import Resource
from bitactor.errors import DefinitionError, UnknownArgument, suggest
from bitactor.messages.values import shown
from bitactor.plan.arguments import converter_for
from bitactor.plan.declaration import Declaration
from bitactor.plan.plan import Callback

_INJECTABLE = {
    "run": frozenset(("ctx", "attempt")),
    "undo": frozenset(("ctx", "attempt", "result")),
    "compensate": frozenset(("ctx", "attempt", "error")),
    "backoff": frozenset(("ctx", "attempt", "error")),
    "when": frozenset(),
}


_NAME = r"(?:\w+\.)*Context"
_CONTEXT_TEXT = re.compile(rf"{_NAME}(\s*\|\s*None)?|None\s*\|\s*{_NAME}|(?:\w+\.)*Optional\[{_NAME}\]")
"""The annotation of a context whose name cannot be resolved, as where it is imported for type checkers alone."""

_SINGLE_DISPATCH = functools.singledispatch(called).__code__  # type: ignore[attr-defined]

RESERVED_FOR_CONTEXT = ("ctx", "attempt")
METHOD_PARAMETERS = ("self", "cls")


class Parameter(NamedTuple):
    """One parameter of a function."""

    name: str
    annotation: Any
    has_default: bool


def parameters_of(function: Callable[..., Any], what: str) -> list[Parameter]:
    try:
        signature = inspect.signature(function)
    except Exception as error:  # a builtin, or an object that does as it likes
        raise DefinitionError(
            f"{what}: the signature of {shown(function)} cannot be read ({shown(error)}); wrap it in a def"
        ) from None
    if isinstance(function, types.FunctionType) and function.__code__ is _SINGLE_DISPATCH:
        raise DefinitionError(
            f"{what}: {called(function)!r} is a singledispatch function, which is called by position, and arguments "
            "are passed by name; wrap it in a def"
        )
    hints = hints_of(function)
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DefinitionError(
                f"{what}: takes *{parameter.name}; name the parameters, for their names say what they are given"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise DefinitionError(
                f"{what}: {parameter.name!r} of {called(function)!r} is positional-only, but arguments are passed by "
                "name; wrap it in a def"
            )
        annotation = _context_or(hints.get(parameter.name, parameter.annotation), f"{what}: {parameter.name!r}")
        found.append(Parameter(parameter.name, annotation, parameter.default is not parameter.empty))
    return found


def _context_or(annotation: Any, what: str) -> Any:
    """`Context` itself for an annotation that says so in another way (`Context | None`, `Annotated[Context, …]`); else
    the annotation.

    Raises:
        DefinitionError: it is a class below `Context`, which nobody makes.
    """
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return Context if _context_or(typing.get_args(annotation)[0], what) is Context else annotation
    if origin in (typing.Union, types.UnionType):
        members = [_context_or(member, what) for member in typing.get_args(annotation)]
        return Context if any(member is Context for member in members) else annotation
    if isinstance(annotation, type) and annotation is not Context and Context in type.mro(annotation):
        raise DefinitionError(
            f"{what} asks for a {annotation.__name__}, and what is given is a Context itself; annotate it with Context"
        )
    return annotation


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, resolved; those that cannot be are left out."""
    inner = written(function)
    try:
        return typing.get_type_hints(inner, include_extras=True)
    except Exception:
        found: dict[str, Any] = {}
        for name, kind in getattr(inner, "__annotations__", {}).items():
            found |= _hint(inner, name, kind)
        return found


def _hint(function: Any, name: str, kind: Any) -> dict[str, Any]:
    """One annotation, resolved by itself, because another one of the function cannot be; empty if this one cannot
    either."""
    if isinstance(kind, str) and _CONTEXT_TEXT.fullmatch(kind):
        return {name: Context}
    alone = types.SimpleNamespace(__annotations__={name: kind})
    try:
        return typing.get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)
    except Exception:
        return {}


def unknown_hint(function: Any, parameter: str, known: Iterable[str]) -> str:
    """The end of an error about a parameter of `function` that is given nothing: what was probably meant."""
    if parameter in METHOD_PARAMETERS:
        return (
            "; it is a method declared in a class body, where there is no object yet: make one, and declare what it "
            f"has, as in workflow.add(obj.{called(function)})"
        )
    return f".{suggest(parameter, known)}"


def injected_as(workflow: Declaration, parameter: Parameter) -> str | None:
    """The thing that a parameter is given if it is neither input nor result: `ctx`, `attempt`, `resource:name`; else
    None."""
    if parameter.annotation is Context:
        return "ctx"
    if parameter.name in ("ctx", "attempt"):
        return parameter.name
    resource = resource_for(workflow.name, workflow.resources, parameter)
    return None if resource is None else f"resource:{resource}"


def resource_for(owner: str, resources: Mapping[str, Resource], parameter: Parameter) -> str | None:
    """The name of the resource that a parameter asks for, by its name or else by its annotation; None if it asks for
    none.

    Raises:
        DefinitionError: several resources are what its annotation says.
    """
    if parameter.name in resources:
        return parameter.name
    kind = _without_none(parameter.annotation)
    if not isinstance(kind, type):
        return None
    found = [resource.name for resource in resources.values() if resource.provides is kind]
    if len(found) > 1:
        raise DefinitionError(
            f"{owner!r}: parameter {parameter.name!r} asks for a {kind.__name__}, and {' and '.join(found)} are; "
            "call the parameter like one of them"
        )
    return found[0] if found else None


def _without_none(annotation: Any) -> Any:
    """The annotation within an `Annotated`, and the one beside None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _without_none(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return _without_none(members[0]) if len(members) == 1 else annotation
    return annotation


def resources_among(injected: Mapping[str, str]) -> tuple[str, ...]:
    prefix = "resource:"
    return tuple(what.removeprefix(prefix) for what in injected.values() if what.startswith(prefix))


def compile_backoff(
    backoff: Any, what: str, takes: Sequence[str], workflow: Declaration | None = None
) -> Backoff | Callback | None:
    if backoff is None or isinstance(backoff, Backoff):
        return backoff
    if callable(backoff):
        return compile_callback("backoff", backoff, takes, f"backoff of {what}", workflow)
    raise DefinitionError(f"{what}: backoff={backoff!r}; give a Backoff(initial, factor, cap, jitter) or a function")


def compile_callback(
    role: str, function: Callable[..., Any], takes: Sequence[str], what: str, workflow: Declaration | None = None
) -> Callback:
    if not callable(function):
        raise DefinitionError(f"{what} is {shown(function)}, which is not a callable; give a function")
    refuse_generator(what, function)
    injected, taken, convert_result, unused = {}, [], None, []
    for parameter in parameters_of(function, what):
        resource = (
            resource_for(workflow.name, workflow.resources, parameter)
            if workflow is not None and parameter.name not in takes
            else None
        )
        if parameter.annotation is Context:
            injected[parameter.name] = "ctx"
        elif parameter.name in _INJECTABLE[role]:
            injected[parameter.name] = parameter.name
            if parameter.name == "result":
                convert_result = converter_for(parameter.annotation, what)
        elif parameter.name in takes:
            taken.append(parameter.name)
        elif resource is not None:
            injected[parameter.name] = f"resource:{resource}"
        elif not parameter.has_default:
            allowed = [*sorted(_INJECTABLE[role]), *takes]
            raise UnknownArgument(
                f"{what}: parameter {parameter.name!r} is not to be had there"
                f"{unknown_hint(function, parameter.name, allowed)}"
            )
        else:
            unused.append(parameter.name)
    warn_of_near_misses(what, function, unused, (*_INJECTABLE[role], *takes), (*injected, *taken))
    is_async, resources = is_coroutine_function(function), resources_among(injected)
    return Callback(function, is_async, injected, tuple(taken), convert_result=convert_result, resources=resources)


def exception_types(retry_on: Any, what: str) -> tuple[type[BaseException], ...]:
    kinds = tuple(retry_on) if isinstance(retry_on, Sequence) else (retry_on,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise DefinitionError(f"{what}: retry_on={retry_on!r}; give an exception class or several")
    return kinds
