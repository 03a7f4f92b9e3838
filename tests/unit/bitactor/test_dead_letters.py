"""Dead letters, read off the pulses of transactions that ran without a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from bitactor import Context, Input, Result, Workflow
from bitactor.export.dead_letters import DeadLetter, dead_letters_of
from bitactor.messages.pulse import Pulse
from bitactor.testing import Lose, run_workflow


def poisonous() -> Workflow:
    workflow = Workflow("shop.order", input={"item": dict, "card": SecretStr}, redeliveries=2)

    @workflow.step
    async def price(item: dict[str, Any]) -> dict[str, Any]:
        return {"cents": [100, 250]}

    @workflow.step(
        bind={
            "cents": Result("price", "cents", 1),
            "name": Input("item", "name"),
            "shout": Input("item", "name").map(str.upper),
        }
    )
    async def charge(cents: int, name: str, shout: str, card: SecretStr) -> str:
        return f"{name} {cents} {shout} {card}"

    charge.undo(lambda result: 1 / 0, in_doubt=True)
    return workflow


GIVEN = {"item": {"name": "lamp"}, "card": "4111"}


def only(letters: Sequence[DeadLetter]) -> DeadLetter:
    (letter,) = letters
    return letter


def test_a_step_of_which_workers_die() -> None:
    workflow = poisonous()
    trace = run_workflow(workflow, GIVEN, faults={"charge": Lose()})
    poison, stuck = dead_letters_of(trace.pulses, trace.status, workflow.check())[::-1]
    assert (poison.kind, poison.name, poison.step) == ("step", "shop.order/charge", "charge")
    assert (poison.reason, poison.attempt, poison.deliveries) == ("poison", 1, 3)
    assert "WorkerLost" in poison.why and poison.transaction == trace.transaction
    assert trace.pulses[poison.seq].kind == "tombstone" and poison.at_ns == trace.pulses[poison.seq].at_ns
    assert poison.payload == {"cents": 250, "name": "lamp", "shout": "LAMP", "card": SecretStr("4111")}
    assert "4111" not in repr(poison) and "4111" not in repr(poison.payload)
    assert (stuck.kind, stuck.name, stuck.reason) == ("undo", "shop.order/charge", "stuck")
    assert "ZeroDivisionError" in stuck.why and "result" not in stuck.payload  # nobody knows it
    assert poison.payload is not poison.payload and stuck.id == f"{trace.transaction}-{stuck.seq}"


@pytest.mark.parametrize("status", ["compensated", "running"])
def test_an_undo_that_failed_is_dead_as_long_as_its_transaction_is_stuck(status: str) -> None:
    trace = run_workflow(poisonous(), GIVEN, faults={"charge": Lose()})
    assert [letter.reason for letter in dead_letters_of(trace.pulses, status)] == ["poison"]


def test_where_the_workflow_is_not_declared_arguments_go_by_their_sources() -> None:
    workflow = poisonous()
    trace = run_workflow(workflow, GIVEN, faults={"charge": Lose()})
    other = Workflow("shop.order")
    other.add(lambda: None, name="charge")
    for plan in (None, other.check()):
        letter = dead_letters_of(trace.pulses, trace.status, plan)[-1]
        assert (letter.name, letter.deliveries) == ("shop.order/charge", 3)
        assert letter.payload == {
            "price.cents.1": 250, "input.item.name": "lamp", "shout": "LAMP", "input.card": SecretStr("4111"),
        }  # fmt: skip


def test_an_undo_that_failed_says_what_it_takes_back_until_it_has() -> None:
    workflow, broken = Workflow("books", input={"seat": int}), [True]

    @workflow.step
    async def book(seat: int) -> str:
        return f"ticket {seat}"

    book.undo(lambda result, seat: 1 / 0 if broken else None)

    @workflow.step(after=["book"])
    async def fail() -> None:
        raise ValueError("no")

    trace = run_workflow(workflow, {"seat": 7})
    assert trace.status == "stuck"
    for plan, seat in ((workflow.check(), "seat"), (None, "input.seat")):
        letter = only(dead_letters_of(trace.pulses, trace.status, plan))
        assert (letter.kind, letter.name, letter.reason) == ("undo", "books/book", "stuck")
        assert letter.payload == {seat: 7, "result": "ticket 7"}
    again = run_workflow(workflow, {"seat": 7}, resumes=1)  # it fails again: told once, as of the last time
    letter = only(dead_letters_of(again.pulses, again.status, workflow.check()))
    assert letter.seq > only(dead_letters_of(trace.pulses, trace.status)).seq
    broken.clear()
    assert dead_letters_of(run_workflow(workflow, {"seat": 7}).pulses, "compensated") == []


def test_a_step_nested_in_others() -> None:
    inner, outer = Workflow("inner", input={"roll": int}), Workflow("outer", input={"sides": int})

    @inner.step
    async def throw(roll: int) -> int:
        return roll

    outer.compose("dice", inner, bind={"roll": Input("sides")})
    trace = run_workflow(outer, {"sides": 6}, faults={"dice/throw": Lose()})
    letter = only(dead_letters_of(trace.pulses, trace.status, outer.check()))
    assert (letter.name, letter.step, letter.payload) == ("outer/dice/throw", "dice/throw", {"roll": 6})
    blind = only(dead_letters_of(trace.pulses, trace.status))
    assert blind.payload == {"input.roll": {"unknown": "known only where the workflow is declared"}}


def with_dead_signal(trace_pulses: Sequence[Pulse], position: int) -> list[Pulse]:
    """The pulses, and one by which a signal that was emitted has died."""
    emitted = next(pulse for pulse in trace_pulses if (pulse.data or {}).get("emits"))
    data = {"emit": f"{emitted.hop}:{position}", "name": "user.created", "why": "nobody consumes 'user.created'"}
    last = trace_pulses[-1]
    return [
        *(pulse for pulse in trace_pulses if pulse.kind != "emitted"),
        last._replace(seq=last.seq + 1, kind="tombstone", error="unroutable", hop=emitted.hop, data=data),
    ]


@pytest.mark.parametrize(
    ("damage", "payload"),
    [
        (lambda token: token, {"id": 7, "key": SecretStr("s3cret")}),
        (lambda token: token[:-3], "**********"),
        (lambda token: b"\xc1", {"undecodable": "wQ=="}),
        (lambda token: b"\xa5abc", {"undecodable": "pWFiYw=="}),
    ],
)
def test_a_signal(damage: Any, payload: Any) -> None:
    workflow = Workflow("signs", ttl=4)

    @workflow.step
    async def signup(ctx: Context) -> None:
        await ctx.emit("first", 1)
        await ctx.emit("user.created", {"id": 7, "key": SecretStr("s3cret")})

    trace = run_workflow(workflow)
    for pulse in trace.pulses:
        if (pulse.data or {}).get("emits"):
            assert pulse.data is not None
            pulse.data["emits"][1][1] = damage(pulse.data["emits"][1][1])
    pulses = with_dead_signal(trace.pulses, 1)
    letter = only(dead_letters_of(pulses, "completed", workflow.check()))
    assert (letter.kind, letter.name, letter.reason) == ("signal", "user.created", "unroutable")
    assert (letter.step, letter.why) == ("signup", "nobody consumes 'user.created'")
    assert letter.attempt is letter.deliveries is None
    assert letter.payload == payload
    assert only(dead_letters_of(with_dead_signal(trace.pulses, 9), "completed")).payload is None


def test_what_ends_well_or_is_only_undone_has_none() -> None:
    workflow = Workflow("ends", input={"bad": bool})

    @workflow.step
    async def act(bad: bool) -> None: ...

    act.undo(lambda: None)

    @workflow.step(after=["act"])
    async def check(bad: bool) -> None:
        if bad:
            raise ValueError("no")

    for bad in (False, True):
        trace = run_workflow(workflow, {"bad": bad}, ttl=1 if bad else 8)  # of too small a budget, too
        assert trace.status == ("compensated" if bad else "completed")
        assert dead_letters_of(trace.pulses, trace.status, workflow.check()) == []
