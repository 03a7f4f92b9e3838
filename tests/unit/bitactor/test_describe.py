"""What a workflow tells of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from pydantic import BaseModel, Field

from bitactor import Backoff, Context, Continue, DefinitionError, Element, Ok, Result, Retry, Then, Workflow
from bitactor.patterns import RateLimit


class Order(BaseModel):
    """An order."""

    sku: str = Field(min_length=1)
    amount: int = 1


class Receipt(BaseModel):
    number: int
    order: Order


def charge(sku: str, amount: int) -> Receipt | Retry:
    """Charge the card.

    With the provider of the day.
    """
    return Receipt(number=1, order=Order(sku=sku, amount=amount))


def schema(function: Callable[..., Any], **options: Any) -> Any:
    workflow = Workflow("w", input={"x": int})
    workflow.add(function, name="only", **options)
    return workflow.describe()["result"]


def test_the_whole_of_a_small_workflow() -> None:
    workflow = Workflow("shop.order", input=Order, ttl=5, deadline=2.5)
    workflow.add(
        charge, retries=2, backoff=Backoff(), timeout=1.5, limit="cards", priority=2,
        policies=[RateLimit("cards", per_second=1)], undo=lambda result: None, compensate=lambda error: None,
        spawn="thread",
    )  # fmt: skip
    told = workflow.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["input"] == Order.model_json_schema()
    assert told["result"] == Receipt.model_json_schema(mode="serialization")
    assert {name: told[name] for name in ("name", "ttl", "deadline", "depth", "returns")} == {
        "name": "shop.order", "ttl": 5, "deadline": 2.5, "depth": 1, "returns": "charge",
    }  # fmt: skip
    assert told["digest"] == workflow.check().digest
    assert told["steps"] == [
        {
            "name": "charge", "kind": "step", "about": "Charge the card.",
            "arguments": {"sku": "input.sku", "amount": "input.amount"}, "waits_for": [], "spawn": "thread",
            "retries": 2, "timeout": 1.5, "priority": 2, "limit": "cards", "policies": ["rate limit cards"],
            "undo": "when done", "compensate": True, "result": told["result"],
        }
    ]  # fmt: skip


def test_the_deepest_chain_counts_what_is_nested() -> None:
    inner = Workflow("inner", input={"x": int})
    inner.add(whole_number)
    inner.add(text, bind={"x": Result("whole_number")})
    outer = Workflow("outer", input={"x": int})
    outer.compose("nested", inner)
    outer.add(whole_number, name="last", bind={"x": Result("nested").map(len)})
    assert outer.describe()["depth"] == 3


# Results


def whole_number(x: int) -> int:
    return x


def text(x: Any) -> str:
    return str(x)


def silent(x):  # type: ignore[no-untyped-def]
    return x


def strange(x: int) -> Callable[[], None]:
    return lambda: None


def unknown(x: int) -> "NoSuchThing":  # type: ignore[name-defined]  # noqa: F821, UP037
    return x


def planning(x: int) -> Then:
    return Then(x)


def ok(x: int) -> Ok | int:
    return Ok(x)


def going_on(x: int) -> int | Continue:
    return x


def refusing(x: int) -> NoReturn:
    raise ValueError


def nothing(x: int) -> None: ...


async def maybe(x: int, ctx: Context) -> list[Order] | None:
    return None


INTEGER = {"type": "integer"}
STRING = {"type": "string"}
NULL = {"type": "null"}


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (whole_number, INTEGER), (text, STRING), (nothing, NULL), (silent, {}), (strange, {}), (unknown, {}),
        (planning, {}), (ok, {}), (going_on, {}), (refusing, {}),
    ],
)  # fmt: skip
def test_a_steps_result_is_what_its_function_says(function: Callable[..., Any], result: Any) -> None:
    assert schema(function) == result


def test_definitions_come_along() -> None:
    said = schema(maybe)
    assert said["anyOf"] == [{"type": "array", "items": {"$ref": "#/$defs/Order"}}, NULL] and "Order" in said["$defs"]


def test_what_may_be_skipped_may_be_null() -> None:
    assert schema(whole_number, when=lambda x: x > 1) == {"anyOf": [INTEGER, NULL]}
    assert schema(whole_number, required=False) == {"anyOf": [INTEGER, NULL]}


def nested(function: Callable[..., Any] = whole_number) -> Workflow:
    workflow = Workflow("nested", input={"x": int})
    workflow.add(function)
    return workflow


def double(element: int) -> int:
    return 2 * element


def odd(element: int) -> Callable[[], None]:
    return lambda: None


def improve(state: int) -> int:
    return state


async def lock(proceed: Callable[[], Any], x: int) -> str:
    return str(await proceed())


def last(result: int) -> str:
    return str(result)


def add_up(so_far: int, results: list[int]) -> str:
    return str(so_far)


def total(gathered: dict[str, Any]) -> int:
    return 1


def array(items: Any) -> Any:
    return {"type": "array", "items": items}


@pytest.mark.parametrize(
    ("declare", "result"),
    [
        (lambda w: w.compose("s", nested()), INTEGER),
        (lambda w: w.recurse("s", nested(text), at_most=2), STRING),
        (lambda w: w.group("s", nested(), after_all=last), STRING),
        (lambda w: w.group("s", nested(), before_all=nothing), INTEGER),
        (lambda w: w.around(lock, workflow=nested()), STRING),
        (lambda w: w.iterate(improve, start="x", at_most=2), INTEGER),
        (lambda w: w.switch("s", "x", {1: whole_number, 2: nested(text)}), {"anyOf": [INTEGER, STRING]}),
        (lambda w: w.switch("s", "x", {1: whole_number}, default=whole_number), INTEGER),
        (lambda w: w.switch("s", "x", {1: whole_number}, optional=True), {"anyOf": [INTEGER, NULL]}),
        (lambda w: w.switch("s", "x", {1: silent, 2: whole_number}), {}),
        (lambda w: w.map(double, over="rows"), array(INTEGER)),
        (lambda w: w.map(name="s", over="rows", workflow=nested(text), bind={"x": Element()}), array(STRING)),
        (lambda w: w.map(double, over="rows", reduce=add_up), STRING),
        (lambda w: w.map(odd, over="rows"), array({})),
        (lambda w: w.collect("s", ["x"], transform=total), INTEGER),
        (lambda w: w.template("s", "{x}"), STRING),
        (lambda w: w.flunk("s", "{x}"), {}),
    ],
)  # fmt: skip
def test_a_kinds_result_follows_from_what_is_nested(declare: Callable[[Workflow], Any], result: Any) -> None:
    workflow = Workflow("w", input={"x": int, "rows": list[int]})
    declare(workflow)
    assert workflow.describe()["result"] == result


def test_results_that_are_mappings() -> None:
    for declare, names in (
        (lambda w: w.map(double, over="rows", keep=False), ["count"]),
        (lambda w: w.map(double, over="rows", on_error="collect"), ["results", "errors"]),
        (lambda w: w.map(double, over="rows", on_error="collect", reduce=add_up), ["result", "errors"]),
        (lambda w: w.map(double, over="rows", on_error="collect", keep=False), ["count", "errors"]),
        (lambda w: w.collect("s", {"a": "x", "model_b": "rows"}), ["a", "model_b"]),
    ):
        workflow = Workflow("w", input={"x": int, "rows": list[int]})
        declare(workflow)
        said = workflow.describe()["result"]
        assert said["type"] == "object" and list(said["properties"]) == said["required"] == names


def test_nested_steps_are_told_within() -> None:
    workflow = Workflow("w", input={"x": int, "rows": list[int]})
    workflow.map(name="each", over="rows", workflow=nested(), bind={"x": Element()}, batch=5)
    workflow.switch("route", "x", {1: nested(text), 2: whole_number})
    each, route = workflow.describe()["steps"]
    assert (
        each["batch"] == 5
        and each["workflow"] == "nested"
        and [step["name"] for step in each["steps"]] == ["whole_number"]
    )
    assert route["cases"] == [
        {"case": "1", "result": STRING, "workflow": "nested", "steps": route["cases"][0]["steps"]},
        {"case": "2", "result": INTEGER, "step": "whole_number"},
    ]
    assert route["arguments"] == {"on": "input.x", "x": "input.x"} and "about" not in route


def test_the_options_of_a_map_are_told() -> None:
    workflow = Workflow("w", input={"rows": list[int]})
    workflow.map(double, over="rows", retries=3).undo(last)
    (told,) = workflow.describe()["steps"]
    assert (told["retries"], told["undo"], told["spawn"]) == (3, "when done", "thread")


def test_the_returned_step_is_what_counts() -> None:
    workflow = Workflow("w", input={"x": int})
    workflow.add(whole_number)
    workflow.add(text)
    workflow.add(silent, deferred=True)
    assert workflow.describe()["result"] == STRING
    workflow.returns("whole_number")
    assert workflow.describe()["result"] == INTEGER and workflow.describe()["returns"] == "whole_number"


def test_a_workflow_that_cannot_work_is_not_described() -> None:
    with pytest.raises(DefinitionError, match="has no steps"):
        Workflow("w").describe()
