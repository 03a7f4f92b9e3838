"""What every store promises of messages, due times and forgetting, over the stores of `test_store_contract`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bitactor.errors import InboxChanged, InvalidInput, StoreError
from bitactor.ports import INBOX_BYTES, INBOX_MESSAGES, Arrived, Due, Message, Refusal, Sent, Write
from tests import extensions  # noqa: F401  (which adds a store)
from tests.contract.test_store_contract import Journal
from tests.contract.test_store_contract import journal as journal
from tests.store_writes import BOUND, first, fresh, hop, last, message, pulse


def waits(write: Write, **fields: Any) -> Write:
    """The same write of a transaction that receives messages."""
    return write._replace(receives=True, **fields)


def send(journal: Journal, *messages: Message) -> list[str]:
    return [journal.ask(journal.store.send(one)).outcome for one in messages]


def bodies(journal: Journal, transaction: str) -> list[bytes]:
    return [one.body for one in journal.ask(journal.store.inbox(transaction))]


def begun(journal: Journal) -> str:
    transaction = fresh()
    journal.keep(waits(first(transaction)))
    return transaction


def refused(outcome: tuple[Sequence[Refusal], BaseException | None]) -> InboxChanged:
    refusals, error = outcome
    assert error is None and len(refusals) == 1
    found = refusals[0].error
    assert isinstance(found, InboxChanged)
    return found


# Due times


def test_what_is_due_is_told_earliest_first(journal: Journal) -> None:
    one, other, third, never = (fresh() for _ in range(4))
    journal.keep(*(first(id)._replace(due_ns=due) for id, due in ((one, 30), (other, 10), (third, 20), (never, 0))))
    assert journal.ask(journal.store.due()) == [Due(other, 10), Due(third, 20), Due(one, 30)]
    assert journal.ask(journal.store.due(limit=2)) == [Due(other, 10), Due(third, 20)]
    assert journal.ask(journal.store.due(limit=0)) == []
    journal.keep(hop(other, 2)._replace(due_ns=40), hop(third, 2))
    assert journal.ask(journal.store.due()) == [Due(one, 30), Due(other, 40)]


def test_two_that_are_due_at_once_are_told_in_order(journal: Journal) -> None:
    ids = [fresh() for _ in range(5)]
    journal.keep(*(first(id)._replace(due_ns=2**62) for id in reversed(ids)))
    assert journal.ask(journal.store.due()) == [Due(id, 2**62) for id in ids]


def test_what_ended_is_not_due_and_what_halted_is_once_it_goes_on(journal: Journal) -> None:
    ended, halted = fresh(), fresh()
    journal.keep(first(ended)._replace(due_ns=10), first(halted)._replace(due_ns=20))
    journal.keep(last(ended, 2)._replace(due_ns=10), last(halted, 2, "halted")._replace(due_ns=20))
    assert journal.ask(journal.store.due()) == []
    journal.keep(hop(halted, 3, epoch=1)._replace(due_ns=20))
    assert journal.ask(journal.store.due()) == [Due(halted, 20)]


def test_a_due_time_changes_without_pulses_and_not_by_what_is_refused(journal: Journal) -> None:
    transaction = fresh()
    journal.keep(first(transaction)._replace(due_ns=10))
    journal.keep(Write(transaction, 0, (), "running", True, due_ns=30))
    refusals, _ = journal.append(hop(transaction, 7)._replace(due_ns=50))
    assert len(refusals) == 1
    assert journal.ask(journal.store.due()) == [Due(transaction, 30)]


# Sending


def test_messages_are_kept_in_order_until_they_are_read(journal: Journal) -> None:
    one, other = begun(journal), begun(journal)
    sent = [message(one, body=b"1", key="k"), message(other, body=b"2"), message(one, "note", b"", sender="")]
    kept = [journal.ask(journal.store.send(each)) for each in sent]
    assert [each.outcome for each in kept] == ["kept"] * 3 and kept[0].id < kept[1].id < kept[2].id
    expected = [each._replace(id=answer.id) for each, answer in zip(sent, kept, strict=True)]
    assert journal.ask(journal.store.inbox(one)) == [expected[0], expected[2]]
    journal.keep(waits(hop(one, 2), read=(kept[0].id,)))
    assert bodies(journal, one) == [b""] and bodies(journal, other) == [b"2"]
    journal.keep(waits(hop(one, 4), read=(kept[2].id,)), waits(hop(other, 2), read=(kept[1].id,)))
    assert bodies(journal, one) == bodies(journal, other) == bodies(journal, fresh()) == []


def test_what_arrived_is_told_behind_the_last_look(journal: Journal) -> None:
    one, halted = begun(journal), begun(journal)
    assert journal.ask(journal.store.arrived()) == Arrived([], 0)
    assert send(journal, *(message(one, body=b"%d" % number) for number in range(5))) == ["kept"] * 5
    looked = journal.ask(journal.store.arrived(0, 3))
    assert [each.body for each in looked.messages] == [b"0", b"1", b"2"] and looked.last == looked.messages[-1].id
    rest = journal.ask(journal.store.arrived(looked.last, 3))
    assert [each.body for each in rest.messages] == [b"3", b"4"]
    assert journal.ask(journal.store.arrived(rest.last)) == Arrived([], rest.last)
    journal.keep(last(halted, 2, "halted")._replace(receives=True))
    journal.keep(waits(hop(one, 2), read=[each.id for each in rest.messages]))
    assert send(journal, message(halted)) == ["kept"]
    looked = journal.ask(journal.store.arrived(rest.last))
    assert looked.messages == [] and looked.last > rest.last, "what halted asks when it goes on, and none is told twice"
    assert journal.ask(journal.store.arrived(looked.last)) == Arrived([], looked.last)
    assert len(journal.ask(journal.store.arrived()).messages) == 3
    assert send(journal, message(one, body=b"new")) == ["kept"]
    assert [each.body for each in journal.ask(journal.store.arrived(looked.last)).messages] == [b"new"]


def test_a_key_is_known_once_also_when_it_was_read(journal: Journal) -> None:
    one, other = begun(journal), begun(journal)
    sent = journal.ask(journal.store.send(message(one, key="k")))
    for _ in range(2):
        assert journal.ask(journal.store.send(message(one, key="k", sender="else"))) == Sent("known", sent.id)
        assert journal.ask(journal.store.send(message(one, key="k", body=b"no"))) == Sent("conflict")
        if bodies(journal, one):
            journal.keep(waits(hop(one, 2), read=(sent.id,)))
    assert send(journal, message(one, "note", key="k"), message(other, key="k"), message(one, key="l")) == ["kept"] * 3
    assert send(journal, message(one), message(one)) == ["kept", "kept"], "without a key each time"
    assert bodies(journal, one) == [b"yes"] * 4


def test_who_receives_no_messages_is_sent_none(journal: Journal) -> None:
    """It never did, undoes, is stuck or has ended; one that halted still does, and one that goes on does again."""
    never, undoing, stuck, done, halted = (fresh() for _ in range(5))
    journal.keep(first(never), *(waits(first(id)) for id in (undoing, stuck, done, halted)))
    journal.keep(
        hop(undoing, 2), waits(last(stuck, 2, "stuck")), waits(last(done, 2)), waits(last(halted, 2, "halted"))
    )  # fmt: skip
    answers = [journal.ask(journal.store.send(message(id, key="k"))) for id in (never, undoing, stuck, done)]
    assert answers == [Sent("closed", status=status) for status in ("running", "running", "stuck", "completed")]
    assert send(journal, message(halted), message(fresh()), message("no id")) == ["kept", "unknown", "unknown"]
    journal.keep(waits(hop(halted, 3, epoch=1)))
    assert bodies(journal, halted) == [b"yes"]
    journal.keep(waits(Write(undoing, 0, (), "running", True)))
    assert send(journal, message(undoing, key="k")) == ["kept"]


def test_a_mailbox_takes_so_many_messages(journal: Journal) -> None:
    one, other = begun(journal), begun(journal)

    async def fill() -> list[Sent]:
        return await asyncio.gather(*(journal.store.send(message(one)) for _ in range(INBOX_MESSAGES + 1)))

    answers = journal.ask(fill())
    assert sorted(answer.outcome for answer in answers) == ["full"] + ["kept"] * INBOX_MESSAGES
    assert send(journal, message(other)) == ["kept"]
    journal.keep(waits(hop(one, 2), read=(answers[7].id or answers[8].id,)))
    assert send(journal, message(one), message(one)) == ["kept", "full"]


def test_a_mailbox_takes_so_many_bytes(journal: Journal) -> None:
    one = begun(journal)
    large, small = message(one, body=bytes(INBOX_BYTES - 10)), message(one, body=bytes(10))
    assert send(journal, large, message(one, body=bytes(11)), small) == ["kept", "full", "kept"]
    assert send(journal, message(one, body=b"x"), message(one, body=b"")) == ["full", "kept"]


@pytest.mark.parametrize(
    "wrong",
    [{"body": "text"}, {"key": "\udc80"}, {"sender": "\udc80"}, {"name": None}, {"sent_ns": 2**63}, {"sent_ns": None}],
)
def test_what_is_no_message_is_refused(journal: Journal, wrong: dict[str, Any]) -> None:
    one = begun(journal)
    with pytest.raises(InvalidInput, match=one):
        journal.ask(journal.store.send(message(one)._replace(**wrong)))
    assert bodies(journal, one) == []


def test_who_sends_may_be_cancelled(journal: Journal) -> None:
    one = begun(journal)

    async def ask() -> list[Any]:
        sending = [asyncio.ensure_future(journal.store.send(message(one, body=b"%d" % number))) for number in range(9)]
        await asyncio.sleep(0)
        sending[0].cancel()
        async with asyncio.timeout(BOUND):
            return await asyncio.gather(*sending, return_exceptions=True)

    answers = journal.ask(ask())
    assert [answer.outcome for answer in answers[1:]] == ["kept"] * 8
    assert set(bodies(journal, one)) >= {b"%d" % number for number in range(1, 9)}


# Reading and ending


def test_what_is_not_there_is_not_read(journal: Journal) -> None:
    """Not twice, not another's, and not before there is a transaction; such a write leaves no trace."""
    one, other, unbegun = begun(journal), begun(journal), fresh()
    [mine, theirs] = [journal.ask(journal.store.send(message(id, key="k"))).id for id in (one, other)]
    for read in ((theirs,), (mine, theirs), (mine, mine), (mine + theirs,)):
        refusals, error = journal.append(hop(other, 2), waits(hop(one, 2), read=read), hop(one, 4))
        assert error is None and [refusal.index for refusal in refusals][:1] == [0], "it leaves a message unread"
        assert isinstance(refusals[1].error, InboxChanged) and [refusal.index for refusal in refusals] == [0, 1, 2]
    refused(journal.append(waits(first(unbegun), read=(mine,))))
    assert journal.ask(journal.store.get(unbegun)) is None
    assert len(journal.ask(journal.store.pulses(one))) == 2 and bodies(journal, one) == [b"yes"]
    journal.keep(waits(hop(one, 2), read=(mine,)))
    assert refused(journal.append(waits(hop(one, 4), read=(mine,)))).unread == 0


