"""Exceptions with causes, contexts, notes and members, made of plain data, and their shapes, wherever these are read;
worker processes import this module by its name."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from bitactor import Value, Workflow, consumer
from bitactor.errors import RemoteError
from bitactor.messages.faults import chain_of, notes_of
from bitactor.messages.signal import Fault
from bitactor.messages.values import message_of


class Own(Exception):
    """One with a constructor of its own."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Declared(Exception):
    """One that the workflows declare, and that can be made again."""


class DeclaredButOdd(Exception):
    """One that the workflows declare, and whose constructor does not take its own arguments."""

    def __init__(self) -> None:
        super().__init__("odd", 1, 2)


class Unprintable(Exception):
    """One that cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit("no words for it")

    __repr__ = __str__


class Slotted(Exception):
    """One whose attributes cannot be set."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Unshowable:
    """An argument that cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no words for it either")


KINDS = {
    "ValueError": ValueError,
    "KeyError": KeyError,
    "Own": lambda text: Own(text, 7),
    "Declared": Declared,
    "DeclaredButOdd": lambda text: DeclaredButOdd(),
    "Unprintable": Unprintable,
    "Slotted": Slotted,
    "unpicklable": lambda text: ValueError(text, threading.Lock()),
    "unshowable": lambda text: ValueError(text, Unshowable()),
    "SystemExit": SystemExit,
}


class Shape(NamedTuple):
    """What must be the same wherever an exception is read."""

    name: str
    message: str
    notes: tuple[str, ...]
    link: str
    """`cause`, `context`, or empty."""
    linked: Any
    members: tuple[Any, ...]


def make(tree: Mapping[str, Any]) -> BaseException:
    """The exception that plain data stands for, raised and caught once."""
    try:
        throw(tree)
    except BaseException as made:
        return made


def throw(tree: Mapping[str, Any]) -> NoReturn:
    """Raise the exception that plain data stands for."""
    if tree["members"]:
        error: BaseException = BaseExceptionGroup(tree["text"], [make(member) for member in tree["members"]])
    else:
        error = KINDS[tree["kind"]](tree["text"])
    for note in tree["notes"]:
        with suppress(AttributeError):  # one that takes none
            error.add_note(note)
    if tree["link"] == "cause":
        raise error from make(tree["linked"])
    if tree["link"] == "context":
        try:
            throw(tree["linked"])
        except BaseException:
            raise error  # noqa: B904 - its context is the point
    raise error from None


def of_exception(error: BaseException) -> Shape:
    """The shape of an exception, raised here or made again."""
    link, linked = "", None
    if error.__cause__ is not None:
        link, linked = "cause", of_exception(error.__cause__)
    elif error.__context__ is not None and not error.__suppress_context__:
        link, linked = "context", of_exception(error.__context__)
    if isinstance(error, RemoteError):
        name, message = normal(error.type_name.rpartition(".")[2]), normal(error.message)
    else:
        name, message = normal(type(error).__name__), normal(message_of(error))
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    notes = tuple(getattr(error, "__notes__", ()))
    return Shape(name, message, notes, link, linked, tuple(of_exception(member) for member in members))


def normal(text: str) -> str:
    """A text without what differs each time (addresses), or once a `SystemExit` has become a `RemoteError`, and so a
    group one of exceptions."""
    return re.sub("0x[0-9a-f]+", "0x", text).replace("BaseExceptionGroup", "ExceptionGroup")


def of_fault(fault: Fault) -> Shape:
    """The shape of an exception that was recorded."""
    link, linked, members = "", None, []
    for how, other in chain_of(fault):
        if how == "member":
            members.append(of_fault(other))
        else:
            link, linked = how, of_fault(other)
    name, message = normal(fault.type.rpartition(":")[2]), normal(fault.message)
    return Shape(name, message, tuple(notes_of(fault)), link, linked, tuple(members))


def of_plain(given: Mapping[str, Any]) -> Shape:
    """The shape of an exception as JSON has it."""
    link = next((how for how in ("cause", "context") if how in given), "")
    return Shape(
        normal(given["type"]),
        normal(given["message"]),
        tuple(given.get("notes", ())),
        link,
        of_plain(given[link]) if link else None,
        tuple(of_plain(member) for member in given.get("members", ())),
    )


def summary(shape: Shape) -> str:
    """The first line of an exception where it is shown."""
    return f"{shape.name}: {shape.message}" if shape.message else shape.name


def lines(shape: Shape, depth: int = 1) -> list[str]:
    """What `bitactor trace` shows below an exception."""
    indent = "  " * depth
    found = [f"{indent}note: {note}" for note in shape.notes]
    if shape.linked is not None:
        how = {"cause": "caused by", "context": "while handling"}[shape.link]
        found += [f"{indent}{how} {summary(shape.linked)}", *lines(shape.linked, depth + 1)]
    for member in shape.members:
        found += [f"{indent}member {summary(member)}", *lines(member, depth + 1)]
    return found


def in_order(shape: Shape) -> list[str]:
    """The exceptions in the order in which a traceback shows them."""
    before = [] if shape.linked is None else in_order(shape.linked)
    shown = shape.name if shape.message.startswith("<its message") else summary(shape)
    return [*before, shown, *(one for member in shape.members for one in in_order(member))]


def are_in(wanted: Sequence[str], text: str) -> bool:
    """Whether all are in a text, in this order."""
    text, at = normal(text), 0
    for one in wanted:
        at = text.find(one, at)
        if at < 0:
            return False
        at += len(one)
    return True


# Places that raise


async def on_the_loop(tree: dict[str, Any]) -> None:
    throw(tree)


def elsewhere(tree: dict[str, Any]) -> None:
    throw(tree)


def breaks(tree: dict[str, Any]) -> None:
    raise ValueError("first")


def works(tree: dict[str, Any]) -> int:
    return 1


def compensates(error: Exception, tree: dict[str, Any]) -> None:
    throw(tree)


def with_element(element: int, tree: dict[str, Any]) -> None:
    throw(tree)


def declared(name: str) -> Workflow:
    """A workflow that takes a tree."""
    return Workflow(name, input={"tree": dict[str, Any]}, errors=[Declared, DeclaredButOdd])


process = declared("process")  # where a worker finds it
process.step(elsewhere, name="s", spawn="process")


def workflows() -> dict[str, Workflow]:
    """Place → a workflow in which the tree is raised there, by the step `s`."""
    places = ("loop", "thread", "inline", "when", "guard", "compensate", "undo", "map")
    found = {"process": process, **{place: declared(place) for place in places}}
    found["loop"].step(on_the_loop, name="s")
    for place in ("thread", "inline"):
        found[place].step(elsewhere, name="s", spawn=place)
    found["when"].step(works, name="s", spawn="inline", when=elsewhere)
    found["guard"].step(works, name="s", spawn="inline", guard=elsewhere)
    found["compensate"].step(breaks, name="s", spawn="inline").compensate(compensates)
    found["undo"].step(works, name="s", spawn="inline").undo(elsewhere)
    found["undo"].step(breaks, name="t", spawn="inline", after=["s"])
    found["map"].map(with_element, name="s", over=Value([0]), spawn="inline")
    return found


@consumer("thrown")
def thrower(signal: Any) -> None:
    throw(signal.token)
