"""Every kind of step, nested in each other, against a world in which anything may happen at any time."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saga_plans import Random, nested_plans, planner
from saga_world import World

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=300, suppress_health_check=list(HealthCheck))
TAPES = st.lists(st.integers(0, 2**16), max_size=100)


@SETTINGS
@given(given_=nested_plans(), tape=TAPES, ttl=st.integers(0, 30), deadline=st.sampled_from([None, 5.0]))
def test_whatever_happens_to_nested_steps_the_saga_stays_consistent_and_ends(
    given_: Random, tape: list[int], ttl: int, deadline: float | None
) -> None:
    World(given_.plan, ttl=ttl, deadline_s=deadline, planner=planner).run(tape)
