"""Reading a graph: from plain data to a workflow, by the same methods that one would call by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from bitactor.declare.backoff import Backoff
from bitactor.declare.options import STEP_OPTIONS
from bitactor.declare.resource import Resource
from bitactor.declare.source import Element, Input, Result, Source, Value
from bitactor.declare.step import Step
from bitactor.errors import CycleError, DefinitionError, DuplicateName, UnknownArgument, suggest
from bitactor.export.graph import forms
from bitactor.export.graph.annotations import type_of
from bitactor.export.graph.forms import FunctionStepForm, GraphForm, Made, NamedStepForm, Origin, WorkflowForm, validate
from bitactor.export.graph.paths import at_path, class_at, function_at
from bitactor.export.graph.values import callable_of, value_of
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

    def __init__(self, make: Callable[..., W], form: GraphForm) -> None:
        self._make = make
        self._forms: dict[str, WorkflowForm] = {}
        for other in form.workflows:
            if other.name in self._forms or other.name == form.name:
                raise DuplicateName(f"the graph of workflow {form.name!r} has two workflows {other.name!r}; rename one")
            self._forms[other.name] = other
        self.made: dict[str, W] = {}
        self._making: list[str] = [form.name]
        self._resources: dict[str, Resource] = {}

    def workflow(self, form: WorkflowForm) -> W:
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

    def _step(self, workflow: W, form: forms.AnyStep, what: str) -> None:
        options = _options(form, what)
        match form:
            case forms.StepForm():
                step = workflow.add(_called(form.function, what), deferred=form.deferred, **options)
            case forms.MapForm():
                step = self._map(workflow, form, options, what)
            case forms.IterateForm():
                until = None if form.until is None else function_at(form.until, f"{what}: until")
                options |= {"start": _source(form.start, f"{what}: start"), "until": until, "at_most": form.at_most}
                step = workflow.iterate(_called(form.function, what), **options)
            case forms.AroundForm():
                step = workflow.around(
                    _called(form.function, what), workflow=self.nested(form.workflow, what), **options
                )
            case forms.CollectForm():
                transform = None if form.transform is None else function_at(form.transform, f"{what}: transform")
                step = workflow.collect(sources=_sources(form.sources, f"{what}: bind"), transform=transform, **options)
            case forms.TemplateForm():
                step = workflow.template(text=form.text, **options)
            case forms.FlunkForm():
                step = workflow.flunk(text=form.text, **options)
            case forms.DebugForm():
                name = options.pop("name")
                step = workflow.debug(name, *form.sources, **form.given("level"), **options)
            case _:
                step = self._nesting(workflow, form, options, what)
        if isinstance(form, FunctionStepForm):
            _declare_undo(step, form, what)

    def _nesting(
        self,
        workflow: W,
        form: forms.ComposeForm | forms.SwitchForm | forms.GroupForm | forms.RecurseForm,
        options: dict[str, Any],
        what: str,
    ) -> Step[..., Any]:
        if isinstance(form, forms.SwitchForm):
            cases = [(self._test(case, what), self._branch(case, what)) for case in form.cases]
            default = None if form.default is None else self._branch(form.default, what)
            on = _source(form.on, f"{what}: on")
            return workflow.switch(on=on, cases=cases, default=default, optional=form.optional, **options)
        nested = self.nested(form.workflow, what)
        if isinstance(form, forms.ComposeForm):
            return workflow.compose(workflow=nested, **options)
        given = form.given("before_all", "after_all", "until")
        hooks: dict[str, Any] = {
            role: function_at(path, f"{what}: {role}") for role, path in given.items() if path is not None
        }
        if isinstance(form, forms.GroupForm):
            return workflow.group(workflow=nested, **hooks, **options)
        return workflow.recurse(workflow=nested, at_most=form.at_most, **hooks, **options)

    def _map(self, workflow: W, form: forms.MapForm, options: dict[str, Any], what: str) -> Step[..., Any]:
        options |= form.given("batch", "ordered", "on_error", "keep", "whole", "initial")
        if form.reduce is not None:
            options["reduce"] = function_at(form.reduce, f"{what}: reduce")
        if isinstance(form.over, forms.Factory):
            options["over"] = function_at(form.over.factory, f"{what}: over")
        else:
            options["over"] = _source(form.over, f"{what}: over")
        if form.workflow is not None:
            options["workflow"] = self.nested(form.workflow, what)
        elif form.function is None:
            raise DefinitionError(f"{what}: a map is over a 'function', or a 'workflow'; give one of them")
        function: Any = None if form.function is None else _called(form.function, what)
        step: Step[..., Any] = workflow.map(function, **options)
        return step

    def _branch(self, form: forms.Branch, what: str) -> Any:
        if form.workflow is not None:
            return self.nested(form.workflow, what)
        assert form.function is not None
        return function_at(form.function, what)

    def _test(self, case: forms.Case, what: str) -> Any:
        return case.value if case.test is None else function_at(case.test, what)


def _input(given: str | forms.Fields, what: str) -> Any:
    if isinstance(given, str):
        return class_at(given, f"{what}: input", BaseModel)
    fields: dict[str, Any] = {}
    for name, field in given.fields.items():
        where = f"{what}: input field {name!r}"
        fields[name] = type_of(field, where) if isinstance(field, str) else (type_of(field.type, where), field.default)
    return fields


def _options(form: NamedStepForm, what: str) -> dict[str, Any]:
    return {
        name: _READERS[STEP_OPTIONS[name].metadata.get("form", "plain")](value, f"{what}: {name}")
        for name, value in form.given(*STEP_OPTIONS).items()
        if value is not None
    }


def _backoff(given: str | forms.Backing, what: str) -> Any:
    if isinstance(given, str):
        return function_at(given, what)
    try:
        return Backoff(**{name: value for name, value in given.model_dump().items() if value is not None})
    except ValueError as error:
        raise DefinitionError(f"{what}: {error}") from None


def _declare_undo(step: Step[..., Any], form: FunctionStepForm, what: str) -> None:
    if form.undo is not None:
        given = form.undo.function
        function = function_at(given, f"{what}: undo") if isinstance(given, str) else _called(given, f"{what}: undo")
        retries = {} if form.undo.retries is None else {"retries": form.undo.retries}
        step.undo(in_doubt=form.undo.in_doubt, **retries)(function)
    if form.compensate is not None:
        step.compensate(function_at(form.compensate, f"{what}: compensate"))


def _called(given: str | Made | None, what: str) -> Callable[..., Any]:
    return callable_of(given.model_dump(by_alias=True) if isinstance(given, Made) else given, f"{what}: function")


def _sources(given: Mapping[str, Origin], what: str) -> dict[str, Source]:
    return {name: _source(origin, f"{what}[{name!r}]") for name, origin in given.items()}


def _source(origin: Origin, what: str) -> Source:
    path: Sequence[str | int] = origin.path
    transform = None if origin.transform is None else function_at(origin.transform, f"{what}: transform")
    if origin.input is not None:
        return Input(origin.input, *path, transform=transform)
    if origin.result is not None:
        return Result(origin.result, *path, transform=transform)
    if origin.element is not None:
        return Element(*path, transform=transform)
    return Value(origin.value, transform=transform)


_READERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    **dict.fromkeys(("name", "names", "plain"), lambda value, what: value),
    "sources": _sources,
    "function": function_at,
    "backoff": _backoff,
    "classes": lambda paths, what: [class_at(path, what, BaseException) for path in paths],
    "objects": lambda given, what: [value_of(made.model_dump(by_alias=True), what) for made in given],
}
"""What reads an option, by its form in `STEP_OPTIONS`."""
