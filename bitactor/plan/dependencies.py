"""The dependencies of declared steps: which steps each one waits for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bitactor.declare.functions import refuse_uncallable
from bitactor.declare.source import Element, Input, Result, Source, functions_of, refuse_bad_parts
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError, UnknownArgument, suggest
from bitactor.plan.callbacks import RESERVED_FOR_CONTEXT
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import kind_of


def forward_references(workflow: Declaration, step: Step[Any, Any]) -> set[str]:
    """The names that `step` refers to and that are not declared by now; steps of that name may still come."""
    bind = step.options.bind
    named = {name for name in step.takes or () if bind.get(name) is None}
    named |= {source.step for source in bind.values() if isinstance(source, Result)}
    named |= step.options.after_names
    return named - workflow.steps.keys() - workflow.input_model.model_fields.keys()


def dependencies_of(workflow: Declaration, step: Step[Any, Any], *, strict: bool = False) -> list[str]:
    """The steps that `step` waits for; unknown names raise when `strict`, and are else passed over, since they may
    still be declared."""
    what = f"step {step.name!r} of {workflow.name!r}"
    found: dict[str, None] = {}
    bind = step.options.bind
    if step.takes is None:
        step.takes = tuple(parameter.name for parameter in kind_of(step).parameters(what))
    for parameter in step.takes:
        if bind.get(parameter) is None and parameter in workflow.steps and parameter not in RESERVED_FOR_CONTEXT:
            found[parameter] = None
    for name, source in bind.items():
        if not isinstance(source, Source):
            raise DefinitionError(
                f"{what}: bind[{name!r}] is {source!r}; use Input(name, …), Result(step, …) or Value(v)"
            )
        place = f"{name[1:-1]}=" if name.startswith("(") else f"bind[{name!r}]"
        refuse_bad_parts(f"{what}: {place}", source)
        for function in functions_of(source.transform):
            refuse_uncallable(f"{what}: the transform of {place}", function, ("value",))
        if isinstance(source, Result):
            fields = workflow.input_model.model_fields
            _require(source.step, workflow.steps, f"{what}: bind[{name!r}] takes the result of", strict, found, fields)
        elif isinstance(source, Element):
            raise DefinitionError(f"{what}: bind[{name!r}] is {source!r}; there are elements only inside a map")
        elif isinstance(source, Input):
            _require(
                source.name,
                workflow.input_model.model_fields,
                f"{what}: bind[{name!r}] takes the input field",
                True,
                {},
            )
    after = step.options.after
    if after and isinstance(after, str):
        raise DefinitionError(f"{what}: after={after!r}; give a list of steps")
    for other in after:
        if not isinstance(other, str) and other.workflow is not workflow:
            raise UnknownArgument(f"{what}: after names {other!r}, which is a step of another workflow")
        _require(other if isinstance(other, str) else other.name, workflow.steps, f"{what}: after names", strict, found)
    return list(found)


def steps_waited_for(workflow: Declaration, step: Step[Any, Any]) -> list[str]:
    """The steps that `step` waits for.

    Raises:
        DefinitionError: one of them is deferred; what a deferred step leaves for others to bind may be called like one.
    """
    found = dependencies_of(workflow, step, strict=True)
    named = {source.step for source in step.options.bind.values() if isinstance(source, Result)}
    named |= step.options.after_names
    wrong = next(
        (other for other in found if workflow.steps[other].deferred and (other in named or not step.deferred)), None
    )
    if wrong is not None:
        raise DefinitionError(
            f"step {step.name!r} of {workflow.name!r} waits for {wrong!r}, which is deferred, and runs only where a "
            "Then plans it, under a "
            "name of its own; wait for the step that plans it"
        )
    return [other for other in found if not workflow.steps[other].deferred]


def _require(
    name: str, known: Mapping[str, Any], what: str, strict: bool, found: dict[str, None], meant: Iterable[str] = ()
) -> None:
    if name in known:
        found[name] = None
    elif strict:
        raise UnknownArgument(f"{what} {name!r}, which does not exist.{suggest(name, {*known, *meant})}")
