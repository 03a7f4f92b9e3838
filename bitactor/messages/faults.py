"""Exceptions into faults that can be carried and kept, and back."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from bitactor import errors
from bitactor.errors import (
    BitActorError,
    DeadlineExceeded,
    InvalidOutcome,
    ProtocolError,
    RemoteError,
    TtlExpired,
)
from bitactor.messages.codec import pack, unpack
from bitactor.messages.signal import Fault
from bitactor.messages.values import READABLE_BYTES, class_text, exact_text, message_of, named_text

MAX_MESSAGE: Final = 10_000
MAX_TRACEBACK: Final = 20_000
MAX_ARGUMENTS: Final = 64 * 1024
MAX_CHAIN: Final = 32
"""Most exceptions that one takes along: causes, contexts, members of groups, and theirs."""
MAX_DEPTH: Final = 20
"""Most exceptions in a row, each of which came with the one before: as plain data they must still be carried."""
MAX_INNER_TRACEBACK: Final = 4_000
MAX_NOTES: Final = 16
MAX_NOTE: Final = 2_000
MAX_CHAIN_BYTES: Final = 1024 * 1024
"""Most bytes of what comes with an exception, give or take one of these: all of it has to fit into a token."""
_FURTHEST: Final = 100_000

_BESIDE: Final = "_bitactor_beside"
_HOME: Final = __file__.rsplit("/", 3)[0]
# To tell our frames in a traceback from the user's.
_FRAMEWORK: Final = tuple(f"{_HOME}/{package}/" for package in ("bitactor", "registry", "mesh"))


_LINKS: Final = {
    "cause": "\nThe above exception was the direct cause of the following exception:\n\n",
    "context": "\nDuring handling of the above exception, another exception occurred:\n\n",
}
_HOW: Final = {"cause": "caused by", "context": "while handling", "member": "member"}


def fault_of(error: BaseException) -> Fault:
    """The fault of an exception: its type, message, the user's part of its traceback, its arguments if they are plain,
    and what came with it: notes, cause or context, the members of a group.

    The exception's own methods may raise anything; as much is kept as can be had.
    """
    return _fault_of(error, Budget(MAX_CHAIN, MAX_CHAIN_BYTES), MAX_TRACEBACK)


class Budget:
    """How many exceptions of how many bytes a fault may still take along, and those on the way to the one that is
    looked at."""

    __slots__ = ("left", "path", "room")

    def __init__(self, left: int, room: int) -> None:
        self.left = left
        self.room = room
        self.path: list[BaseException] = []

    def is_spent(self) -> bool:
        """Whether none may be taken along any more."""
        return self.left <= 0 or self.room <= 0 or len(self.path) >= MAX_DEPTH

    def takes(self, error: BaseException | None) -> bool:
        """Whether this one may be taken along: it is one, there is room, and it is not what it came with."""
        if error is None or self.is_spent():
            return False
        return not any(error is other for other in self.path)


def _fault_of(error: BaseException, budget: Budget, longest: int) -> Fault:
    budget.left -= 1
    budget.path.append(error)
    fault = Fault(
        type_path(type(error)),
        utf8_safe(_cut(message_of(error), min(longest, MAX_MESSAGE))),
        utf8_safe(_users_traceback(error, longest))[-longest:],
        _arguments(error, MAX_ARGUMENTS if longest == MAX_TRACEBACK else longest),
    )
    notes = _kept_notes(error)
    budget.room -= sum(map(len, (text.encode() for text in (fault.message, fault.traceback, *notes))))
    fault = fault._replace(chain=_chain(error, budget, notes))
    budget.path.pop()
    return fault


def _cut(text: str, longest: int) -> str:
    """`text`, or its beginning, with how much there was."""
    return text if len(text) <= longest else f"{text[: longest - 40]}… ({len(text):,} characters)"


def _kept_notes(error: BaseException) -> list[str]:
    notes = _notes(error)
    kept = [utf8_safe(_cut(note, MAX_NOTE)) for note in notes[:MAX_NOTES]]
    return kept if len(notes) <= MAX_NOTES else [*kept, f"(and {len(notes) - MAX_NOTES:,} more notes)"]


def type_path(kind: type) -> str:
    """A class as a fault names it, `module:name`, whatever its metaclass does."""
    return utf8_safe(f"{class_text(kind, '__module__')}:{class_text(kind, '__qualname__')}")


def _of(error: BaseException, attribute: str) -> Any:
    """What `BaseException` has under that name, whatever the exception's class has."""
    return vars(BaseException)[attribute].__get__(error)


