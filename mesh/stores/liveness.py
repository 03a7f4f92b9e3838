"""Whether an owner is dead: judged from its row, from what can be seen of its process, and from how long this process
has watched the row stay as it is.

No wall clock decides.  `expires_ns` counts as a number that changes when its owner renews its lease, and the time in
which it did not is measured here, on the clock that goes on while the machine sleeps.  So whoever sets the wall clock
makes nobody dead, and keeps nobody alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from bitactor.messages.duration import nanoseconds

RELEASED: Final = 0
"""`expires_ns` of an owner that gave its lease back."""
LONGEST_BELIEVED_NS: Final = 60 * 10**9
"""Nanoseconds that an owner's row may say its lease has left, or a lease if that is longer; more is a wall clock that
was set back."""

Verdict = Literal["alive", "silent", "gone"]
"""What an owner is: `silent` has not renewed for too long and may still run, `gone` is so for certain."""


class Identity(NamedTuple):
    """The identity of this process, as far as other processes can check it."""

    pid: int
    boot_id: str
    """This boot of this machine, and the pid namespace that `pid` is a number in; empty where that is not known."""
    process_started: int


class OwnerRow(NamedTuple):
    """A row of `owners` that is not fenced."""

    owner: str
    pid: int
    boot_id: str
    process_started: int
    expires_ns: int


class Watch(NamedTuple):
    """What looks at an owner's row have shown."""

    expires_ns: int
    """What the row said at the latest look."""
    unrenewed_ns: int
    """For how long it has been watched saying so."""
    patience_ns: int
    """How long its lease may last from the first look that found it so."""


class Bounds(NamedTuple):
    """How long an owner may be silent."""

    lease_ns: int
    hung_ns: int
    """For one whose process can be seen running, and how long its loop may stand still; 0: for ever."""


def bounds_of(lease: float, hung_after: float) -> Bounds:
    """The bounds that these settings stand for, in seconds: nobody hangs who may only be late to renew a lease."""
    return Bounds(nanoseconds(lease), nanoseconds(max(hung_after, 2 * lease)) if hung_after else 0)


def watched(before: Watch | None, expires_ns: int, passed_ns: int, left_ns: int, bounds: Bounds) -> Watch:
    """What is known of an owner's row after one more look.

    Args:
        passed_ns: since the look before.  Not more than half a lease of it counts: who looks more rarely was stopped,
            or asleep with the whole machine, and has watched nothing.
        left_ns: what the lease has left by the wall clock, which only bounds how patient we are.
    """
    if before is not None and before.expires_ns == expires_ns:
        half = bounds.lease_ns - bounds.lease_ns // 2
        return before._replace(unrenewed_ns=before.unrenewed_ns + min(max(0, passed_ns), half))
    believed = min(left_ns, max(LONGEST_BELIEVED_NS, bounds.lease_ns))
    return Watch(expires_ns, 0, max(bounds.lease_ns, believed))


def judge(watch: Watch, runs: bool | None, bounds: Bounds) -> Verdict:
    """Whether an owner is dead; `runs` says whether its process does, None where that cannot be seen from here."""
    if watch.expires_ns == RELEASED or runs is False:
        return "gone"
    patience_ns = watch.patience_ns
    if runs:
        if not bounds.hung_ns:
            return "alive"
        patience_ns = max(patience_ns, bounds.hung_ns)
    return "silent" if watch.unrenewed_ns >= patience_ns else "alive"


class Observer:
    """The looks of one process at the owners beside it.

    Args:
        process_started: when a process of our pid namespace was started; None if there is none.
    """

    def __init__(
        self,
        identity: Identity,
        bounds: Bounds,
        monotonic_ns: Callable[[], int],
        wall_ns: Callable[[], int],
        process_started: Callable[[int], int | None],
    ) -> None:
        self._identity = identity
        self._bounds = bounds
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._process_started = process_started
        self._watches: dict[str, Watch] = {}
        self._looked_ns: int | None = None

    def look(self, rows: Iterable[OwnerRow]) -> dict[str, bool]:
        """The dead owners among all that are not fenced, and whether they are gone for certain."""
        now_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        first = self._looked_ns is None
        passed_ns = 0 if self._looked_ns is None else now_ns - self._looked_ns
        self._looked_ns = now_ns
        before, self._watches = self._watches, {}
        dead: dict[str, bool] = {}
        for row in rows:
            left_ns = row.expires_ns - wall_ns
            watch = watched(before.get(row.owner), row.expires_ns, passed_ns, left_ns, self._bounds)
            if first and left_ns < 0 and _boot_of(row.boot_id) != _boot_of(self._identity.boot_id):
                # Of an earlier boot: whoever opens a store after the machine was restarted need not watch its dead.
                watch = watch._replace(unrenewed_ns=watch.patience_ns)
            self._watches[row.owner] = watch
            verdict = judge(watch, self._runs(row), self._bounds)
            if verdict != "alive":
                dead[row.owner] = verdict == "gone"
        return dead

    def _runs(self, row: OwnerRow) -> bool | None:
        if not row.boot_id or row.boot_id != self._identity.boot_id:
            return None
        return self._process_started(row.pid) == row.process_started


def of_one_boot(one: str, other: str) -> bool:
    """Whether two processes may be of one boot of one machine, in whatever namespaces."""
    return _boot_of(one) == _boot_of(other) or not one or not other


def _boot_of(boot_id: str) -> str:
    return boot_id.partition("/")[0]
