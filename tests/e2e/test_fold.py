"""The pulse log alone says what a live transaction is, at every point: random workflows, random faults, a real mesh."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, composite

from bitactor import Continue, Fail, Halt, Retry, Workflow
from bitactor.messages.wire import decode_pulse, encode_pulse
from bitactor.saga import Saga
from mesh import Mesh
from tests.e2e.support import BOUND, turns

BEHAVIOURS = ("ok", "ok", "ok", "raise", "retry", "halt", "fail", "exit", "odd", "late")
UNDOS = ("none", "plain", "doubt", "raise", "retry")
COMPENSATIONS = ("none", "none", "nothing", "retry", "continue", "raise")


@composite
def workflows(draw: DrawFn) -> dict[str, Any]:
    steps = []
    for number in range(draw(st.integers(1, 6))):
        earlier = [f"s{other}" for other in range(number)]
        steps.append(
            {
                "name": f"s{number}",
                "after": draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)) if earlier else [],
                "place": draw(st.sampled_from(("inline", "loop", "loop", "thread"))),
                "attempts": draw(st.lists(st.sampled_from(BEHAVIOURS), min_size=1, max_size=3)),
                "retries": draw(st.integers(0, 2)),
                "undo": draw(st.sampled_from(UNDOS)),
                "compensate": draw(st.sampled_from(COMPENSATIONS)),
                "when": draw(st.sampled_from((None, None, None, True, False))),
                "emits": draw(st.booleans()),
            }
        )
    return {
        "steps": steps,
        "ttl": draw(st.sampled_from((None, None, 1, 2))),
        "cancel": draw(st.sampled_from((None, None, 0, 3, 9))),
    }


def _behave(behaviour: str) -> Any:
    match behaviour:
        case "raise":
            raise ValueError("on purpose")
        case "retry":
            return Retry(after=0)
        case "halt":
            return Halt("look")
        case "fail":
            return Fail("for good")
        case "exit":
            raise SystemExit
        case "odd":
            return object()
    return {"fine": [1]}


def _build(drawn: dict[str, Any]) -> Workflow:
    workflow = Workflow("random", ttl=8, grace=1.0)
    for drawn_step in drawn["steps"]:
        _declare(workflow, drawn_step)
    return workflow


def _declare(workflow: Workflow, drawn: dict[str, Any]) -> None:
    attempts, place = list(drawn["attempts"]), drawn["place"]

    async def on_loop(ctx: Any) -> Any:
        if drawn["emits"]:
            await ctx.emit("nobody", drawn["name"])
        behaviour = attempts.pop(0) if attempts else "ok"
        if behaviour == "late":
            await asyncio.Event().wait()
        return _behave(behaviour)

    def elsewhere(ctx: Any) -> Any:
        return _behave(attempts.pop(0) if attempts else "ok")

    made = workflow.step(
        name=drawn["name"],
        after=drawn["after"],
        spawn=place,
        retries=drawn["retries"],
        backoff=(lambda error: 0.0) if drawn["retries"] else None,
        timeout=0.03 if "late" in attempts and place == "loop" else None,
        when=None if drawn["when"] is None else (lambda: drawn["when"]),
    )(on_loop if place == "loop" else elsewhere)

    def undo(result: Any, ctx: Any, attempt: int) -> Any:
        if drawn["undo"] == "raise":
            raise KeyError("in undo")
        return Retry(after=0) if drawn["undo"] == "retry" and attempt < 3 else None

    if drawn["undo"] != "none":
        made.undo(in_doubt=drawn["undo"] == "doubt")(undo)

    def compensate(error: Exception) -> Any:
        match drawn["compensate"]:
            case "retry":
                return Retry(after=0)
            case "continue":
                return Continue("instead")
            case "raise":
                raise OSError("in compensate")
        return None

    if drawn["compensate"] != "none":
        made.compensate(compensate)


class Recording(Saga):
    """A saga that notes what it was after each reaction."""

    __slots__ = ("noted",)
    live: ClassVar[dict[str, Recording]] = {}
    """Transaction → the saga that reacted last for it."""

    def react(self, stimulus: Any, now_ns: int) -> Any:
        answer = super().react(stimulus, now_ns)
        self.live[self.state.transaction] = self
        if not hasattr(self, "noted"):
            self.noted: list[tuple[int, dict[str, Any]]] = []
        self.noted.append((self.state.seq, _still(self.snapshot())))
        return answer


def _still(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in snapshot.items()}


async def _live(drawn: dict[str, Any]) -> None:
    workflow = _build(drawn)
    async with Mesh(workflow, drain=0) as mesh:
        tx = await mesh.stimulate(workflow, ttl=drawn["ttl"])
        if drawn["cancel"] is not None:
            await turns(drawn["cancel"])
            await tx.cancel()
        for _ in range(4):
            if await tx.ended(BOUND) in ("halted", "stuck"):
                await tx.resume()
        await tx.ended(BOUND)
        await turns()
        saga = Recording.live.pop(tx.id)
        assert tx.snapshot() == saga.snapshot(), "it is the one that the mesh has"
        pulses = [decode_pulse(encode_pulse(pulse)) for pulse in tx.raw_pulses()]
        assert [pulse.seq for pulse in pulses] == list(range(len(pulses)))
        for seq, snapshot in saga.noted:
            folded = _still(Saga.fold(tx.plan, pulses[:seq]).snapshot())
            assert folded == snapshot, (
                seq,
                {name: (folded[name], snapshot[name]) for name in folded if folded[name] != snapshot[name]},
            )
        assert saga.noted[-1][0] == len(pulses)
        assert mesh.node.supervisor.running_count == 0
        assert not mesh.node.executor.zombies and not mesh.node.executor.compensations


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(workflows())
def test_fold_of_every_prefix_is_the_live_state(drawn: dict[str, Any]) -> None:
    import mesh.runtime.intake as intake

    plain, intake.Saga = intake.Saga, Recording  # type: ignore[misc]
    try:
        asyncio.run(_live(drawn))
    finally:
        intake.Saga = plain  # type: ignore[misc]
