"""What the file of a kind is written with: the bases of kinds, the parameters and inputs of what they nest, and, named
here again, the ports that they are written against."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from keyword import iskeyword
from typing import Any, ClassVar

from pydantic import BaseModel, RootModel
from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.errors import DefinitionError
from bitactor.forms.keys import CALLED, CONSTANT, FUNCTION, NESTED, SOURCE, SOURCES, Form, Key, Origin, Reader, Writer
from bitactor.kinds.result_types import answer_type, target_type
from bitactor.plan.callbacks import Parameter, parameters_of
from bitactor.plan.container import CONSULT, Close, ContainerArguments, NextAction, Open, Opening, Progress, Skip
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind, Site, refuse_misfit, result_of
from bitactor.plan.plan import Arrow, Callback, Container, Plan, PlanStep
from bitactor.plan.steps import function_step

__all__ = [
    "CALLED", "CONSTANT", "CONSULT", "FUNCTION", "NESTED", "SOURCE", "SOURCES", "Arrow", "Close", "Container",
    "ContainerArguments", "ContainerKind", "Declaration", "Form", "FunctionKind", "Key", "NextAction", "Open",
    "Opening", "Origin", "Parameter", "Plan", "Progress", "Reader", "Site", "Skip", "Writer", "function_inputs",
    "function_parameters", "merge_parameters", "nested_inputs", "require_workflow", "target_parameters",
    "with_parameters",
]  # fmt: skip

NO_FUNCTION = Callback(print, False, {}, ())
"""The callback of a container that has no function of its own."""


class FunctionKind(Kind):
    """A function, declared; and the base of what is ready-made of that form (collect, template, debug, flunk)."""

    label = "step"
    keys: ClassVar[Mapping[str, Key]] = {"function": CALLED, "deferred": Key(bool, default=False)}
    takes_attempts = True
    function: Callable[..., Any]

    def __init__(self, what: str, function: Callable[..., Any]) -> None:
        self.function = function

    @property
    @override
    def noun(self) -> str:
        return "the function"

    @override
    def parameters(self, what: str) -> list[Parameter]:
        return parameters_of(self.function, what)

    @override
    def compile(self, site: Site) -> PlanStep:
        undo, what = site.step.undo_function, f"undo of {site.what}"
        compiled = function_step(site.workflow, site.step, site.arguments, site.injected, site.what, beside=site.beside)
        for parameter in () if undo is None else parameters_of(undo, what):
            if parameter.name == "result":
                refuse_misfit(what, parameter, result_of(site.step), "the result of its step", cure="annotate it so")
        return compiled

    @override
    def result_type(self, name: str) -> Any:
        return answer_type(self.function)


class ContainerKind(Kind):
    """The declared form of a container."""

    container: Callable[[Site, Any], Container]
    """Makes the compiled form of the kind, or raises `DefinitionError`: it cannot work."""

    @override
    def parameters(self, what: str) -> list[Parameter]:
        """Its sources, and the parameters of what it nests."""
        own = [Parameter(f"({name})", Any, False) for name, key in self.keys.items() if key is SOURCE]
        targets = self.targets or [target for target in (self.workflow, self.function) if target is not None]
        return own + merge_parameters([target_parameters(target, what) for target in targets])

    @override
    def compile(self, site: Site) -> PlanStep:
        container = type(self).container(site, self)
        return PlanStep(
            0, "", "", NO_FUNCTION, "inline", site.arguments, (),
            container=container, kind=self.label, options=site.step.options,
        )  # fmt: skip

    @override
    def result_type(self, name: str) -> Any:
        """What its function answers, or else the workflow that it nests."""
        return target_type(self.function or self.workflow)


def with_parameters(
    function: Callable[..., Any], names: Iterable[str], name: str, *, context: bool = False
) -> Callable[..., Any]:
    """`function`, which takes keywords, with a signature of these names; with `context`, it also takes `ctx`.

    Raises:
        DefinitionError: one of the names is no identifier.
    """
    names = [*names]
    wrong = next((parameter for parameter in names if not parameter.isidentifier() or iskeyword(parameter)), None)
    if wrong is not None:
        raise DefinitionError(
            f"{name}: {wrong!r} is no name of an argument; name it otherwise, as in {{'first': {wrong!r}}} of a "
            f"collect, or bind={{…}}"
        )
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(parameter, keyword) for parameter in names]
    if context:
        parameters.append(inspect.Parameter("ctx", keyword, annotation=Context))
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {"ctx": Context} if context else {}
    function.__name__ = name
    return function


def function_parameters(function: Callable[..., Any], what: str, special: Sequence[str] = ()) -> list[Parameter]:
    """A nested function's parameters, except the `special` ones, which the kind supplies."""
    return [parameter for parameter in parameters_of(function, what) if parameter.name not in special]


def target_parameters(target: Any, what: str, special: Sequence[str] = ()) -> list[Parameter]:
    """The parameters of a nested function, or the input fields of a nested workflow."""
    if isinstance(target, Declaration):
        fields = target.input_model.model_fields
        return [Parameter(name, Any, not field.is_required()) for name, field in fields.items()]
    return function_parameters(target, what, special)


def merge_parameters(lists: Sequence[Sequence[Parameter]]) -> list[Parameter]:
    """The parameters of several targets, each name once; required if any target requires it."""
    found: dict[str, Parameter] = {}
    for name, annotation, has_default in (parameter for parameters in lists for parameter in parameters):
        known = found.get(name, Parameter(name, Any, True))
        kind = Context if Context in (annotation, known.annotation) else Any
        found[name] = Parameter(name, kind, has_default and known.has_default)
    return [*found.values()]


def require_workflow(what: str, workflow: Any) -> None:
    """Raises `DefinitionError` unless `workflow` is a workflow."""
    if not isinstance(workflow, Declaration):
        raise DefinitionError(f"{what}: workflow={workflow!r}; give a Workflow")


def nested_inputs(workflow: Declaration, body: Plan, arguments: ContainerArguments) -> tuple[Any, ...]:
    """The inputs of a nested workflow, validated by its model, in the order of the body's inputs.

    Raises:
        InvalidInput: they do not fit.
    """
    valid = workflow.validate_input(input_values(workflow, arguments), named=True)
    return tuple(arguments.pass_on(name, valid[name]) for name in body.inputs)


def input_values(workflow: Declaration, arguments: ContainerArguments) -> dict[str, Any]:
    """The container's arguments that are input fields of a nested workflow, with objects of the classes these name."""
    fields = workflow.input_model.model_fields
    return {name: arguments.value(name, workflow.input_classes) for name in fields if arguments.has(name)}


def named_values(value: Any) -> Any:
    """A model or dataclass as the mapping of its fields, by which it overrides inputs; any other value itself."""
    if isinstance(value, RootModel):
        return value.root
    if isinstance(value, BaseModel):
        return dict(BaseModel.__iter__(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value


def function_inputs(body: Plan, arguments: ContainerArguments) -> tuple[Any, ...]:
    """The inputs of a nested function, in the order of the body's inputs."""
    return tuple(arguments.token(name) for name in body.inputs)
