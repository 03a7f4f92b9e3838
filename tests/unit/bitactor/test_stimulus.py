"""The options of a stimulus: what was given is looked at, and never asked whether it is nothing."""

from __future__ import annotations

from typing import Any

import pytest

from bitactor import InvalidInput, Workflow
from bitactor.declare.stimulus import StimulusOptions
from bitactor.testing import run_workflow


class EqualsAll:
    """Says that it equals whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class EqualsNothing(dict[str, Any]):
    """Metadata that cannot be compared."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("these cannot be compared")


@pytest.mark.parametrize("option", ["key", "ttl", "deadline", "metadata", "traceparent", "max_concurrency", "priority"])
def test_an_option_that_says_it_equals_everything_is_not_dropped(option: str) -> None:
    with pytest.raises(InvalidInput, match=option):
        StimulusOptions(**{option: EqualsAll()})


def test_metadata_that_cannot_be_compared_are_taken() -> None:
    assert StimulusOptions(metadata=EqualsNothing(a=1)).metadata == {"a": 1}


@pytest.mark.parametrize("name", [1, None, b"a", ("a",)])
def test_names_of_metadata_are_strings_on_every_way_in(name: Any) -> None:
    workflow = Workflow("w")
    workflow.step(lambda: None, name="one")
    said = r"metadata=.*; metadata are plain data by name: a mapping whose keys are strings"
    for way in (
        lambda metadata: StimulusOptions(metadata=metadata),
        lambda metadata: StimulusOptions.of({"metadata": metadata}),
        lambda metadata: run_workflow(workflow, metadata=metadata),
    ):
        with pytest.raises(InvalidInput, match=said):
            way({"a": 1, name: 2})


def test_no_options_are_one_object() -> None:
    assert StimulusOptions() is StimulusOptions() and StimulusOptions().given() == {}


class Exits:
    """An object that exits when it is looked at."""

    def _exits(self) -> Any:
        raise SystemExit(0)

    __class__ = property(_exits)  # type: ignore[assignment]
    __repr__ = _exits


@pytest.mark.parametrize("option", StimulusOptions._fields)
def test_an_option_that_exits_when_it_is_looked_at_is_refused(option: str) -> None:
    with pytest.raises(InvalidInput, match=f"{option}=<a Exits whose repr raises SystemExit>"):
        StimulusOptions(**{option: Exits()})  # type: ignore[arg-type]
