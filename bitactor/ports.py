"""The ports of the core, as protocols; `mesh` has the adapters, `bitactor.testing` the fakes.

Every adapter of a port passes the port's contract suite in `tests/contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from bitactor.errors import StaleOwner
from bitactor.messages.pulse import Pulse, masks_secrets

INBOX_MESSAGES: Final = 1_000
"""Unread messages that a store keeps for one transaction, at most."""
INBOX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of unread messages that a store keeps for one transaction, at most."""


class TimerHandle(Protocol):
    """A timer armed by `Clock.call_at`."""

    def cancel(self) -> None:
        """Disarm the timer: its callback is not called any more.  Cancelling twice, or too late, does nothing."""


class Clock(Protocol):
    """Two clocks: wall time for records, monotonic time for waiting."""

    def wall_ns(self) -> int:
        """Wall time: nanoseconds since 1970, UTC."""

    def monotonic_ns(self) -> int:
        """Monotonic time: nanoseconds since some fixed moment; never goes back."""

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Call `callback` on the owner's thread once `monotonic_ns()` has reached `when_ns`."""


class Ids(Protocol):
    """A source of fresh transaction ids."""

    def transaction(self) -> str:
        """A fresh id: 32 lower-case hex digits, time-ordered, never given twice."""


class Write(NamedTuple):
    """The pulses that one stimulus added to one transaction; they are kept all or none."""

    transaction: str
    """The transaction's id."""
    epoch: int
    """The writer's epoch for this transaction; 0 in the write that creates it."""
    pulses: Sequence[Pulse]
    """The pulses in order; the first write of a transaction starts with its `accepted` pulse, seq 0."""
    status: str
    """The transaction's status after these pulses."""
    open: bool
    """True: something is left to do (running, or emitted signals not yet taken); recovery looks for these."""
    key: str = ""
    """Idempotency key, given only in the first write; unique together with the workflow's name."""
    dead: bool = False
    """True: a step or signal of it ended in a tombstone `unroutable` or `poison`, by this write or before."""
    due_ns: int = 0
    """Wall time at which it must be looked at again, as nothing else may happen until then; 0: none."""
    receives: bool = False
    """True: it may be sent messages from now on, as long as its status is `running` or `halted`."""
    read: Sequence[int] = ()
    """The ids of the messages that it reads by this write; they are kept no more."""
    unread: int = 0
    """In the write from which on it receives no more: how many messages it leaves unread; they are dropped with it."""


class Refusal(NamedTuple):
    """A write that was not made, although the others of its batch were."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a refusal for
    error: Exception
    """`DuplicateTransaction` (the key is taken), `StaleOwner`, or `InboxChanged` (it counts other messages)."""


class TransactionRow(NamedTuple):
    """The state of a transaction as a store knows it without reading the pulses."""

    transaction: str
    """The transaction's id."""
    root: str
    """The id of the transaction that all this began with: itself, if nothing did."""
    parent: str
    """The id of the transaction whose signal began this one; empty if it was called."""
    workflow: str
    """The name of the workflow, or of the consumer."""
    key: str
    """The idempotency key; empty without one."""
    status: str
    """Its status: `running | completed | compensated | cancelled | halted | stuck`."""
    open: bool
    """True: something is left to do by itself; it runs, or a signal that it emitted has not been taken."""
    owner: str
    """The process that holds it."""
    epoch: int
    """A number that rises by one each time it changes hands."""
    created_ns: int
    """When it began, in nanoseconds since 1970."""
    updated_ns: int
    """Since when it stands so (`status`), in nanoseconds since 1970."""


class Claim(NamedTuple):
    """A transaction taken over from an owner that is gone."""

    transaction: str
    """The transaction's id."""
    epoch: int
    """The new epoch, one more than the one before."""
    given_back: bool = False
    """True: that owner ended in order and gave its transactions back, so their hops in flight spend no redelivery."""
    pulses: Sequence[Pulse] | None = None
    """All pulses of it, if the store has read them as it claimed it; None: whoever needs them asks for them."""


class StoreFault(NamedTuple):
    """What a store has found to be wrong with itself, or with what it keeps of a transaction."""

    why: str
    """What is wrong, and what to do."""
    transaction: str = ""
    """The transaction that cannot be read; empty: it is about the store."""
    lost: bool = False
    """True: nothing can be written any more, and what was written last may be gone."""


class Followed(NamedTuple):
    """What a look at a journal has found."""

    pulses: list[Pulse]
    """Pulses that were kept since the look before; those of a transaction in order of `seq`."""
    cursor: str
    """From where the next look goes on; opaque text."""
    more: bool
    """True: there is more at once."""


class Due(NamedTuple):
    """A transaction that must be looked at again."""

    transaction: str
    """The transaction's id."""
    due_ns: int
    """When, in nanoseconds since 1970."""


