"""What every spawner does, wherever it runs its hops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from bitactor.messages.codec import decode_token
from bitactor.workflow import Workflow
from mesh.hops.actor import BitActor
from mesh.hops.ports import ENDED, FOREVER, QUEUED, STARTED, Spawner
from mesh.spawners.loop import InlineSpawner, LoopSpawner
from mesh.spawners.process.spawner import ProcessSpawner
from mesh.spawners.thread import ThreadSpawner
from tests.e2e import process_steps
from tests.extensions import UnpooledSpawner
from tests.spawning import Stage, UntilLease, until


class Place(NamedTuple):
    name: str
    make: Callable[[], Spawner]
    workflow: Workflow
    stops: bool
    """Whether a function that runs can be stopped."""
    bounded: bool
    """Whether hops wait for a free place; the spawner made has two."""


PLACES = (
    Place("inline", InlineSpawner, process_steps.def_inline, False, False),
    Place("loop", LoopSpawner, process_steps.async_loop, True, False),
    Place("thread", lambda: ThreadSpawner(2), process_steps.def_thread, False, True),
    Place("process-def", lambda: ProcessSpawner(2), process_steps.def_process, True, True),
    Place("unpooled", UnpooledSpawner, process_steps.def_unpooled, False, False),
    Place("process-async", lambda: ProcessSpawner(2), process_steps.async_process, True, True),
)
WAITING = tuple(place for place in PLACES if place.name != "inline")
BOUNDED = tuple(place for place in PLACES if place.bounded)
ASYNC = tuple(place for place in PLACES if "async" in place.workflow.name)

every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
every_waiting_place = pytest.mark.parametrize("place", WAITING, ids=lambda place: place.name)
every_bounded_place = pytest.mark.parametrize("place", BOUNDED, ids=lambda place: place.name)
every_async_place = pytest.mark.parametrize("place", ASYNC, ids=lambda place: place.name)


one_loop = pytest.mark.asyncio(loop_scope="module")
"""For what needs no spawner of its own: the worker processes of `warm` live on that loop."""


@pytest.fixture
async def stage(place: Place) -> AsyncIterator[Stage]:
    """With a spawner of its own, which may be closed and whose workers may be killed."""
    made = Stage(place.make())
    yield made
    await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers() -> AsyncIterator[ProcessSpawner]:
    made = ProcessSpawner(2)
    yield made
    await made.close(20.0)


@pytest_asyncio.fixture(loop_scope="module")
async def warm(place: Place, workers: ProcessSpawner) -> AsyncIterator[Stage]:
    """With worker processes that other tests have used."""
    shared = place.name.startswith("process")
    made = Stage(workers if shared else place.make())
    yield made
    await (made.leave() if shared else made.close())


@one_loop
@every_place
async def test_a_value_comes_back_and_the_actor_begins_and_ends_once(
    place: Place, warm: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[BitActor] = []
    begin = BitActor.begin

    def counting(actor: BitActor, **options: bool) -> bool:
        begun.append(actor)
        return begin(actor, **options)

    monkeypatch.setattr(BitActor, "begin", counting)
    value = {"text": "grüße", "list": [1, 2.5, None], "bytes": b"\0\1"}
    hops = [warm.launch(place.workflow, "echo", value) for _ in range(5)]
    for hop in hops:
        reply = await hop.reply()
        assert (reply.outcome, decode_token(reply.token)) == ("ok", value)
        assert (reply.hop, reply.delivery, reply.epoch) == (hop.signal.hop, 1, 1)
        assert hop.actor.state == ENDED
    await warm.run(place.workflow, "echo", 1)
    assert [len(hop.replies) for hop in hops] == [1] * 5
    assert sorted(map(id, begun[:5])) == sorted(id(hop.actor) for hop in hops)


@one_loop
@every_place
async def test_an_exception_comes_through(place: Place, warm: Stage) -> None:
    reply = await warm.run(place.workflow, "fail", "bad luck")
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert (reply.fault.type, reply.fault.message) == ("builtins:ValueError", "bad luck")
    assert "process_steps.py" in reply.fault.traceback
    assert "mesh" not in reply.fault.traceback


@one_loop
@every_place
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("leave", "builtins:SystemExit"),
        ("interrupt", "builtins:KeyboardInterrupt"),
        ("ruin", "tests.e2e.process_steps:Cataclysm"),
    ],
)
async def test_what_would_end_a_program_ends_a_hop(place: Place, warm: Stage, step: str, kind: str) -> None:
    reply = await warm.run(place.workflow, step, "enough")
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert (reply.fault.type, reply.fault.message) == (kind, "enough")
    assert (await warm.run(place.workflow, "echo", "still here")).token == "still here"


@one_loop
@every_place
async def test_a_value_that_cannot_be_carried_fails_by_name(place: Place, warm: Stage) -> None:
    reply = await warm.run(place.workflow, "uncarriable", 1)
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert reply.fault.type == "bitactor.errors:InvalidOutcome"
    assert "builtins.object" in reply.fault.message


@one_loop
@every_place
async def test_an_exception_whose_text_is_no_utf_8_still_comes_through(place: Place, warm: Stage) -> None:
    reply = await warm.run(place.workflow, "undecodable", 1)
    assert reply.outcome == "fail"
    assert reply.fault is not None
    assert reply.fault.type == "builtins:OSError"


@one_loop
@every_place
async def test_compensation_decides_on_the_live_exception(place: Place, warm: Stage) -> None:
    reply = await warm.run(place.workflow, "recover", "x")
    assert (reply.outcome, reply.token) == ("continue", "recovered from LookupError")


@one_loop
@every_place
async def test_what_is_emitted_comes_with_the_reply(place: Place, warm: Stage) -> None:
    reply = await warm.run(place.workflow, "emit_two", 5)
    assert reply.outcome == "ok"
    assert reply.emits == (("first", 5), ("second", None))


@one_loop
@every_place
async def test_context_variables_are_each_hops_own(place: Place, warm: Stage) -> None:
    process_steps.CALLS.set(0)
    replies = [await warm.run(place.workflow, "count_calls", 0) for _ in range(3)]
    assert [reply.token for reply in replies] == [1, 1, 1]
    assert process_steps.CALLS.get() == 0


@one_loop
@every_async_place
async def test_the_first_line_already_runs_in_a_task(place: Place, warm: Stage) -> None:
    reply = await warm.run(place.workflow, "be_a_task", "inner")
    assert decode_token(reply.token) == [True, True, "inner"]


@every_waiting_place
async def test_an_attempt_whose_time_is_up_is_answered_for_and_stopped_where_possible(
    place: Place, stage: Stage, tmp_path: Path
) -> None:
    await stage.run(place.workflow, "echo", "warm")
    gate = tmp_path / "gate"
    hop = stage.launch(place.workflow, "wait_for_file", str(gate), timeout=0.05)
    reply = await hop.reply()
    assert reply.outcome == "timed_out"
    assert reply.fault is not None
    assert reply.fault.type == "bitactor.errors:StepTimeout"
    if not place.stops:
        gate.touch()
    late = await hop.reply(2)
    assert late.outcome == ("cancelled" if place.stops else "ok")
    assert hop.actor.state == ENDED
    assert not stage.executor.zombies
    assert (await stage.run(place.workflow, "echo", "next")).token == "next"
    assert len(hop.replies) == 2


@every_waiting_place
async def test_an_abandoned_hop_is_stopped_where_possible(place: Place, stage: Stage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hop = stage.launch(place.workflow, "wait_for_file", str(gate))
    await until(Path(f"{gate}.begun").exists)
    hop.actor.abandon()
    hop.actor.abandon()
    if not place.stops:
        gate.touch()
    reply = await hop.reply()
    assert reply.outcome == ("cancelled" if place.stops else "ok")
    assert (await stage.run(place.workflow, "echo", "next")).token == "next"
    hop.actor.abandon()
    assert len(hop.replies) == 1


@every_bounded_place
async def test_hops_wait_for_a_place_and_their_time_does_not_count_meanwhile(
    place: Place, stage: Stage, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    holding = [stage.launch(place.workflow, "wait_for_file", str(gate)) for _ in range(2)]
    await until(lambda: all(hop.state == STARTED for hop in holding))
    waiting = [stage.launch(place.workflow, "echo", number, timeout=30) for number in range(20)]
    forgotten = stage.launch(place.workflow, "echo", "never", timeout=30)
    await until(lambda: forgotten.state is not None)
    assert {hop.state for hop in waiting} == {QUEUED}
    assert len(stage.wheel) == 0
    forgotten.actor.abandon()
    assert [(reply.outcome, reply.elapsed_ns) for reply in forgotten.replies] == [("fail", 0)]
    gate.touch()
    assert [(await hop.reply()).token for hop in waiting] == list(range(20))
    assert [(await hop.reply()).token for hop in holding] == ["seen", "seen"]
    assert len(forgotten.replies) == 1


@every_place
async def test_closing_twice_and_before_anything_ran_is_fine(place: Place) -> None:
    spawner = place.make()
    await spawner.close(5)
    await spawner.close(5)


@every_waiting_place
async def test_closing_ends_what_runs(place: Place, stage: Stage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hop = stage.launch(place.workflow, "wait_for_file", str(gate))
    await until(Path(f"{gate}.begun").exists)
    if not place.stops:
        gate.touch()
    await asyncio.gather(stage.spawner.close(20), stage.spawner.close(20))
    assert (await hop.reply()).outcome == ("cancelled" if place.stops else "ok")
    await stage.spawner.close(20)
    assert len(hop.replies) == 1


@one_loop
@every_place
async def test_a_hop_from_elsewhere_whose_lease_is_over_is_given_back(
    place: Place, warm: Stage, tmp_path: Path
) -> None:
    lease = UntilLease(warm.executor.monotonic_ns() - 1)
    hop = warm.launch(place.workflow, "wait_for_file", str(tmp_path / "never"), lease=lease)
    reply = await hop.reply()
    assert (reply.outcome, hop.actor.state) == ("busy", ENDED)
    assert reply.after_ns is not None and reply.after_ns <= warm.executor.monotonic_ns()
    lease.moment_ns = FOREVER
    again = await warm.launch(place.workflow, "echo", 7, lease=lease).reply()
    assert (again.outcome, decode_token(again.token)) == ("ok", 7)


@one_loop
@every_place
async def test_a_hop_of_our_own_waits_until_our_lease_is_renewed(place: Place, warm: Stage) -> None:
    executor = warm.executor
    moments, looks = [0], []

    def lease() -> int:
        looks.append(moments[-1])
        return moments[-1]

    executor.lease_until_ns, executor.lease = 0, lease
    try:
        hops = [warm.launch(place.workflow, "echo", number) for number in range(5)]
        stopped = warm.launch(place.workflow, "echo", 5)
        await until(lambda: all(hop.state == QUEUED for hop in (*hops, stopped)))
        stopped.actor.abandon()
        assert (await stopped.reply()).outcome == "fail"
        seen = len(looks)
        await until(lambda: len(looks) >= seen + 2)
        assert [hop.replies for hop in hops] == [[]] * 5
        moments.append(FOREVER)
        assert [decode_token((await hop.reply()).token) for hop in hops] == list(range(5))
    finally:
        executor.lease_until_ns, executor.lease = FOREVER, lambda: None
    assert len(stopped.replies) == 1


@every_bounded_place
async def test_a_hop_that_waited_too_long_for_a_place_is_given_back(place: Place, stage: Stage, tmp_path: Path) -> None:
    lease = UntilLease(FOREVER)
    running = [stage.launch(place.workflow, "wait_for_file", str(tmp_path / "go")) for _ in range(2)]
    await until(lambda: all(hop.state == STARTED for hop in running))
    waiting = [stage.launch(place.workflow, "echo", 1, lease=lease) for _ in range(300)]
    await until(lambda: all(hop.state == QUEUED for hop in waiting))
    lease.moment_ns = 0
    (tmp_path / "go").touch()
    assert {(await hop.reply()).outcome for hop in waiting} == {"busy"}
    assert (await stage.run(place.workflow, "echo", 1)).outcome == "ok", "the places are free again"
