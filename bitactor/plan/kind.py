"""The port of a kind as declared: its options, which arguments it needs, how it is compiled, and its type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from bitactor.declare.functions import refuse_generator
from bitactor.declare.source import Source
from bitactor.declare.step import Step
from bitactor.forms.keys import SOURCE, Key
from bitactor.plan.arguments import Argument, converter_for
from bitactor.plan.callbacks import Parameter, injected_as, parameters_of
from bitactor.plan.declaration import Declaration
from bitactor.plan.plan import Plan, PlanStep
from bitactor.plan.steps import function_step, single_step_plan


class Site(NamedTuple):
    """The place where a kind is compiled: its workflow, step, address and arguments."""

    workflow: Declaration
    step: Step[Any, Any]
    what: str
    address: str
    arguments: tuple[Argument, ...]
    injected: dict[str, str]
    """Parameter → what the step's function is given beside its arguments."""

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
        refuse_generator(self.what, function)
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
            convert = converter_for(parameter.annotation, f"{self.what}, parameter {parameter.name!r}")
            arguments.append(
                Argument(parameter.name, 1 + inputs.index(field), (), None, convert, None, f"input.{field}")
            )
        compiled = function_step(workflow, step, tuple(arguments), injected, self.what, function=function)
        compiled.name, compiled.address = name, address
        compiled.forward_code = compiled.code("forward", 1)
        return single_step_plan(workflow, compiled, tuple(inputs))


class Kind(ABC):
    """A kind of step, as declared: all that is to be known of it, but for its drawing, which its container says.

    It is made with a description of the step, for error messages, and those of its own options that were given."""

    label: ClassVar[str]
    """The kind as it is printed, and as it is called in a dict."""
    keys: ClassVar[Mapping[str, Key]]
    """Its own options, beside those of every step; each is an attribute of that name, or a source in `bind`.  One that
    is called `function` is the user's, which `declare` may be given as a decorator."""
    takes_attempts: ClassVar[bool] = False
    """True: it has a function, and takes the options of a step that has one."""
    function: Callable[..., Any] | None = None
    """The user's function that is part of it, if there is one."""
    workflow: Declaration | None = None
    """The workflow that it nests, if it nests one."""
    targets: Sequence[Declaration | Callable[..., Any]] = ()
    """The branches of a kind that chooses one of them, as the cases of its container."""

    @property
    def noun(self) -> str:
        """The owner of the step's parameters in error messages."""
        return f"the {self.label}"

    @classmethod
    def bind(cls, own: dict[str, Any], given: Mapping[str, Any], source: Callable[[Any], Source]) -> Mapping[str, Any]:
        """The `bind` of a step that is declared with `own` options: with each source among them, which is taken out.

        Args:
            source: makes a source of what stands for one.
        """
        return {**given, **{f"({name})": source(own.pop(name)) for name, key in cls.keys.items() if key is SOURCE}}

    def said_bind(self, bind: Mapping[str, Source]) -> Mapping[str, Source]:
        """The `bind` that the step was declared with, apart from what its own options say."""
        return {name: source for name, source in bind.items() if not name.startswith("(")}

    @abstractmethod
    def parameters(self, what: str) -> list[Parameter]:
        """The arguments that the step needs; each is found by its name, or by `bind`."""

    @abstractmethod
    def compile(self, site: Site) -> PlanStep:
        """The step, compiled; its place and what every step has are filled in by the caller.

        Raises:
            DefinitionError: it cannot work.
        """

    @abstractmethod
    def result_type(self, name: str) -> Any:
        """The type of the result of a step of this kind and this name; Any if no annotation says it."""


def kind_of(step: Step[Any, Any]) -> Kind:
    """The kind of a step."""
    kind = step.kind
    assert isinstance(kind, Kind), kind
    return kind
