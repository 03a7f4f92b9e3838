"""Findings in the demo's journal: how each transaction ended and why, and whether all the numbers add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bitactor.messages import pulse as kinds
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import UNDO
from bitactor.ports import StoreQueries, TransactionRow
from mesh.demo.post import PostResult
from mesh.demo.signup import SCREENING_TIMEOUT, signup, warm_up

COMPLETED: Final = "completed"
DUPLICATE: Final = "duplicate, rejected"
MALFORMED: Final = "malformed, refused"
MAIL_FAILED: Final = "mail failed, undone"
TIMED_OUT: Final = "hop timed out, killed"
OTHER: Final = "failed otherwise"
UNANSWERED: Final = "not finished"

WHY: Final[Mapping[str, str]] = {
    COMPLETED: "five hops of a budget of eight",
    DUPLICATE: "EmailTaken, by the check or by the table",
    MALFORMED: "422 before anything began, naming the field",
    MAIL_FAILED: "MailRefused three times; the user was deleted",
    TIMED_OUT: f"screening hung; its process was killed after {SCREENING_TIMEOUT:g} s",
    OTHER: "see 'bitactor list'",
    UNANSWERED: "this must not be",
}
_CAUSES: Final = {"EmailTaken": DUPLICATE, "MailRefused": MAIL_FAILED, "StepTimeout": TIMED_OUT}
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Ending:
    """How one transaction of the journal ended."""

    row: TransactionRow
    how: str
    hops: int
    redelivered: int
    retried: int
    undone: int
    expired: str
    """The names along the chain whose budget ran out here; empty if that did not happen."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of one demo."""

    endings: Mapping[str, int]
    """How the sign-ups ended → how many, in the order of `WHY`."""
    signups: int
    hops: int
    redelivered: int
    """Hops that were delivered to a second worker, because the first was gone."""
    redelivered_in: int
    """Transactions that had redelivered hops."""
    retried: int
    undone: int
    expired: Sequence[Ending]
    compensated: Ending | None
    """A compensated transaction worth looking at; None if there is none."""
    slow: Ending | None
    """The transaction whose hop timed out; None if there is none."""
    echo_hops: int
    transactions: int
    problems: Sequence[str]
    """Numbers that do not add up, as sentences; empty if all is well."""


def read_findings(
    reader: StoreQueries, posted: Sequence[PostResult], expected: int, users: int, letters: int
) -> Findings:
    """Read the whole journal, and compare it with what the senders were told, the users table and the mail server."""
    rows = (row for row in _rows(reader) if row.workflow != warm_up.name)
    endings = [_ending(row, reader.pulses(row.transaction)) for row in rows]
    ours = [ending for ending in endings if ending.row.workflow == signup.name]
    echoes = [ending for ending in endings if ending.row.workflow != signup.name]
    counts = Counter(ending.how for ending in ours)
    counts[MALFORMED] = sum(answer.status == 422 for answer in posted)
    mail = [ending for ending in ours if ending.how == MAIL_FAILED]
    expired = [ending for ending in echoes if ending.expired]
    return Findings(
        endings={
            how: counts[how]
            for how in WHY
            if counts[how] or how in (COMPLETED, DUPLICATE, MALFORMED, MAIL_FAILED, TIMED_OUT)
        },
        signups=len(posted),
        hops=sum(ending.hops for ending in endings),
        redelivered=sum(ending.redelivered for ending in endings),
        redelivered_in=sum(ending.redelivered > 0 for ending in endings),
        retried=sum(ending.retried for ending in ours),
        undone=sum(ending.undone for ending in ours),
        expired=expired,
        compensated=max(
            mail, key=lambda ending: (not ending.redelivered, ending.hops, ending.row.transaction), default=None
        ),
        slow=next((ending for ending in ours if ending.how == TIMED_OUT), None),
        echo_hops=sum(ending.hops for ending in echoes),
        transactions=len(endings),
        problems=_problems(ours, counts, posted, expected, users, letters, expired),
    )


def _problems(
    ours: Sequence[Ending],
    counts: Counter[str],
    posted: Sequence[PostResult],
    expected: int,
    users: int,
    letters: int,
    expired: Sequence[Ending],
) -> list[str]:
    completed = counts[COMPLETED]
    answered = sum(answer.status == 200 for answer in posted)
    strange = sorted({answer.status for answer in posted} - {200, 409, 422})
    statuses = {ending.row.status for ending in ours}
    doubts = (
        (len(posted) != expected, f"{expected} sign-ups were posted, {len(posted)} were answered"),
        (
            sum(counts.values()) != expected,
            f"{expected} sign-ups were posted, {sum(counts.values())} endings were found",
        ),
        (counts[UNANSWERED], f"{counts[UNANSWERED]} sign-ups have not ended"),
        (users != completed, f"{completed} sign-ups completed, but the table has {users} users"),
        (letters != completed, f"{completed} sign-ups completed, but the mail server took {letters} letters"),
        (answered != completed, f"{completed} sign-ups completed, but {answered} senders were told so"),
        (strange, f"the ingress also answered {', '.join(map(str, strange))}"),
        (statuses - {"completed", "compensated"}, "a sign-up is neither completed nor compensated"),
        (len(expired) != 1, f"the loop of signals left {len(expired)} ttl_expired tombstones, not one"),
    )
    return [problem for is_there, problem in doubts if is_there]


def _rows(reader: StoreQueries) -> Iterator[TransactionRow]:
    before: str | None = None
    while page := reader.list(limit=_PAGE, before=before):
        yield from page
        before = page[-1].transaction


def _ending(row: TransactionRow, pulses: Sequence[Pulse]) -> Ending:
    error = next((pulse.error or "" for pulse in reversed(pulses) if pulse.kind in (kinds.FAILED, kinds.TIMED_OUT)), "")
    expired = next(
        (pulse for pulse in pulses if pulse.kind == kinds.TOMBSTONE and pulse.error == kinds.TTL_EXPIRED), None
    )
    return Ending(
        row=row,
        how=_how(row, pulses, error),
        hops=len({pulse.hop for pulse in pulses if pulse.kind == kinds.SPAWNED}),
        redelivered=sum(pulse.kind == kinds.SPAWNED and "lost" in (pulse.data or {}) for pulse in pulses),
        retried=sum(pulse.kind == kinds.RETRIED for pulse in pulses),
        undone=sum(pulse.kind == kinds.UNDONE and pulse.direction == UNDO for pulse in pulses),
        expired=_chain(expired) if expired is not None else "",
    )


def _how(row: TransactionRow, pulses: Sequence[Pulse], error: str) -> str:
    if row.status == "completed":
        return COMPLETED
    if row.status == "running":
        return UNANSWERED
    if any(pulse.kind == kinds.TIMED_OUT for pulse in pulses):
        return TIMED_OUT
    return _CAUSES.get(error.partition(":")[0], OTHER)


def _chain(tombstone: Pulse) -> str:
    data: Mapping[str, Any] = tombstone.data or {}
    return " → ".join(str(name) for name in data.get("chain", ())) or "it names no chain"
