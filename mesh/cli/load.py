"""Loading the object that the user names by MODULE:OBJECT."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

from bitactor.launcher import HOME, namesake
from mesh.cli import work
from mesh.cli.exits import UsageError

Definition: TypeAlias = "work.Workflow | work.Consumer"

_OURS: Final = tuple(f"{HOME / package}/" for package in ("bitactor", "registry", "mesh"))
_DEMO: Final = f"{HOME / 'mesh' / 'demo'}/"


def load(place: str) -> Any:
    """The object that MODULE:OBJECT names; modules are looked for in the working directory first.

    Raises:
        UsageError: there is no such object, or importing it fails; then with the user's part of the traceback.
    """
    module_name, separator, path = place.partition(":")
    if not separator or not path or not module_name:
        raise UsageError(f"{place!r} is not MODULE:OBJECT", "for example shop.orders:workflow, or service:mesh")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = ".".join(Path(module_name.removesuffix(".py")).parts)
        raise UsageError(
            f"{module_name!r} is a file name; a module is named with dots", f"try {dotted.lstrip('./')}:{path}"
        )
    module = _import(module_name)
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"module {module_name!r} has no {path!r}", _suggest_object(module, path))
        found = getattr(found, part)
    return found


def definitions(found: Any, place: str) -> Sequence[Definition]:
    """The workflows and consumers in a loaded object: one, several in a list, or those of a mesh.

    Raises:
        UsageError: the object is none of these.
    """
    if isinstance(found, work.Workflow | work.Consumer):
        return (found,)
    if (
        isinstance(found, list | tuple | set | frozenset)
        and found
        and all(isinstance(item, work.Workflow | work.Consumer) for item in found)
    ):
        return tuple(found)
    raise UsageError(
        f"{place} is {_kind(found)}", "name a Mesh, a Workflow, a consumer, or a list of workflows and consumers"
    )


def _import(name: str) -> ModuleType:
    here = Path.cwd()
    hiding = namesake(here)
    if hiding is not None:
        raise UsageError(
            f"{hiding} has the name of one of BitActor's own packages, so only one of the two can be imported",
            f"rename {hiding.name}, or start from another directory",
        )
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may do anything while it is imported, sys.exit() included
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{name}.".startswith(f"{error.name}.")
        ):
            raise UsageError(
                f"no module {error.name!r} in {here}, nor elsewhere on the path", _nearest(here, error.name)
            ) from None
        raise UsageError(
            f"importing {name!r} failed: {type(error).__name__}: {error}", details=_users_traceback(error)
        ) from None


def _users_traceback(error: BaseException) -> str:
    """The frames of a traceback that are the user's, without the importing machinery's and ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    lines = traceback.StackSummary.from_list(frames).format() if frames else []
    if isinstance(error, SyntaxError):
        lines += traceback.format_exception_only(error)[:-1]
    return "".join(lines)


def _is_users(filename: str) -> bool:
    if filename.startswith("<frozen importlib"):
        return False
    return filename.startswith(_DEMO) or not (filename.startswith(_OURS) or "/importlib/" in filename)


def _suggest_object(module: ModuleType, wanted: str) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, work.Workflow | work.Consumer | work.Mesh) and not name.startswith("_")
    ]
    near = get_close_matches(wanted, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {module.__name__}:{near[0]}?"
    return f"it has {', '.join(names)}" if names else "it has no Mesh, Workflow or consumer at all"


def _nearest(here: Path, name: str) -> str:
    there = [path.stem for path in here.glob("*.py")] + [path.parent.name for path in here.glob("*/__init__.py")]
    near = get_close_matches(name.partition(".")[0], there, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "start from the directory that has it, or put that into PYTHONPATH"


def _kind(found: Any) -> str:
    if isinstance(found, ModuleType):
        return "a module"
    if isinstance(found, list | tuple | set | frozenset):
        return "a list without, or not only with, workflows and consumers"
    return f"of type {type(found).__name__}"
