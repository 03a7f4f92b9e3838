"""The saga against a world in which anything may happen at any time."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saga_world import World

from bitactor import Backoff, Value, Workflow
from bitactor.plan import Plan

DETERMINISTIC = settings(
    derandomize=True, deadline=None, database=None, max_examples=250, suppress_health_check=list(HealthCheck)
)


def _declare(name: str, options: dict[str, Any], workflow: Workflow) -> None:
    if options.pop("transforms"):
        options["bind"] = {"x": Value(1).map(lambda value: value + 1)}

        def run(x: int) -> int:
            return x
    else:

        def run() -> int:  # type: ignore[misc]
            return 1

    undo, compensate = options.pop("undo"), options.pop("compensate")
    step = workflow.step(name=name, **options)(run)
    if undo is not None:
        step.undo(in_doubt=undo == "in_doubt", retries=1)(lambda ctx: None)
    if compensate:
        step.compensate(lambda error: None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A random DAG with random options."""
    count = draw(st.integers(1, 12))
    workflow = Workflow("w", ttl=12, grace=2.0, undo_timeout=60.0, redeliveries=draw(st.integers(0, 2)))
    for index in range(count):
        after = draw(st.lists(st.integers(0, index - 1), unique=True, max_size=3)) if index else []
        options = {
            "after": [f"s{other}" for other in after],
            "retries": draw(st.integers(0, 2)),
            "backoff": draw(st.sampled_from([None, Backoff(0.1), Backoff(0.0)])),
            "timeout": draw(st.sampled_from([None, 1.0])),
            "when": (lambda: True) if draw(st.booleans()) and index % 2 else None,
            "undo": draw(st.sampled_from([None, "known", "in_doubt", "in_doubt"])),
            "compensate": draw(st.booleans()),
            "transforms": index % 5 == 4 and draw(st.booleans()),
            "spawn": "inline",
        }
        _declare(f"s{index}", options, workflow)
    return workflow.check()


TAPES = st.lists(st.integers(0, 2**16), max_size=70)


@DETERMINISTIC
@given(plan=plans(), tape=TAPES, ttl=st.integers(0, 12), deadline=st.sampled_from([None, 5.0]))
def test_whatever_happens_the_saga_stays_consistent_and_ends(
    plan: Plan, tape: list[int], ttl: int, deadline: float | None
) -> None:
    World(plan, ttl=ttl, deadline_s=deadline).run(tape)
