"""What every store promises, run over each of them; a new store is one more line in `STORES`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bitactor.errors import DuplicateTransaction, StaleOwner, StoreError
from bitactor.messages.codec import Packed, encode_token
from bitactor.messages.pulse import KINDS, STATUSES, Pulse
from bitactor.ports import Claim, Refusal, Store, TransactionRow, Write
from mesh.stores import MemoryStore, SqliteStore, open_store
from tests import extensions  # noqa: F401  (which adds a store)
from tests.amounts import examples
from tests.store_writes import BOUND, Loop, Told, first, fresh, hop, last, pulse

STORES: dict[str, Callable[[Path, Loop], Store]] = {
    "memory": lambda path, loop: MemoryStore(),
    "sqlite": lambda path, loop: SqliteStore(path / "pulses.db", notify=loop.notify),
    "sqlite-power": lambda path, loop: SqliteStore(path / "pulses.db", notify=loop.notify, durability="power"),
    "sqlite-none": lambda path, loop: SqliteStore(path / "pulses.db", notify=loop.notify, durability="none"),
    "tardy": lambda path, loop: open_store("tardy://", notify=loop.notify),
}


Value = TypeVar("Value")


class Journal:
    """A store with a loop to call back on, and one to answer on; `append` and `ask` wait until it has."""

    def __init__(self, store: Store, loop: Loop, runner: asyncio.Runner) -> None:
        self.store = store
        self.loop = loop
        self._runner = runner

    def ask(self, answer: Coroutine[Any, Any, Value]) -> Value:
        async def asked() -> Value:
            running = asyncio.get_running_loop()
            self.loop.wake = lambda: running.call_soon_threadsafe(self.loop.run_waiting)
            self.loop.run_waiting()
            try:
                return await answer
            finally:
                self.loop.wake = lambda: None

        return self._runner.run(asked())

    def append(self, *writes: Write) -> tuple[Sequence[Refusal], BaseException | None]:
        told = Told()
        self.store.append(writes, told.done())
        self.loop.run_until(lambda: told.complete)
        _, refusals, error = told.outcomes[0]
        return refusals, error

    def keep(self, *writes: Write) -> None:
        refusals, error = self.append(*writes)
        assert not refusals and error is None, (refusals, error)


@pytest.fixture(params=list(STORES))
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    loop = Loop()
    store = STORES[request.param](tmp_path, loop)
    store.open("owner-1")
    with asyncio.Runner() as runner:
        yield Journal(store, loop, runner)
    store.close()


def test_a_transaction_is_read_as_it_was_written(journal: Journal) -> None:
    transaction, parent = fresh(), fresh()
    writes = [first(transaction, key="req-17", parent=parent), hop(transaction, 2), last(transaction, 4)]
    for write in writes:
        journal.keep(write)
    assert journal.ask(journal.store.pulses(transaction)) == [pulse for write in writes for pulse in write.pulses]
    assert journal.ask(journal.store.get(transaction)) == TransactionRow(
        transaction=transaction,
        root=transaction,
        parent=parent,
        workflow="users.signup",
        key="req-17",
        status="completed",
        open=False,
        owner="owner-1",
        epoch=0,
        created_ns=1_000,
        updated_ns=1_004,
    )


def test_one_append_may_hold_many_transactions_and_several_writes_of_one(journal: Journal) -> None:
    one, other = fresh(), fresh()
    journal.keep(first(one), first(other), hop(one, 2), last(one, 4), hop(other, 2))
    assert [pulse.seq for pulse in journal.ask(journal.store.pulses(one))] == [0, 1, 2, 3, 4]
    assert [pulse.seq for pulse in journal.ask(journal.store.pulses(other))] == [0, 1, 2, 3]
    rows = [journal.ask(journal.store.get(one)), journal.ask(journal.store.get(other))]
    assert [(row.status, row.open) for row in rows if row] == [("completed", False), ("running", True)]


def test_done_is_called_once_for_each_append_in_order(journal: Journal) -> None:
    told = Told()
    transaction = fresh()
    journal.store.append([first(transaction)], told.done())
    for number in range(50):
        journal.store.append([hop(transaction, 2 + 2 * number)], told.done())
    journal.store.append([], told.done())
    journal.loop.run_until(lambda: told.complete)
    assert [number for number, _, _ in told.outcomes] == list(range(52))
    assert not any(refusals or error for _, refusals, error in told.outcomes)
    assert len(journal.ask(journal.store.pulses(transaction))) == 102


def test_what_done_was_called_for_can_be_read_in_it_and_it_may_append(journal: Journal) -> None:
    transaction = fresh()
    seen: list[int] = []

    def done(refusals: Sequence[Refusal], error: BaseException | None) -> None:
        assert not refusals and error is None
        seen.append(len(journal.ask(journal.store.pulses(transaction))))
        if len(seen) < 5:
            journal.store.append([hop(transaction, 2 * len(seen))], done)

    journal.store.append([first(transaction)], done)
    journal.loop.run_until(lambda: len(seen) == 5)
    assert seen == [2, 4, 6, 8, 10]


def test_a_key_is_given_once_in_a_workflow(journal: Journal) -> None:
    holder, rival, elsewhere, bystander = fresh(), fresh(), fresh(), fresh()
    journal.keep(first(holder, key="k"))
    refusals, error = journal.append(
        first(bystander),
        first(rival, key="k"),
        first(elsewhere, key="k", workflow="other"),
        hop(bystander, 2),
        hop(rival, 2),
    )
    assert error is None
    assert [refusal.index for refusal in refusals] == [1, 4]
    assert isinstance(refusals[0].error, DuplicateTransaction)
    assert holder in str(refusals[0].error) and "'k'" in str(refusals[0].error)
    assert journal.ask(journal.store.pulses(rival)) == [] and journal.ask(journal.store.get(rival)) is None
    assert len(journal.ask(journal.store.pulses(bystander))) == 4
    assert journal.ask(journal.store.find("users.signup", "k")) == holder
    assert journal.ask(journal.store.find("other", "k")) == elsewhere
    assert journal.ask(journal.store.find("users.signup", "unused")) is None
    assert journal.ask(journal.store.find("users.signup", "")) is None


def test_of_two_writes_with_one_key_in_one_append_the_first_is_kept(journal: Journal) -> None:
    one, other = fresh(), fresh()
    refusals, error = journal.append(first(one, key="k"), first(other, key="k"))
    assert error is None and [refusal.index for refusal in refusals] == [1]
    assert journal.ask(journal.store.find("users.signup", "k")) == one


def test_a_transaction_is_created_once(journal: Journal) -> None:
    """Open or not, known to the store or only to what it keeps."""
    running, ended = fresh(), fresh()
    journal.keep(first(running), first(ended, open=False))
    refusals, error = journal.append(first(running), hop(running, 2), first(ended), hop(ended, 2))
    assert error is None and [refusal.index for refusal in refusals] == [0, 1, 2, 3]
    assert all(isinstance(refusal.error, DuplicateTransaction) for refusal in refusals)
    assert len(journal.ask(journal.store.pulses(running))) == len(journal.ask(journal.store.pulses(ended))) == 2


def test_a_write_of_an_unknown_transaction_is_refused(journal: Journal) -> None:
    transaction = fresh()
    refusals, error = journal.append(hop(transaction, 2))
    assert error is None and transaction in str(refusals[0].error)
    assert journal.ask(journal.store.pulses(transaction)) == []


def test_a_write_of_an_earlier_epoch_is_refused(journal: Journal) -> None:
    transaction, other = fresh(), fresh()
    journal.keep(first(transaction), first(other))
    journal.keep(hop(transaction, 2, epoch=1))
    refusals, error = journal.append(hop(other, 2), hop(transaction, 4, epoch=0))
    assert error is None and [refusal.index for refusal in refusals] == [1]
    assert isinstance(refusals[0].error, StaleOwner)
    assert (
        len(journal.ask(journal.store.pulses(transaction))) == 4 and len(journal.ask(journal.store.pulses(other))) == 4
    )
    row = journal.ask(journal.store.get(transaction))
    assert row is not None and row.epoch == 1


def test_a_journal_has_no_gaps_and_no_pulse_twice(journal: Journal) -> None:
    transaction = fresh()
    journal.keep(first(transaction))
    for wrong, kind in ((hop(transaction, 3), StoreError), (hop(transaction, 1), StaleOwner)):
        refusals, error = journal.append(wrong)
        assert error is None and isinstance(refusals[0].error, kind)
    journal.keep(hop(transaction, 2))
    assert [pulse.seq for pulse in journal.ask(journal.store.pulses(transaction))] == [0, 1, 2, 3]


def test_a_transaction_that_halted_can_go_on(journal: Journal) -> None:
    transaction = fresh()
    journal.keep(first(transaction), last(transaction, 2, "halted"))
    assert [row.transaction for row in journal.ask(journal.store.list(status="halted"))] == [transaction]
    journal.keep(hop(transaction, 3, epoch=1))
    row = journal.ask(journal.store.get(transaction))
    assert row is not None and (row.status, row.open, row.epoch) == ("running", True, 1)
    journal.keep(last(transaction, 5, epoch=1))
    journal.keep(Write(transaction, 1, (pulse(transaction, 6, "late"),), "completed", False))
    assert [pulse.seq for pulse in journal.ask(journal.store.pulses(transaction))] == list(range(7))


def test_a_write_may_change_the_status_alone(journal: Journal) -> None:
    transaction = fresh()
    journal.keep(first(transaction))
    journal.keep(Write(transaction, 0, (), "completed", True))
    row = journal.ask(journal.store.get(transaction))
    assert row is not None and (row.status, row.open, row.updated_ns) == ("completed", True, 1_001)


def test_lists_newest_first_in_pages(journal: Journal) -> None:
    ids = [fresh() for _ in range(9)]
    journal.keep(*[first(id, workflow=f"flow-{number % 2}") for number, id in enumerate(ids)])
    journal.keep(*[last(id, 2, "stuck") for id in ids[:3]], *[last(id, 2) for id in ids[3:6]])

    def listed(**conditions: Any) -> list[int]:
        return [ids.index(row.transaction) for row in journal.ask(journal.store.list(**conditions))]

    assert listed() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert listed(limit=2) == [8, 7]
    assert listed(limit=2, before=ids[7]) == [6, 5]
    assert listed(limit=0) == []
    assert listed(status="running") == [8, 7, 6]
    assert listed(workflow="flow-1") == [7, 5, 3, 1]
    assert listed(workflow="flow-0", status="stuck") == [2, 0]
    assert listed(workflow="flow-0", status="completed", before=ids[5]) == [4]
    assert listed(workflow="flow-2") == listed(status="halted") == []


def test_what_has_dead_letters_is_listed_by_that(journal: Journal) -> None:
    """From the write on that says so, also of one that has ended since, and while a transaction is stuck."""
    ids = [fresh() for _ in range(6)]
    journal.keep(*[first(id, workflow=f"flow-{number % 2}") for number, id in enumerate(ids[:5])])
    journal.keep(first(ids[5])._replace(dead=True))

    def dead(**conditions: Any) -> list[int]:
        return [ids.index(row.transaction) for row in journal.ask(journal.store.list(dead=True, **conditions))]

    assert dead() == [5]
    journal.keep(hop(ids[0], 2)._replace(dead=True), last(ids[1], 2, "stuck"), last(ids[2], 2), last(ids[3], 2))
    journal.keep(last(ids[0], 4)._replace(dead=True))
    journal.keep(Write(ids[3], 0, (pulse(ids[3], 3, "tombstone"),), "completed", False, dead=True))
    assert dead() == [5, 3, 1, 0]
    assert dead(limit=2) == [5, 3] and dead(limit=2, before=ids[3]) == [1, 0]
    assert dead(workflow="flow-1") == [3, 1] and dead(workflow="flow-1", before=ids[3]) == [1]
    assert dead(status="completed") == [3, 0]
    journal.keep(Write(ids[1], 0, (pulse(ids[1], 3, "resumed"),), "running", True))
    assert dead() == [5, 3, 0]
    assert [ids.index(row.transaction) for row in journal.ask(journal.store.list())] == [5, 4, 3, 2, 1, 0]


def test_what_is_not_there_is_empty(journal: Journal) -> None:
    assert journal.ask(journal.store.pulses(fresh())) == []
    assert journal.ask(journal.store.get(fresh())) is None
    assert journal.ask(journal.store.list()) == []
    assert journal.ask(journal.store.claim()) == []


def test_our_own_transactions_are_not_claimed(journal: Journal) -> None:
    journal.keep(first(fresh()))
    assert journal.ask(journal.store.claim()) == []
    assert journal.ask(journal.store.claim({"users.signup": "abcdef"})) == []
    assert journal.ask(journal.store.unclaimed({"users.signup": "another"})) == []


def test_what_was_given_up_is_reclaimed_with_its_next_epoch(journal: Journal) -> None:
    given_up, held, ended = fresh(), fresh(), fresh()
    journal.keep(first(given_up), first(held), first(ended, open=False))
    assert journal.ask(journal.store.reclaim({held})) == [Claim(given_up, 1)]
    refusals, error = journal.append(hop(given_up, 2), hop(held, 2))
    assert error is None and [refusal.index for refusal in refusals] == [0], "what its former life still writes is void"
    journal.keep(hop(given_up, 2, epoch=1), hop(held, 4))
    assert journal.ask(journal.store.reclaim({held})) == [Claim(given_up, 2)]
    assert journal.ask(journal.store.reclaim({held, given_up})) == []


def test_what_was_read_can_be_changed_without_harm(journal: Journal) -> None:
    transaction = fresh()
    journal.keep(first(transaction))
    journal.ask(journal.store.pulses(transaction)).clear()
    assert len(journal.ask(journal.store.pulses(transaction))) == 2


def test_its_reader_says_the_same_at_once_and_after_it_was_closed(journal: Journal) -> None:
    one, other = fresh(), fresh()
    journal.keep(first(one, key="k"), first(other))
    store, reader = journal.store, journal.store.reader()
    answers = [
        journal.ask(store.pulses(one)), journal.ask(store.find("users.signup", "k")), journal.ask(store.get(other)),
        journal.ask(store.list(limit=1)),
    ]  # fmt: skip

    def read() -> list[Any]:
        return [reader.pulses(one), reader.find("users.signup", "k"), reader.get(other), reader.list(limit=1)]

    assert read() == answers
    store.close()
    assert [answer == now for answer, now in zip(answers[:2], read()[:2], strict=True)] == [True, True]
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(read).result()[:2] == answers[:2]


def test_many_are_asked_at_once_and_one_is_cancelled(journal: Journal) -> None:
    transactions = [fresh() for _ in range(20)]
    journal.keep(*(first(transaction, key=f"k-{number}") for number, transaction in enumerate(transactions)))
    store = journal.store

    async def ask() -> list[Any]:
        questions = [
            asyncio.ensure_future(question)
            for number, transaction in enumerate(transactions)
            for question in (store.find("users.signup", f"k-{number}"), store.pulses(transaction))
        ]
        claiming = [asyncio.ensure_future(store.claim()), asyncio.ensure_future(store.reclaim(transactions))]
        await asyncio.sleep(0)
        questions[0].cancel()
        answers = await asyncio.gather(*questions, return_exceptions=True)
        assert await asyncio.gather(*claiming) == [[], []]
        return answers

    answers = journal.ask(ask())
    assert answers[2::2] == transactions[1:] and isinstance(answers[0], asyncio.CancelledError | str)
    assert [pulses[0].transaction for pulses in answers[1::2]] == transactions


def test_what_is_asked_when_it_is_closed_is_answered_or_fails(journal: Journal) -> None:
    transaction = fresh()
    journal.keep(first(transaction, key="k"))
    store = journal.store

    async def ask() -> list[Any]:
        questions = [
            asyncio.ensure_future(question)
            for question in (
                store.pulses(transaction), store.find("users.signup", "k"), store.get(transaction), store.list(),
                store.claim(), store.unclaimed({}), store.reclaim({transaction}),
            )
        ]  # fmt: skip
        await asyncio.sleep(0)
        store.close()
        async with asyncio.timeout(BOUND):
            return await asyncio.gather(*questions, return_exceptions=True)

    assert not [got for got in journal.ask(ask()) if isinstance(got, BaseException) and type(got) is not StoreError]


def test_what_begins_while_it_is_asked_is_not_reclaimed(journal: Journal) -> None:
    """What is held is looked up as the claim is made."""
    given_up, begun = fresh(), fresh()
    journal.keep(first(given_up))
    held: set[str] = set()

    async def ask() -> list[Claim]:
        claiming = asyncio.ensure_future(journal.store.reclaim(held))
        await asyncio.sleep(0)
        held.add(begun)
        journal.store.append([first(begun)], lambda refusals, error: None)
        return await claiming

    assert [claim.transaction for claim in journal.ask(ask())] == [given_up]


def test_a_store_is_opened_once(journal: Journal) -> None:
    with pytest.raises(StoreError, match="once"):
        journal.store.open("owner-2")


@pytest.mark.parametrize("kind", list(STORES))
def test_an_append_before_open_or_after_close_fails(kind: str, tmp_path: Path) -> None:
    store = STORES[kind](tmp_path, Loop())
    told = Told()
    store.append([first(fresh())], told.done())
    store.open("owner-1")
    store.close()
    store.close()
    store.append([first(fresh())], told.done())
    assert [type(error) for _, _, error in told.outcomes] == [StoreError, StoreError]


@pytest.mark.parametrize("kind", list(STORES))
def test_close_finishes_what_was_appended(kind: str, tmp_path: Path) -> None:
    """Although the loop turns no more."""
    store = STORES[kind](tmp_path, Loop())
    store.open("owner-1")
    told = Told()
    transaction = fresh()
    store.append([first(transaction)], told.done())
    for number in range(100):
        store.append([hop(transaction, 2 + 2 * number)], told.done())
    store.close()
    assert [number for number, _, _ in told.outcomes] == list(range(101))
    assert not any(refusals or error for _, refusals, error in told.outcomes)


_texts = st.text(max_size=12)
_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | _texts
_plain = st.recursive(
    _scalars | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_tokens = _scalars | _plain.map(encode_token)
_data = st.none() | st.dictionaries(_texts, _plain | _tokens | st.integers(2**64, 2**70) | st.datetimes(), max_size=4)
_counts = st.integers(0, 2**63 - 1)
_pulses = st.builds(
    Pulse,
    transaction=st.just(""), root=st.just(""), workflow=st.just(""), seq=st.just(0),
    hop=st.text("0123456789abcdef", min_size=16, max_size=16), causes=st.lists(_texts, max_size=3).map(tuple),
    kind=st.sampled_from(KINDS), step=_texts, spawn=_texts, direction=st.sampled_from(["forward", "undo"]),
    attempt=_counts, ttl=_counts, at_ns=_counts, elapsed_ns=st.none() | _counts,
    token_in=st.lists(_texts, max_size=3).map(tuple) | _tokens, token_out=_tokens,
    error=st.none() | st.text(st.characters(), max_size=12), data=_data, digest=_texts,
)  # fmt: skip
_stories = st.lists(st.lists(st.lists(_pulses, min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=4)


@examples(quick=30, long=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(stories=_stories, root=_texts, workflow=_texts, status=st.sampled_from(STATUSES), interleaved=st.booleans())
def test_any_pulse_comes_back_as_it_was(
    journal: Journal, stories: list[list[list[Pulse]]], root: str, workflow: str, status: str, interleaved: bool
) -> None:
    writes: list[list[Write]] = []
    for story in stories:
        transaction, seq, own = fresh(), 0, []
        for number, drawn in enumerate(story):
            pulses = [
                pulse._replace(transaction=transaction, root=root, workflow=workflow, seq=seq + offset)
                for offset, pulse in enumerate(drawn)
            ]
            seq += len(pulses)
            own.append(Write(transaction, 0, pulses, status if number else "running", number + 1 < len(story)))
        writes.append(own)
    if interleaved:
        for turn in range(4):
            journal.keep(*[own[turn] for own in writes if turn < len(own)])
    else:
        journal.keep(*[write for own in writes for write in own])
    for own in writes:
        expected = [pulse for write in own for pulse in write.pulses]
        assert [_typed(pulse) for pulse in journal.ask(journal.store.pulses(own[0].transaction))] == [
            _typed(pulse) for pulse in expected
        ]
        row = journal.ask(journal.store.get(own[0].transaction))
        assert row is not None and (row.status, row.open, row.root) == (own[-1].status, own[-1].open, root)


def _typed(value: Any) -> Any:
    """`value` with the types of what is in it, so that 1, 1.0 and True, or packed and plain bytes, are told apart."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [_typed(item) for item in value]
    return type(value).__name__, bytes(value) if isinstance(value, Packed) else value
