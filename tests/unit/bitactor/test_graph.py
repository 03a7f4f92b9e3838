"""The builder, and workflows as plain data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from bitactor import (
    Backoff,
    Context,
    CycleError,
    DefinitionError,
    DuplicateName,
    Element,
    Input,
    Resource,
    Result,
    Value,
    Workflow,
)
from bitactor.forms.paths import at_path, path_of
from bitactor.patterns import Batching, Cache, CircuitBreaker, Fallback, RateLimit, RetryPolicy, Timeout
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.testing import run_workflow
from mesh.ready.declare import TakeBack, TakeBackOnLoop
from tests.amounts import examples


class Order(BaseModel):
    """An input model at the top level of a module."""

    sku: str
    amount: int = Field(default=1, gt=0)


class Client:
    """What a resource provides."""


class Busy(Exception):
    """Worth another try."""


def double(x: int) -> int:
    return 2 * x


async def later(x: int) -> int:
    return x


def each(element: Any) -> Any:
    return element


def whole(elements: list[Any]) -> int:
    return len(elements)


def grow(state: int) -> int:
    return state + 1


def undo(result: int, x: int) -> None: ...


def undo_in_doubt(ctx: Context, x: int) -> None: ...


def undo_element(element: Any, result: Any) -> None: ...


def compensate(error: Exception, x: int) -> None: ...


def is_big(x: int) -> bool:
    return x > 10


def answered(x: int) -> int | None:
    return None


def enough(result: Any) -> bool:
    return True


def slower(attempt: int) -> float:
    return attempt / 10


def add_up(so_far: int, results: list[int]) -> int:
    return (so_far or 0) + sum(results)


def numbers(x: int) -> list[int]:
    return list(range(x))


def before(v: int) -> dict[str, int]:
    return {"v": v}


def after(result: int) -> int:
    return result


async def around(proceed: Callable[[], Any], x: int) -> Any:
    return await proceed()


def open_client() -> Client:
    return Client()


shared = Resource("shared", open_client)


@dataclass(frozen=True)
class Times:
    """A function with an option."""

    by: int
    __name__ = "times"

    def __call__(self, x):  # type: ignore[no-untyped-def]
        return self.by * x


def nested(name: str = "nested", step: Callable[..., Any] = double) -> Workflow:
    workflow = Workflow(name, input={"v": int})
    workflow.add(step, name="inner", bind={"x": Input("v")}, undo=undo if step is double else None)
    workflow.step(name="outer", after=["inner"])(empty)
    return workflow


def empty() -> int:
    return 1


# Shapes of plans, compared in everything that says how they run


def shape(plan: Plan) -> Any:
    return (
        plan.workflow, plan.digest, plan.ttl, plan.deadline_ns, plan.undo_timeout_ns, plan.grace_ns, plan.redeliveries,
        plan.inputs, plan.returns, plan.errors, sorted(plan.resources), plan.max_concurrency, plan.max_hops, plan.depth,
        [shape_of(step) for step in (*plan.steps, *plan.deferred.values())],
    )  # fmt: skip


def shape_of(step: PlanStep) -> Any:
    return (
        step.name,
        step.address,
        step.kind,
        step.spawn,
        step.dependencies,
        step.retries,
        function_of(step.backoff),
        step.retry_on,
        step.timeout_ns,
        function_of(step.when),
        function_of(step.guard),
        step.required,
        step.priority,
        step.limit,
        step.policies,
        step.deferred,
        function_of(step.compensate),
        [argument._replace(converter=None) for argument in (*step.arguments, *step.when_arguments)],
        None
        if step.undo is None
        else (step.undo.in_doubt, step.undo.retries, step.kind == "batch" or step.undo.function),
        step.run.function if step.kind == "step" and step.container is None and step.around_container is None else None,
        step.container
        and (
            step.kind,
            step.container.max_rounds,
            step.container.batch,
            step.container.cases,
            [shape(body) for body in step.container.bodies],
        ),
    )


def kinds(workflow: Workflow) -> Any:
    """What each step was declared with; nested workflows by name, their plans are compared already, and what a
    ready-made step calls by name."""
    return {
        name: {option: named(value) for option, value in vars(step.kind).items()}
        for name, step in workflow.steps.items()
    }


def named(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [named(item) for item in value]
    if "<locals>" in getattr(value, "__qualname__", ""):
        return value.__name__
    return value.name if isinstance(value, Workflow) else value


def function_of(callback: Any) -> Any:
    return callback.function if isinstance(callback, Callback) else callback


def there_and_back(workflow: Workflow) -> Workflow:
    data = workflow.to_dict()
    again = Workflow.from_dict(json.loads(json.dumps(data)))
    assert again.to_dict() == data
    assert again.check().digest == workflow.check().digest
    assert shape(again.check()) == shape(workflow.check())
    assert kinds(again) == kinds(workflow)
    return again


# The builder


def test_add_says_what_the_decorators_say() -> None:
    built = Workflow("w", input={"x": int})
    step = built.add(
        double,
        name="one",
        undo=undo,
        undo_in_doubt=False,
        undo_retries=7,
        compensate=compensate,
        retries=2,
        when=is_big,
        timeout=1.5,
    )
    decorated = Workflow("w", input={"x": int})
    one = decorated.step(name="one", retries=2, when=is_big, timeout=1.5)(double)
    one.undo(retries=7)(undo)
    one.compensate(compensate)
    assert shape(built.check()) == shape(decorated.check())
    assert step(3) == 6 and step.name == "one"


def test_workflows_can_be_made_in_a_loop() -> None:
    workflow = Workflow("chain", input={"x": int}, ttl=20)
    step = workflow.add(double, name="s0")
    for number in range(1, 20):
        step = workflow.add(double, name=f"s{number}", bind={"x": Result(step)}, after=[step])
    assert run_workflow(workflow, {"x": 1}).result == 2**20


def test_every_kind_is_declared_without_a_decorator() -> None:
    assert run_workflow(every_kind(surrounded=False), {"x": 3, "rows": [1, 2]}).status == "completed"


def test_what_add_refuses() -> None:
    workflow = Workflow("w", input={"x": int})
    for options, said in (
        ({"undo_in_doubt": True}, "there is no undo="),
        ({"undo": 3}, "undo=3; give a function"),
        ({"compensate": "x"}, "compensate='x'; give a function"),
        ({"undo": undo, "undo_retries": -1}, "undo_retries=-1"),
        ({"retrys": 1}, "Did you mean 'retries'"),
    ):
        with pytest.raises(DefinitionError, match=said.replace("(", r"\(")):
            workflow.add(double, **options)  # type: ignore[arg-type]
    assert not workflow.steps


def test_a_name_that_no_argument_can_have_is_refused() -> None:
    workflow = Workflow("w", input={"x": int})
    workflow.add(double, name="a-b")
    with pytest.raises(DefinitionError, match="collect: 'a-b' is no name of an argument; name it otherwise"):
        workflow.collect("all", ["a-b"])
    workflow.collect("all", {"first": "a-b"})


def test_a_deferred_step_is_added_too() -> None:
    workflow = Workflow("w", input={"x": int})
    workflow.add(double)
    workflow.add(later, deferred=True)
    assert list(workflow.check().deferred) == ["later"]


# There and back


def every_kind(*, surrounded: bool = True) -> Workflow:
    """A workflow of all kinds; an `around` runs only in a mesh."""
    inner = nested()
    workflow = Workflow("all", input={"x": int, "rows": list[int]}, ttl=100, deadline=5.0, max_hops=1_000)
    workflow.add(double, undo=undo, compensate=compensate)
    workflow.map(each, over="rows", batch=10, on_error="collect")
    workflow.map(name="mapped", over=Result("each", "results"), workflow=inner, bind={"v": Element()})
    workflow.map(each, name="reduced", over=numbers, reduce=add_up, initial=5)
    workflow.map(whole, over=Value([1, 2]), whole=True, keep=False)
    workflow.iterate(grow, start="x", until=enough, at_most=3)
    if surrounded:
        workflow.around(around, name="wrapped", workflow=inner, bind={"v": Input("x")})
    workflow.compose("composed", inner, bind={"v": Result("double")}, when=is_big)
    workflow.switch("route", "x", [(3, inner), (is_big, double)], default=double, bind={"v": Input("x")})
    workflow.group("grouped", inner, before_all=before, after_all=after, bind={"v": Input("x")})
    workflow.recurse("descend", inner, at_most=2, until=enough, bind={"v": Input("x")})
    workflow.collect("collected", ["double", "each"], transform=len)
    workflow.template("text", "x is {x}")
    workflow.debug("look", "text", level="warning")
    workflow.flunk("never", "no {x}", when=is_big)
    workflow.add(later, deferred=True)
    workflow.returns("text")
    return workflow


def test_every_kind_goes_there_and_back() -> None:
    there_and_back(every_kind())
    again = there_and_back(every_kind(surrounded=False))
    assert run_workflow(again, {"x": 3, "rows": [1, 2]}).result == "x is 3"


def test_every_option_goes_there_and_back() -> None:
    workflow = Workflow(
        "options",
        input=Order,
        ttl=9,
        deadline=2.5,
        undo_timeout=3.0,
        grace=0.5,
        redeliveries=1,
        errors=[Busy],
        max_concurrency=2,
        max_hops=8,
        resources=[
            shared,
            Resource("client", open_client, close=enough, check=enough, check_every=2.0, provides=Client),
        ],
    )
    policies = [
        RateLimit("api", per_second=10, burst=5), CircuitBreaker("api", counts=(Busy, OSError)),
        Cache("c", key="{x}", ttl=3.0), Fallback("f", {"price": None, "make": 1}), Fallback("g", answered),
        Timeout("t", 2.0), RetryPolicy("r", backoff=Backoff(initial=0.5)),
    ]  # fmt: skip
    workflow.add(
        double, bind={"x": Input("amount")}, guard=answered, retries=3, backoff=Backoff(initial=0.5, jitter=0.0),
        retry_on=[Busy, OSError], timeout=4.0, spawn="thread", required=False, priority=3, limit="pool",
        policies=policies, undo=undo_in_doubt, undo_in_doubt=True, undo_retries=9,
    )  # fmt: skip
    workflow.add(
        later, bind={"x": Value(3).map(double)}, after=["double"], retries=1, backoff=slower, retry_on=Busy, when=is_big
    )
    workflow.add(Times(3), name="thrice", bind={"x": Result("double").map(double)})
    again = there_and_back(workflow)
    assert again.resources["shared"] is shared
    assert again.input_model is Order
    data = workflow.to_dict()
    assert data["resources"][0] == "test_graph:shared"
    assert data["steps"][0]["policies"][2] == {
        "make": "bitactor.patterns.cache:Cache",
        "with": {"name": "c", "key": "{x}", "ttl": 3.0},
    }


def test_a_map_with_an_undo_goes_there_and_back() -> None:
    workflow = Workflow("w", input={"rows": list[int]})
    workflow.map(each, over="rows", bind={"element": Element("a", 0).map(double)}).undo(undo_element)
    there_and_back(workflow)


FIELDS: Mapping[str, Any] = {
    "plain": int,
    "many": list[str],
    "by_name": dict[str, list[Order]],
    "maybe": (int | None, None),
    "one_of": (Literal["a", "b", 3], "a"),
    "pair": tuple[int, ...],
    "anything": Any,
    "order": Order,
    "nothing": None,
    "listed": (list[int], [1, 2]),
}


def test_input_fields_go_there_and_back() -> None:
    workflow = Workflow("w", input=FIELDS)
    workflow.add(empty)
    again = there_and_back(workflow)
    assert again.input_model.model_json_schema() == workflow.input_model.model_json_schema()
    fields = workflow.to_dict()["input"]["fields"]
    assert fields["by_name"] == "dict[str, list['test_graph:Order']]" and fields["order"] == "test_graph:Order"
    assert fields["maybe"] == {"type": "int | None", "default": None}


def test_a_nested_workflow_is_written_once_and_shared() -> None:
    inner = nested()
    middle = Workflow("middle", input={"v": int})
    middle.compose("deep", inner)
    workflow = Workflow("outer", input={"v": int})
    workflow.compose("a", inner)
    workflow.compose("b", middle)
    again = there_and_back(workflow)
    assert [other["name"] for other in workflow.to_dict()["workflows"]] == ["nested", "middle"]
    a, b = again.steps["a"].kind, again.steps["b"].kind
    assert a.workflow is b.workflow.steps["deep"].kind.workflow  # type: ignore[union-attr]


def test_nested_workflows_share_what_they_shared() -> None:
    private = Resource("client", open_client, check=enough)
    inner = Workflow("inner", input={}, resources=[private])
    inner.add(empty)
    workflow = Workflow("outer", input={}, resources=[private])
    workflow.compose("a", inner)
    again = there_and_back(workflow)
    assert again.check().resources["client"] is again.resources["client"]


def test_a_function_that_was_decorated_is_found_behind_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_of_graph.py").write_text(
        "from bitactor import Workflow\norder = Workflow('order', input={'x': int})\n@order.step\ndef charge(x): "
        "return x + 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shop = __import__("shop_of_graph")
    data = shop.order.to_dict()
    assert data["steps"][0]["function"] == "shop_of_graph:charge"
    assert run_workflow(Workflow.from_dict(data), {"x": 1}).result == 2
    del sys.modules["shop_of_graph"]
    assert run_workflow(Workflow.from_dict(data), {"x": 1}).result == 2  # which imports it


PARTS: Mapping[str, Callable[[Workflow, str, str, Workflow], Any]] = {
    "step": lambda w, name, x, inner: w.add(double, name=name, bind={"x": Result(x, "b")}, undo=undo),
    "async": lambda w, name, x, inner: w.add(
        later, name=name, bind={"x": Result(x, "b")}, retries=2, backoff=Backoff(), required=False
    ),
    "when": lambda w, name, x, inner: w.add(empty, name=name, after=[x], timeout=2.0),
    "map": lambda w, name, x, inner: w.map(each, name=name, over=Result(x, "b"), batch=3),
    "map of a workflow": lambda w, name, x, inner: w.map(
        name=name, workflow=inner, over=Result(x, "b"), bind={"v": Element()}
    ),
    "iterate": lambda w, name, x, inner: w.iterate(grow, name=name, start=Result(x, "b"), at_most=2),
    "around": lambda w, name, x, inner: w.around(
        around, name=name, workflow=inner, bind={"v": Result(x, "b"), "x": Value(1)}
    ),
    "compose": lambda w, name, x, inner: w.compose(name, inner, bind={"v": Result(x, "b")}),
    "switch": lambda w, name, x, inner: w.switch(
        name, Result(x, "b"), {1: double, "b": inner}, optional=True, bind={"v": Result(x, "b"), "x": Value(2)}
    ),
    "group": lambda w, name, x, inner: w.group(name, inner, before_all=before, bind={"v": Result(x, "b")}),
    "recurse": lambda w, name, x, inner: w.recurse(name, inner, at_most=2, bind={"v": Result(x, "b")}),
    "collect": lambda w, name, x, inner: w.collect(name, {"a": Result(x, "b", 0), "c": Value([None, 0.5])}),
    "template": lambda w, name, x, inner: w.template(
        name, "{a.b} and {c!r:>4}", bind={"a": Result(x), "c": Value("c")}
    ),
    "debug": lambda w, name, x, inner: w.debug(name, "a", level="debug", bind={"a": Result(x)}),
    "flunk": lambda w, name, x, inner: w.flunk(name, "no {a}", bind={"a": Result(x)}, after=[x]),
    "deferred": lambda w, name, x, inner: w.add(double, name=name, deferred=True),
}


@examples(quick=50, long=1_000, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(PARTS)), st.integers(0, 30), st.text("aäz '\"-→", min_size=1, max_size=4)),
        max_size=7,
    ),
    st.booleans(),
)
def test_any_graph_goes_there_and_back(parts: list[tuple[str, int, str]], returns: bool) -> None:
    inner = nested()
    workflow = Workflow("any", input={"x": int}, ttl=1_000)
    workflow.add(double, name="first")
    usable = ["first"]
    for number, (kind, source, name) in enumerate(parts):
        PARTS[kind](workflow, f"{name}{number}", usable[source % len(usable)], inner)
        usable += [] if kind == "deferred" else [f"{name}{number}"]
    if returns:
        workflow.returns(usable[0])
    again = there_and_back(workflow)
    assert again.describe() == workflow.describe() and again.mermaid() == workflow.mermaid()


# What cannot be written


@dataclass(frozen=True)
class Forgetful:
    """What is made from its fields is something else."""

    factor: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", self.factor + 1)

    def __call__(self, x):  # type: ignore[no-untyped-def]
        return self.factor * x


@dataclass(frozen=True, init=False)
class Closed:
    """What it was made from is not kept."""

    factor: int

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "factor", len(text))

    def __call__(self, x):  # type: ignore[no-untyped-def]
        return self.factor * x


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (Forgetful(1), r"Forgetful\(factor=2\) is Forgetful\(factor=3\) when it is made again from its fields"),
        (Closed("ab"), r"Closed\(factor=2\) does not keep 'text', so it cannot be made again"),
    ],
)
def test_an_object_that_cannot_be_made_again_is_refused(function: Any, said: str) -> None:
    workflow = Workflow("w", input={"x": int})
    workflow.add(function, name="called")
    with pytest.raises(DefinitionError, match=said):
        workflow.to_dict()


def test_our_own_modules_are_written_as_ever() -> None:
    """Data that was written before they were renamed is read, and is written as it was."""
    for path, thing in (
        ("bitactor.patterns.batching:Batching", Batching),
        ("mesh.ready.declaring:TakeBack", TakeBack),
        ("mesh.ready.declaring:TakeBackOnLoop", TakeBackOnLoop),
    ):
        assert (path_of(thing, "it"), at_path(path, "it")) == (path, thing)
        module = sys.modules[thing.__module__]
        assert at_path(f"{module.__name__}:{thing.__name__}", "it") is thing


def test_what_has_no_import_path_is_refused_with_its_place() -> None:
    def local(x: int) -> int:
        return x

    for declare, said in (
        (
            lambda w: w.add(local),
            "step 'local' of 'w': its function is .*, which has no import path: it is defined "
            "within a function; move it",
        ),
        (
            lambda w: w.add(double, when=lambda x: True),
            "step 'double' of 'w': when= is .*: it is a lambda; define it with `def`",
        ),
        (lambda w: w.add(double, undo=lambda x: None), "its undo is .*lambda"),
        (lambda w: w.add(double, bind={"x": Input("x").map(lambda x: x)}), r"bind\['x'\]: its transform is .*lambda"),
        (
            lambda w: w.add(each, bind={"element": Value(b"raw")}),
            r"bind\['element'\] holds b'raw', a bytes, which plain data "
            r"cannot say",
        ),
        (lambda w: w.add(double, bind={"x": Value(float("nan"))}), r"holds nan"),
        (lambda w: w.map(each, over=lambda x: [x]), "step 'each' of 'w': over= is .*lambda"),
        (lambda w: w.switch("s", "x", {1: lambda x: x}), "step 's' of 'w': case 1: its branch is .*lambda"),
        (
            lambda w: w.add(double, policies=[Fallback("f", lambda x, error: 1)]),
            "policies=: Fallback.fallback is .*lambda",
        ),
        (lambda w: w.add(double, retries=1, backoff=lambda attempt: 1.0), "backoff= is .*lambda"),
        (
            lambda w: w.recurse("r", nested(), at_most=2, until=lambda r: True, bind={"v": Input("x")}),
            "until= is .*lambda",
        ),
    ):
        workflow = Workflow("w", input={"x": int})
        declare(workflow)
        with pytest.raises(DefinitionError, match=said):
            workflow.to_dict()


def test_a_model_that_only_exists_here_is_refused() -> None:
    class Local(BaseModel):
        x: int

    workflow = Workflow("w", input=Local)
    workflow.add(double)
    with pytest.raises(DefinitionError, match=r"workflow 'w': input= is .*Loc.*move it to the top level"):
        workflow.to_dict()
    bounded = Workflow("w", input={"x": (int, Field(gt=0))})
    bounded.add(double)
    with pytest.raises(
        DefinitionError, match="input field 'x' says more than type and default; declare the input as a pydantic model"
    ):
        bounded.to_dict()


def test_what_stands_in_main_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(double, "__module__", "__main__")
    workflow = Workflow("w", input={"x": int})
    workflow.add(double)
    with pytest.raises(DefinitionError, match="cannot import from __main__; move it to a module of its own"):
        workflow.to_dict()


def test_a_name_that_leads_to_another_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = Workflow("w", input={"x": int})
    workflow.add(double)
    monkeypatch.setitem(globals(), "double", later)
    with pytest.raises(DefinitionError, match=r"at 'test_graph:double' there is .*later.*two different names"):
        workflow.to_dict()


def test_two_nested_workflows_of_one_name_are_refused() -> None:
    workflow = Workflow("w", input={"v": int})
    workflow.compose("a", nested())
    workflow.compose("b", nested())
    with pytest.raises(DuplicateName, match="two different nested workflows are called 'nested'"):
        workflow.to_dict()
    outer = Workflow("nested", input={"v": int})
    outer.compose("a", nested())
    with pytest.raises(DuplicateName, match="nests another one of its name"):
        outer.to_dict()


# What cannot be read


STEP: Mapping[str, Any] = {"kind": "step", "name": "one", "function": "test_graph:double"}


def graph(*steps: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "w", "input": {"fields": {"x": "int"}}, "steps": [dict(step) for step in steps], **more}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (graph(STEP, ttls=3), "the graph of workflow 'w': unknown key 'ttls'. Did you mean 'ttl'?"),
        (graph({**STEP, "retrys": 3}), "steps.'one': unknown key 'retrys'. Did you mean 'retries'?"),
        (graph({**STEP, "kind": "stp"}), "steps.'one': there is no kind 'stp'. Did you mean 'step'?"),
        (graph({"name": "one"}), "steps.'one': say of what kind it is"),
        (graph({"kind": "step", "name": "one"}), "steps.'one'.function: is missing"),
        (graph({**STEP, "retries": "3"}), "steps.'one'.retries: input should be a valid integer, not '3'"),
        (graph({**STEP, "bind": {"x": {"input": "x", "value": 1}}}), "steps.'one'.bind.x: say one of"),
        (graph({**STEP, "bind": {"x": {"inputs": "x"}}}), "Did you mean 'input'?"),
        (graph(STEP, version=2), "version: input should be 1, not 2"),
        ({"steps": []}, "the graph of a workflow: name: is missing"),
        (3, "the graph of a workflow: input should be"),
        (graph({**STEP, "function": "double"}), "'double' is no import path; write module:name"),
        (
            graph({**STEP, "function": "test_graph:doubel"}),
            "step 'one' of 'w': function: module 'test_graph' has no 'doubel'. Did you mean 'double'?",
        ),
        (graph({**STEP, "function": "no_such_module:f"}), "importing 'no_such_module' failed: ModuleNotFoundError"),
        (graph({**STEP, "function": "test_graph:STEP"}), "which cannot be called"),
        (
            graph({**STEP, "retry_on": ["test_graph:Order"], "retries": 1}),
            "retry_on: 'test_graph:Order' is .*, and no class below BaseException",
        ),
        (
            graph({**STEP, "policies": [{"make": "bitactor.patterns:RateLimit", "with": {"nam": "x"}}]}),
            "RateLimit has no 'nam'. Did you mean 'name'?",
        ),
        (
            graph({**STEP, "policies": [{"make": "test_graph:Client"}]}),
            "is no dataclass, and only those are made from data",
        ),
        (graph({**STEP, "policies": [{"make": "bitactor.patterns:RateLimit"}]}), "no RateLimit can be made of {}"),
        (graph(STEP, input={"fields": {"x": "integer"}}), "input field 'x': 'integer': no type 'integer'"),
        (graph(STEP, input={"fields": {"x": "int["}}), "is no type; write for example"),
        (graph(STEP, input={"fields": {"x": "print('x')"}}), "is no type; write for example"),
        (graph(STEP, input="test_graph:double"), "and no class below BaseModel"),
        (graph({**STEP, "bind": {"x": {"result": "two"}}}), "'two', which does not exist"),
        (graph({"kind": "compose", "name": "c", "workflow": "inner"}), "'inner' is not among the graph's workflows"),
        (graph(STEP, workflows=[{"name": "idle", "steps": [STEP]}]), "no step nests 'idle'"),
        (graph({"kind": "map", "name": "m", "over": {"input": "x"}}), "a map is over a 'function', or a 'workflow'"),
        (
            graph({"kind": "switch", "name": "s", "on": {"input": "x"}, "cases": [{"function": "test_graph:double"}]}),
            "a case has a 'value'",
        ),
    ],
)
def test_data_that_are_no_graph_are_refused(data: Any, said: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Workflow.from_dict(data)
    said, _, rest = said.partition(".*")
    assert said in str(caught.value) and rest in str(caught.value)


def test_a_workflow_within_itself_is_refused() -> None:
    circle = [
        {"name": name, "steps": [{"kind": "compose", "name": "c", "workflow": other}]}
        for name, other in (("a", "b"), ("b", "a"))
    ]
    with pytest.raises(CycleError, match="'a' is nested in itself"):
        Workflow.from_dict(graph({"kind": "compose", "name": "c", "workflow": "a"}, workflows=circle))
    with pytest.raises(CycleError, match="'w' is nested in itself"):
        Workflow.from_dict(graph({"kind": "compose", "name": "c", "workflow": "w"}))


def test_a_module_that_exits_is_contained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves_of_graph.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DefinitionError, match="importing 'leaves_of_graph' failed: SystemExit"):
        Workflow.from_dict(graph({**STEP, "function": "leaves_of_graph:f"}))


def test_what_is_written_by_hand_can_be_short() -> None:
    workflow = Workflow.from_dict(graph(STEP, {"kind": "template", "name": "text", "text": "{one}"}))
    assert run_workflow(workflow, {"x": 4}).result == "8"


@pytest.mark.parametrize("option", ["policies", "after"])
def test_an_option_that_is_an_empty_list_says_nothing(option: str) -> None:
    nested = {"name": "inner", "input": {"fields": {"x": "int"}}, "steps": [STEP]}
    each = {"kind": "map", "name": "s", "workflow": "inner", "over": {"value": [1]}, "bind": {"x": {"element": True}}}
    for step, more in ((dict(STEP), {}), (each, {"workflows": [nested]})):
        plain, empty = (Workflow.from_dict(graph(made, **more)) for made in (step, {**step, option: []}))
        assert empty.to_dict() == plain.to_dict() and empty.check().digest == plain.check().digest


def test_a_subclass_makes_its_own() -> None:
    class Ours(Workflow):
        pass

    assert type(Ours.from_dict(graph(STEP))) is Ours
