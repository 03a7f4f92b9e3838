"""Reading a graph: from plain data to a workflow, by the same methods that one would call by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from bitactor.declare.options import STEP_OPTIONS
from bitactor.declare.resource import Resource
from bitactor.declare.step import Step
from bitactor.errors import CycleError, DefinitionError, DuplicateName, UnknownArgument, suggest
from bitactor.export.graph import forms
from bitactor.export.graph.forms import validate
from bitactor.forms.annotations import type_of
from bitactor.forms.keys import OPTION_KEYS, called
from bitactor.forms.paths import at_path, class_at, function_at
from bitactor.kinds import KINDS
from bitactor.kinds.declare import DeclaresKinds

W = TypeVar("W", bound=DeclaresKinds)


def from_dict(make: Callable[..., W], data: Mapping[str, Any]) -> W:
    """The workflow that the data describe, checked.

    Args:
        make: the class of workflows.

    Raises:
        DefinitionError: or one of its kinds: the data are not of that form, a path leads nowhere, or the workflow
            cannot work.
    """
    form = validate(data)
    reader = _Reader(make, form)
    workflow = reader.workflow(form)
    unused = next((other.name for other in form.workflows if other.name not in reader.made), None)
    if unused is not None:
        raise DefinitionError(
            f"the graph of workflow {form.name!r}: no step nests {unused!r}, which it has among its workflows; leave "
            "it out"
        )
    workflow.check()
    return workflow


class _Reader(Generic[W]):
    """Makes the workflows of one graph, each once."""

    def __init__(self, make: Callable[..., W], form: Any) -> None:
        self._make = make
        self._forms: dict[str, Any] = {}
        for other in form.workflows:
            if other.name in self._forms or other.name == form.name:
                raise DuplicateName(f"the graph of workflow {form.name!r} has two workflows {other.name!r}; rename one")
            self._forms[other.name] = other
        self.made: dict[str, W] = {}
        self._making: list[str] = [form.name]
        self._resources: dict[str, Resource] = {}

    def workflow(self, form: Any) -> W:
        """A workflow with its steps."""
        what = f"workflow {form.name!r}"
        options: dict[str, Any] = {
            name: value for name, value in form.given(*forms.OF_A_WORKFLOW).items() if value is not None
        }
        options["deadline"] = form.deadline
        if form.input is not None:
            options["input"] = _input(form.input, what)
        options["errors"] = [class_at(path, f"{what}: errors", BaseException) for path in form.errors]
        options["resources"] = [self._resource(given, what) for given in form.resources]
        workflow = self._make(form.name, **options)
        for step in form.steps:
            self._step(workflow, step, f"step {step.name!r} of {form.name!r}")
        if form.returns is not None:
            workflow.returns(form.returns)
        return workflow

    def nested(self, name: str, what: str) -> W:
        """The nested workflow of that name.

        Raises:
            UnknownArgument: there is none.
            CycleError: it is being made just now, so it is nested in itself.
        """
        if name in self._making:
            raise CycleError(
                f"{what}: workflow {name!r} is nested in itself; to repeat a workflow, use recurse with a bound"
            )
        if name not in self._forms:
            raise UnknownArgument(f"{what}: {name!r} is not among the graph's workflows.{suggest(name, self._forms)}")
        if name not in self.made:
            self._making.append(name)
            self.made[name] = self.workflow(self._forms[name])
            self._making.pop()
        return self.made[name]

    def _resource(self, given: str | forms.ResourceForm, what: str) -> Resource:
        """The resource that the data describe; one object for equal data, so that nested workflows share it."""
        if isinstance(given, str):
            found = at_path(given, f"{what}: resources")
            if not isinstance(found, Resource):
                raise DefinitionError(f"{what}: resources: at {given!r} there is {found!r}, and no Resource")
            return found
        key = json.dumps(given.model_dump(), sort_keys=True)
        if key not in self._resources:
            where = f"{what}: resource {given.name!r}"
            options: dict[str, Any] = given.given("check_every", "requires")
            options |= {
                role: function_at(path, where)
                for role, path in given.given("close", "check").items()
                if path is not None
            }
            if given.provides is not None:
                options["provides"] = class_at(given.provides, where)
            self._resources[key] = Resource(given.name, function_at(given.factory, where), **options)
        return self._resources[key]

    def _step(self, workflow: W, form: Any, what: str) -> None:
        kind = KINDS[form.kind]
        options = {
            name: key.read(data, what, name, self)
            for name, key in OPTION_KEYS.items()
            if (data := form.given(name).get(name)) is not None
            and not (data == [] and STEP_OPTIONS[name].default == ())  # says nothing, whatever the kind takes
        }
        for name, data in form.given(*kind.keys).items():
            options[name] = None if data is None else kind.keys[name].read(data, what, name, self)
        function = options.pop("function", None)
        if "function" in kind.keys and function is None and options.get("workflow") is None:
            raise DefinitionError(f"{what}: a {kind.label} is over a 'function', or a 'workflow'; give one of them")
        step = workflow.declare(kind, function, **options)
        if kind.takes_attempts:
            _declare_undo(step, form, what)


def _input(given: str | forms.Fields, what: str) -> Any:
    if isinstance(given, str):
        return class_at(given, f"{what}: input", BaseModel)
    fields: dict[str, Any] = {}
    for name, field in given.fields.items():
        where = f"{what}: input field {name!r}"
        fields[name] = type_of(field, where) if isinstance(field, str) else (type_of(field.type, where), field.default)
    return fields


def _declare_undo(step: Step[..., Any], form: Any, what: str) -> None:
    if form.undo is not None:
        given = form.undo.function
        function = function_at(given, f"{what}: undo") if isinstance(given, str) else called(given, f"{what}: undo")
        retries = {} if form.undo.retries is None else {"retries": form.undo.retries}
        step.undo(in_doubt=form.undo.in_doubt, **retries)(function)
    if form.compensate is not None:
        step.compensate(function_at(form.compensate, f"{what}: compensate"))
