"""A journal in memory, which lives and dies with its process, at the price of a list."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from heapq import nlargest, nsmallest
from itertools import islice
from typing import Final

from typing_extensions import override

from bitactor.errors import ConfigurationError, DuplicateTransaction, InboxChanged, InvalidInput, StoreError
from bitactor.messages.pulse import FINAL_STATUSES, RECEIVING, STUCK, Pulse
from bitactor.ports import (
    INBOX_BYTES,
    INBOX_MESSAGES,
    Arrived,
    Claim,
    Due,
    Followed,
    Message,
    Refusal,
    Sent,
    Store,
    StoreQueries,
    TransactionRow,
    Write,
)
from mesh.stores.journal.inbox import pack_message
from mesh.stores.journal.state import JournalState, conflict, inbox_conflict

RETAINED: Final = 10_000
FOLLOWED: Final = 10_000
"""Writes that a follower may be behind; one that is further behind is given all that is kept."""


class _Mailbox:
    """The messages of one transaction."""

    __slots__ = ("bytes", "keys", "unread")

    def __init__(self) -> None:
        self.unread: dict[int, Message] = {}
        self.bytes = 0
        self.keys: dict[tuple[str, str], tuple[int, bytes]] = {}
        """(name, key) → the message's id and digest, also of those that were read."""


class _Entry:
    __slots__ = ("dead", "due_ns", "epoch", "key", "mailbox", "open", "pulses", "status", "updated_ns")

    def __init__(self, write: Write) -> None:
        self.pulses: list[Pulse] = list(write.pulses)
        self.epoch = write.epoch
        self.status = write.status
        self.open = write.open
        self.key = write.key
        self.dead = write.dead
        self.updated_ns = write.pulses[-1].at_ns
        self.due_ns = 0
        self.mailbox: _Mailbox | None = None
        """None: it receives no messages."""


class MemoryQueries(StoreQueries):
    """The queries of a journal in memory, on what its store keeps."""

    def __init__(self, entries: Mapping[str, _Entry], keys: Mapping[tuple[str, str], str]) -> None:
        self._entries = entries
        self._keys = keys
        self.owner = ""
        """Who is said to own each transaction."""
        self.feed: deque[Sequence[Pulse]] | None = None
        """What was kept since somebody follows; None: nobody does."""
        self.fed = 0
        """How many writes that were."""

    @override
    def pulses(self, transaction: str) -> list[Pulse]:
        entry = self._entries.get(transaction)
        return list(entry.pulses) if entry else []

    @override
    def find(self, workflow: str, key: str) -> str | None:
        return self._keys.get((workflow, key))

    @override
    def get(self, transaction: str) -> TransactionRow | None:
        entry = self._entries.get(transaction)
        return self._row(transaction, entry) if entry else None

    @override
    def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        limit: int = 100,
        before: str | None = None,
        dead: bool = False,
    ) -> list[TransactionRow]:
        names = nlargest(
            limit,
            (
                transaction
                for transaction, entry in self._entries.items()
                if (status is None or entry.status == status)
                and (workflow is None or entry.pulses[0].workflow == workflow)
                and (before is None or transaction < before)
                and (not dead or entry.dead or entry.status == STUCK)
            ),
        )
        return [self._row(name, self._entries[name]) for name in names]

    @override
    def follow(self, cursor: str | None = None) -> Followed:
        feed = self.feed
        if feed is None:  # who follows pays for it
            feed = self.feed = deque(maxlen=FOLLOWED)
        end = str(self.fed)
        if cursor is None:
            return Followed([], end, False)
        if cursor and not (cursor.isdecimal() and int(cursor) <= self.fed):
            raise InvalidInput(f"cursor {cursor!r} is none that a look at this store gave")
        missing = self.fed - int(cursor or 0)
        if not cursor or missing > len(feed):
            return Followed([pulse for entry in self._entries.values() for pulse in entry.pulses], end, False)
        kept = (pulses for pulses in islice(feed, len(feed) - missing, None) if pulses[0].transaction in self._entries)
        return Followed([pulse for pulses in kept for pulse in pulses], end, False)

    def _row(self, transaction: str, entry: _Entry) -> TransactionRow:
        accepted = entry.pulses[0]
        return TransactionRow(
            transaction=transaction,
            root=accepted.root,
            parent=accepted.data.get("parent", "") if accepted.data else "",
            workflow=accepted.workflow,
            key=entry.key,
            status=entry.status,
            open=entry.open,
            owner=self.owner,
            epoch=entry.epoch,
            created_ns=accepted.at_ns,
            updated_ns=entry.updated_ns,
        )