@masks_secrets
class Message(NamedTuple):
    """A message to a transaction."""

    transaction: str
    """The id of the transaction that it is for."""
    name: str
    """The name under which it is received."""
    body: bytes
    """Its value, packed; a store keeps it as it is."""
    key: str = ""
    """With a key it is kept once, of those of one transaction and name; empty: each time that it is sent."""
    sender: str = ""
    """Who sent it."""
    sent_ns: int = 0
    """When, in nanoseconds since 1970."""
    id: int = 0
    """Its number, given by the store in the order in which messages are kept, never twice; 0: it has none yet."""


class Sent(NamedTuple):
    """What has become of a message that was sent."""

    outcome: Literal["kept", "known", "conflict", "full", "closed", "unknown"]
    """`kept`: it will be read, or counted as unread.  `known`: it was kept before, with this key and value.
    `conflict`: its key was used before with another value.  `full`: there is no room for it.  `closed`: the transaction
    receives none (any more).  `unknown`: there is no such transaction."""
    id: int = 0
    """The message's number, if it is `kept` or `known`."""
    status: str = ""
    """The status of the transaction, if it is `closed`."""


class Arrived(NamedTuple):
    """What a look for messages has found."""

    messages: list[Message]
    """Messages in the order in which they were kept."""
    last: int
    """The id from which the next look goes on."""


_Rows = list[TransactionRow]
_Claims = list[Claim]


class Inbox(Protocol):
    """What takes messages for a process that has no more than the store: a call may block its thread."""

    def send(self, message: Message) -> Sent:
        """Keep a message for its transaction, as `Store.send` does."""


class StoreQueries(Protocol):
    """What can be asked of a store by one who has to have the answer now: a call may block its thread."""

    def pulses(self, transaction: str) -> list[Pulse]:
        """All pulses of a transaction, in order of `seq`; empty if it is unknown."""

    def find(self, workflow: str, key: str) -> str | None:
        """The id of the transaction that has this idempotency key; None if there is none."""

    def get(self, transaction: str) -> TransactionRow | None:
        """The row of one transaction; None if it is unknown."""

    def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        limit: int = 100,
        before: str | None = None,
        dead: bool = False,
    ) -> _Rows:
        """Rows of transactions, newest first, at most `limit`; `before` is the last id of the page before.  `dead`:
        only those with dead letters, whose last write said so (`Write.dead`) or whose status is `stuck`."""

    def follow(self, cursor: str | None = None) -> Followed:
        """What was kept since the look that gave `cursor`, a bounded part of it; with an empty one from the first pulse
        that is kept, with None from now on, which finds nothing yet.

        Every pulse comes at least once to who goes on from each cursor; it can come again after its owner died, or when
        the follower was away for long.

        Raises:
            InvalidInput: that is no cursor, or one of another journal or of a later state of this one, as when an older
                one was put back: begin with an empty one.
            StoreError: what is followed is there no more.
        """


class AsyncStoreQueries(Protocol):
    """The same questions where the answer may come later.

    Awaited on the loop's thread, any number at once, and answered in any order.  Whoever asks may be cancelled; nobody
    is left waiting when the store is closed: a question is answered then, or raises `StoreError`.
    """

    def reader(self) -> StoreQueries:
        """What answers the same at once: on the loop's thread, and after `close` on any."""

    async def pulses(self, transaction: str) -> list[Pulse]:
        """As `reader` answers it, which is for a store whose reader does not wait for others; so are the next three."""
        return self.reader().pulses(transaction)

    async def find(self, workflow: str, key: str) -> str | None:
        """See `StoreQueries.find`."""
        return self.reader().find(workflow, key)

    async def get(self, transaction: str) -> TransactionRow | None:
        """See `StoreQueries.get`."""
        return self.reader().get(transaction)

    async def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        limit: int = 100,
        before: str | None = None,
        dead: bool = False,
    ) -> _Rows:
        """See `StoreQueries.list`."""
        return self.reader().list(status=status, workflow=workflow, limit=limit, before=before, dead=dead)


