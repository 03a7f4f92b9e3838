"""Attempts inside their policies: what a policy sees, how often it may call, and what becomes of it all when somebody
stops it.

The patterns themselves are tested in tests/unit/bitactor/patterns; these policies are made for their edges.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bitactor import ConfigurationError, Context, Fail, Halt, Resource, Retry, Workflow, consumer
from bitactor.declare.backoff import Backoff
from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.errors import ResourceUnavailable, StepTimeout
from bitactor.patterns import CircuitBreaker, CircuitOpen, Fallback, RateLimit, RetryPolicy, Timeout
from bitactor.ports import Clock
from bitactor.testing import FakeClock
from mesh import Mesh, Transaction
from registry import RegistryServer
from tests.e2e.support import BOUND, finish, for_spawner, pass_time, pulse_lines, turns, undone, until

Around = Callable[[Call, Proceed], Awaitable[Any]]

everywhere = pytest.mark.parametrize("where", ["inline", "loop", "thread"])


@dataclass(frozen=True)
class Does(Policy):
    """Whatever a function says."""

    pattern: ClassVar[str] = "does"
    name: str
    around: Around

    def open(self, clock: Clock) -> PolicyState:
        return DoesState(self.around)


class DoesState(PolicyState):
    def __init__(self, around: Around) -> None:
        self._around = around
        self.calls = 0
        self.closed = 0

    async def around(self, call: Call, proceed: Proceed) -> Any:
        self.calls += 1
        return await self._around(call, proceed)

    def about(self) -> Mapping[str, Any]:
        return {"calls": self.calls}

    async def close(self, timeout: float) -> None:
        self.closed += 1


def does(around: Around, name: str = "it") -> list[Policy]:
    return [Does(name, around)]


def guarded(around: Around, function: Callable[..., Any], where: str = "loop", **options: Any) -> Workflow:
    """A workflow of one step inside one policy."""
    workflow = Workflow("guarded", ttl=8)
    workflow.step(name="step", spawn=where, policies=does(around), **options)(for_spawner(where, function))
    return workflow


async def ended(workflow: Workflow, **options: Any) -> Transaction:
    async with Mesh(workflow, **options) as mesh:
        return await finish(mesh, workflow)


async def through(call: Call, proceed: Proceed) -> Any:
    return await proceed()


async def twice(call: Call, proceed: Proceed) -> Any:
    try:
        return await proceed()
    except ConnectionError:
        return await proceed()


# What a policy sees


@everywhere
async def test_the_policies_answer_is_the_steps(where: str) -> None:
    async def doubled(call: Call, proceed: Proceed) -> Any:
        return 2 * await proceed()

    assert await (await ended(guarded(doubled, lambda: 21, where))).result() == 42


@everywhere
async def test_a_function_may_be_called_again(where: str) -> None:
    calls: list[int] = []

    def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return len(calls)

    transaction = await ended(guarded(twice, flaky, where))
    assert await transaction.result() == 2
    assert pulse_lines(transaction).count("spawned step") == 1


@everywhere
@pytest.mark.parametrize("raised", [True, False])
@pytest.mark.parametrize(
    ("verdict", "status"), [(Retry(after=0.0), "completed"), (Fail("no"), "compensated"), (Halt("later"), "halted")]
)
async def test_verdicts_pass_through_as_they_are(where: str, raised: bool, verdict: Any, status: str) -> None:
    seen: list[Any] = []
    calls: list[int] = []

    async def looks(call: Call, proceed: Proceed) -> Any:
        try:
            value = await proceed()
        except BaseException as error:
            seen.append(("raised", type(error)))
            raise
        seen.append(("returned", type(value)))
        return value

    def decides() -> Any:
        calls.append(1)
        if len(calls) > 1:
            return "done"
        if raised:
            raise verdict
        return verdict

    transaction = await ended(guarded(looks, decides, where, retries=1))
    assert transaction.status == status
    assert seen[0] == ("raised" if raised else "returned", type(verdict))


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ValueError("no"), StopIteration()])
@everywhere
async def test_whatever_the_function_raises_is_the_steps_error(where: str, error: BaseException) -> None:
    def raises() -> None:
        raise error

    transaction = await ended(guarded(through, raises, where))
    assert transaction.status == "compensated"
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    assert isinstance(transaction.errors()[0], expected)


async def test_a_call_says_what_is_called() -> None:
    seen: list[Call] = []

    async def looks(call: Call, proceed: Proceed) -> Any:
        seen.append(call)
        return await proceed()

    workflow = Workflow("calls", input={"item": str}, resources=[Resource("client", dict)])

    @workflow.step(policies=does(looks), retries=1)
    async def fetch(item: str, ctx: Context, client: dict, attempt: int) -> None:
        if attempt == 1:
            raise ConnectionError

    @consumer("noted", policies=does(looks, "consumer"))
    async def notes(signal: Any) -> None: ...

    @workflow.step(after=["fetch"])
    async def tells(ctx: Context) -> None:
        await ctx.emit("noted", 7)

    async with Mesh(workflow, notes) as mesh:
        transaction = await finish(mesh, workflow, {"item": "x"})
        await until(lambda: len(seen) == 3)
    first, second, third = seen
    assert (first.workflow, first.step, first.transaction) == ("calls", "fetch", transaction.id)
    assert (first.attempt, second.attempt) == (1, 2)
    assert dict(first.arguments) == {"item": "x"}
    assert third.arguments["signal"].token == 7


async def test_arguments_that_do_not_fit_are_no_call() -> None:
    seen: list[Call] = []

    async def looks(call: Call, proceed: Proceed) -> Any:
        seen.append(call)

    workflow = Workflow("unfit", input={"item": Any})

    @workflow.step(policies=does(looks), retries=3)
    async def fetch(item: int) -> None: ...

    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow, {"item": "x"})
    assert "expected int" in str(transaction.errors()[0])
    assert seen == [] and "retried fetch" not in pulse_lines(transaction)


async def test_what_could_not_be_made_for_the_function_is_an_error_that_policies_see() -> None:
    tries: list[int] = []

    def factory() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not up yet")
        return "up"

    async def again(call: Call, proceed: Proceed) -> Any:
        with pytest.raises(ResourceUnavailable):
            await proceed()
        return await proceed()

    workflow = Workflow("needing", resources=[Resource("client", factory)])
    workflow.step(name="asks", policies=does(again))(lambda client: client)
    assert await (await ended(workflow)).result() == "up"


# Emitted signals


async def test_what_a_run_emitted_that_came_to_nothing_is_not_sent() -> None:
    got: list[Any] = []

    @consumer("said")
    async def hears(signal: Any) -> None:
        got.append(signal.token)

    workflow = Workflow("emits")
    calls: list[int] = []

    @workflow.step(policies=[Fallback("f", "instead")])
    async def fails(ctx: Context) -> None:
        await ctx.emit("said", "by a run that failed")
        raise ValueError

    @workflow.step(policies=does(twice))
    async def fails_once(ctx: Context) -> None:
        calls.append(1)
        await ctx.emit("said", f"by run {len(calls)}")
        if len(calls) == 1:
            raise ConnectionError

    async with Mesh(workflow, hears) as mesh:
        assert (await finish(mesh, workflow)).status == "completed"
    assert got == ["by run 2"]


async def test_what_runs_side_by_side_emit_does_not_mix() -> None:
    got: list[Any] = []

    @consumer("said")
    async def hears(signal: Any) -> None:
        got.append(signal.token)

    async def both(call: Call, proceed: Proceed) -> Any:
        return await asyncio.gather(proceed(), proceed())

    workflow = Workflow("gathers")
    meeting, begun = asyncio.Event(), list[int]()

    @workflow.step(policies=does(both))
    async def says(ctx: Context) -> None:
        number = len(begun)
        begun.append(number)
        await ctx.emit("said", [number, "before"])
        if number == 1:
            meeting.set()
        await meeting.wait()
        await ctx.emit("said", [number, "after"])

    async with Mesh(workflow, hears) as mesh:
        assert (await finish(mesh, workflow)).status == "completed"
    assert sorted(got) == [[0, "after"], [0, "before"], [1, "after"], [1, "before"]]


# Time


async def test_waiting_before_the_function_starts_is_no_time_of_the_step() -> None:
    clock, go = FakeClock(), asyncio.Event()

    async def waits(call: Call, proceed: Proceed) -> Any:
        await go.wait()
        return await proceed()

    workflow = guarded(waits, lambda: "done", timeout=1.0)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 100.0)
        assert transaction.status == "running"
        go.set()
        assert await transaction.result(BOUND) == "done"


async def test_from_the_first_start_on_everything_is() -> None:
    clock = FakeClock()

    async def dawdles(call: Call, proceed: Proceed) -> Any:
        await proceed()
        await asyncio.Event().wait()

    workflow = guarded(dawdles, lambda: "done", timeout=1.0)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 1.1)
        assert await transaction.ended(BOUND) == "compensated"
        assert isinstance(transaction.errors()[0], StepTimeout)


async def test_a_call_knows_when_it_is_over() -> None:
    clock, seen, hold = FakeClock(), list[Any](), asyncio.Event()

    async def looks(call: Call, proceed: Proceed) -> Any:
        seen.append(call.deadline())
        value = await proceed()
        seen.append(call.deadline())
        await hold.wait()
        return value

    async def passes_time() -> None:
        clock.advance(1.0)

    workflow = Workflow("knowing", deadline=60.0)
    workflow.step(name="step", policies=does(looks), timeout=10.0)(passes_time)
    endless = Workflow("endless")
    endless.step(name="step", policies=does(looks))(passes_time)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        assert seen == [None, 10_000_000_000], "nothing ends it before it has begun, then its timeout does"
        hold.set()
        await transaction.result(BOUND)
        seen.clear()
    async with Mesh(endless, clock=clock) as mesh:
        await finish(mesh, endless)
        assert seen == [None, None]
        seen.clear()


async def test_a_breaker_counts_what_runs_into_the_steps_timeout() -> None:
    clock = FakeClock()
    workflow = Workflow("slow")

    @workflow.step(policies=[CircuitBreaker("shop", failures=2)], timeout=1.0)
    async def asks() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock) as mesh:
        for _ in range(2):
            transaction = await mesh.stimulate(workflow)
            await turns()
            await pass_time(clock, 1.1)
            assert await transaction.ended(BOUND) == "compensated"
        assert isinstance((await finish(mesh, workflow)).errors()[0], CircuitOpen)


async def test_a_heartbeat_inside_policies_counts() -> None:
    clock, beat = FakeClock(), asyncio.Semaphore(0)
    workflow = Workflow("beating")

    @workflow.step(policies=does(through), timeout=1.0)
    async def works(ctx: Context) -> str:
        for done in range(5):
            ctx.heartbeat({"done": done})
            await beat.acquire()
        return "done"

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for done in range(5):
            await until(lambda done=done: transaction.progress() == {"works": {"done": done}})
            await pass_time(clock, 0.9)
            beat.release()
            await turns()
        assert await transaction.result(BOUND) == "done"


# Being stopped


async def test_what_ends_with_a_value_although_it_was_cancelled_has_ended_with_it() -> None:
    clock = FakeClock()
    workflow = Workflow("stubborn")

    @workflow.step(policies=[Timeout("t", 1.0)])
    async def saves() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "saved in time"
        return "never"

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 1.1)
        assert await transaction.result(BOUND) == "saved in time"


@pytest.mark.parametrize("policies", [(), does(through), [Timeout("t", 60.0)]], ids=["bare", "through", "timeout"])
async def test_a_thread_that_outlives_its_attempt_is_heard_late(policies: Any) -> None:
    clock, go, begun = FakeClock(), threading.Event(), threading.Event()
    workflow = Workflow("late", grace=5.0)

    @workflow.step(policies=policies, timeout=1.0)
    def works() -> str:
        begun.set()
        assert go.wait(BOUND)
        return "what it did"

    @works.undo
    def takes_back(result: str) -> None:
        assert result == "what it did"

    async with Mesh(workflow, clock=clock, threads=1) as mesh:
        transaction = await mesh.stimulate(workflow)
        await asyncio.to_thread(begun.wait, BOUND)
        await pass_time(clock, 1.1)
        await until(lambda: "timed_out works" in pulse_lines(transaction))
        assert mesh.node.about()["zombies"] >= 1
        go.set()
        assert await transaction.ended(BOUND) == "compensated", transaction.errors()
        assert undone(transaction) == ["works"]
        await until(lambda: mesh.node.about()["zombies"] == 0)


@pytest.mark.parametrize("policies", [(), does(through)], ids=["bare", "through"])
async def test_a_thread_whose_transaction_is_cancelled_is_waited_for_and_undone(policies: Any) -> None:
    go, begun = threading.Event(), threading.Event()
    workflow = Workflow("cancelled", grace=BOUND)

    @workflow.step(policies=policies)
    def works() -> str:
        begun.set()
        assert go.wait(BOUND)
        return "what it did"

    works.undo(lambda result: None)
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await asyncio.to_thread(begun.wait, BOUND)
        cancelling = asyncio.create_task(transaction.cancel())
        await turns()
        go.set()
        assert await cancelling == "cancelled", transaction.errors()
        assert undone(transaction) == ["works"]


async def test_between_two_runs_that_failed_nothing_is_in_doubt() -> None:
    workflow = Workflow("pausing")

    @workflow.step(policies=[RetryPolicy("r", attempts=2, backoff=Backoff(initial=3600.0, cap=3600.0))])
    async def fails() -> None:
        raise ConnectionError

    fails.undo(lambda result: None)
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: mesh.node.policies.about()[0].get("waiting") == 1)
        assert await transaction.cancel() == "cancelled"
        assert undone(transaction) == []


async def test_before_the_function_has_started_nothing_is_in_doubt() -> None:
    workflow = Workflow("queueing")

    @workflow.step(policies=[RateLimit("r", per_second=0.0001, burst=1)])
    async def asks() -> None: ...

    asks.undo(lambda result: None)
    async with Mesh(workflow) as mesh:
        await finish(mesh, workflow)
        transaction = await mesh.stimulate(workflow)
        await turns()
        assert await transaction.cancel() == "cancelled"
        assert undone(transaction) == []


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_what_a_policy_leaves_behind_is_stopped(where: str) -> None:
    stopped, go = list[int](), threading.Event()
    begun: list[int] = []
    left: list[asyncio.Task[Any]] = []

    async def hedges(call: Call, proceed: Proceed) -> Any:
        left.append(asyncio.create_task(proceed()))  # type: ignore[arg-type]
        await until(lambda: begun)
        return await proceed()

    async def on_loop() -> str:
        begun.append(1)
        if len(begun) == 2:
            return "second"
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(1)
        return "never"

    def in_thread() -> str:
        begun.append(1)
        if len(begun) == 2:
            return "second"
        assert go.wait(BOUND)
        return "too late"

    workflow = Workflow("leaving")
    workflow.step(name="step", policies=does(hedges))(on_loop if where == "loop" else in_thread)
    async with Mesh(workflow, threads=2) as mesh:
        assert await (await finish(mesh, workflow)).result() == "second"
        if where == "loop":
            await until(lambda: stopped == [1])
        else:
            assert mesh.node.about()["zombies"] == 1
        go.set()
        await until(lambda: mesh.node.about()["zombies"] == 0)
        await until(lambda: left[0].done())
        assert len(begun) == 2


async def test_a_policy_cannot_begin_again_once_it_was_stopped() -> None:
    calls: list[int] = []

    async def obstinate(call: Call, proceed: Proceed) -> Any:
        for _ in range(3):
            try:
                return await proceed()
            except asyncio.CancelledError:
                continue
        return "gave up"

    async def waits() -> None:
        calls.append(1)
        await asyncio.Event().wait()

    workflow = Workflow("obstinate")
    workflow.step(name="step", policies=does(obstinate))(waits)
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: calls)
        await transaction.cancel()
    assert calls == [1]


async def test_a_mesh_that_closes_leaves_nothing_running() -> None:
    entered: list[int] = []

    async def waits(call: Call, proceed: Proceed) -> Any:
        entered.append(1)
        try:
            return await proceed()
        finally:
            entered.pop()

    workflow = guarded(waits, lambda: None)
    slow = Workflow("slow")

    @slow.step(policies=does(waits))
    async def step() -> None:
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    async with Mesh(workflow, slow, drain=0) as mesh:
        for _ in range(10):
            await mesh.stimulate(slow)
        await until(lambda: len(entered) == 10)
    assert entered == [] and asyncio.all_tasks() == before


# States


async def test_states_can_be_seen_and_are_closed_once() -> None:
    opened: list[DoesState] = []

    class Noted(Does):
        def open(self, clock: Clock) -> PolicyState:
            opened.append(DoesState(self.around))
            return opened[-1]

    workflow = Workflow("guarded", ttl=8)
    workflow.step(name="step", policies=[Noted("it", through)])(lambda: None)
    async with Mesh(workflow) as mesh:
        assert mesh.node.about()["patterns"] == [{"pattern": "does", "name": "it"}]
        await finish(mesh, workflow)
        assert mesh.node.about()["patterns"] == [{"pattern": "does", "name": "it", "calls": 1}]
    assert [state.closed for state in opened] == [1]


async def test_a_state_that_cannot_say_how_it_stands_says_that() -> None:
    @dataclass(frozen=True)
    class Mute(Does):
        pattern: ClassVar[str] = "mute"

        def open(self, clock: Clock) -> PolicyState:
            class State(DoesState):
                def about(self) -> Mapping[str, Any]:
                    raise LookupError("lost")

            return State(self.around)

    workflow = Workflow("mute")
    workflow.step(name="step", policies=[Mute("it", through)])(lambda: None)
    async with Mesh(workflow) as mesh:
        await finish(mesh, workflow)
        assert mesh.node.about()["patterns"] == [{"pattern": "mute", "name": "it", "error": "LookupError: lost"}]


def test_policies_that_differ_under_one_name_are_refused() -> None:
    one, other = guarded(through, lambda: None), Workflow("other")
    other.step(name="step", policies=does(twice))(lambda: None)
    with pytest.raises(ConfigurationError, match="does 'it'"):
        Mesh(one, other)


async def test_a_policy_may_wait_on_another_node_as_it_may_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mesh.network.router.BACKSTOP_NS", 50_000_000)
    monkeypatch.setattr("mesh.network.router.QUEUED_BACKSTOP_NS", 5_000_000_000)
    go, states = asyncio.Event(), list[str]()

    async def waits(call: Call, proceed: Proceed) -> Any:
        states.append("waits")
        await go.wait()
        return await proceed()

    async def slowly() -> str:
        await asyncio.sleep(0.3)
        return "ready"

    workflow = Workflow("remote", resources=[Resource("client", slowly)])
    workflow.step(name="guarded", policies=does(waits), timeout=0.05)(for_spawner("loop", lambda: "guarded"))
    workflow.step(name="needing", timeout=0.05, spawn="loop")(for_spawner("loop", _needs_client))
    endpoint = f"ipc://{tmp_path}/registry"
    with RegistryServer(endpoint):
        async with Mesh(workflow, registry=endpoint) as there, Mesh(workflow, registry=endpoint, hosts=False) as here:
            transaction = await here.stimulate(workflow)
            await until(lambda: states)
            await asyncio.sleep(0.3)  # the time whose passing is not to matter
            go.set()
            assert await transaction.ended(BOUND) == "completed", transaction.errors()
            assert transaction.results() == {"guarded": "guarded", "needing": "ready"}
            assert there.node.about()["resources"] == {"client": "made"}
            assert here.node.about()["resources"] == {"client": "not made"}
            assert [pattern.get("calls") for node in (there, here) for pattern in node.node.about()["patterns"]] == [
                1,
                None,
            ]


def _needs_client(client: str) -> str:
    return client


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_what_is_stopped_before_it_has_started_never_runs(where: str) -> None:
    ran: list[str] = []
    workflow = Workflow("stopped")
    workflow.step(name="guarded", spawn=where, policies=does(through))(
        for_spawner(where, lambda: ran.append("guarded"))
    )

    @workflow.step(spawn="inline")
    def fails() -> None:
        raise ValueError  # in the very turn in which the other one is spawned

    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
        await turns()
        assert transaction.status == "compensated" and "failed guarded" in pulse_lines(transaction)
        assert not ran


async def test_what_waits_for_a_thread_inside_its_policies_is_stopped_there() -> None:
    ran: list[str] = []
    may, blocked = threading.Event(), threading.Event()
    workflow = Workflow("stopped", grace=BOUND)

    @workflow.step
    def blocks() -> None:
        blocked.set()
        may.wait(BOUND)

    workflow.step(name="guarded", policies=does(through))(lambda: ran.append("guarded"))
    async with Mesh(workflow, threads=1) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(blocked.is_set)
        cancelling = asyncio.create_task(transaction.cancel())
        await until(lambda: "failed guarded" in pulse_lines(transaction))
        may.set()
        await cancelling
    assert not ran and transaction.status == "cancelled"


@pytest.mark.parametrize("later", range(8))
async def test_what_ended_in_the_turn_in_which_it_was_cancelled_has_ended(later: int) -> None:
    may, ended = asyncio.Event(), []

    async def cancels(call: Call, proceed: Proceed) -> Any:
        task = asyncio.ensure_future(proceed())
        await turns()
        may.set()
        await turns(later)
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"

    workflow = Workflow("ending")

    @workflow.step(policies=does(cancels))
    async def works() -> str:
        await may.wait()
        ended.append("works")
        return "done"

    async with Mesh(workflow) as mesh:
        result = await (await mesh.stimulate(workflow)).result(BOUND)
    assert result == ("done" if ended else "cancelled")


async def test_what_a_policy_left_behind_before_it_began_does_not_begin() -> None:
    made, begun = asyncio.Event(), []

    async def makes() -> str:
        await made.wait()
        return "client"

    async def answers(call: Call, proceed: Proceed) -> Any:
        behind.append(asyncio.ensure_future(proceed()))
        await turns()
        return "answered"

    behind: list[asyncio.Future[Any]] = []
    workflow = Workflow("left", resources=[Resource("client", makes)])

    @workflow.step(policies=does(answers))
    async def works(client: str) -> None:
        begun.append(client)

    async with Mesh(workflow) as mesh:
        assert await (await mesh.stimulate(workflow)).result(BOUND) == "answered"
        made.set()
        await asyncio.wait(behind, timeout=BOUND)
        assert behind[0].cancelled() and not begun
