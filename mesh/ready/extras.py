"""Extras: libraries that not everybody needs; without one, importing what needs it says how to get it."""

from __future__ import annotations

from bitactor.errors import ConfigurationError


class MissingExtra(ConfigurationError, ImportError):
    """A library is not installed; the message has the command that installs it."""


def missing_extra(extra: str, what: str, error: ModuleNotFoundError) -> MissingExtra:
    """The error to raise, `from None`, when a library of `extra` cannot be imported."""
    return MissingExtra(f"{what} needs {error.name!r}, which is not installed; run: pip install 'bitactor[{extra}]'")
