"""What a mesh would write to its store, made by hand, so that a large journal is there without running its work."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from bitactor.ports import Claim, Refusal, Store, Write
from mesh.stores import Durability, open_store

OLDEST = f"{1:032x}"
YOUNG = f"{(1 << 128) - 1:032x}"
"""Two transactions of a long log: begun before all others, and after them."""

IN_FLIGHT = 200
LENGTH = 50

_BEGAN_NS = 1_790_000_000_000_000_000
_TOKEN = encode_token(7)

Value = TypeVar("Value")


class StoreRefused(RuntimeError):
    """A store did not keep what a benchmark gave it."""


def transaction_id(number: int) -> str:
    """An id, later ones greater; none is `OLDEST` or `YOUNG`."""
    return f"{number + 2:032x}"


def begin(transaction: str) -> Write:
    """The first write of a chain: accepted, and its first step spawned."""
    accepted = _pulse(transaction, 0, "accepted", step="", spawn="", data={"ttl": LENGTH, "key": "", "parent": ""})
    return Write(transaction, 0, (accepted, _pulse(transaction, 1, "spawned")), "running", True)


def hop(transaction: str, number: int) -> Write:
    """The hop of this number, from 0 on, has ended, and the next is spawned."""
    seq = 1 + number * 2
    completed = _pulse(transaction, seq + 1, "completed", token_out=_TOKEN, elapsed_ns=5_000)
    return Write(transaction, 0, (completed, _pulse(transaction, seq + 2, "spawned")), "running", True)


def end(transaction: str, number: int) -> Write:
    """The hop of this number has ended, and with it the transaction."""
    seq = 1 + number * 2
    completed = _pulse(transaction, seq + 1, "completed", token_out=_TOKEN, elapsed_ns=5_000)
    finished = _pulse(transaction, seq + 2, "finished", step="", spawn="", data={"status": "completed"})
    return Write(transaction, 0, (completed, finished), "completed", False)


def chains(hops: int, in_flight: int = IN_FLIGHT, length: int = LENGTH) -> Iterator[list[Write]]:
    """Commits of chains that run side by side, a hop of each in a commit, until there were so many hops."""
    for first in range(0, hops // length, in_flight):
        names = [transaction_id(number) for number in range(first, min(first + in_flight, hops // length))]
        yield [begin(name) for name in names]
        for number in range(length - 1):
            yield [hop(name, number) for name in names]
        yield [end(name, length - 1) for name in names]


async def open_journal(url: str, owner: str, durability: Durability = "process") -> Store:
    """A store without a mesh, open."""
    loop = asyncio.get_running_loop()

    def notify(call: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(call)

    store = open_store(url, notify=notify, durability=durability)
    await store.open_on_loop(owner)
    return store


async def keep(store: Store, writes: Sequence[Write]) -> None:
    """Have these writes kept, all of them.

    Raises:
        StoreRefused: one was not.
    """
    told: asyncio.Future[tuple[Sequence[Refusal], BaseException | None]] = asyncio.get_running_loop().create_future()
    store.append(writes, lambda refusals, error: told.set_result((refusals, error)))
    refusals, error = await told
    if error is not None or refusals:
        raise StoreRefused(f"{len(refusals)} of {len(writes)} writes were refused") from (error or refusals[0].error)


async def keep_long_log(store: Store, hops: int) -> None:
    """A log of so many hops, with one transaction that was open all the time and wrote now and then, and one that has
    just begun."""
    await keep(store, [begin(OLDEST)])
    written = 0
    for number, commit in enumerate(chains(hops)):
        await keep(store, commit)
        if number % 100 == 99:
            await keep(store, [hop(OLDEST, written)])
            written += 1
    await keep(store, [begin(YOUNG)])
    for number in range(3):
        await keep(store, [hop(YOUNG, number)])


async def recovered(store: Store) -> int:
    """Take over what is there, and have all its pulses, as a mesh does; how many those were."""
    claims: list[Claim] = await _answer(store.claim())
    pulses = 0
    for claim in claims:
        read: Sequence[Pulse] | None = getattr(claim, "pulses", None)
        pulses += len(await _answer(store.pulses(claim.transaction)) if read is None else read)
    return pulses


async def _answer(answer: Value | Awaitable[Value]) -> Value:
    """What a store answers, at once or later."""
    if inspect.isawaitable(answer):
        later: Value = await answer
        return later
    return answer


def _pulse(transaction: str, seq: int, kind: str, **fields: Any) -> Pulse:
    made = Pulse(
        transaction=transaction, root=transaction, workflow="benchmarks.journal", seq=seq, hop=f"{seq:016x}",
        causes=(f"{seq - 1:016x}",) if seq else (), kind=kind, step=f"step{(seq + 1) // 2}", spawn="loop",
        direction="forward", attempt=1, ttl=max(LENGTH - seq // 2, 1), at_ns=_BEGAN_NS + seq * 1_000, elapsed_ns=None,
        token_in=("value",) if kind == "spawned" else None, token_out=None, error=None, data=None, digest="abcdef",
    )  # fmt: skip
    return made._replace(**fields) if fields else made
