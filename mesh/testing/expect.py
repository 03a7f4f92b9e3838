"""A readable assertion over the pulses of a transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate
from types import EllipsisType
from typing import Any, Final

from bitactor.errors import suggest
from bitactor.messages.pulse import KINDS, Pulse
from mesh.testing.pulses import format_pulse

Branch = str | tuple[str, ...]
Expected = str | EllipsisType | AbstractSet[Branch]

THE_END: Final = "the end"
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

    A pulse reads `kind step`; `kind` alone where it is of the whole transaction; `kind step.undo` while a step is being
    undone, and `undone step` once it is.  `failed pay: ConnectionError*` looks at the error too; `*` stands for
    anything.

    Args:
        trace: a transaction, of either sort, while it runs or later; a `Trace`; or pulses.
        expected: lines; `...`; a set of what goes on side by side, each a line or a tuple of lines in their order.

    Raises:
        AssertionError: shows the trace, where it left the way, and what was expected there.
        TypeError, ValueError: an expectation is none.
    """
    __tracebackhide__ = True
    items = [_validate(item) for item in expected]
    pulses = list(_pulses(trace))
    match = _Match(pulses, items)
    if not match.found():
        raise AssertionError(match.explanation())


def _pulses(trace: Any) -> Iterable[Pulse]:
    pulses = getattr(trace, "pulses", trace)
    found: Iterable[Pulse] = pulses() if callable(pulses) else pulses
    return found


def _validate(item: Expected) -> Expected:
    if isinstance(item, str):
        _check_line(item)
    elif isinstance(item, AbstractSet):
        for branch in item:
            for text in _chain(branch):
                _check_line(text)
    elif item is not ...:
        raise TypeError(
            f"assert_trace: {item!r}; expectations are lines such as 'completed pay', `...`, and sets of lines or of "
            "tuples"
        )
    return item


def _check_line(text: Any) -> None:
    said = _LINE.fullmatch(text) if isinstance(text, str) else None
    if said is None:
        raise TypeError(
            f"assert_trace: {text!r}; a line is `kind`, `kind step` or `kind step: error`, and `*` stands for anything "
            "in the step and the error: 'completed pay*', 'failed pay: Connection*', 'finished: LookupError*'"
        )
    if said["kind"] not in KINDS:
        raise ValueError(
            f"assert_trace: {text!r}: no pulse is of the kind {said['kind']!r}.{suggest(said['kind'], KINDS)}"
        )


def _chain(branch: Branch) -> tuple[str, ...]:
    return (branch,) if isinstance(branch, str) else branch


def _matches(text: str, pulse: Pulse) -> bool:
    shown = format_pulse(pulse, error=": " in text)
    return re.fullmatch(".*".join(map(re.escape, text.split("*"))), shown, re.DOTALL) is not None


class _Match:
    """A search for the expected lines that remembers where it came furthest: with most of them found."""

    def __init__(self, pulses: Sequence[Pulse], items: Sequence[Expected]) -> None:
        self._pulses = pulses
        self._items = items
        # For each item, how many lines the items before it have.
        self._before = [0, *accumulate(_lines_in(item) for item in items)]
        self._refuted: set[Any] = set()
        self._best_lines = -1
        self._best_position = 0
        # Whether the missing line was looked for from the furthest position on, not only there.
        self._anywhere = False
        self._missing: list[str] = []

    def found(self) -> bool:
        return self._match_from(0, 0, None)

    def _match_from(self, at: int, item: int, since: int | None) -> bool:
        """Whether the pulses from `at` on are what the items from `item` on say; `since`: where the `...` before that
        began, if it was one."""
        if (at, item) in self._refuted:
            return False
        if item == len(self._items):
            found = at == len(self._pulses) or self._note_miss(at, THE_END, self._before[item], since)
        elif (expected := self._items[item]) is ...:
            found = any(self._match_from(after, item + 1, at) for after in range(at, len(self._pulses) + 1))
        elif isinstance(expected, str):
            found = self._matches_at(at, expected, self._before[item], since) and self._match_from(
                at + 1, item + 1, None
            )
        else:
            assert not isinstance(expected, EllipsisType)
            found = self._match_interleaved(at, item, [_chain(branch) for branch in sorted(expected, key=str)], since)
        if not found:
            self._refuted.add((at, item))
        return found

    def _match_interleaved(self, at: int, item: int, branches: list[tuple[str, ...]], since: int | None) -> bool:
        """Whether `branches` interleave from `at` on, and the rest follows."""
        left = [branch for branch in branches if branch]
        if not left:
            return self._match_from(at, item + 1, since)
        state = (at, item, tuple(left))
        if state in self._refuted:
            return False
        lines = self._before[item + 1] - sum(map(len, left))
        for index, branch in enumerate(left):
            if self._matches_at(at, branch[0], lines, since):
                rest = [*left[:index], branch[1:], *left[index + 1 :]]
                if self._match_interleaved(at + 1, item, rest, None):
                    return True
        self._refuted.add(state)
        return False

    def _matches_at(self, at: int, text: str, lines: int, since: int | None) -> bool:
        return (at < len(self._pulses) and _matches(text, self._pulses[at])) or self._note_miss(at, text, lines, since)

    def _note_miss(self, at: int, text: str, lines: int, since: int | None) -> bool:
        """Note a line that was looked for in vain, when `lines` lines had been found."""
        position = at if since is None else since
        if (lines, position) > (self._best_lines, self._best_position):
            self._best_lines, self._best_position, self._missing = lines, position, []
        if (lines, position) == (self._best_lines, self._best_position):
            self._anywhere = since is not None
            self._missing += [text] if text not in self._missing else []
        return False

    def explanation(self) -> str:
        """The whole trace as text, and in it where it left the expected way."""
        pulses, position = self._pulses, self._best_position
        whose = f"{pulses[0].workflow!r} {pulses[0].transaction}" if pulses else "the transaction"
        lines = [f"  {format_pulse(pulse, error=True)}" for pulse in pulses]
        missing = " or ".join(map(_quoted, self._missing))
        if self._anywhere:
            return "\n".join(
                (
                    f"{whose} did not go as expected: there is no {missing}",
                    *lines[:position],
                    f"> no {missing} from here on",
                    *lines[position:],
                )
            )
        came = lines[position].strip() if position < len(lines) else THE_END
        told = f"{whose} did not go as expected: instead of {missing} there came {_quoted(came)}"
        return "\n".join((told, *lines[:position], f"> {came}", *lines[position + 1 :]))


def _quoted(text: str) -> str:
    return text if text == THE_END else repr(text)


def _lines_in(item: Expected) -> int:
    if isinstance(item, AbstractSet):
        return sum(len(_chain(branch)) for branch in item)
    return int(isinstance(item, str))