def traceback_of(error: BaseException) -> TracebackType | None:
    """The traceback of an exception, whatever its class says of its attributes."""
    found: TracebackType | None = _of(error, "__traceback__")
    return found


def raised_text(error: BaseException) -> str:
    """An exception by name and message, and where it was raised."""
    last = list(traceback.walk_tb(traceback_of(error)))[-1:]
    where = [
        f" in {frame.f_code.co_name} ({frame.f_code.co_filename.rpartition('/')[2]}:{line})" for frame, line in last
    ]
    return utf8_safe("".join((named_text(error), *where)))


def _chain(error: BaseException, budget: Budget, notes: list[str]) -> bytes | None:
    found: dict[str, Any] = {"notes": notes} if notes else {}
    cause, context = _of(error, "__cause__"), _of(error, "__context__")
    if _of(error, "__suppress_context__"):
        context = None
    link, other = ("context", context) if cause is None else ("cause", cause)
    if budget.takes(other):
        found[link] = _fault_of(other, budget, MAX_INNER_TRACEBACK)
    elif other is not None and budget.is_spent():
        found["notes"] = [*notes, _left_out(other)]
    elif cause is not None and budget.takes(context):  # the cause is what it came with
        found["context"] = _fault_of(context, budget, MAX_INNER_TRACEBACK)
    if issubclass(type(error), BaseExceptionGroup):
        members = BaseExceptionGroup.exceptions.__get__(error)
        kept = [_fault_of(member, budget, MAX_INNER_TRACEBACK) for member in members if budget.takes(member)]
        found["members"] = kept
        if len(kept) < len(members):
            found["left_out"] = len(members) - len(kept)
    try:
        return _packed(found)
    except BitActorError:
        return None


def _left_out(error: BaseException) -> str:
    """What is said of exceptions that are not taken along: how many there are in this row, and the first of all."""
    seen: dict[int, BaseException] = {}
    while id(error) not in seen and len(seen) < _FURTHEST:
        seen[id(error)] = error
        before = _of(error, "__cause__")
        if before is None and not _of(error, "__suppress_context__"):
            before = _of(error, "__context__")
        if before is None:
            break
        error = before
    return f"({len(seen):,} more in this row are left out, the first of all: {utf8_safe(_cut(named_text(error), 400))})"


def _notes(error: BaseException) -> list[str]:
    try:
        notes = _of(error, "__dict__").get("__notes__", ())
        given = list(notes) if isinstance(notes, list | tuple) else []
        return [exact_text(note) for note in given if issubclass(type(note), str)]
    except BaseException:
        return []


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, whatever its class says of its attributes."""
    with contextlib.suppress(BaseException):
        notes = object.__getattribute__(error, "__dict__").setdefault("__notes__", [])
        list.append(notes, note)


def shortened(names: Sequence[str], kept: int = 4) -> list[str]:
    """`names` without the middle if there are many: the first few, how many more there are, and the last few."""
    if len(names) <= 2 * kept + 1:
        return list(names)
    return [*names[:kept], f"… {len(names) - 2 * kept} more …", *names[-kept:]]


def utf8_safe(text: str) -> str:
    """`text` with what UTF-8 cannot carry (half a surrogate pair, as in the name of an odd file) written as an
    escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def error_of(fault: Fault, declared: Mapping[str, type[BaseException]]) -> BaseException:
    """The exception a fault stands for, with what came with it: our own, one the workflow declares, a group, or a
    `RemoteError`."""
    parts = came_with(fault)
    error = _bare_error(fault, declared, parts)
    for note in parts.get("notes", ()):
        add_note(error, note)
    for name in _LINKS:
        if name in parts:  # past what the exception's class says of its attributes
            vars(BaseException)[f"__{name}__"].__set__(error, error_of(parts[name], declared))
    if "left_out" in parts:
        add_note(error, f"(and {parts['left_out']:,} more)")
    return error


