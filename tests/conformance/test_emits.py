"""An emission that nobody awaited: never a step that has completed with nothing sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bitactor import Backoff, Context, Continue, Fail, Halt, Retry, Then, Workflow, consumer
from bitactor.errors import InvalidOutcome
from bitactor.patterns import RetryPolicy
from bitactor.testing import run_workflow
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, finished, ran
from tests.e2e.process_steps import forgetful
from tests.e2e.support import BOUND, finish, for_spawner, pulse_lines, until

SECTION = "Context and builder"
CURE = r"did not await ctx\.emit\('news'\), so nothing would be sent; write `await ctx\.emit\(…\)`, .*emit_later"


def forgetting(function: Callable[..., Any], **options: Any) -> Workflow:
    workflow = Workflow("forgetting", ttl=4)
    workflow.step(function, name="forgets", **options)
    return workflow


async def forgets(ctx: Context) -> str:
    ctx.emit("news", 1)
    return "done"


@claim(SECTION, "A `ctx.emit(…)` that nobody awaited fails its step, wherever that runs, and the error names the cure.")
@pytest.mark.parametrize("spawn", ["loop", "thread", "inline"])
async def test_nobody_awaited_it(spawn: str) -> None:
    def emits(ctx: Context) -> str:
        ctx.emit("news", 1)
        return "done"

    transaction = await ran(forgetting(for_spawner(spawn, emits), spawn=spawn, retries=2))
    assert (await failure_of(transaction)).errors[0].args[0].startswith("'forgetting/forgets' did not await")
    assert pulse_lines(transaction) == ["accepted", "spawned forgets", "failed forgets", "finished"], "not tried again"


@claim(SECTION, "A `ctx.emit(…)` that nobody awaited in a worker process fails its step there.")
async def test_nobody_awaited_it_in_a_worker_process() -> None:
    async with finished(forgetful, processes=1) as transaction:
        failure = await failure_of(transaction)
        assert "'forgetful/forgets' did not await ctx.emit('news')" in str(failure.errors[0])


@claim(SECTION, "So does one in an undo, in a compensate that continues, in a consumer, or inside of policies.")
async def test_nobody_awaited_it_elsewhere() -> None:
    workflow = Workflow("elsewhere", ttl=4)

    @workflow.step
    async def done() -> None: ...

    @done.undo
    async def takes_back(ctx: Context) -> None:
        ctx.emit("news")

    @workflow.step(after=[done], policies=[RetryPolicy("twice", attempts=2, backoff=Backoff(0.0))])
    async def limited(ctx: Context) -> None:
        ctx.emit("news")

    transaction = await ran(workflow)
    assert transaction.status == "stuck"
    errors = (await failure_of(transaction)).errors
    assert len(errors) == 2 and all(isinstance(error, InvalidOutcome) for error in errors)
    assert "undo" in str(pulse_lines(transaction)[-2])

    @consumer("news")
    async def listens(signal: Any, ctx: Context) -> None:
        ctx.emit("echo")

    emitting = Workflow("emitting", ttl=4)

    @emitting.step
    async def emits(ctx: Context) -> None:
        await ctx.emit("news")

    async with Mesh(emitting, listens) as mesh:
        await finish(mesh, emitting)
        heard = await until(lambda: mesh.node.store.reader().list(workflow="listens@news", status="compensated"))
        assert len(heard) == 1


@claim(
    SECTION,
    "A compensation that continues and has not awaited what it emits is an error beside the one it was asked about.",
)
@pytest.mark.parametrize("spawn", ["loop", "thread"])
async def test_a_compensation_that_continues_has_awaited_what_it_emits(spawn: str) -> None:
    workflow = Workflow("continuing", ttl=4)

    def fails() -> None:
        raise ValueError("so that it is compensated")

    def continues(ctx: Context) -> Continue:
        ctx.emit("news")
        return Continue("instead")

    step = workflow.step(for_spawner(spawn, fails), name="fails", spawn=spawn)
    step.compensate(for_spawner(spawn, continues))
    transaction = await ran(workflow)
    [first, second] = (await failure_of(transaction)).errors
    assert isinstance(first, ValueError) and "did not await ctx.emit('news')" in str(second)
    passing = Workflow("passing on", ttl=4)
    step = passing.step(for_spawner(spawn, fails), name="fails", spawn=spawn)
    step.compensate(lambda ctx: ctx.emit("news"))
    for errors in ((await failure_of(await ran(passing))).errors, run_workflow(passing).errors):
        assert str(errors[1]).startswith("compensate of 'passing on/fails' returned <bitactor.declare.context.Emitting")


@claim(SECTION, "A compensation that continues is asked about an emission that nobody awaited, as about any failure.")
async def test_a_compensation_may_continue_after_it() -> None:
    workflow = Workflow("asked")
    step = workflow.step(forgets)
    asked: list[Exception] = []

    @step.compensate
    async def considers(error: Exception) -> Continue:
        asked.append(error)
        return Continue("known")

    transaction = await ran(workflow)
    assert await transaction.result() == "known"
    assert [type(error) for error in asked] == [InvalidOutcome]


@claim(SECTION, "With a verdict that sends nothing, an emission that nobody awaited does not matter.")
@pytest.mark.parametrize("verdict", [Retry(after=0), Fail("no"), Halt("wait")])
async def test_with_a_verdict_that_sends_nothing_it_does_not_matter(verdict: Any) -> None:
    async def emits(ctx: Context) -> Any:
        ctx.emit("news")
        return verdict if ctx.attempt == 1 else None

    transaction = await ran(forgetting(emits, retries=1))
    expected = {Retry: "compensated", Fail: "compensated", Halt: "halted"}[type(verdict)]
    assert transaction.status == expected
    [*_, last] = transaction.errors() or ["none"]
    assert ("did not await" in str(last)) is isinstance(verdict, Retry), "the second attempt returns a value"


@claim(SECTION, "Steps planned by a step that has not awaited its emission do not begin.")
async def test_steps_planned_by_a_step_that_forgot_do_not_begin() -> None:
    workflow = Workflow("planning", ttl=4)

    @workflow.deferred
    async def more() -> None: ...

    @workflow.step
    async def plans(ctx: Context) -> Then:
        ctx.emit("news")
        return Then("value", [more.planned("more")])

    transaction = await ran(workflow)
    assert transaction.status == "compensated" and "spawned more" not in pulse_lines(transaction)


@claim(SECTION, "`run_workflow` refuses an emission that nobody awaited as a mesh does.")
def test_without_a_runtime() -> None:
    workflow = forgetting(forgets)
    trace = run_workflow(workflow)
    assert trace.status == "compensated" and trace.emitted == []
    assert isinstance(trace.errors[0], InvalidOutcome)
    taken_back = Workflow("taken back")
    taken_back.step(lambda: 1, name="done", spawn="inline").undo(lambda ctx: ctx.emit("news") and None)
    taken_back.step(lambda done: 1 / 0, name="fails", spawn="inline")
    assert run_workflow(taken_back).status == "stuck"


@claim(SECTION, "An emission may be awaited through `gather`, a task, a `TaskGroup`, a timeout or a shield.")
async def test_awaited_by_way_of_something_else() -> None:
    workflow, heard = Workflow("by way of", ttl=4), []

    @workflow.step
    async def emits(ctx: Context) -> None:
        await asyncio.gather(ctx.emit("news", 0), ctx.emit("news", 1))
        await asyncio.create_task(ctx.emit("news", 2))
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.emit("news", 3))
        await asyncio.wait_for(ctx.emit("news", 4), BOUND)
        await asyncio.shield(ctx.emit("news", 5))
        waiting = [ctx.emit("news", 6), ctx.emit("news", 7)]
        for emission in reversed(waiting):
            await emission

    @consumer("news")
    async def listens(signal: Any) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, listens) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "completed", transaction.errors()
        await until(lambda: len(heard) == 8)
    assert sorted(heard) == list(range(8))


@claim(
    SECTION,
    "A task that has not emitted when the step returns: refused if it is the emission, else an error where it emits.",
)
async def test_a_task_that_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def begins(ctx: Context) -> None:
        tasks.append(asyncio.create_task(ctx.emit("news")))

    transaction = await ran(forgetting(begins))
    assert "did not await ctx.emit('news')" in str((await failure_of(transaction)).errors[0])
    await asyncio.gather(*tasks)

    async def later(ctx: Context) -> None:
        await asyncio.sleep(0)
        await ctx.emit("too late")

    async def leaves(ctx: Context) -> None:
        tasks.append(asyncio.create_task(later(ctx)))

    transaction = await ran(forgetting(leaves))
    assert transaction.status == "completed"
    with pytest.raises(Exception, match="has ended, so nothing would be sent; await what emits"):
        await tasks[-1]


@claim(SECTION, "An emission whose task was cancelled, or that was closed, is not waited for.")
async def test_a_task_that_was_cancelled_is_no_emission_that_was_forgotten() -> None:
    async def cancels(ctx: Context) -> str:
        task = asyncio.create_task(ctx.emit("news"))
        task.cancel()
        await asyncio.wait([task])
        ctx.emit("news").close()
        return "done"

    assert await (await ran(forgetting(cancels))).result() == "done"


@claim(SECTION, "An emission can be awaited once.")
async def test_an_emission_is_awaited_once() -> None:
    async def twice(ctx: Context) -> None:
        emission = ctx.emit("news")
        await emission
        await emission

    failure = await failure_of(await ran(forgetting(twice)))
    assert str(failure.errors[0]) == "cannot reuse already awaited coroutine"


@claim(SECTION, "A function around steps that did not await its `proceed()` has failed; its nested steps did not run.")
async def test_proceed_that_nobody_awaited() -> None:
    inner = Workflow("inner")
    inner.step(lambda: 1, name="nested", spawn="inline")
    workflow = Workflow("outer")

    @workflow.around(workflow=inner)
    async def forgets_to(proceed: Callable[[], Any]) -> str:
        proceed()
        return "done"

    transaction = await ran(workflow)
    assert "did not await proceed()" in str((await failure_of(transaction)).errors[0])
    assert "spawned forgets_to/nested" not in pulse_lines(transaction)
