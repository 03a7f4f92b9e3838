"""Sending dead letters again, as the saga has it: without a mesh, event by event."""

from __future__ import annotations

import pytest

from bitactor import Context, InvalidInput, Workflow
from bitactor.errors import StoreError
from bitactor.export.dead_letters import dead_letters_of, emission_again, letter_place
from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault, Reply
from bitactor.saga import Accept, Deliver, EmissionAccepted, EmissionUnrouted, Recovered, Saga
from bitactor.saga.events import Event, Replied, SendAgainRequested, UndoRequested

ID = "a" * 32


class Sent:
    """A transaction that has emitted two signals, which nobody took."""

    def __init__(self) -> None:
        workflow = Workflow("signs", ttl=4)

        @workflow.step
        async def signup(ctx: Context) -> None: ...

        @signup.undo
        async def undo(result: None) -> None: ...

        self.plan = workflow.check()
        self.saga, self.log = Saga(self.plan, ID), list[Pulse]()
        self.feed(Accept(encode_token({}), (), 4, 1_000))
        emits = (("user.created", encode_token(1)), ("user.created", encode_token(2)))
        state = self.saga.state
        self.feed(Replied(0, Reply(ID, state.hops[0], 1, 0, "ok", encode_token(None), emits=emits)))
        self.ids = [*state.emissions]
        for emit in self.ids:
            self.feed(EmissionUnrouted(emit, "nobody consumes"))

    def feed(self, event: Event) -> list[Deliver]:
        pulses, commands = self.saga.react(event, 10 * (len(self.log) + 1))
        self.log += pulses
        assert Saga.fold(self.plan, self.log).snapshot() == self.saga.snapshot()
        return [command for command in commands if isinstance(command, Deliver)]

    @property
    def letters(self) -> list[int]:
        """The pulses of its dead letters, by what it has and by what its journal says."""
        found = [letter.seq for letter in dead_letters_of(self.log, self.saga.state.status)][::-1]
        assert len(found) == len(self.saga.state.undelivered) and self.saga.state.dead == bool(found)
        return found

    def refused(self, seq: int) -> str:
        with pytest.raises(InvalidInput) as refusal:
            emission_again(self.log, self.saga.state, seq)
        return str(refusal.value)


def test_a_signal_is_sent_again_once_and_is_no_dead_letter_meanwhile() -> None:
    sent = Sent()
    first, second = sent.letters
    emission = emission_again(sent.log, sent.saga.state, first)
    assert emission is not None and emission.id == sent.ids[0]
    assert not sent.saga.state.open
    (command,) = sent.feed(SendAgainRequested(emission.id))
    assert command.emission == emission._replace(again=True) and sent.saga.state.open
    assert sent.feed(SendAgainRequested(emission.id)) == [], "it is on its way"
    assert sent.refused(first).endswith("-4 any more: it was sent again, and is on its way")
    assert sent.letters == [second]
    (command,) = sent.feed(Recovered("heir", 1))
    assert command.emission.again, "whoever takes over brings it, without regard to the deadline"
    sent.feed(EmissionAccepted(emission.id, ("t",)))
    assert sent.refused(first).endswith("any more: it was sent again, and taken")
    assert sent.letters == [second] and not sent.saga.state.open
    other = emission_again(sent.log, sent.saga.state, second)
    assert other is not None
    sent.feed(SendAgainRequested(other.id))
    assert sent.letters == []
    sent.feed(EmissionUnrouted(other.id, "nobody still"))
    (third,) = sent.letters
    assert sent.refused(second).endswith(f"nobody took it; that is dead letter {ID}-{third}")
    again = emission_again(sent.log, sent.saga.state, third)
    assert again is not None and again.again and sent.feed(SendAgainRequested(other.id))


def test_what_was_taken_back_is_not_told_again() -> None:
    sent = Sent()
    first, _ = sent.letters
    sent.feed(UndoRequested(Fault("bitactor.errors:Cancelled", "no")))
    assert "'user.created', of a transaction that is being undone: what it tells was taken back" in sent.refused(first)


def test_what_is_no_dead_letter_is_refused() -> None:
    sent = Sent()
    for seq in (0, 1, 99):
        assert sent.refused(seq) == f"there is no dead letter {ID}-{seq}"
    for given in ("", ID, f"{ID}-", f"{ID}-1 ", f"{ID.upper()}-1", 7, None, object()):
        with pytest.raises(InvalidInput, match="is no id of a dead letter"):
            letter_place(given)


def test_a_journal_that_sends_again_what_is_not_dead_is_damaged() -> None:
    sent = Sent()
    (emit, _) = sent.ids
    sent.feed(SendAgainRequested(emit))
    twice = [*sent.log, sent.log[-1]._replace(seq=len(sent.log))]
    with pytest.raises(StoreError, match="of a signal that is no dead letter"):
        Saga.fold(sent.plan, twice)
