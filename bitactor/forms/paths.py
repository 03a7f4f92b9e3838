"""Import paths, `module:name`: the names of functions and classes in a graph that is plain data.

Reading a path imports its module, which runs that module's code: the data of a graph is to be trusted as code is.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, Final

from bitactor.errors import DefinitionError, suggest

PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

WRITTEN_AS: Final = {
    "bitactor.patterns.batch": "bitactor.patterns.batching",
    "mesh.ready.declare": "mesh.ready.declaring",
}
"""Module of ours → the name that it had when it was first written into data, and is written by ever since."""
_IS_NOW: Final = {written: module for module, written in WRITTEN_AS.items()}


def path_of(thing: Any, what: str) -> str:
    """The import path of a function or class.

    Raises:
        DefinitionError: it has none, or another thing is found there; says what to do.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    shown = f"{what} is {_shown(thing)}, which has no import path"
    if not isinstance(module, str) or not isinstance(name, str):
        raise DefinitionError(f"{shown}; give a function that is defined with `def` at the top level of a module")
    if "<lambda>" in name:
        raise DefinitionError(f"{shown}: it is a lambda; define it with `def` at the top level of a module")
    if "<locals>" in name:
        raise DefinitionError(f"{shown}: it is defined within a function; move it to the top level of a module")
    if module == "__main__":
        raise DefinitionError(f"{shown}: other programs cannot import from __main__; move it to a module of its own")
    path = f"{module}:{name}"
    try:
        found = undecorated(resolve_name(path))
    except (ValueError, ImportError, AttributeError):
        raise DefinitionError(
            f"{shown}: there is nothing at {path!r}; define it at the top level of a module"
        ) from None
    if found is not thing and not (isinstance(thing, types.MethodType) and found == thing):
        raise DefinitionError(f"{shown}: at {path!r} there is {_shown(found)}; give the two different names")
    return f"{WRITTEN_AS.get(module, module)}:{name}"


def at_path(path: str, what: str) -> Any:
    """The object at an import path; for a step that is declared there, its function.

    Raises:
        DefinitionError: there is nothing, or its module cannot be imported.
    """
    if not PATH.fullmatch(path):
        raise DefinitionError(f"{what}: {path!r} is no import path; write module:name, for example shop.orders:charge")
    module_name, _, name = path.partition(":")
    try:
        found = module = resolve_name(f"{_IS_NOW.get(module_name, module_name)}:")
    except (Exception, SystemExit) as error:  # a module may do anything while it is imported
        raise DefinitionError(f"{what}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = [other for other in vars(module) if not other.startswith("_")] if found is module else []
            raise DefinitionError(
                f"{what}: module {module_name!r} has no {name!r}.{suggest(part, known) if known else ''}"
            )
        found = getattr(found, part)
    return undecorated(found)


def function_at(path: str, what: str) -> Callable[..., Any]:
    """The function at an import path.

    Raises:
        DefinitionError: it is none; and see `at_path`.
    """
    found = at_path(path, what)
    if not callable(found):
        raise DefinitionError(f"{what}: {path!r} is {_shown(found)}, which cannot be called")
    function: Callable[..., Any] = found
    return function


def class_at(path: str, what: str, base: type[Any] = object) -> type[Any]:
    """The class, below `base`, at an import path.

    Raises:
        DefinitionError: it is none; and see `at_path`.
    """
    found = at_path(path, what)
    if not isinstance(found, type) or not issubclass(found, base):
        below = "" if base is object else f" below {base.__name__}"
        raise DefinitionError(f"{what}: {path!r} is {_shown(found)}, and no class{below}")
    return found


def undecorated(found: Any) -> Any:
    """The function of a declared step, for its decorator put the step in the function's place; anything else as it
    is."""
    return found.function if hasattr(found, "undo_function") and hasattr(found, "workflow") else found


def _shown(thing: Any) -> str:
    shown = repr(thing)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
