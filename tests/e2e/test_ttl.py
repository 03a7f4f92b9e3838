"""The hop budget: where it falls, and what happens when it is used up."""

from __future__ import annotations

from typing import Any

import pytest

from bitactor import Context, Retry, Workflow, WorkflowFailed, WorkflowTooDeep, consumer
from bitactor.errors import TtlExpired
from mesh import Mesh
from tests.e2e.support import BOUND, chain, finish, pulse_lines, tombstones, undone, until


def test_nine_in_a_row_are_refused_when_declared() -> None:
    with pytest.raises(WorkflowTooDeep, match="s1 → s2 → s3 → s4 → s5 → s6 → s7 → s8 → s9"):
        chain("nine", 9, ttl=8)


async def test_eight_run_and_carry_seven_to_nought(store: str) -> None:
    async with Mesh(eight := chain("eight", 8), store=store) as mesh:
        tx = await finish(mesh, eight, {"start": 0})
        assert await tx.result() == 8
        assert [pulse.ttl for pulse in tx.pulses() if pulse.kind == "spawned"] == [7, 6, 5, 4, 3, 2, 1, 0]
        assert [pulse.ttl for pulse in tx.pulses() if pulse.kind == "completed"] == [7, 6, 5, 4, 3, 2, 1, 0]
        assert all(isinstance(pulse.ttl, int) for pulse in tx.pulses())


@pytest.mark.parametrize("ttl", [0, 1, 2, 3, 4])
async def test_a_smaller_budget_than_the_path(store: str, ttl: int) -> None:
    five = chain("five", 5)
    taken_back: list[str] = []
    for number in range(1, 6):
        five.steps[f"s{number}"].undo(lambda result, ctx: taken_back.append(f"{ctx.step}={result}"))
    async with Mesh(five, store=store) as mesh:
        tx = await finish(mesh, five, {"start": 0}, ttl=ttl)
        assert tx.status == "compensated"
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result()
        assert isinstance(caught.value.__cause__, TtlExpired)
        assert f"five/s{ttl + 1}" in str(caught.value)
        grave = [pulse for pulse in tx.pulses() if pulse.kind == "tombstone"]
        assert [(pulse.error, pulse.step) for pulse in grave] == [("ttl_expired", f"s{ttl + 1}")]
        assert grave[0].data and grave[0].data["chain"] == [f"five/s{number}" for number in range(1, ttl + 2)]
        assert undone(tx) == [f"s{number}" for number in range(ttl, 0, -1)]
        assert taken_back == [f"s{number}={number}" for number in range(ttl, 0, -1)]
        assert [pulse.ttl for pulse in tx.pulses() if pulse.kind == "spawned" and pulse.direction == "undo"] == list(
            range(ttl)
        )


async def test_ping_pong_dies_after_exactly_the_budget(store: str) -> None:
    heard: list[tuple[str, int]] = []

    kick = Workflow("kick", ttl=8)

    @kick.step
    async def serve(ctx: Context) -> None:
        await ctx.emit("ping", 0)

    @consumer("ping")
    async def on_ping(signal: Any, ctx: Context) -> None:
        heard.append(("ping", signal.ttl))
        await ctx.emit("pong", signal.token + 1)

    @consumer("pong")
    async def on_pong(signal: Any, ctx: Context) -> None:
        heard.append(("pong", signal.ttl))
        await ctx.emit("ping", signal.token + 1)

    async with Mesh(kick, on_ping, on_pong, store=store) as mesh:
        tx = await finish(mesh, kick)

        def dead() -> list[Any]:
            rows = mesh.node.store.reader().list(limit=100)
            return [
                pulse
                for row in rows
                for pulse in mesh.node.store.reader().pulses(row.transaction)
                if pulse.kind == "tombstone"
            ]

        await until(lambda: dead() and not [row for row in mesh.node.store.reader().list(limit=100) if row.open])
        grave = dead()
        assert len(grave) == 1 and grave[0].error == "ttl_expired"
        assert grave[0].root == tx.id
        assert grave[0].data["chain"] == ["kick/serve", "ping", "pong", "ping", "pong", "ping", "pong", "ping", "pong"]
        assert heard == [("ping", 6), ("pong", 5), ("ping", 4), ("pong", 3), ("ping", 2), ("pong", 1), ("ping", 0)]
        rows = {row.transaction: row for row in mesh.node.store.reader().list(limit=100)}
        assert len(rows) == 9 and {row.root for row in rows.values()} == {tx.id}


async def test_skipped_steps_pass_it_through(store: str) -> None:
    workflow = Workflow("skipping", input={"x": int}, ttl=3)

    @workflow.step
    async def a(x: int) -> int:
        return x

    @workflow.step(when=lambda a: False)
    async def b(a: int) -> int:
        return a

    @workflow.step(after=["b"])
    async def c(a: int, ctx: Context) -> list[int]:
        return [ctx.ttl]

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow, {"x": 1}, ttl=2)
        assert await tx.result() == [0], "a carries 1, b is skipped, c carries 0"
        by_step = {pulse.step: pulse for pulse in tx.pulses() if pulse.kind in ("spawned", "skipped")}
        assert by_step["c"].causes == (by_step["a"].hop,)


async def test_a_join_carries_the_least(store: str) -> None:
    workflow = Workflow("join", ttl=4)

    @workflow.step
    async def a() -> int:
        return 1

    @workflow.step
    async def b(a: int) -> int:
        return 1

    @workflow.step
    async def c() -> int:
        return 1

    @workflow.step
    async def d(b: int, c: int, ctx: Context) -> int:
        return ctx.ttl

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert await tx.result() == 1


async def test_retries_and_undo_do_not_spend(store: str) -> None:
    workflow = Workflow("stubborn", ttl=2)
    seen: list[int] = []

    @workflow.step
    async def kept() -> int:
        return 1

    @kept.undo
    async def forget(result: int, ctx: Context, attempt: int) -> Retry | None:
        seen.append(ctx.ttl)
        return Retry(after=0) if attempt < 3 else None

    @workflow.step(retries=5)
    async def tries(kept: int, ctx: Context) -> Retry:
        seen.append(ctx.ttl)
        return Retry(after=0)

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated"
        assert seen == [0] * 6 + [1] * 3
        assert tombstones(tx) == []


async def test_a_consumer_without_budget_left_says_so(store: str) -> None:
    workflow = Workflow("last breath", ttl=1)
    heard: list[Any] = []

    @workflow.step
    async def only(ctx: Context) -> None:
        assert ctx.ttl == 0
        await ctx.emit("heard?")

    @consumer("heard?")
    async def listen(signal: Any) -> None:
        heard.append(signal)

    async with Mesh(workflow, listen, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "completed"
        await until(lambda: "emitted" in pulse_lines(tx))
        receiver = tx.pulses()[-1].data["receivers"][0]
        child = await mesh.transaction(receiver)
        assert await child.ended(BOUND) == "compensated"
        assert pulse_lines(child) == ["accepted", "tombstone listen", "failed listen", "finished"]
    assert heard == []