def test_the_end_counts_what_it_leaves_unread(journal: Journal) -> None:
    one, bystander = begun(journal), begun(journal)
    ids = [journal.ask(journal.store.send(message(one, key=key))).id for key in ("", "a", "", "b")]
    journal.keep(waits(hop(one, 2), read=ids[:1]))
    for unread in (0, 2, 4):
        refusals, error = journal.append(last(one, 4)._replace(unread=unread), waits(hop(bystander, 2)))
        assert error is None and [refusal.index for refusal in refusals] == [0]
        assert isinstance(refusals[0].error, InboxChanged) and refusals[0].error.unread == 3
        assert one in str(refusals[0].error)
        journal.keep(Write(bystander, 0, (), "running", True))
        bystander = begun(journal)
    assert len(journal.ask(journal.store.pulses(one))) == 4 and bodies(journal, one) == [b"yes"] * 3
    assert refused(journal.append(last(one, 4)._replace(unread=3, read=ids[1:2]))).unread == 2
    journal.keep(last(one, 4)._replace(unread=2, read=ids[1:2]))
    assert bodies(journal, one) == [] and journal.ask(journal.store.arrived()).messages == []
    assert send(journal, message(one), message(one, key="a")) == ["closed", "closed"]


def test_the_same_append_may_read_and_end(journal: Journal) -> None:
    one = begun(journal)
    ids = [journal.ask(journal.store.send(message(one, key=key))).id for key in ("", "a", "b")]
    journal.keep(waits(hop(one, 2), read=ids[:1]), waits(hop(one, 4), read=ids[1:2]), last(one, 6)._replace(unread=1))
    assert bodies(journal, one) == []


