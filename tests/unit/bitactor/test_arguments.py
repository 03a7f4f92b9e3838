"""Where arguments come from, and what they become."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Optional

import pytest
from pydantic import BaseModel

from bitactor import DefinitionError, Input, InvalidInput, Result, Value, Workflow
from bitactor.messages.codec import decode_token, encode_token
from bitactor.plan.arguments import converter_for, value_at
from bitactor.testing import run_workflow


class Address(BaseModel):
    city: str
    zip: int = 0


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def given(source: Any, made: Any, annotation: Any = Any) -> Any:
    """What a step's parameter gets that is bound to `source`, when step `made` returned that value."""
    workflow = Workflow("w", input={"who": dict})
    workflow.step(name="made", spawn="inline")(lambda: made)
    seen: list[Any] = []

    def take(x: Any) -> None:
        seen.append(x)

    take.__annotations__["x"] = annotation
    workflow.step(name="take", bind={"x": source}, spawn="inline")(take)
    trace = run_workflow(workflow, {"who": {"name": "Ada", "tags": ["a", "b"]}})
    if trace.errors:
        raise trace.errors[0]
    return seen[0]


def test_paths_go_through_mappings_attributes_and_indices() -> None:
    assert given(Input("who", "name"), None) == "Ada"
    assert given(Input("who", "tags", -1), None) == "b"
    assert given(Result("made", "a", 1, "b"), {"a": [0, {"b": 5}]}) == 5
    assert given(Result("made", "city"), Address(city="Rome")) == "Rome"
    assert given(Result("made", "year"), dt.date(1815, 12, 10)) == 1815
    assert given(Result("made", 7), {7: "seven"}) == "seven"


@pytest.mark.parametrize(
    ("source", "made", "match"),
    [
        (Result("made", "b"), {"a": 1}, r"made\.b: no 'b' at the top; there is keys \['a'\]"),
        (Result("made", "a", "b"), {"a": 1}, r"no 'b' at \['a'\]; there is a int"),
        (Result("made", 3), [1], "no 3 at the top; there is a list"),
        (Result("made", "append"), [1], "no 'append' at the top; there is a list"),
        (Result("made", "upper"), "text", "no 'upper'"),
        (Result("made", "x"), None, "there is a NoneType"),
        (Input("who", "nmae"), None, "no 'nmae'"),
    ],
)
def test_a_miss_names_the_path_and_what_was_there(source: Any, made: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        given(source, made)


def test_transforms_come_after_the_path() -> None:
    assert given(Result("made", "n").map(lambda n: n + 1), {"n": 1}) == 2
    assert given(Value([1, 2]).map(sum), None) == 3
    assert given(Input("who", "name").map(str.upper), None) == "ADA"
    with pytest.raises(ZeroDivisionError):
        given(Result("made").map(lambda n: 1 // n), 0)


def test_values_are_copies() -> None:
    constant = {"a": [1]}
    source = Value(constant)
    got = given(source, None)
    assert got == constant
    got["a"].append(2)
    assert given(source, None) == {"a": [1]}


def test_two_readers_do_not_share_a_mutable_result() -> None:
    workflow = Workflow("w")
    workflow.step(name="made", spawn="inline")(lambda: [1])

    def spoil(made: list[int]) -> list[int]:
        made.append(2)
        return made

    for name in ("one", "two"):
        workflow.step(name=name, spawn="inline")(spoil)
    trace = run_workflow(workflow)
    assert trace.results == {"made": [1], "one": [1, 2], "two": [1, 2]}


@pytest.mark.parametrize(
    ("annotation", "made", "expected"),
    [
        (Address, {"city": "Rome"}, Address(city="Rome")),
        (Address, Address(city="Rome", zip=5), Address(city="Rome", zip=5)),
        (Address | None, None, None),
        (Address | None, {"city": "Rome"}, Address(city="Rome")),
        (Optional[int], 5, 5),  # noqa: UP045
        (int | None, None, None),
        (list[Address], [{"city": "Rome"}], [Address(city="Rome")]),
        (Point, Point(1, 2), Point(1, 2)),
        (Colour, Colour.RED, Colour.RED),
        (tuple[int, str], (1, "a"), (1, "a")),
        (set[int], {1, 2}, {1, 2}),
        (float, 1, 1.0),
        (Decimal, Decimal("1.10"), Decimal("1.10")),
        (uuid.UUID, uuid.UUID(int=5), uuid.UUID(int=5)),
        (dt.datetime, dt.datetime(2026, 1, 2, tzinfo=dt.UTC), dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
        (Literal["a", "b"], "a", "a"),
        (dict, {"a": 1}, {"a": 1}),
        (dict[str, Any], {"a": 1}, {"a": 1}),
        (Any, (1, 2), [1, 2]),
        (object, "x", "x"),
        (bytes, b"x", b"x"),
    ],
)
def test_arguments_become_what_the_annotation_asks_for(annotation: Any, made: Any, expected: Any) -> None:
    got = given(Result("made"), made, annotation)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "made", "match"),
    [
        (int, "five", "argument 'x' of w/take, from made: expected int, got str 'five'"),
        (int, True, "expected int, got bool True"),
        (str, None, "expected str, got NoneType"),
        (Address, {"zip": 1}, "argument 'x' of w/take, from made: Field required at city"),
        (Address, 5, "from made"),
        (list[int], [1, "x"], "at 1"),
        (dict, [1], "expected dict, got list"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_parameter(annotation: Any, made: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        given(Result("made"), made, annotation)


def test_types_that_cannot_be_made_are_refused() -> None:
    class Odd: ...

    with pytest.raises(DefinitionError, match="no way to make"):
        converter_for(Odd, "here")
    with pytest.raises(DefinitionError, match="names nothing"):
        converter_for("Nowhere", "here")


def test_follow_without_a_path_is_the_value() -> None:
    value = [1]
    assert value_at(value, (), "it") is value


def test_defaults_are_used_where_nothing_has_that_name() -> None:
    workflow = Workflow("w")
    workflow.step(name="one", spawn="inline")(lambda absent=5: absent)
    assert run_workflow(workflow).result == 5


def test_results_that_cannot_be_carried_are_the_steps_failure() -> None:
    workflow = Workflow("w")
    workflow.step(name="one", spawn="inline", retries=3)(lambda: object())
    trace = run_workflow(workflow)
    assert trace.status == "compensated"
    assert "result of 'w/one'" in str(trace.errors[0])
    assert trace.kinds.count("spawned one") == 1


def test_tokens_of_scalars_are_themselves() -> None:
    for value in (None, True, 1, 1.5, "x", -(2**63), 2**64 - 1):
        assert encode_token(value) is value
        assert decode_token(value) is value