class MemoryStore(Store):
    """The `Store` port in memory.

    Keeps every open transaction, and of those with nothing left to do the last `retained` that ended and the last
    `retained` that wait to be resumed (halted, stuck); with a transaction its key is forgotten.  `append` calls `done`
    before it returns.
    """

    shared = False
    synchronous = True

    def __init__(self, retained: int = RETAINED) -> None:
        if retained < 1:
            raise ConfigurationError(f"retained={retained}: at least the last finished transaction is kept")
        self._retained = retained
        self._owner = ""
        self._closed = False
        self._entries: dict[str, _Entry] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._queries = MemoryQueries(self._entries, self._keys)
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._resumable: OrderedDict[str, None] = OrderedDict()
        self._due: list[tuple[int, str]] = []  # open ones, earliest first
        self._unread: dict[int, Message] = {}  # of all, oldest first
        self._last_message = 0

    @override
    def open(self, owner: str) -> None:
        """No lease is taken: `owner` is only remembered.

        Raises:
            StoreError: the store was opened before, or `owner` is empty.
        """
        if self._owner:
            raise StoreError("a store is opened once; make another one")
        if not owner:
            raise StoreError("an owner needs a name")
        self._owner = self._queries.owner = owner

    @override
    async def rejoin(self, owner: str) -> None:
        """Nobody takes over what is here: only the name is another."""
        self._owner = self._queries.owner = owner

    @override
    def reader(self) -> StoreQueries:
        return self._queries

    @override
    def append(self, writes: Sequence[Write], done: Callable[[Sequence[Refusal], BaseException | None], None]) -> None:
        """`done` is called before this returns; with an error only if the store is closed or not open."""
        if self._closed or not self._owner:
            done((), StoreError(f"the store is {'closed' if self._closed else 'not open'}"))
            return
        entries = self._entries
        refused: list[tuple[int, str, Exception]] = []
        for index, write in enumerate(writes):
            transaction, epoch, pulses, status, is_open, _, dead, due_ns, receives, read, _ = write
            entry = entries.get(transaction)
            if entry is None or refused or epoch < entry.epoch or (pulses and pulses[0].seq != len(entry.pulses)):
                earlier = (error for _, name, error in refused if name == transaction)
                error = next(earlier, None) or self._create(write, entry)
                if error is not None:
                    refused.append((index, transaction, error))
                    continue
                if entry is None:
                    continue
            if (
                receives or read or entry.mailbox is not None
                or due_ns != entry.due_ns or (due_ns and is_open != entry.open)
            ):  # fmt: skip
                error = self._settle_waits(write, entry)
                if error is not None:
                    refused.append((index, transaction, error))
                    continue
            entry.pulses += pulses
            if self._queries.feed is not None and pulses:
                self._queries.fed += 1
                self._queries.feed.append(pulses)
            if status != entry.status or is_open != entry.open:
                if pulses and status != entry.status:
                    entry.updated_ns = pulses[-1].at_ns
                entry.status = status
                entry.open = is_open
                self._index_status(transaction, status, is_open)
            entry.epoch = epoch
            entry.dead = dead
        done([Refusal(index, error) for index, _, error in refused] if refused else (), None)

    @override
    async def claim(self, shapes: Mapping[str, str] | None = None) -> list[Claim]:
        """The answer is empty: what another process left in its memory is gone with it."""
        return []

    @override
    async def unclaimed(self, shapes: Mapping[str, str], limit: int = 100) -> list[TransactionRow]:
        """The answer is empty: all transactions here are ours."""
        return []

    @override
    async def reclaim(self, held: Container[str]) -> list[Claim]:
        self._require_open()
        claims = []
        for transaction, entry in self._entries.items():
            if entry.open and transaction not in held:
                entry.epoch += 1
                claims.append(Claim(transaction, entry.epoch))
        return sorted(claims)

    @override
    async def due(self, limit: int = 100) -> list[Due]:
        return [Due(transaction, due_ns) for due_ns, transaction in self._due[: max(limit, 0)]]

    @override
    async def send(self, message: Message) -> Sent:
        transaction, name, key, digest, body, sent_ns, sender, *_ = pack_message(message)
        self._require_open()
        entry = self._entries.get(transaction)
        if entry is None:
            return Sent("unknown")
        mailbox = entry.mailbox
        if mailbox is None:
            return Sent("closed", status=entry.status)
        if key and (known := mailbox.keys.get((name, key))) is not None:
            return Sent("known", known[0]) if known[1] == digest else Sent("conflict")
        if len(mailbox.unread) >= INBOX_MESSAGES or mailbox.bytes + len(body) > INBOX_BYTES:
            return Sent("full")
        self._last_message += 1
        number = self._last_message
        self._unread[number] = mailbox.unread[number] = Message(transaction, name, body, key, sender, sent_ns, number)
        mailbox.bytes += len(body)
        if key:
            mailbox.keys[name, key] = number, digest
        return Sent("kept", number)

    @override
    async def inbox(self, transaction: str) -> list[Message]:
        entry = self._entries.get(transaction)
        return list(entry.mailbox.unread.values()) if entry is not None and entry.mailbox is not None else []

    @override
    async def arrived(self, after: int = 0, limit: int = 100) -> Arrived:
        numbers = list(self._unread)
        numbers = numbers[bisect_right(numbers, after) :]
        found = [self._unread[number] for number in numbers if self._entries[self._unread[number].transaction].open]
        found = found[: max(limit, 1)]
        last = found[-1].id if len(found) == limit else max([after, *numbers[-1:]])
        return Arrived(found, last)

    @override
    async def forget(self, before_ns: int, limit: int = 100) -> int:
        self._require_open()
        ended = ((self._entries[name].updated_ns, name) for name in self._ended)
        names = [name for _, name in nsmallest(max(limit, 0), (one for one in ended if one[0] < before_ns))]
        for name in names:
            del self._ended[name]
            self._drop(name)
        return len(names)

    @override
    def close(self) -> None:
        """The store can still be read afterwards; appends fail."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed or not self._owner:
            raise StoreError(f"the store is {'closed' if self._closed else 'not open'}")

    def _settle_waits(self, write: Write, entry: _Entry) -> Exception | None:
        """Note what a write says of messages and of when its transaction is due; or why it cannot be made."""
        mailbox = entry.mailbox
        receives = write.receives and write.status in RECEIVING
        unread = mailbox.unread if mailbox is not None else {}
        there = [number for number in {*write.read} if number in unread]
        closes = mailbox is not None and not receives
        error = inbox_conflict(write, len(there), len(unread), closes)
        if error is not None:
            return error
        for number in list(unread) if closes else there:
            assert mailbox is not None
            mailbox.bytes -= len(mailbox.unread.pop(number).body)
            del self._unread[number]
        if not receives:
            entry.mailbox = None
        elif mailbox is None:
            entry.mailbox = _Mailbox()
        due = entry.due_ns, write.transaction
        place = bisect_left(self._due, due)
        if self._due[place : place + 1] == [due]:
            del self._due[place]
        entry.due_ns = write.due_ns
        if write.due_ns > 0 and write.open:
            insort(self._due, (write.due_ns, write.transaction))
        return None

    def _drop(self, transaction: str) -> None:
        entry = self._entries.pop(transaction)
        if entry.key:
            del self._keys[entry.pulses[0].workflow, entry.key]
        for number in entry.mailbox.unread if entry.mailbox is not None else ():
            del self._unread[number]

    def _create(self, write: Write, entry: _Entry | None) -> Exception | None:
        """Make the entry of a transaction's first write; returns why this write cannot be made, None if it was."""
        state = JournalState(entry.epoch, entry.status, entry.open, len(entry.pulses)) if entry is not None else None
        error = conflict(write, state, others="")
        return self._begin(write) if entry is None and error is None else error

    def _begin(self, write: Write) -> Exception | None:
        transaction, key = write.transaction, write.key
        if write.read:
            return InboxChanged(f"transaction {transaction}: it has no messages before it begins")
        if key:
            workflow = write.pulses[0].workflow
            holder = self._keys.setdefault((workflow, key), transaction)
            if holder != transaction:
                return DuplicateTransaction(f"key {key!r} of {workflow!r} was used before, by transaction {holder}")
        entry = self._entries[transaction] = _Entry(write)
        if write.receives or write.due_ns:
            self._settle_waits(write, entry)
        if self._queries.feed is not None:
            self._queries.fed += 1
            self._queries.feed.append(write.pulses)
        if not write.open:
            self._index_status(transaction, write.status, False)
        return None

    def _index_status(self, transaction: str, status: str, is_open: bool) -> None:
        """Put a transaction where its status belongs, and forget the oldest transactions there if they are too many."""
        self._ended.pop(transaction, None)
        self._resumable.pop(transaction, None)
        if is_open:
            return
        bucket = self._ended if status in FINAL_STATUSES else self._resumable
        bucket[transaction] = None
        if len(bucket) > self._retained:
            oldest, _ = bucket.popitem(last=False)
            self._drop(oldest)
