"""`run_workflow`: whole workflows without a runtime, and the same pulses as a mesh gives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bitactor import (
    Backoff,
    Context,
    Continue,
    DefinitionError,
    Halt,
    InvalidInput,
    Resource,
    Result,
    Retry,
    StepTimeout,
    TtlExpired,
    Workflow,
    consumer,
)
from bitactor.errors import ConfigurationError, DeadlineExceeded, InvalidOutcome, UndoFailed, WorkerLost
from bitactor.testing import Crash, FakeClock, Hang, Lose, NeedsMesh, SequentialIds, Trace, run_workflow
from mesh import Mesh


class Busy(Exception):
    pass


def order() -> Workflow:
    """Reserve, charge, ship; the first two can be undone."""
    workflow = Workflow("orders", input={"item": str, "amount": int}, deadline=60.0)

    @workflow.step(spawn="inline")
    def reserve(item: str) -> dict[str, str]:
        return {"reserved": item}

    @reserve.undo(in_doubt=True)
    def release(result: dict[str, str] | None, ctx: Context) -> None:
        ctx.emit_later("released", ctx.in_doubt)

    @workflow.step(spawn="thread", retries=2, backoff=Backoff(0.5, jitter=0), timeout=5.0)
    def charge(reserve: dict[str, str], amount: int, attempt: int, ctx: Context) -> int:
        ctx.emit_later("charged", {"amount": amount})
        return amount * 100

    @charge.undo
    def refund(result: int) -> None: ...

    @workflow.step(spawn="inline", bind={"what": Result("reserve", "reserved")}, after=["charge"])
    def ship(what: str) -> str:
        return f"{what} is on its way"

    return workflow


GOOD = {"item": "hat", "amount": 3}


def test_a_workflow_completes() -> None:
    trace = run_workflow(order(), GOOD)
    assert trace.status == "completed"
    assert trace.result == "hat is on its way"
    assert trace.results == {"reserve": {"reserved": "hat"}, "charge": 300, "ship": "hat is on its way"}
    assert [(emitted.name, emitted.value, emitted.step, emitted.ttl) for emitted in trace.emitted] == [
        ("charged", {"amount": 3}, "charge", 6)
    ]
    assert trace.kinds == [
        "accepted",
        "spawned reserve",
        "completed reserve",
        "spawned charge",
        "completed charge",
        "spawned ship",
        "emitted",
        "completed ship",
        "finished",
    ]
    assert [pulse.seq for pulse in trace.pulses] == list(range(9))
    assert not trace.undone
    assert not trace.errors


def test_what_was_done_is_undone_last_first() -> None:
    def ship() -> str:
        raise Busy("no van")

    trace = run_workflow(order(), GOOD, steps={"ship": ship})
    assert trace.status == "compensated"
    assert trace.undone == ["charge", "reserve"]
    assert trace.result is None
    assert [type(error) for error in trace.errors] == [Busy]
    assert [emitted.name for emitted in trace.emitted] == ["charged", "released"]


def test_retries_wait_on_the_fake_clock() -> None:
    clock = FakeClock()
    tries: list[float] = []

    def charge(attempt: int) -> int:
        tries.append(clock.monotonic_ns() / 1e9)
        if attempt < 3:
            raise Busy(str(attempt))
        return attempt

    trace = run_workflow(order(), GOOD, steps={"charge": charge}, clock=clock)
    assert trace.results["charge"] == 3
    assert tries == [0.0, 0.5, 1.5]
    assert [(pulse.kind, pulse.attempt) for pulse in trace.of("charge")] == [
        ("spawned", 1), ("retried", 1), ("spawned", 2), ("retried", 2), ("spawned", 3), ("completed", 3),
    ]  # fmt: skip
    assert {pulse.ttl for pulse in trace.of("charge")} == {6}


def test_retry_as_a_value_names_the_time_and_the_reason() -> None:
    clock = FakeClock()
    trace = run_workflow(order(), GOOD, steps={"charge": lambda: Retry(after=7, reason="later")}, clock=clock)
    assert trace.status == "compensated"
    assert clock.monotonic_ns() == 14_000_000_000
    assert "later" in str(trace.errors[0])


def test_a_hanging_step_times_out_and_is_in_doubt() -> None:
    trace = run_workflow(order(), GOOD, faults={"charge": Hang()})
    assert trace.status == "stuck"  # its undo takes no doubt
    assert trace.undone == ["reserve"]
    assert [type(error) for error in trace.errors] == [StepTimeout, UndoFailed]
    assert [pulse.kind for pulse in trace.of("charge")].count("timed_out") == 3


def test_a_hang_may_last_one_attempt() -> None:
    assert run_workflow(order(), GOOD, faults={"charge": [Hang()]}).status == "completed"


def test_the_deadline_of_the_whole_ends_a_hang_and_what_was_done_is_undone() -> None:
    trace = run_workflow(order(), GOOD, faults={"ship": Hang()})
    assert trace.status == "compensated"
    assert trace.undone == ["charge", "reserve"]
    assert type(trace.errors[0]) in (StepTimeout, DeadlineExceeded)


def test_a_deadline_that_is_over_together_with_a_hop_is_not_taken_for_the_end_of_undo() -> None:
    workflow = Workflow("w", deadline=1.0)
    for name in ("first", "second"):

        @workflow.step(name=name, after=["first"] if name == "second" else [], spawn="inline")
        def run() -> None: ...

        run.undo(in_doubt=True)(lambda ctx: None)
    trace = run_workflow(workflow, faults={"second": Hang()})
    assert trace.status == "compensated"
    assert trace.undone == ["second", "first"]


def test_a_hang_without_any_limit_is_an_error() -> None:
    workflow = Workflow("w")

    @workflow.step
    def stuck() -> None: ...

    with pytest.raises(ConfigurationError, match="'stuck' would hang for ever"):
        run_workflow(workflow, faults={"stuck": Hang()})


def test_lost_workers_are_replaced_and_then_given_up() -> None:
    trace = run_workflow(order(), GOOD, faults={"reserve": [Lose(), Lose()]})
    assert trace.status == "completed"
    assert len({pulse.hop for pulse in trace.of("reserve")}) == 1
    trace = run_workflow(order(), GOOD, faults={"reserve": Lose()})
    assert trace.status == "compensated"
    assert trace.undone == ["reserve"]
    assert isinstance(trace.errors[0], WorkerLost)
    assert [pulse.error for pulse in trace.pulses if pulse.kind == "tombstone"] == ["poison"]


def test_a_crash_is_recovered_from_the_journal() -> None:
    runs: list[str] = []

    def reserve(item: str) -> dict[str, str]:
        runs.append(item)
        return {"reserved": item}

    trace = run_workflow(order(), GOOD, steps={"reserve": reserve}, faults={"charge": Crash()})
    assert trace.status == "completed"
    assert runs == ["hat"]
    assert "resumed" in trace.kinds


def test_a_crash_while_undoing_goes_on_with_undoing() -> None:
    def ship() -> None:
        raise Busy

    trace = run_workflow(order(), GOOD, steps={"ship": ship}, faults={"charge.undo": Crash()})
    assert trace.status == "compensated"
    assert trace.undone == ["charge", "reserve"]


def test_a_loss_followed_by_a_failure_leaves_a_doubt() -> None:
    seen: list[Any] = []
    workflow = Workflow("w")

    @workflow.step(spawn="inline")
    def pay() -> None:
        raise Busy

    @pay.undo(in_doubt=True)
    def unpay(result: Any, ctx: Context) -> None:
        seen.append((result, ctx.in_doubt))

    assert run_workflow(workflow).undone == []
    trace = run_workflow(workflow, faults={"pay": [Lose()]})
    assert trace.undone == ["pay"]
    assert seen == [(None, True)]


def test_ttl_is_spent_by_hops_only_and_its_end_leaves_a_tombstone() -> None:
    trace = run_workflow(order(), GOOD, ttl=2)
    assert trace.status == "compensated"
    assert trace.undone == ["charge", "reserve"]
    assert isinstance(trace.errors[0], TtlExpired)
    assert [(pulse.step, pulse.error) for pulse in trace.pulses if pulse.kind == "tombstone"] == [
        ("ship", "ttl_expired")
    ]
    assert [pulse.ttl for pulse in trace.pulses if pulse.kind == "spawned"] == [1, 0, 0, 1]


def test_halting_keeps_what_is_done_and_resuming_does_not_run_it_again() -> None:
    calls: list[str] = []

    def reserve(item: str) -> dict[str, str]:
        calls.append("reserve")
        return {"reserved": item}

    def charge(ctx: Context) -> int:
        calls.append("charge")
        if ctx.attempt == 1:
            raise Halt("ask the boss")
        return 1

    functions = {"reserve": reserve, "charge": charge}
    trace = run_workflow(order(), GOOD, steps=functions)
    assert trace.status == "halted"
    assert trace.results == {"reserve": {"reserved": "hat"}}
    calls.clear()
    assert run_workflow(order(), GOOD, steps=functions, resumes=1).status == "completed"
    assert calls == ["reserve", "charge", "charge"]


def test_compensation_decides() -> None:
    workflow = Workflow("w")

    @workflow.step(spawn="inline", retries=1)
    def risky() -> int:
        raise Busy("no")

    verdicts: list[Any] = []

    @risky.compensate
    async def decide(error: Exception, attempt: int) -> Any:
        return verdicts.pop(0)

    verdicts[:] = [Retry(after=0), Continue(5)]
    trace = run_workflow(workflow)
    assert (trace.status, trace.result) == ("completed", 5)
    verdicts[:] = [Halt("stop")]
    assert run_workflow(workflow).status == "halted"
    verdicts[:] = [None]
    assert run_workflow(workflow).status == "compensated"
    verdicts[:] = [17]
    trace = run_workflow(workflow)
    assert [type(error) for error in trace.errors] == [Busy, InvalidOutcome]
    assert "17" in str(trace.errors[1])


def test_skipped_steps_give_none_and_pass_the_budget_through() -> None:
    workflow = Workflow("w", input={"n": int}, ttl=3)

    @workflow.step(spawn="inline")
    def one(n: int) -> int:
        return n

    @workflow.step(spawn="inline", when=lambda one: one > 10)
    def two(one: int) -> int:
        return one * 2

    @two.undo
    def never(result: int) -> None:
        raise AssertionError("a skipped step is not undone")

    @workflow.step(spawn="inline")
    def three(two: int | None) -> int | None:
        if two is None:
            raise Busy
        return two

    trace = run_workflow(workflow, {"n": 1})
    assert trace.status == "compensated"
    assert trace.results["two"] is None
    skipped = next(pulse for pulse in trace.pulses if pulse.kind == "skipped")
    spawned = {pulse.step: pulse for pulse in trace.pulses if pulse.kind == "spawned"}
    assert skipped.ttl == spawned["one"].ttl == 2
    assert spawned["three"].ttl == 1
    assert spawned["three"].causes == (spawned["one"].hop,)


def test_transforms_are_evaluated_once() -> None:
    calls: list[int] = []
    workflow = Workflow("w")

    @workflow.step(spawn="inline")
    def one() -> list[int]:
        return [1, 2, 3]

    @workflow.step(
        spawn="inline", retries=2, bind={"last": Result("one", 2).map(lambda value: calls.append(value) or value * 10)}
    )
    def two(last: int, attempt: int) -> int:
        if attempt < 3:
            raise Busy
        return last

    assert run_workflow(workflow, faults={"two": Crash()}).result == 30
    assert calls == [3]


def test_a_raising_undo_leaves_it_stuck_and_the_rollback_goes_on() -> None:
    def ship() -> None:
        raise Busy

    workflow = order()
    workflow.steps["charge"].undo_function = None

    @workflow.steps["charge"].undo
    def refund(result: int) -> None:
        raise Busy("bank is closed")

    trace = run_workflow(workflow, GOOD, steps={"ship": ship})
    assert trace.status == "stuck"
    assert trace.undone == ["reserve"]
    assert [str(error) for error in trace.errors] == ["", "bank is closed"]


def test_async_steps_run_as_long_as_they_wait_for_nothing_outside() -> None:
    workflow = Workflow("w")

    @workflow.step
    async def friendly(ctx: Context) -> int:
        await asyncio.sleep(0)
        await ctx.emit("x", 1)
        return 1

    assert run_workflow(workflow).result == 1

    @workflow.step
    async def waiting() -> None:
        await asyncio.sleep(1)

    with pytest.raises(NeedsMesh, match="w/waiting"):
        run_workflow(workflow)
    assert run_workflow(workflow, steps={"waiting": lambda: 2}).result == 2


def test_wrong_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'charge'"):
        run_workflow(order(), GOOD, steps={"chrage": lambda: 1})
    with pytest.raises(ConfigurationError, match=r"Did you mean 'charge.undo'"):
        run_workflow(order(), GOOD, faults={"charge.undu": Hang()})
    with pytest.raises(ConfigurationError, match="Hang"):
        run_workflow(order(), GOOD, faults={"charge": ["hang"]})  # type: ignore[list-item]
    with pytest.raises(DefinitionError, match="amont"):
        run_workflow(order(), GOOD, steps={"charge": lambda amont: 1})
    with pytest.raises(InvalidInput, match="amount"):
        run_workflow(order(), {"item": "hat", "amount": "many"})


def test_a_consumer_runs_alone() -> None:
    @consumer("user.created", spawn="inline")
    def greet(signal: Any, ctx: Context) -> str:
        return f"hello {signal.token['name']} with {signal.ttl} left"

    assert run_workflow(greet, {"name": "Ada"}).result == "hello Ada with 7 left"


def test_ids_count_up() -> None:
    ids = SequentialIds()
    first, second = (run_workflow(order(), GOOD, ids=ids) for _ in range(2))
    assert len(first.transaction) == 32
    assert first.transaction < second.transaction
    assert run_workflow(order(), GOOD).pulses == run_workflow(order(), GOOD).pulses


# The same as a mesh


def _failing() -> Workflow:
    workflow = order()

    @workflow.step(spawn="inline", after=["ship"], retries=1, backoff=Backoff(0.0))
    def invoice() -> None:
        raise Busy("printer")

    return workflow


def _wide() -> Workflow:
    workflow = Workflow("wide", input={"n": int}, ttl=3)
    for index in range(5):

        @workflow.step(name=f"s{index}", spawn="inline", when=(lambda n: n > 3) if index % 2 else None)
        def one(n: int, ctx: Context) -> int:
            return n

        one.undo(in_doubt=True)(lambda ctx: None)

    @workflow.step(after=[f"s{index}" for index in range(5)], retries=1, backoff=Backoff(0.0), spawn="inline")
    def last(attempt: int) -> Any:
        return Retry(after=0) if attempt == 1 else Halt("enough")

    return workflow


def _deep() -> Workflow:
    workflow = Workflow("deep", ttl=4)
    for index in range(4):
        workflow.step(name=f"d{index}", after=[f"d{index - 1}"] if index else [], spawn="inline")(lambda: 1)
    return workflow


def _shape(trace: Any) -> list[tuple[Any, ...]]:
    return [
        (pulse.kind, pulse.step, pulse.direction, pulse.attempt, pulse.ttl, pulse.hop, pulse.causes, pulse.error)
        for pulse in trace
        if pulse.kind != "emitted" and (pulse.kind != "tombstone" or pulse.step)
    ]


@pytest.mark.parametrize(
    ("make", "given", "ttl"),
    [(order, GOOD, None), (_failing, GOOD, None), (_wide, {"n": 1}, None), (_wide, {"n": 9}, 2), (_deep, None, 2)],
)
async def test_the_pulses_are_those_of_a_mesh(make: Any, given: Any, ttl: int | None) -> None:
    @consumer("charged", spawn="inline")
    def take_charged(signal: Any) -> None: ...

    @consumer("released", spawn="inline")
    def take_released(signal: Any) -> None: ...

    async with Mesh(make(), take_charged, take_released, store="memory://") as mesh:
        transaction = await mesh.stimulate(make().name, given, ttl=ttl)
        with_mesh = transaction.id
        try:
            await transaction.result(timeout=20)
        except Exception as error:
            assert type(error).__name__ == "WorkflowFailed"
        theirs = _shape(transaction.pulses())

    class Same(SequentialIds):
        def transaction(self) -> str:
            return with_mesh

    trace: Trace = run_workflow(make(), given, ttl=ttl, ids=Same())
    assert trace.status == transaction.status
    assert _shape(trace.pulses) == theirs


def test_the_error_of_a_deadline_names_the_step_that_was_at_work_the_longest() -> None:
    workflow, tries = Workflow("shop"), list[int]()

    @workflow.step(retries=1, backoff=lambda: 1.0, spawn="inline")
    def before() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise Busy

    workflow.step(name="late", after=["before"], spawn="inline")(lambda: None)
    workflow.step(name="long", spawn="inline")(lambda: None)
    failure = run_workflow(workflow, faults={"late": Hang(), "long": Hang()}, deadline=5.0).failure
    assert failure is not None and failure.step == "shop/long"


def test_what_a_step_makes_of_its_metadata_is_its_own_affair() -> None:
    workflow, seen = Workflow("shop"), list[Any]()

    def looks(ctx: Context) -> None:
        seen.append(dict(ctx.metadata))
        ctx.metadata["more"] = 1  # type: ignore[index]

    workflow.step(name="first", spawn="inline")(looks)
    workflow.step(name="second", after=["first"], spawn="inline")(looks)
    run_workflow(workflow, metadata={"given": 1})
    assert seen == [{"given": 1}] * 2


@pytest.mark.parametrize("place", ["step", "undo", "compensate"])
def test_a_resource_is_asked_of_a_mesh(place: str) -> None:
    """`run_workflow` opens none, and puts nothing else in its place."""
    workflow = Workflow("w", resources=[Resource("database", dict)])
    taking = {role: (lambda database: None) if role == place else (lambda: None) for role in ("step", "undo")}
    step = workflow.add(taking["step"], name="one", undo=taking["undo"])

    def fails(one: None) -> None:
        raise LookupError("two")

    failing = workflow.add(fails, name="two")
    if place == "compensate":
        failing.compensate(lambda error, database: None)
    with pytest.raises(NeedsMesh, match="takes the resource 'database', and run_workflow opens none"):
        run_workflow(workflow)
    if place == "step":
        assert run_workflow(workflow, steps={"one": lambda: None}).status == "compensated"
    assert step.name == "one"
