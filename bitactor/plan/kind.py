"""The port of a kind as declared: which arguments it needs, and how it is compiled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from bitactor.declare.step import Step
from bitactor.plan.arguments import Argument, converter
from bitactor.plan.callbacks import Parameter, injected_as, parameters_of
from bitactor.plan.declaration import Declaration
from bitactor.plan.plan import Container, Plan
from bitactor.plan.steps import function_step, single_step_plan


class Site(NamedTuple):
    """The place where a kind is compiled: its workflow, step, address and arguments."""

    workflow: Declaration
    step: Step[Any, Any]
    what: str
    address: str
    arguments: tuple[Argument, ...]

    def body(self, nested: Declaration, address: str) -> Plan:
        """The plan of a nested workflow, to be a body; its steps are addressed below `address`.

        Raises:
            CycleError: it is nested in itself.
            DefinitionError: or another of its kinds.
        """
        return nested.nested_plan(address)

    def function_body(
        self,
        function: Callable[..., Any],
        name: str,
        address: str,
        *,
        special: Mapping[str, str] = MappingProxyType({}),
    ) -> Plan:
        """A body of one step made from a function; its inputs are the function's parameters.

        Args:
            special: parameter → the input it is given, where that is called otherwise.
        """
        workflow, step = self.workflow, self.step
        arguments, injected, inputs = [], {}, []
        for parameter in parameters_of(function, self.what):
            injection = injected_as(workflow, parameter) if parameter.name not in special else None
            if injection is not None:
                injected[parameter.name] = injection
                continue
            field = special.get(parameter.name, parameter.name)
            known = any(argument.name == field for argument in self.arguments)
            if not known and parameter.name not in special and parameter.has_default:
                continue
            if field not in inputs:
                inputs.append(field)
            convert = converter(parameter.annotation, f"{self.what}, parameter {parameter.name!r}")
            arguments.append(
                Argument(parameter.name, 1 + inputs.index(field), (), None, convert, None, f"input.{field}")
            )
        compiled = function_step(workflow, step, tuple(arguments), injected, self.what, function=function)
        compiled.name, compiled.address = name, address
        compiled.forward_code = compiled.code("forward", 1)
        return single_step_plan(workflow, compiled, tuple(inputs))


class Kind(ABC):
    """The declared form of a container."""

    label: ClassVar[str]

    @abstractmethod
    def parameters(self, what: str) -> list[Parameter]:
        """The arguments that the container needs; each is found by its name, or by `bind`."""

    @abstractmethod
    def compile(self, site: Site) -> Container:
        """The compiled form of the kind.

        Raises:
            DefinitionError: it cannot work.
        """


def kind_of(step: Step[Any, Any]) -> Kind | None:
    """The kind of a step that is made of other steps; None for any other step."""
    kind = step.kind
    assert kind is None or isinstance(kind, Kind), kind
    return kind


def parameters_of_step(step: Step[Any, Any], what: str) -> list[Parameter]:
    """The parameters of a step's function, or of its kind."""
    kind = kind_of(step)
    return parameters_of(step.function, what) if kind is None else kind.parameters(what)