def _bare_error(fault: Fault, declared: Mapping[str, type[BaseException]], parts: Mapping[str, Any]) -> BaseException:
    own = getattr(errors, fault.type.rpartition(":")[2], None) if fault.type.startswith("bitactor.errors:") else None
    kind = declared.get(fault.type)
    with contextlib.suppress(BaseException):  # the class is the user's
        if kind is not None and issubclass(kind, BaseExceptionGroup) and parts.get("members"):
            return kind(_group_message(fault.message), _members(parts, declared))
        if kind is not None and fault.arguments is not None:
            made = kind(*unpack(fault.arguments))
            if issubclass(type(made), BaseException):  # or its `__new__` made something else
                return made
        if isinstance(own, type) and issubclass(own, BitActorError) and own is not RemoteError:
            if issubclass(own, TtlExpired | DeadlineExceeded) and fault.arguments is not None:
                return own(*unpack(fault.arguments))
            return own(fault.message)
        if kind is None and parts.get("members"):
            return BaseExceptionGroup(_group_message(fault.message), _members(parts, declared))
    return RemoteError(fault.type.rpartition(":")[2], fault.message, fault.traceback)


def _members(parts: Mapping[str, Any], declared: Mapping[str, type[BaseException]]) -> list[BaseException]:
    return [error_of(member, declared) for member in parts["members"]]


def _group_message(message: str) -> str:
    """The message without what every group adds to it: ` (3 sub-exceptions)`."""
    return re.sub(r" \(\d+ sub-exceptions?\)$", "", message)


def came_with(fault: Fault) -> dict[str, Any]:
    """What came with a fault: `notes`, the fault of its `cause` or `context`, those of the `members` of a group; how
    many of these were `left_out`."""
    return {} if fault.chain is None else _changed(unpack(fault.chain), lambda fields: Fault(*fields))


