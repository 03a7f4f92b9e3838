"""Exit codes, and which error leads to which."""

from __future__ import annotations

from typing import Final

from bitactor.errors import (
    BitActorError,
    ConfigurationError,
    DefinitionError,
    InvalidInput,
    Overloaded,
    Unroutable,
)

OK: Final = 0
FAILED: Final = 1
"""Exit code 1: the workflow failed, was not found, or a check did not pass."""
USAGE: Final = 2
"""Exit code 2: what was typed cannot be done: an option, an input, a definition."""
UNREACHABLE: Final = 3
"""Exit code 3: nobody answered, or not in time."""
FENCED: Final = 75
"""Exit code 75, the system's word for a failure that passes: another process took over what a node ran."""
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

TABLE: Final = """
Exit codes: 0 done; 1 the workflow failed, was not found, or a check did not pass; \
2 usage: an option, an input or a definition is wrong; \
3 nobody answered, or not in time; 130 interrupted.

Environment: BITACTOR_STORE and BITACTOR_REGISTRY are the defaults of --store and --registry; \
NO_COLOR turns colours off.
""".strip()


class CommandError(Exception):
    """An error that ends a command: one line for people, an exit code for programs, and perhaps what to do about it."""

    def __init__(self, message: str, code: int = FAILED, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.details = details
        """More lines, such as the user's part of a traceback; shown before the message."""


class UsageError(CommandError):
    """What was typed cannot be done."""

    def __init__(self, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message, USAGE, hint, details)


def exit_code(error: BitActorError | OSError) -> int:
    """The exit code an error of BitActor's, or of the system's, stands for."""
    if isinstance(error, TimeoutError | ConnectionError | Unroutable | Overloaded):
        return UNREACHABLE
    if isinstance(error, ConfigurationError | DefinitionError | InvalidInput):
        return USAGE
    return FAILED
