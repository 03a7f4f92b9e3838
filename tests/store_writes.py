"""Writes as a supervisor makes them, and a place for a store to call back to, for the tests of stores."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from queue import SimpleQueue
from typing import Any

from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from bitactor.ports import Claim, Message, Refusal, Write
from mesh.runtime.settled import at_once

BOUND = 30.0
"""Seconds after which a test gives up waiting."""

_ids = count(1)


def fresh() -> str:
    """A transaction's id, later ones greater."""
    return f"{next(_ids):032x}"


def pulse(transaction: str, seq: int, kind: str = "spawned", workflow: str = "users.signup", **fields: Any) -> Pulse:
    """One pulse; `fields` replace what is made up."""
    made_up = Pulse(
        transaction=transaction, root=transaction, workflow=workflow, seq=seq, hop="0123456789abcdef",
        causes=("fedcba9876543210",), kind=kind, step="create_user", spawn="loop", direction="forward", attempt=1,
        ttl=7, at_ns=1_000 + seq, elapsed_ns=None, token_in=("input.name",), token_out=None, error=None, data=None,
        digest="abcdef",
    )  # fmt: skip
    return made_up._replace(**fields)


def taken(claims: Coroutine[Any, Any, list[Claim]]) -> list[Claim]:
    """What a store says at once that it has claimed, without the pulses it may have read."""
    return [claim._replace(pulses=None) for claim in at_once(claims)]


def first(
    transaction: str, *, key: str = "", workflow: str = "users.signup", parent: str = "", open: bool = True
) -> Write:
    """The first write of a transaction: pulses 0 and 1."""
    data = {"ttl": 8, "parent": parent} if parent else {"ttl": 8}
    pulses = (pulse(transaction, 0, "accepted", workflow, data=data), pulse(transaction, 1, workflow=workflow))
    return Write(transaction, 0, pulses, "running" if open else "completed", open, key)


def hop(transaction: str, seq: int, *, epoch: int = 0, workflow: str = "users.signup") -> Write:
    """A hop that completes and the next that is spawned: two pulses from `seq` on."""
    completed = pulse(transaction, seq, "completed", workflow, token_out=encode_token({"id": seq}), elapsed_ns=5)
    return Write(transaction, epoch, (completed, pulse(transaction, seq + 1, workflow=workflow)), "running", True)


def last(transaction: str, seq: int, status: str = "completed", *, epoch: int = 0) -> Write:
    """The end of a transaction: one pulse."""
    return Write(transaction, epoch, (pulse(transaction, seq, "finished"),), status, False)


def message(transaction: str, name: str = "approval", body: bytes = b"yes", **fields: Any) -> Message:
    """A message; `fields` replace what is made up."""
    return Message(transaction, name, body, sender="somebody", sent_ns=5)._replace(**fields)


class Loop:
    """Stands for the event loop: what `notify` is given waits until the test's thread runs it."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.wake: Callable[[], object] = lambda: None
        """Called after each that is given to `notify`, on whichever thread."""

    def notify(self, call: Callable[[], None]) -> None:
        self.calls.put(call)
        self.wake()

    def run_waiting(self) -> None:
        """Make the calls that have come by now."""
        while not self.calls.empty():
            self.run_one()

    def run_one(self) -> None:
        """Wait for a call and make it; raises `queue.Empty` when none comes."""
        self.calls.get(timeout=BOUND)()

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.run_one()


class Told:
    """What `done` was told, in order."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[int, Sequence[Refusal], BaseException | None]] = []
        self.asked = 0

    def done(self) -> Callable[[Sequence[Refusal], BaseException | None], None]:
        """The callback for the next append."""
        number, self.asked = self.asked, self.asked + 1
        return lambda refusals, error: self.outcomes.append((number, refusals, error))

    @property
    def complete(self) -> bool:
        return len(self.outcomes) == self.asked
