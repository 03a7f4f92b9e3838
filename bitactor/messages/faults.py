"""Exceptions into faults that can be carried and kept, and back."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from typing import Final

from bitactor import errors
from bitactor.errors import BitActorError, InvalidOutcome, ProtocolError, RemoteError
from bitactor.messages.codec import pack, unpack
from bitactor.messages.signal import Fault

MAX_MESSAGE: Final = 10_000
MAX_TRACEBACK: Final = 20_000
MAX_ARGUMENTS: Final = 64 * 1024

_BESIDE: Final = "_bitactor_beside"
_HOME: Final = __file__.rsplit("/", 3)[0]
# To tell our frames in a traceback from the user's.
_FRAMEWORK: Final = tuple(f"{_HOME}/{package}/" for package in ("bitactor", "registry", "mesh"))


def fault_of(error: BaseException) -> Fault:
    """The fault of an exception: its type, message, the user's part of its traceback, and its arguments if they are
    plain."""
    kind = type(error)
    try:
        message = str(error)
    except Exception as broken:
        message = f"<its message cannot be made: {type(broken).__name__}>"
    return Fault(
        f"{kind.__module__}:{kind.__qualname__}",
        utf8_safe(message[:MAX_MESSAGE]),
        utf8_safe(_users_traceback(error)),
        _arguments(error),
    )


def utf8_safe(text: str) -> str:
    """`text` with what UTF-8 cannot carry (half a surrogate pair, as in the name of an odd file) written as an
    escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def error_of(fault: Fault, declared: Mapping[str, type[BaseException]]) -> BaseException:
    """The exception a fault stands for: our own, one the workflow declares, or a `RemoteError`."""
    own = getattr(errors, fault.type.rpartition(":")[2], None) if fault.type.startswith("bitactor.errors:") else None
    kind = declared.get(fault.type)
    if kind is not None and fault.arguments is not None:
        with contextlib.suppress(Exception):
            return kind(*unpack(fault.arguments))
    elif isinstance(own, type) and issubclass(own, BitActorError) and own is not RemoteError:
        with contextlib.suppress(TypeError):
            return own(fault.message)
    return RemoteError(fault.type.rpartition(":")[2], fault.message, fault.traceback)


def with_beside(fault: Fault, what: str, error: BaseException, broken: BaseException) -> Fault:
    """The fault of `error`, with `broken`, which `what` (compensate, backoff) raised while it was dealt with.

    The live exception is kept at the live one, for a caller in this process.
    """
    second = fault_of(broken)
    with contextlib.suppress(AttributeError):  # an exception with slots
        error.__dict__[_BESIDE] = broken
    message = f"{fault.message} (and its {what} raised {second.summary()})"
    return fault._replace(message=message, beside=pack(list(second)))


def beside(fault: Fault, live: BaseException, declared: Mapping[str, type[BaseException]]) -> list[BaseException]:
    """Exceptions raised beside a fault, by compensate or backoff: the live one if there is one."""
    found = getattr(live, _BESIDE, None)
    return [found if found is not None else error_of(second, declared) for second in faults_beside(fault)]


def faults_beside(fault: Fault) -> list[Fault]:
    """The faults of what `compensate` or `backoff` raised while `fault` was dealt with: one, or none."""
    return [] if fault.beside is None else [Fault(*unpack(fault.beside))]


def _arguments(error: BaseException) -> bytes | None:
    try:
        return pack(list(error.args), MAX_ARGUMENTS)
    except (InvalidOutcome, ProtocolError):
        return None


def _users_traceback(error: BaseException) -> str:
    """The traceback without our own frames around the user's function."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(_FRAMEWORK)]
    shown = traceback.StackSummary.from_list(users or frames).format()
    return "".join([*shown, *traceback.format_exception_only(error)])[-MAX_TRACEBACK:]
