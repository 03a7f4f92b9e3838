"""A readable assertion over the pulses of a transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from types import EllipsisType
from typing import Any, Final

from bitactor.errors import suggest
from bitactor.pulse import KINDS, Pulse
from mesh.testing.lines import line

Branch = str | tuple[str, ...]
Expected = str | EllipsisType | AbstractSet[Branch]

_LINE: Final = re.compile(r"(?P<kind>[a-z_]+)( (?P<step>[^:]+))?(: (?P<error>.*))?", re.DOTALL)


def assert_trace(trace: Any, *expected: Expected) -> None:
    """Assert that a transaction went this way.

        assert_trace(tx,
            "accepted",
            "spawned reserve", "completed reserve",
            {("spawned pay", "completed pay"), ("spawned pack", "completed pack")},    # side by side, in whatever order
            ...,                                                                       # any number of pulses
            "finished",
        )

    A pulse reads `kind step`; `kind` alone where it is of the whole transaction; `kind step.undo` while a step is being undone, and
    `undone step` once it is.  `failed pay: ConnectionError*` looks at the error too; `*` stands for anything.

    Args:
        trace: a transaction, of either sort, while it runs or later; a `Trace`; or pulses.
        expected: lines; `...`; a set of what goes on side by side, each a line or a tuple of lines in their order.

    Raises:
        AssertionError: shows the trace, where it left the way, and what was expected there.
        TypeError, ValueError: an expectation is none.
    """
    __tracebackhide__ = True
    items = [_checked(item) for item in expected]
    pulses = list(_pulses(trace))
    match = _Match(pulses, items)
    if not match.found():
        raise AssertionError(match.explanation())


def _pulses(trace: Any) -> Iterable[Pulse]:
    pulses = getattr(trace, "pulses", trace)
    found: Iterable[Pulse] = pulses() if callable(pulses) else pulses
    return found


def _checked(item: Expected) -> Expected:
    if isinstance(item, str):
        _check_line(item)
    elif isinstance(item, AbstractSet):
        for branch in item:
            for text in _chain(branch):
                _check_line(text)
    elif item is not ...:
        raise TypeError(
            f"assert_trace: {item!r}; expectations are lines such as 'completed pay', `...`, and sets of lines or of tuples"
        )
    return item


def _check_line(text: Any) -> None:
    said = _LINE.fullmatch(text) if isinstance(text, str) else None
    if said is None:
        raise TypeError(f"assert_trace: {text!r}; a line is `kind`, `kind step` or `kind step: error`")
    if said["kind"] not in KINDS:
        raise ValueError(f"assert_trace: {text!r}: no pulse is of the kind {said['kind']!r}.{suggest(said['kind'], KINDS)}")


def _chain(branch: Branch) -> tuple[str, ...]:
    return (branch,) if isinstance(branch, str) else branch


def _fits(text: str, pulse: Pulse) -> bool:
    shown = line(pulse, error=": " in text)
    return re.fullmatch(".*".join(map(re.escape, text.split("*"))), shown, re.DOTALL) is not None


class _Match:
    """A search that remembers how far it came."""

    def __init__(self, pulses: Sequence[Pulse], items: Sequence[Expected]) -> None:
        self._pulses = pulses
        self._items = items
        self._refuted: set[Any] = set()
        self._furthest = 0
        self._wanted: list[str] = []
        """What would have fitted there."""

    def found(self) -> bool:
        return self._from(0, 0)

    def _from(self, at: int, item: int) -> bool:
        """Whether the pulses from `at` on are what the items from `item` on say."""
        if (at, item) in self._refuted:
            return False
        if item == len(self._items):
            found = at == len(self._pulses) or self._want(at, "nothing more")
        elif (expected := self._items[item]) is ...:
            found = any(self._from(after, item + 1) for after in range(at, len(self._pulses) + 1))
        elif isinstance(expected, str):
            found = self._takes(at, expected) and self._from(at + 1, item + 1)
        else:
            assert not isinstance(expected, EllipsisType)
            found = self._side_by_side(at, item, [_chain(branch) for branch in sorted(expected, key=str)])
        if not found:
            self._refuted.add((at, item))
        return found

    def _side_by_side(self, at: int, item: int, branches: list[tuple[str, ...]]) -> bool:
        """Whether these interleave from `at` on, and the rest follows."""
        left = [branch for branch in branches if branch]
        if not left:
            return self._from(at, item + 1)
        state = (at, item, tuple(left))
        if state in self._refuted:
            return False
        for index, branch in enumerate(left):
            if self._takes(at, branch[0]):
                rest = [*left[:index], branch[1:], *left[index + 1 :]]
                if self._side_by_side(at + 1, item, rest):
                    return True
        self._refuted.add(state)
        return False

    def _takes(self, at: int, text: str) -> bool:
        return (at < len(self._pulses) and _fits(text, self._pulses[at])) or self._want(at, text)

    def _want(self, at: int, text: str) -> bool:
        """Note what was looked for in vain."""
        if at > self._furthest:
            self._furthest, self._wanted = at, []
        if at == self._furthest and text not in self._wanted:
            self._wanted.append(text)
        return False

    def explanation(self) -> str:
        lines = [f"  {line(pulse, error=True)}" for pulse in self._pulses]
        came = lines[self._furthest].strip() if self._furthest < len(lines) else "the end"
        marked = [*lines[: self._furthest], f"> {came}", *lines[self._furthest + 1 :]]
        wanted = " or ".join(map(repr, self._wanted)) if self._wanted != ["nothing more"] else "the end"
        whose = f"{self._pulses[0].workflow!r} {self._pulses[0].transaction}" if self._pulses else "the transaction"
        return "\n".join(
            (f"{whose} did not go as expected: after {self._furthest} pulses there came {came!r}, not {wanted}", *marked)
        )
