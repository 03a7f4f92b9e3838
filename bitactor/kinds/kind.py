"""What a kind is when it is declared, and what kinds that nest workflows share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bitactor.errors import DefinitionError
from bitactor.plan.compile import Parameter, Site, parameters_of
from bitactor.plan.container import Container, ContainerArguments
from bitactor.plan.plan import Plan

if TYPE_CHECKING:
    from bitactor.workflow import Workflow


class Kind(ABC):
    """The declared form of a container."""

    label: ClassVar[str]

    @abstractmethod
    def parameters(self, what: str) -> list[Parameter]:
        """The arguments it needs; each is found by its name, or by `bind`."""

    @abstractmethod
    def compile(self, site: Site) -> Container:
        """Its compiled form.

        Raises:
            DefinitionError: it cannot work.
        """


def workflow_parameters(workflow: Workflow) -> list[Parameter]:
    """A nested workflow's input fields as parameters."""
    return [Parameter(name, Any, not field.is_required()) for name, field in workflow.input_model.model_fields.items()]


def function_parameters(function: Callable[..., Any], what: str, special: Sequence[str] = ()) -> list[Parameter]:
    """A nested function's parameters, those left out that it is given otherwise."""
    return [parameter for parameter in parameters_of(function, what) if parameter.name not in special]


def target_parameters(target: Any, what: str, special: Sequence[str] = ()) -> list[Parameter]:
    """The parameters of a nested workflow or function."""
    if hasattr(target, "input_model"):
        return workflow_parameters(target)
    return function_parameters(target, what, special)


def merge_parameters(lists: Sequence[Sequence[Parameter]]) -> list[Parameter]:
    """Parameters of several targets, each name once; one that any of them needs is needed."""
    found: dict[str, Parameter] = {}
    for parameters in lists:
        for parameter in parameters:
            known = found.get(parameter.name)
            needed = not parameter.has_default or (known is not None and not known.has_default)
            found[parameter.name] = Parameter(parameter.name, Any, not needed)
    return list(found.values())


def require_workflow(what: str, workflow: Any) -> None:
    """Raises `DefinitionError` unless it is a workflow."""
    if not hasattr(workflow, "input_model"):
        raise DefinitionError(f"{what}: workflow={workflow!r}; give a Workflow")


def nested_inputs(workflow: Workflow, body: Plan, arguments: ContainerArguments) -> tuple[Any, ...]:
    """The inputs of a nested workflow, validated by its model, in the order of the body's.

    Raises:
        InvalidInput: they do not fit.
    """
    values = {name: arguments.value(name) for name in workflow.input_model.model_fields if arguments.has(name)}
    valid = workflow.validate_input(values)
    return tuple(arguments.pass_on(name, valid[name]) for name in body.inputs)


def function_inputs(body: Plan, arguments: ContainerArguments) -> tuple[Any, ...]:
    """The inputs of a nested function, in the order of the body's."""
    return tuple(arguments.token(name) for name in body.inputs)
