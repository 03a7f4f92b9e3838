"""A face: names that a package or module shows, each imported from where it is defined when it is first asked for, so
that whoever needs one of them pays for one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def late(face: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of the module `face`.

    The module imports the same names below `TYPE_CHECKING`, for those who read it; a test compares the two.

    Args:
        homes: module → the names it defines, separated by spaces; the last that has a name counts.  Names of `face`
            itself are its submodules.  No other name may be that of a submodule, which would take its place.
    """
    places = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> object:
        home = places.get(name)
        if home is None:
            raise AttributeError(f"module {face!r} has no attribute {name!r}", name=name, obj=sys.modules[face])
        value: object = import_module(f"{face}.{name}") if home == face else getattr(import_module(home), name)
        setattr(sys.modules[face], name, value)  # from now on it is found without us
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[face]), *places})

    return get, names
