"""The options of a step: one list of them, whatever takes them."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest

from bitactor import DefinitionError, Workflow, consumer
from bitactor.declare.options import NESTED_OPTIONS, STEP_OPTIONS, StepKeywords, StepOptions
from bitactor.export.graph.forms import step_form
from bitactor.kinds import KINDS
from mesh.ready.declare import ReadyKeywords


def one(x: int) -> int:
    return x


def test_fields_and_keywords_are_the_same_options() -> None:
    assert StepKeywords.__annotations__.keys() == STEP_OPTIONS.keys()
    fields, keywords = get_type_hints(StepOptions), get_type_hints(StepKeywords)
    plain = [name for name, option in STEP_OPTIONS.items() if not option.metadata]
    assert {name: fields[name] for name in plain} == {name: keywords[name] for name in plain}


def test_every_option_has_a_key_in_the_dict_form_and_one_at_ready_made_steps() -> None:
    assert STEP_OPTIONS.keys() <= step_form(KINDS["step"]).model_fields.keys()
    assert {*step_form(KINDS["compose"]).model_fields} & STEP_OPTIONS.keys() == {*NESTED_OPTIONS}
    assert ReadyKeywords.__annotations__.keys() == STEP_OPTIONS.keys() - {"name", "spawn"}


def test_what_is_declared_carries_its_options() -> None:
    workflow = Workflow("w", input={"x": int})
    step = workflow.add(one, retries=2, after=iter([]))
    assert (step.options.retries, step.options.after, step.options.timeout) == (2, (), None)
    assert step.options.given == {"retries", "after"}
    assert workflow.check().steps[0].options is step.options
    assert consumer("told", retries=2)(lambda signal: signal).check().steps[0].options.retries == 2


def test_none_and_nothing_are_the_default() -> None:
    workflow = Workflow("w", input={"x": int})
    step = workflow.step(retries=None, bind=None, after=None, limit=None)(one)  # type: ignore[call-overload]
    assert (step.options.retries, step.options.bind, step.options.after, step.options.given) == (0, {}, (), frozenset())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"retires": 3}, "step 'step' of 'w': unknown option 'retires'. Did you mean 'retries'"),
        ({"retries": -1}, "retries=-1; it must be a number, zero or more"),
        ({"policies": [3]}, "give a list of patterns"),
        ({"after": 3}, "after=3; give a list of steps"),
    ],
)
@pytest.mark.parametrize("method", ["collect", "template", "debug", "flunk"])
def test_small_ready_made_kinds_check_their_options(method: str, options: dict[str, Any], match: str) -> None:
    """They once took whatever they were given, and lost it."""
    workflow = Workflow("w", input={"x": int})
    with pytest.raises(DefinitionError, match=match):
        getattr(workflow, method)("step", ["x"] if method == "collect" else "x", **options)
