"""Whether what is imported is ours: a user's own `registry.py` or `bitactor.py` may hide the packages that `mesh`
needs.

The `bitactor` command looks before it imports `mesh` at all (`bitactor.launcher`); this is for programs that import
`mesh` themselves, and for the directories that `bitactor run` and `bitactor graph` import from.
"""

from __future__ import annotations

from pathlib import Path

from bitactor.launcher import HOME, PACKAGES, complaint, stranger


class HiddenPackage(ImportError):
    """A file of the user's has the name of one of our packages; `path` is that file."""


def require_own_packages() -> None:
    """Called first of all when `mesh` is imported.

    Raises:
        HiddenPackage: names the file and says what to do.
    """
    found = stranger("registry")
    if found is not None:
        raise HiddenPackage(complaint("registry", found), name="registry", path=found)


def namesake(directory: Path) -> Path | None:
    """A module or package in `directory` that has the name of one of ours and is not ours, if there is one."""
    if directory.resolve() == HOME:
        return None
    for name in PACKAGES:
        for candidate in (directory / f"{name}.py", directory / name / "__init__.py"):
            if candidate.is_file():
                return candidate if candidate.name != "__init__.py" else candidate.parent
    return None
