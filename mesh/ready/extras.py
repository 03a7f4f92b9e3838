"""Libraries that not everybody needs are extras; without one, importing what needs it says how to get it."""

from __future__ import annotations

import importlib
from types import ModuleType

from bitactor.errors import ConfigurationError


class MissingExtra(ConfigurationError, ImportError):
    """A library is not installed; the message has the command that installs it."""


def missing_extra(extra: str, what: str, error: ModuleNotFoundError) -> MissingExtra:
    """What to raise, `from None`, when a library of `extra` cannot be imported."""
    return MissingExtra(f"{what} needs {error.name!r}, which is not installed; run: pip install 'bitactor[{extra}]'")


def required(module: str, extra: str) -> ModuleType:
    """The module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_extra(extra, f"mesh.ready ({module})", error) from None
