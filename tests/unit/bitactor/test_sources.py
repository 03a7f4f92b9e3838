"""Sources with several transforms: all are called, in order, wherever a source may stand; as plain data they are a
list."""

from __future__ import annotations

from typing import Any

import pytest

from bitactor import DefinitionError, Element, Input, Result, Value, Workflow
from bitactor.declare.source import Source
from bitactor.testing import run_workflow


def up(value: int) -> int:
    return value + 1


def tenfold(value: int) -> int:
    return value * 10


def same(v: Any) -> Any:
    return v


def two(values: list[Any]) -> list[Any]:
    return values[:2]


def declared(source: Source) -> Workflow:
    workflow = Workflow("w", input={"x": int, "xs": list[int]})
    workflow.add(same, name="given", bind={"v": Input("x")})
    workflow.add(same, name="a", bind={"v": source})
    return workflow


@pytest.mark.parametrize(
    "source",
    [
        Input("x").map(up).map(tenfold),
        Input("x", transform=up).map(tenfold),
        Result("given").map(up).map(tenfold),
        Value(1).map(up).map(tenfold),
        Input("xs", 1).map(up).map(tenfold),
        Input("x").map(up).map(up).map(tenfold).map(lambda value: value - 10),
    ],
    ids=["two", "transform=", "a result", "a value", "a path", "four"],
)
def test_every_transform_is_called_in_order(source: Source) -> None:
    assert run_workflow(declared(source), {"x": 1, "xs": [3, 1, 2]}).result == 20


def test_so_they_are_where_kinds_have_sources() -> None:
    workflow = Workflow("w", input={"x": int, "xs": list[int]})
    workflow.map(
        same, name="m", over=Input("xs").map(sorted).map(two), bind={"v": Element().map(up).map(tenfold)}
    )  # fmt: skip
    workflow.iterate(lambda state: state, name="i", start=Input("x").map(up).map(tenfold), at_most=1)
    workflow.collect("all", {"m": Result("m"), "i": Result("i").map(up).map(str)})
    assert run_workflow(workflow, {"x": 1, "xs": [3, 1, 2]}).result == {"m": [20, 30], "i": "21"}


def test_as_data_one_is_a_path_and_several_are_a_list() -> None:
    path = f"{up.__module__}:"
    for source, said in (
        (Input("x").map(up), f"{path}up"),
        (Input("x").map(up).map(tenfold), [f"{path}up", f"{path}tenfold"]),
    ):
        workflow = declared(source)
        data = workflow.to_dict()
        assert next(step for step in data["steps"] if step["name"] == "a")["bind"]["v"]["transform"] == said
        again = Workflow.from_dict(data)
        assert again.to_dict() == data
        assert again.check().digest == workflow.check().digest
        assert run_workflow(again, {"x": 1, "xs": []}).result == run_workflow(workflow, {"x": 1, "xs": []}).result
    data["steps"][1]["bind"]["v"]["transform"] = [f"{path}up"]
    with pytest.raises(DefinitionError, match="at least 2"):
        Workflow.from_dict(data)


def test_the_function_that_is_wrong_is_named() -> None:
    with pytest.raises(DefinitionError, match=r"'a'.*bind\['v'\].*called with \(value\), by position, and takes \(\)"):
        declared(Input("x").map(lambda: 1).map(up))  # type: ignore[arg-type, misc]
    with pytest.raises(DefinitionError, match=r"bind\['v'\]: its transform is .*lambda"):
        declared(Input("x").map(up).map(lambda value: value)).to_dict()