def test_it_may_end_for_messages_before_it_ends(journal: Journal) -> None:
    """While it undoes what it did, for one; its keys are forgotten with it."""
    one = begun(journal)
    assert send(journal, message(one, key="k"), message(one)) == ["kept", "kept"]
    assert refused(journal.append(hop(one, 2))).unread == 2
    journal.keep(hop(one, 2)._replace(unread=2))
    assert send(journal, message(one)) == ["closed"] and bodies(journal, one) == []
    journal.keep(last(one, 4, "compensated"))
    journal.keep(waits(hop(one, 5, epoch=1)))
    assert send(journal, message(one, key="k", body=b"another")) == ["kept"]


def test_what_is_sent_as_it_ends_is_counted_or_refused(journal: Journal) -> None:
    for turns in range(6):
        one = begun(journal)

        async def ask(one: str = one, turns: int = turns) -> tuple[list[Sent], list[BaseException]]:
            sending = [asyncio.ensure_future(journal.store.send(message(one))) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            journal.store.append([last(one, 2)], lambda refusals, error: told.set_result([*refusals, error]))
            async with asyncio.timeout(BOUND):
                return await asyncio.gather(*sending), await told

        sent, outcome = journal.ask(ask())
        kept = [answer.outcome for answer in sent].count("kept")
        ended = outcome == [None]
        assert kept == (0 if ended else 5) and len(bodies(journal, one)) == kept
        if not ended:
            assert outcome[0].error.unread <= 5
            journal.keep(last(one, 2)._replace(unread=5))


# Forgetting


def test_what_ended_is_forgotten_with_all_that_is_kept_of_it(journal: Journal) -> None:
    ids = [fresh() for _ in range(5)]
    journal.keep(*(waits(first(id, key=f"key-{number}")) for number, id in enumerate(ids)))
    for number, id in enumerate(ids):
        ends = pulse(id, 2, "finished", at_ns=[5_000, 3_000, 9_000, 4_000, 6_000][number])
        journal.keep(Write(id, 0, (ends,), ["completed", "compensated", "cancelled"][number % 3], False))
    assert journal.ask(journal.store.forget(3_000)) == 0
    assert journal.ask(journal.store.forget(7_000, limit=2)) == 2
    gone = [id for id in ids if journal.ask(journal.store.get(id)) is None]
    assert gone == [ids[1], ids[3]], "what ended first goes first"
    assert journal.ask(journal.store.forget(7_000)) == 2 and journal.ask(journal.store.forget(7_000)) == 0
    assert [row.transaction for row in journal.ask(journal.store.list())] == [ids[2]]
    for number in (0, 1, 3, 4):
        assert journal.ask(journal.store.pulses(ids[number])) == [] and bodies(journal, ids[number]) == []
        assert journal.ask(journal.store.find("users.signup", f"key-{number}")) is None
        assert send(journal, message(ids[number])) == ["unknown"]
    again = fresh()
    journal.keep(first(again, key="key-0"))
    refusals, error = journal.append(Write(ids[0], 0, (pulse(ids[0], 3, "late"),), "completed", False))
    assert error is None and len(refusals) == 1
    assert journal.ask(journal.store.find("users.signup", "key-0")) == again
    assert len(journal.ask(journal.store.pulses(ids[2]))) == 3


def test_what_may_go_on_is_not_forgotten(journal: Journal) -> None:
    running, halted, stuck, emits, ended = (fresh() for _ in range(5))
    journal.keep(*(first(id) for id in (running, halted, stuck, emits, ended)))
    journal.keep(last(halted, 2, "halted"), last(stuck, 2, "stuck"), last(ended, 2))
    journal.keep(last(emits, 2)._replace(open=True))
    assert journal.ask(journal.store.forget(2**62)) == 1
    assert [row.transaction for row in journal.ask(journal.store.list())] == [emits, stuck, halted, running]
    journal.keep(Write(emits, 0, (pulse(emits, 3, "emitted"),), "completed", False), hop(halted, 3, epoch=1))
    assert journal.ask(journal.store.forget(2**62)) == 1
    assert len(journal.ask(journal.store.pulses(halted))) == 5


def test_who_follows_goes_on_as_if_what_is_forgotten_had_not_been(journal: Journal) -> None:
    reader = journal.store.reader()
    gone, stays, later = fresh(), fresh(), fresh()
    cursor = reader.follow().cursor
    journal.keep(first(gone), first(stays))
    between = reader.follow(cursor)
    assert {each.transaction for each in between.pulses} == {gone, stays}
    journal.keep(last(gone, 2), hop(stays, 2))
    assert journal.ask(journal.store.forget(2**62)) == 1
    journal.keep(first(later))
    for since, pulses in ((cursor, 6), (between.cursor, 4), ("", 6)):
        found = []
        more = True
        while more:
            followed = reader.follow(since)
            found += followed.pulses
            since, more = followed.cursor, followed.more
        assert {each.transaction for each in found} == {stays, later} and len(found) == pulses


def test_after_it_was_closed_nothing_is_kept_or_forgotten(journal: Journal) -> None:
    ended, one = fresh(), begun(journal)
    journal.keep(first(ended, open=False))
    assert send(journal, message(one)) == ["kept"]
    store = journal.store

    async def ask() -> list[Any]:
        questions = [
            asyncio.ensure_future(question)
            for question in (
                store.send(message(one, body=b"late")), store.forget(2**62), store.due(), store.inbox(one),
                store.arrived(),
            )
        ]  # fmt: skip
        await asyncio.sleep(0)
        store.close()
        async with asyncio.timeout(BOUND):
            return await asyncio.gather(*questions, return_exceptions=True)

    for answer in journal.ask(ask()):
        assert not isinstance(answer, BaseException) or type(answer) is StoreError
    for change in (store.send(message(one)), store.forget(2**62)):
        with pytest.raises(StoreError):
            journal.ask(change)