def _changed(parts: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The parts of a chain with what stands for each fault in them changed."""
    found = {name: parts[name] for name in ("notes", *_LINKS, "members", "left_out") if name in parts}
    found |= {name: change(found[name]) for name in _LINKS if name in found}
    if "members" in found:
        found["members"] = [change(member) for member in found["members"]]
    return found


def _packed(parts: Mapping[str, Any]) -> bytes | None:
    return pack(_changed(parts, Fault.fields), READABLE_BYTES) if parts else None


def without_tracebacks(fault: Fault) -> Fault:
    """The fault without tracebacks, its own and those of what came with it."""
    return fault._replace(traceback="", chain=_packed(_changed(came_with(fault), without_tracebacks)))


def fault_as_plain(fault: Fault) -> dict[str, Any]:
    """A fault as plain data for people and other languages: `type` and `message`, and, where they are, `notes`, the
    `cause` or `context` and the `members` of a group in the same form, and how many of these were `left_out`."""
    what = {"type": fault.type.rpartition(":")[2], "message": fault.message}
    return what | _changed(came_with(fault), fault_as_plain)


def fault_of_plain(given: Mapping[str, Any]) -> Fault:
    """The fault that plain data as of `fault_as_plain` tells of."""
    chain = _packed(_changed(given, fault_of_plain))
    return Fault(str(given.get("type", "")), str(given.get("message", "")), chain=chain)


def chain_of(fault: Fault) -> list[tuple[str, Fault]]:
    """What came with a fault, one step deep, for people: (`cause | context | member`, fault)."""
    parts = came_with(fault)
    links = [(name, parts[name]) for name in _LINKS if name in parts]
    return links + [("member", member) for member in parts.get("members", ())]


def notes_of(fault: Fault) -> list[str]:
    """The notes that were added to the exception."""
    return list(came_with(fault).get("notes", ()))


def chain_lines(fault: Fault, depth: int = 1) -> list[str]:
    """What came with an exception, and with that, a line each, indented by depth."""
    indent = "  " * depth
    lines = [f"{indent}note: {note}" for note in notes_of(fault)]
    for how, other in chain_of(fault):
        lines += [f"{indent}{_HOW[how]} {other.summary()}", *chain_lines(other, depth + 1)]
    if left_out := came_with(fault).get("left_out"):
        lines.append(f"{indent}and {left_out:,} more members")
    for other in faults_beside(fault):
        lines += [f"{indent}then {other.summary()}", *chain_lines(other, depth + 1)]
    return lines


def full_traceback(fault: Fault, limit: int) -> str:
    """The traceback of a fault with those of what came with it, as Python prints them; if that is longer than `limit`,
    each exception in one line."""
    text = _blocks(fault, lambda one: one.traceback or f"{one.summary()}\n")
    if len(text) <= limit:
        return text
    room = max(40, limit // (_count(fault) + 1) - 80)
    return _blocks(fault, lambda one: f"{one.summary()[:room]}\n")[:limit]


def _blocks(fault: Fault, text_of: Callable[[Fault], str]) -> str:
    before, members = "", []
    for how, other in chain_of(fault):
        if how == "member":
            members.append(_blocks(other, text_of))
        else:
            before = _blocks(other, text_of) + _LINKS[how]
    text = before + text_of(fault)
    for number, member in enumerate(members, 1):
        text += f"  +---------------- {number} ----------------\n"
        text += "".join(f"  | {line}\n" for line in member.splitlines())
    return text


def _count(fault: Fault) -> int:
    return 1 + sum(_count(other) for _, other in chain_of(fault))


def with_beside(fault: Fault, what: str, error: BaseException, broken: BaseException) -> Fault:
    """The fault of `error`, with `broken`, which `what` (compensate, backoff) raised while it was dealt with.

    The live exception is kept at the live one, for a caller in this process.
    """
    second = fault_of(broken)
    _of(error, "__dict__")[_BESIDE] = broken
    message = f"{fault.message} (and its {what} raised {second.summary()})"
    return fault._replace(message=message, beside=pack(second.fields(), READABLE_BYTES))


def beside(fault: Fault, live: BaseException, declared: Mapping[str, type[BaseException]]) -> list[BaseException]:
    """Exceptions raised beside a fault, by compensate or backoff: the live one if there is one."""
    found = _of(live, "__dict__").get(_BESIDE)
    return [found if found is not None else error_of(second, declared) for second in faults_beside(fault)]


def faults_beside(fault: Fault) -> list[Fault]:
    """The faults of what `compensate` or `backoff` raised while `fault` was dealt with: one, or none."""
    return [] if fault.beside is None else [Fault(*unpack(fault.beside))]


def _arguments(error: BaseException, limit: int) -> bytes | None:
    try:
        return pack(list(_of(error, "args")), limit)
    except (InvalidOutcome, ProtocolError):
        return None


def _last_lines(error: BaseException, longest: int) -> list[str]:
    """What `traceback.format_exception_only` says, which would look at all that came with the error too; the end of
    what is longer."""
    kind = type(error)
    if issubclass(kind, SyntaxError):
        return traceback.format_exception_only(error)
    module, name, message = class_text(kind, "__module__"), class_text(kind, "__qualname__"), message_of(error)
    named = name if module in ("builtins", "__main__") else f"{module}.{name}"
    return [f"{named}: {message}\n" if message else f"{named}\n", *(f"{note[-longest:]}\n" for note in _notes(error))]


def _users_traceback(error: BaseException, longest: int) -> str:
    """The end of the traceback without our own frames around the user's function."""
    shown: list[str] = []
    try:
        frames = traceback.extract_tb(traceback_of(error))
        users = [frame for frame in frames if not frame.filename.startswith(_FRAMEWORK)]
        shown += traceback.StackSummary.from_list(users or frames).format()
        shown += _last_lines(error, longest)
    except BaseException:
        shown.append(f"{class_text(type(error), '__qualname__')}: {message_of(error)}\n")
    return "".join(shown)[-longest:]