class Store(AsyncStoreQueries, Protocol):
    """The keeper of pulses.  All calls come from one thread, the one that called `open`.

    `append` is the write-ahead rule: nothing is dispatched before `done` was called for it.
    """

    shared: bool
    """True: other processes may use the store, and leave transactions behind in it."""
    synchronous: bool
    """True: `append` always calls `done` before it returns."""
    on_fault: Callable[[StoreFault], None] | None = None
    """Called, where `append` is, with what the store finds to be wrong; set by its user before `open`."""

    on_fenced: Callable[[StaleOwner], None] | None = None
    """Called on this thread when another process has taken over all that was ours; set by who uses the store."""

    def open(self, owner: str) -> None:
        """Take part as `owner` (a name used once, by one process)."""

    async def open_on_loop(self, owner: str) -> None:
        """`open` on an event loop, which goes on meanwhile if that has to wait for others; `close` ends the waiting."""
        self.open(owner)

    async def rejoin(self, owner: str) -> None:
        """Take part under a new name, after another process has taken over what we had under the one before: none of
        that is ours any more, unless `claim` gives it to us.  On the loop's thread.

        Raises:
            NotImplementedError: this store can only be opened anew.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be joined again")

    def lease_until_ns(self) -> int | None:
        """Until when nobody else takes our transactions over, by the monotonic clock that goes on while the machine
        sleeps (`registry.support.clock`), as far as we know; None: nobody ever does.  From any thread."""
        return None

    def append(self, writes: Sequence[Write], done: Callable[[Sequence[Refusal], BaseException | None], None]) -> None:
        """Keep `writes` in one commit, then call `done(refusals, None)` on this thread, at once or later, in the order
        of the calls.

        If nothing could be written, `done((), error)`.  A process that lost its lease gets `StaleOwner` as that error.
        """

    async def claim(self, shapes: Mapping[str, str] | None = None) -> _Claims:
        """Take over every open transaction whose owner is gone; the claimed ones are ours from now on.

        With `shapes` (workflow → digest of its plan) only those that began in one of them.  The others stay without an
        owner, for somebody who can carry them on.
        """

    async def unclaimed(self, shapes: Mapping[str, str], limit: int = 100) -> _Rows:
        """Open transactions of these workflows that began in another shape and that nobody owns, as the last `claim`
        left them.

        Oldest first, at most `limit`.
        """

    async def reclaim(self, held: Container[str]) -> _Claims:
        """Claim our own open transactions that are not in `held`, each with its next epoch: those given up when they
        could not be written.  What is in `held` changes while the answer is on its way; it is asked on the loop's
        thread, of transactions that have been read before.

        Raises:
            StoreError: nothing can be written now either, or our lease was taken from us.
        """

    async def due(self, limit: int = 100) -> list[Due]:
        """Our open transactions whose last write says when they are due, earliest first, at most `limit`."""

    async def send(self, message: Message) -> Sent:
        """Keep a message, if its transaction receives messages, whoever owns it, if its key is new, and if there is
        room: at most `INBOX_MESSAGES` and `INBOX_BYTES` that are unread.  A key is known from then on until the
        transaction receives no more.

        No message is lost: what is kept is read, or counted in the write from which on the transaction receives no
        more (`Write.unread`), which is refused if it does not count all of them.

        Raises:
            InvalidInput: a part of it cannot be kept: it is no text, or too large a number.
        """

    async def inbox(self, transaction: str) -> list[Message]:
        """The messages that a transaction has not read, oldest first.  Who begins, resumes or claims one asks once that
        is kept; what comes later has `arrived`.

        Raises:
            DamagedJournal: one of them is not what was sent.
        """

    async def arrived(self, after: int = 0, limit: int = 100) -> Arrived:
        """Unread messages for our open transactions that were kept behind the one with the id `after`, oldest first, at
        most `limit`.  One that cannot be read is left out; `inbox` says so."""

    async def forget(self, before_ns: int, limit: int = 100) -> int:
        """Drop transactions that ended (`FINAL_STATUSES`, and nothing is left to do) before this wall time, those that
        ended first first, at most `limit`, with all that is kept of them: their keys are free again.  Returns how many
        that were."""

    def close(self) -> None:
        """Finish what was appended (its `done`s are called), give up our lease, release files.  A second call does
        nothing.  What is asked afterwards is asked of `reader`, on any thread: answer, or raise."""


class Sink(Protocol):
    """A receiver of pulses, which are told to it after they are kept, best effort.

    A sink that raises is disabled and logged by the caller; it cannot break a run.
    """

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """Take pulses that were just kept; must not block.  Called on the loop's thread."""

    def close(self, timeout: float) -> None:
        """Flush within `timeout` seconds, then release everything.  Called off the loop's thread."""


class Transport(Protocol):
    """The carrier of messages to other nodes.  One frame holds many messages; order is kept per receiver."""

    @property
    def endpoint(self) -> str:
        """The endpoint at which others reach this node; known after `open`."""

    def open(self, receive: Callable[[list[bytes]], None]) -> None:
        """Bind, and call `receive` on the loop's thread with the messages of each frame that came."""

    def send(self, endpoint: str, message: bytes) -> None:
        """Queue a message; frames are flushed at the end of the loop's turn.

        Raises:
            Overloaded: the queue towards that endpoint is full.
        """

    def forget(self, endpoint: str) -> None:
        """Drop what is queued for a peer that is gone, and close the connection to it."""

    def statistics(self) -> Mapping[str, int]:
        """Totals since `open`, by name."""

    def close(self, timeout: float = 0.5) -> None:
        """Flush for at most `timeout` seconds and release all sockets.  A second call does nothing."""
