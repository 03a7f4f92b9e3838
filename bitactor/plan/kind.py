"""The port of a kind as declared: its options, which arguments it needs, how it is compiled, and its type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from types import FunctionType, MappingProxyType, MethodType
from typing import Any, ClassVar, NamedTuple, Union

from bitactor.declare.functions import refuse_generator
from bitactor.declare.source import Input, Result, Source, Value, functions_of
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError
from bitactor.forms.keys import SOURCE, Key
from bitactor.plan.arguments import Argument, converter_for
from bitactor.plan.callbacks import Parameter, hints_of, injected_as, parameters_of
from bitactor.plan.declaration import Declaration
from bitactor.plan.fit import cannot_fit, field_of, has_hooks, part_of, type_text
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
    beside: tuple[str, ...] = ()
    """Names of the arguments that only its undo, compensate or backoff take."""

    def function_body(
        self,
        function: Callable[..., Any],
        name: str,
        address: str,
        *,
        special: Mapping[str, str] = MappingProxyType({}),
        given: Mapping[str, tuple[Any, str]] = MappingProxyType({}),
    ) -> Plan:
        """A body of one step made from a function; its inputs are the function's parameters.

        Args:
            special: parameter → the input it is given, where that is called otherwise.
            given: parameter → the annotation of what it is given when it runs, and where that comes from.
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
            if known:
                refuse_misfit(self.what, parameter, given_type(workflow, step, field), repr(field))
            if parameter.name in given:
                refuse_misfit(self.what, parameter, *given[parameter.name], cure="change one of them")
            arguments.append(
                Argument(parameter.name, 1 + inputs.index(field), (), None, convert, None, f"input.{field}")
            )
        beside = [name for name in self.beside if name not in inputs]
        for name in beside:
            inputs.append(name)
            converter = next(argument.converter for argument in self.arguments if argument.name == name)
            arguments.append(Argument(name, len(inputs), (), None, converter, None, f"input.{name}"))
        compiled = function_step(
            workflow, step, tuple(arguments), injected, self.what, function=function, beside=beside
        )
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


def given_type(workflow: Declaration, step: Step[Any, Any], name: str) -> Any:
    """The annotation of what an argument of a step is given, as its source says; Any if that is not known."""
    source = step.options.bind.get(name)
    fields = workflow.input_model.model_fields
    if source is None:
        source = Input(name) if name in fields else Result(name)
    if source.transform is not None:
        return _returned_by(functions_of(source.transform)[-1])
    return part_of(_origin_type(workflow, step, source), getattr(source, "path", ()))


def _origin_type(workflow: Declaration, step: Step[Any, Any], source: Source) -> Any:
    """The annotation of what a source's path leads into."""
    if isinstance(source, Value):
        return type(source.value)
    if isinstance(source, Input):
        known = source.name in workflow.input_model.model_fields
        return field_of(workflow.input_model, source.name) if known else Any
    other = workflow.steps.get(source.step) if isinstance(source, Result) else None
    return Any if other is None or other is step or other.deferred else result_of(other)


def _returned_by(function: Callable[..., Any]) -> Any:
    """The annotation of what a transform returns; Any if none says it, or if it is decorated, for it says what the
    function within returns."""
    if type(function) is type and function.__module__ == "builtins":
        return function
    is_plain = type(function) in (FunctionType, MethodType) and not hasattr(function, "__wrapped__")
    return hints_of(function).get("return", Any) if is_plain else Any


def result_of(step: Step[Any, Any]) -> Any:
    """The annotation of a step's result; Any if none says it, or if something else may stand in for it."""
    options = step.options
    try:
        if not _says_its_result(step):
            return Any
        kind = kind_of(step).result_type(step.name)
    except Exception:  # what it nests cannot work, and is refused for that
        return Any
    return kind if options.when is None and options.required else Union[kind, None]  # noqa: UP007


def _says_its_result(step: Step[Any, Any]) -> bool:
    """Whether nothing stands in for what the function of a step answers, nor in what it nests."""
    options, kind = step.options, kind_of(step)
    if options.guard is not None or options.policies or step.compensate_function is not None:
        return False
    nested = (target for target in kind.targets or (kind.workflow,) if isinstance(target, Declaration))
    return all(_says_its_result(returned_step(workflow)) for workflow in nested)


def returned_step(workflow: Declaration) -> Step[Any, Any]:
    """The step whose result is the workflow's."""
    name = workflow.returned or next(name for name in reversed(workflow.steps) if not workflow.steps[name].deferred)
    return workflow.steps[name]


def refuse_misfit(
    what: str, parameter: Parameter, given: Any, origin: str, *, exactly: bool | None = None, cure: str = ""
) -> None:
    """Raises `DefinitionError` if a parameter can never be given what comes from `origin`, which is a `given`."""
    if cannot_fit(given, parameter.annotation, exactly=exactly):
        cure = cure or f"change one of them, or convert it: bind={{{parameter.name!r}: Result(…).map(…)}}, or Input(…)"
        raise DefinitionError(
            f"{what}: {parameter.name!r} is annotated with {type_text(parameter.annotation)}, and {origin}, where it "
            f"comes from, with {type_text(given)}, of which none can be made; {cure}"
        )


def refuse_misfits(workflow: Declaration, step: Step[Any, Any], what: str, kind: Kind, names: Container[str]) -> None:
    """Raises `DefinitionError` if an input of a workflow that the step nests can never be given its argument."""
    for target in kind.targets or (kind.workflow,):
        if isinstance(target, Declaration) and not has_hooks(target.input_model):
            for name in target.input_model.model_fields:
                if name in names:
                    wanted = Parameter(name, field_of(target.input_model, name), False)
                    origin = f"the argument for {target.name!r}"
                    refuse_misfit(what, wanted, given_type(workflow, step, name), origin, exactly=False)


def kind_of(step: Step[Any, Any]) -> Kind:
    """The kind of a step."""
    kind = step.kind
    assert isinstance(kind, Kind), kind
    return kind
