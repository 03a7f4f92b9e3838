"""What is wrong with a workflow is found when it is declared, and the message says how to mend it."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from bitactor import (
    Backoff,
    Context,
    CycleError,
    DefinitionError,
    DuplicateName,
    Input,
    InvalidInput,
    MissingReturn,
    Result,
    UnknownArgument,
    Value,
    Workflow,
    WorkflowTooDeep,
    consumer,
)


class Person(BaseModel):
    name: str
    age: int = 7


def chain(count: int, ttl: int = 8) -> Workflow:
    workflow = Workflow("chain", ttl=ttl)
    for index in range(1, count + 1):
        workflow.step(name=f"s{index}", after=[f"s{index - 1}"] if index > 1 else [])(lambda: None)
    return workflow


def test_eight_steps_in_a_row_fit_a_ttl_of_eight() -> None:
    assert len(chain(8).check().steps) == 8


def test_the_ninth_is_refused_when_declared_and_the_path_is_named() -> None:
    workflow = chain(8)
    with pytest.raises(WorkflowTooDeep, match=r"9 hops in a row, but ttl=8: s1 → s2 → .* → s9; raise ttl to 9"):
        workflow.step(name="s9", after=["s8"])(lambda: None)
    assert len(workflow.check().steps) == 8
    assert len(chain(9, ttl=9).check().steps) == 9


def test_the_longest_of_many_paths_counts() -> None:
    workflow = Workflow("w", ttl=2)
    for name in ("a", "b", "c"):
        workflow.step(name=name)(lambda: None)
    workflow.step(name="d", after=["a", "b", "c"])(lambda: None)
    with pytest.raises(WorkflowTooDeep, match="→ d → e"):
        workflow.step(name="e", after=["d", "a"])(lambda: None)


def test_a_path_through_steps_declared_later_counts_too() -> None:
    workflow = Workflow("w", ttl=2)
    workflow.step(name="c", after=["b"])(lambda: None)
    workflow.step(name="b", after=["a"])(lambda: None)
    with pytest.raises(WorkflowTooDeep, match="a → b → c"):
        workflow.step(name="a")(lambda: None)


def test_cycles_are_refused_and_the_circle_is_named() -> None:
    workflow = Workflow("w")

    @workflow.step
    def a(c: Any) -> None: ...

    @workflow.step
    def b(a: Any) -> None: ...

    with pytest.raises(CycleError, match="a → b → c → a"):

        @workflow.step
        def c(b: Any) -> None: ...

    with pytest.raises(CycleError, match="own → own"):

        @workflow.step
        def own(own: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "expected", "match"),
    [
        ({"bind": {"x": Result("fisrt")}}, UnknownArgument, "Did you mean 'first'"),
        ({"bind": {"x": Input("nmae")}}, UnknownArgument, "Did you mean 'name'"),
        ({"bind": {"x": "name"}}, DefinitionError, r"use Input\(name, …\)"),
        ({"bind": {"x": Value(1), "y": Value(2)}}, UnknownArgument, "'y', which is no parameter"),
        ({"bind": 5}, DefinitionError, "a mapping of parameters"),
        ({"bind": {"x": Value(object())}}, DefinitionError, "cannot be carried"),
        ({"after": ["fisrt"]}, UnknownArgument, "Did you mean 'first'"),
        ({"after": "name"}, DefinitionError, "give a list of steps"),
        ({"after": 5}, DefinitionError, "give a list of steps"),
        ({"after": [5]}, DefinitionError, "give a list of steps"),
        ({"retires": 3}, DefinitionError, "unknown option 'retires'. Did you mean 'retries'"),
        ({"required": "no"}, DefinitionError, "True or False"),
        ({"retries": -1}, DefinitionError, "retries=-1"),
        ({"retries": 1.5}, DefinitionError, "whole number"),
        ({"retries": True}, DefinitionError, "retries=True"),
        ({"timeout": 0}, DefinitionError, "leaves no time"),
        ({"timeout": float("inf")}, DefinitionError, "timeout=inf"),
        ({"timeout": float("nan")}, DefinitionError, "timeout=nan"),
        ({"timeout": "2s"}, DefinitionError, "timeout='2s'"),
        ({"backoff": Backoff()}, DefinitionError, "but retries=0"),
        ({"retry_on": ValueError}, DefinitionError, "but retries=0"),
        ({"retries": 1, "backoff": 3}, DefinitionError, r"give a Backoff"),
        ({"retries": 1, "backoff": lambda erorr: 1}, UnknownArgument, "Did you mean 'error'"),
        ({"retries": 1, "retry_on": "ValueError"}, DefinitionError, "give an exception class"),
        ({"when": "x"}, DefinitionError, "give a function"),
        ({"when": lambda nmae: True}, UnknownArgument, "Did you mean 'name'"),
        ({"name": ""}, DefinitionError, "printable"),
        ({"name": 5}, DefinitionError, "printable"),
        ({"name": "a/b"}, DefinitionError, "'/' separates"),
        ({"name": "a\nb"}, DefinitionError, "printable"),
        ({"name": "result"}, DefinitionError, "reserved"),
        ({"name": "name"}, DuplicateName, "input field 'name'"),
        ({"name": "first"}, DuplicateName, "a step 'first' already"),
        ({"spawn": "ray"}, DefinitionError, "spawn='ray' is not built yet"),
        ({"spawn": "thraed"}, DefinitionError, "Did you mean 'thread'"),
        ({"spawn": "loop"}, DefinitionError, "needs `async def`"),
        ({"spawn": "process"}, DefinitionError, "a closure has none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], expected: type[Exception], match: str) -> None:
    workflow = Workflow("w", input={"name": str})
    workflow.step(name="first")(lambda: 1)

    def declare() -> None:
        workflow.step(**{"name": "second", "bind": {"x": Value(1)}} | options)(lambda x: x)
        workflow.check()

    with pytest.raises(expected, match=match):
        declare()


def test_an_async_predicate_and_an_async_step_inline_or_in_a_thread_are_refused() -> None:
    workflow = Workflow("w")

    async def run() -> bool:
        return True

    for spawn in ("inline", "thread"):
        with pytest.raises(DefinitionError, match=f"spawn='{spawn}' .*cannot await"):
            workflow.step(spawn=spawn)(run)
    workflow.step(when=run)(lambda: 1)
    with pytest.raises(DefinitionError, match="cannot await"):
        workflow.check()


def test_processes_cannot_import_main() -> None:
    def run() -> None: ...

    run.__qualname__, run.__module__ = "run", "__main__"
    with pytest.raises(DefinitionError, match="__main__"):
        Workflow("w").step(spawn="process")(run)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": 1001}, "1,000"),
        ({"ttl": True}, "ttl=True"),
        ({"ttl": "8"}, "ttl='8'"),
        ({"deadline": 0}, "leaves no time"),
        ({"deadline": -1}, "deadline=-1"),
        ({"grace": None}, "grace=None"),
        ({"undo_timeout": None}, "undo_timeout=None"),
        ({"redeliveries": 0.5}, "whole number"),
        ({"errors": ValueError}, "list of exception classes"),
        ({"errors": [5]}, "list of exception classes"),
        ({"input": 5}, "pydantic model or a mapping"),
        ({"input": {"ctx": int}}, "reserved"),
        ({"input": {"a b": int}}, "no identifier"),
        ({"input": {"_private": int}}, "_private"),
        ({"input": {"x": "Nowhere"}}, "Nowhere"),
        ({"input": {"x": inspect.Signature}}, "Signature"),
    ],
)
def test_wrong_workflow_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(DefinitionError, match=match):
        Workflow("w", **options)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, 5, None])
def test_wrong_names_are_refused(name: Any) -> None:
    with pytest.raises(DefinitionError, match="printable"):
        Workflow(name)
    with pytest.raises(DefinitionError, match="printable"):
        consumer(name)


def test_wrong_shaped_callbacks_are_refused() -> None:
    def declared(role: str, callback: Any) -> Workflow:
        workflow = Workflow("w", input={"amount": int})
        step = workflow.step(lambda amount: amount)
        step.undo(in_doubt=True)(callback) if role == "doubt" else getattr(step, role)(callback)
        return workflow

    for role, callback, match in (
        ("undo", lambda reslut: None, "Did you mean 'result'"),
        ("undo", lambda error: None, "'error'"),
        ("compensate", lambda result: None, "'result'"),
        ("compensate", lambda amuont: None, "Did you mean 'amount'"),
        ("undo", lambda *everything: None, r"takes \*everything"),
        ("compensate", lambda **everything: None, r"\*everything"),
        ("undo", 5, "not a callable"),
        ("doubt", lambda: None, "needs `ctx` or an argument"),
    ):
        with pytest.raises(DefinitionError, match=match):
            declared(role, callback).check()
    assert declared("undo", lambda: None).check()
    assert declared("undo", lambda result, amount, ctx, attempt: None).check()
    assert declared("compensate", lambda error, amount, ctx, attempt: None).check()


def test_a_callback_can_be_declared_once() -> None:
    workflow = Workflow("w")
    step = workflow.step(lambda: 1)
    step.undo(lambda: None)
    with pytest.raises(DuplicateName, match="has an undo already"):
        step.undo(lambda: None)
    step.compensate(lambda: None)
    with pytest.raises(DuplicateName, match="has a compensate already"):
        step.compensate(lambda: None)


def test_parameters_need_a_source() -> None:
    workflow = Workflow("w", input={"email": str})

    @workflow.step
    def send(emial: str) -> None: ...

    with pytest.raises(UnknownArgument, match="Did you mean 'email'"):
        workflow.check()


def test_result_and_error_are_no_arguments_of_a_step() -> None:
    workflow = Workflow("w")
    workflow.step(name="one")(lambda result: result)
    with pytest.raises(DefinitionError, match="'result' is reserved"):
        workflow.check()


def test_positional_only_parameters_are_refused() -> None:
    def run(a: int, /) -> None: ...

    with pytest.raises(DefinitionError, match="positional-only"):
        Workflow("w", input={"a": int}).step(run)


def test_an_annotation_that_names_nothing_is_refused() -> None:
    class Local(BaseModel):
        n: int

    workflow = Workflow("w", input={"n": int})

    @workflow.step
    def make(n: int, ctx: Context) -> Local:
        return Local(n=n)

    @workflow.step
    def use(make: Local) -> int:
        return make.n

    with pytest.raises(DefinitionError, match="annotation 'Local' names nothing"):
        workflow.check()


def test_returns_names_a_step() -> None:
    workflow = Workflow("w")
    with pytest.raises(MissingReturn, match="has no steps"):
        workflow.check()
    workflow.step(name="one")(lambda: 1)
    workflow.returns("noe")
    with pytest.raises(MissingReturn, match="Did you mean 'one'"):
        workflow.check()
    workflow.returns("one")
    assert workflow.check().returns == 0


def test_an_iterator_of_steps_is_read_once() -> None:
    workflow = Workflow("w")
    first = workflow.step(name="first")(lambda: 1)
    workflow.step(name="second", after=(step for step in [first]))(lambda: 2)
    assert workflow.check().steps[1].dependencies == (0,)


def test_steps_of_another_workflow_are_refused() -> None:
    stranger = Workflow("v").step(name="first")(lambda: 1)
    workflow = Workflow("w")
    workflow.step(name="first")(lambda: 1)
    with pytest.raises(UnknownArgument, match="another workflow"):
        workflow.step(name="second", after=[stranger])(lambda: 2)
    with pytest.raises(DefinitionError, match="give a step"):
        Result(5)


def test_a_failed_declaration_leaves_no_trace() -> None:
    workflow = Workflow("w", ttl=1)
    workflow.step(name="one")(lambda: 1)
    with pytest.raises(WorkflowTooDeep):
        workflow.step(name="two", after=["one"])(lambda: 2)
    assert list(workflow.steps) == ["one"]
    assert workflow.check()


def test_a_decorated_function_stays_a_function() -> None:
    workflow = Workflow("w")

    @workflow.step(retries=1, backoff=Backoff(1))
    def double(n: int = 2) -> int:
        """Twice."""
        return n * 2

    assert double(4) == 8
    assert double.__doc__ == "Twice."
    assert workflow.step(name="again")(double)(3) == 6


def test_inputs_are_validated_with_all_offending_fields() -> None:
    workflow = Workflow("w", input=Person)
    assert workflow.validate_input({"name": "Ada"}) == {"name": "Ada", "age": 7}
    assert workflow.validate_input(Person(name="Ada")) == {"name": "Ada", "age": 7}
    with pytest.raises(InvalidInput) as caught:
        workflow.validate_input({"age": "old"})
    assert [path for path, _ in caught.value.fields] == ["name", "age"]
    with pytest.raises(InvalidInput, match="b: Extra"):
        Workflow("v", input={"a": int}).validate_input({"a": 1, "b": 2})


def test_consumers_take_a_signal_and_perhaps_a_context() -> None:
    with pytest.raises(DefinitionError, match="takes no signal"):
        consumer("x")(lambda: None)
    with pytest.raises(DefinitionError, match="one parameter too many"):
        consumer("x")(lambda signal, more: None)
    with pytest.raises(DefinitionError, match="never take a signal"):
        consumer("x", concurrency=0)
    with pytest.raises(DefinitionError, match="spawn='ray'"):
        consumer("x", spawn="ray")(lambda signal: None)

    @consumer("x", concurrency=2)
    def greet(signal: Any, ctx: Context) -> str:
        return "hello"

    assert greet.check().listens == "x"
    assert greet(None, None) == "hello"


def test_the_digest_follows_the_shape_only() -> None:
    def made(retries: int = 0, undo: bool = False, name: str = "b") -> str:
        workflow = Workflow("w")
        workflow.step(name="a")(lambda: 1)
        step = workflow.step(name=name, after=["a"], retries=retries)(lambda: 1)
        if undo:
            step.undo(lambda: None)
        return workflow.check().digest

    assert made() == made(retries=5)
    assert len({made(), made(undo=True), made(name="c")}) == 3


def test_a_default_in_the_type_of_an_input_is_kept() -> None:
    given = {
        "a": Annotated[int, Field(default=4, ge=0)],
        "b": Annotated[list[int], Field(default_factory=list)],
        "c": (Annotated[int, Field(default=4)], 5),
    }
    workflow = Workflow("w", input=given)
    assert workflow.validate_input({}) == {"a": 4, "b": [], "c": 5}
    assert workflow.validate_input({})["b"] is not workflow.validate_input({})["b"]
    with pytest.raises(InvalidInput, match=r"a: .*greater than or equal to 0"):
        workflow.validate_input({"a": -1})
