"""Values and objects come back as they were, wherever a reader's annotation names their classes, and as plain data
elsewhere: through a token, to a step on the loop or in a worker process, to its undo, to a map's function and undo, and
over a restart."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bitactor.errors import WorkflowFailed
from bitactor.messages.classes import AnnotatedClasses
from bitactor.messages.codec import decode_token, encode_token
from mesh import Mesh
from tests import travellers
from tests.amounts import examples
from tests.e2e.support import BOUND
from tests.travellers import HALTED, JOURNEYS, KINDS, VALUES, same

QUIETLY: Any = {"suppress_health_check": list(HealthCheck), "deadline": None}
OBJECTS = KINDS.map(lambda case: case[1]).filter(lambda value: type(value) is not dict)


@examples(quick=150, long=3_000)
@given(VALUES)
def test_values_come_back_for_every_reader(value: Any) -> None:
    assert same(decode_token(encode_token(value)), value)
    assert same(decode_token(encode_token([{"a": value}])), [{"a": value}])


@examples(quick=60, long=3_000)
@given(KINDS)
def test_objects_come_back_for_a_reader_that_names_their_class(case: tuple[Any, Any]) -> None:
    annotation, value = case
    token = encode_token(value)
    back = decode_token(token, AnnotatedClasses(annotation))
    assert same(back, value)
    # Plain data for others, and what they pass on is what they got.
    plain = decode_token(token)
    assert same(decode_token(encode_token(plain)), plain)


@pytest.mark.parametrize(("spawner", "objects"), JOURNEYS)
def test_what_a_step_returns_comes_to_the_next_one_to_undo_and_to_a_map_as_it_was(spawner: str, objects: bool) -> None:
    workflow = JOURNEYS[spawner, objects]
    with Mesh(workflow) as mesh:

        @examples(quick=20, long=2_000, **QUIETLY)
        @given(OBJECTS if objects else VALUES)
        def travels(value: Any) -> None:
            with pytest.raises(WorkflowFailed, match="turn back") as caught:
                mesh.run(workflow, {"data": pickle.dumps(value)})
            assert caught.value.status == "compensated", caught.value.errors

        travels()


@examples(quick=4, long=200, **QUIETLY)
@given(st.lists(OBJECTS, min_size=1, max_size=12))
def test_and_over_a_restart(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    asyncio.run(_over_a_restart(f"sqlite:///{tmp_path_factory.mktemp('store') / 'journal.db'}", values))


async def _over_a_restart(store: str, values: list[Any]) -> None:
    travellers.AWAKE[0] = False
    async with Mesh(HALTED, store=store) as mesh:
        transaction = await mesh.stimulate(HALTED, {"data": pickle.dumps(values)})
        assert await transaction.ended(BOUND) == "halted"
    travellers.AWAKE[0] = True
    async with Mesh(HALTED, store=store) as mesh:
        taken = await mesh.transaction(transaction.id)
        await taken.resume()
        await taken.result(BOUND)
