"""What is declared wrong is refused, or warned of, before anything runs; what is odd and right is not."""

from __future__ import annotations

import pytest

from bitactor import DefinitionError, DefinitionWarning, Workflow
from tests.odd_declarations import ODD
from tests.wrong_declarations import WRONG


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_by_name_and_with_its_cure(name: str) -> None:
    declare, words = WRONG[name]
    workflow = Workflow("w", input={"x": int, "s": list, "limit": int, "is_urgent": bool})
    with pytest.raises((DefinitionError, DefinitionWarning)) as caught:
        declare(workflow)
        workflow.check()
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_and_right_is_let_be(name: str) -> None:
    workflow = Workflow("w", input={"x": int, "s": list, "limit": int, "is_urgent": bool, "word": str, "part_1": int})
    ODD[name](workflow)
    if workflow.steps:
        workflow.check()


def test_the_tables_are_long() -> None:
    assert len(WRONG) >= 60
    assert len(ODD) >= 60
