"""The `bitactor` command, and the check that our packages are found: a user's own `mesh.py` or `registry.py` may hide
them.

The `bitactor` command begins here: it looks before it imports `mesh`, since a user's `mesh.py` would hide everything
that is in our `mesh`, a check of this included.  `mesh` itself looks when it is imported, for programs that do without
the command; so do the commands that import from a directory of the user's.  Nothing in `bitactor` imports this module,
and it imports nothing of the packages it looks for until it has found them to be ours.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HOME: Final = Path(__file__).resolve().parents[1]
"""The directory that has our three packages, side by side."""
PACKAGES: Final = ("bitactor", "registry", "mesh")
_USAGE: Final = 2
_INTERRUPTED: Final = 130


def stranger(name: str) -> str | None:
    """The path that `import name` would find instead of our package of that name, `""` for nothing at all; None if it
    would find ours."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return ""
    origin = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    return None if Path(origin).resolve() == HOME / name / "__init__.py" else origin


def complaint(name: str, found: str) -> str:
    """The error text for a user whose file `found` hides our package `name`."""
    if not found:
        advice = "reinstall it with 'pip install --force-reinstall bitactor'"
        return f"BitActor's package {name!r} is missing from {HOME}: {advice}"
    shown = Path(found).parent if Path(found).name == "__init__.py" else Path(found)
    return (
        f"{shown} hides BitActor's own package {name!r} ({HOME / name}): "
        "rename it, or start from another directory and take its directory out of PYTHONPATH"
    )


class HiddenPackage(ImportError):
    """A file of the user hides one of our packages; `path` is that file."""


def require_own_packages() -> None:
    """Refuse to go on if one of our packages is hidden; called first of all when `mesh` is imported.

    Raises:
        HiddenPackage: names the file and says what to do.
    """
    found = stranger("registry")
    if found is not None:
        raise HiddenPackage(complaint("registry", found), name="registry", path=found)


def namesake(directory: Path) -> Path | None:
    """A module or package in `directory` that has the name of one of ours and is not ours; None if there is none."""
    if directory.resolve() == HOME:
        return None
    for name in PACKAGES:
        for candidate in (directory / f"{name}.py", directory / name / "__init__.py"):
            if candidate.is_file():
                return candidate if candidate.name != "__init__.py" else candidate.parent
    return None


def main() -> int:
    """Run the `bitactor` command; the value is its exit code."""
    for name in ("registry", "mesh"):
        found = stranger(name)
        if found is not None:
            print(f"error: {complaint(name, found)}", file=sys.stderr)
            return _USAGE
    try:
        # What modules make stays: going through it again and again is a third of what loading them takes.
        gc.disable()
        command = import_module("mesh.cli")
        gc.freeze()
        gc.enable()
        return int(command.main())
    except KeyboardInterrupt:  # while importing; later, the command line itself answers for it
        return _INTERRUPTED
