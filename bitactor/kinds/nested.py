"""Parameters and inputs of nested workflows and functions, for the kinds that nest them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bitactor.errors import DefinitionError
from bitactor.plan.callbacks import Parameter, parameters_of
from bitactor.plan.container import ContainerArguments
from bitactor.plan.declaration import Declaration
from bitactor.plan.plan import Plan


def workflow_parameters(workflow: Declaration) -> list[Parameter]:
    """A nested workflow's input fields as parameters."""
    return [Parameter(name, Any, not field.is_required()) for name, field in workflow.input_model.model_fields.items()]


def function_parameters(function: Callable[..., Any], what: str, special: Sequence[str] = ()) -> list[Parameter]:
    """A nested function's parameters, except the `special` ones, which the kind supplies."""
    return [parameter for parameter in parameters_of(function, what) if parameter.name not in special]


def target_parameters(target: Any, what: str, special: Sequence[str] = ()) -> list[Parameter]:
    """The parameters of a nested workflow or function."""
    if isinstance(target, Declaration):
        return workflow_parameters(target)
    return function_parameters(target, what, special)


def merge_parameters(lists: Sequence[Sequence[Parameter]]) -> list[Parameter]:
    """The parameters of several targets, each name once; required if any target requires it."""
    found: dict[str, Parameter] = {}
    for parameters in lists:
        for parameter in parameters:
            known = found.get(parameter.name)
            needed = not parameter.has_default or (known is not None and not known.has_default)
            found[parameter.name] = Parameter(parameter.name, Any, not needed)
    return list(found.values())


def require_workflow(what: str, workflow: Any) -> None:
    """Raises `DefinitionError` unless `workflow` is a workflow."""
    if not isinstance(workflow, Declaration):
        raise DefinitionError(f"{what}: workflow={workflow!r}; give a Workflow")


def nested_inputs(workflow: Declaration, body: Plan, arguments: ContainerArguments) -> tuple[Any, ...]:
    """The inputs of a nested workflow, validated by its model, in the order of the body's inputs.

    Raises:
        InvalidInput: they do not fit.
    """
    values = {name: arguments.value(name) for name in workflow.input_model.model_fields if arguments.has(name)}
    valid = workflow.validate_input(values)
    return tuple(arguments.pass_on(name, valid[name]) for name in body.inputs)


def function_inputs(body: Plan, arguments: ContainerArguments) -> tuple[Any, ...]:
    """The inputs of a nested function, in the order of the body's inputs."""
    return tuple(arguments.token(name) for name in body.inputs)
