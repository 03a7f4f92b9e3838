"""What is declared wrong is refused, or warned of, before anything runs; what is odd and right is not."""

from __future__ import annotations

import pytest

from bitactor import DefinitionError, Workflow
from tests.wrong_declarations import WRONG


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_by_name_and_with_its_cure(name: str) -> None:
    declare, words = WRONG[name]
    workflow = Workflow("w", input={"x": int, "s": list})
    with pytest.raises(DefinitionError) as caught:
        declare(workflow)
        workflow.check()
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert caught.value.__cause__ is None
