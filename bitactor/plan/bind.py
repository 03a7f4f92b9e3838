"""A declared step's parameters and predicates, bound to where their arguments come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bitactor.declare.context import Context
from bitactor.declare.functions import may_need_awaiting, refuse_generator, warn_of_near_misses
from bitactor.declare.options import RESERVED
from bitactor.declare.source import Input, Result, Value
from bitactor.declare.step import Step
from bitactor.errors import BitActorError, DefinitionError, UnknownArgument, suggest
from bitactor.messages.codec import encode_token
from bitactor.plan.arguments import Argument, converter_for
from bitactor.plan.callbacks import RESERVED_FOR_CONTEXT, Parameter, injected_as, parameters_of, unknown_hint
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import given_type, refuse_misfit
from bitactor.plan.plan import Callback


class Bound(NamedTuple):
    """The arguments of a step, compiled."""

    arguments: tuple[Argument, ...]
    injected: dict[str, str]
    """Parameter → what the step's function is given beside its arguments."""
    beside: tuple[str, ...]
    """Names of the arguments that only its undo, compensate or backoff take."""
    asked: tuple[Argument, ...]
    """Arguments, not among the others, that only `when` and `guard` take."""


def bind_parameters(
    workflow: Declaration, step: Step[Any, Any], slots: Mapping[str, int], what: str, parameters: Iterable[Parameter]
) -> Bound:
    """The arguments of a step, compiled.

    Raises:
        DefinitionError: or one of its kinds: a parameter's value comes from nowhere, or `bind` names none.
    """
    bind = dict(step.options.bind)
    arguments, injected, unused = [], {}, []
    for parameter in parameters:
        source = bind.pop(parameter.name, None)
        injection = None
        if source is None and (
            parameter.name not in slots or parameter.name in RESERVED_FOR_CONTEXT or parameter.annotation is Context
        ):
            injection = injected_as(workflow, parameter)
        if injection is not None:
            injected[parameter.name] = injection
            continue
        if source is None and parameter.name in ("result", "error"):
            raise DefinitionError(
                f"{what}: {parameter.name!r} is reserved for undo and compensate; rename the parameter or bind it"
            )
        if source is None and slots.get(parameter.name, -1) < 0:
            if parameter.has_default or step.deferred:
                if step.deferred:  # whoever plans the step may bind it; it is None if nobody does
                    convert = converter_for(parameter.annotation, what)
                    arguments.append(Argument(parameter.name, -1, (), None, convert, None, "unbound"))
                else:
                    unused.append(parameter.name)
                continue
            raise UnknownArgument(
                f"{what}: parameter {parameter.name!r} is neither an input field nor a step"
                f"{unknown_hint(step.function, parameter.name, {*slots, *workflow.resources})}"
            )
        arguments.append(_argument(workflow, step, parameter, source, slots, what))
    beside: list[str] = []
    asked: list[Argument] = []
    for name, (parameter, only_asked) in _callback_parameters(step, bind, what).items():
        argument = _argument(workflow, step, parameter, bind.pop(name), slots, what)
        (asked if only_asked else arguments).append(argument)
        beside += [] if only_asked else [name]
    if unused:
        _warn_of_near_misses(workflow, step, slots, what, unused, (*arguments, *asked), injected)
    for name in bind:
        taken = [argument.name for argument in arguments]
        raise UnknownArgument(
            f"{what}: bind names {name!r}, which is no parameter of {step.noun}.{suggest(name, taken)}"
        )
    return Bound(tuple(arguments), injected, tuple(beside), tuple(asked))


def _callback_parameters(step: Step[Any, Any], bind: Mapping[str, Any], what: str) -> dict[str, tuple[Parameter, bool]]:
    """What `bind` gives to other functions of the step alone: name → the parameter, and whether only `when` and `guard`
    have it."""
    found: dict[str, tuple[Parameter, bool]] = {}
    roles = {
        "undo": step.undo_function, "compensate": step.compensate_function, "backoff": step.options.backoff,
        "when": step.options.when, "guard": step.options.guard,
    }  # fmt: skip
    for role, function in roles.items() if bind else ():
        for parameter in parameters_of(function, f"{role} of {what}") if callable(function) else ():
            if bind.get(parameter.name) is not None and parameter.name not in RESERVED:
                found.setdefault(parameter.name, (parameter, role in ("when", "guard")))
    return found


def _warn_of_near_misses(
    workflow: Declaration,
    step: Step[Any, Any],
    slots: Mapping[str, int],
    what: str,
    unused: Iterable[str],
    arguments: Iterable[Argument],
    injected: Iterable[str],
) -> None:
    known = {*slots, *workflow.resources, *RESERVED_FOR_CONTEXT}.difference((step.name,))
    sources = {argument.reference.removeprefix("input.").partition(".")[0] for argument in arguments}
    taken = {*injected, *sources, *(argument.name for argument in arguments)}
    warn_of_near_misses(what, step.function, unused, known, taken)


def _argument(
    workflow: Declaration,
    step: Step[Any, Any],
    parameter: Parameter,
    source: Any,
    slots: Mapping[str, int],
    what: str,
) -> Argument:
    convert = converter_for(parameter.annotation, f"{what}, parameter {parameter.name!r}")
    if source is None:
        source = (
            Input(parameter.name) if parameter.name in workflow.input_model.model_fields else Result(parameter.name)
        )
    if isinstance(source, Value):
        try:
            constant = encode_token(source.value)
        except BitActorError as error:
            raise DefinitionError(f"{what}: bind[{parameter.name!r}]: {error}") from None
        argument = Argument(parameter.name, -1, (), source.transform, convert, constant, "value")
    else:
        origin = source.name if isinstance(source, Input) else source.step
        reference = ".".join(str(part) for part in ("input", origin, *source.path)[isinstance(source, Result) :])
        argument = Argument(parameter.name, slots[origin], source.path, source.transform, convert, None, reference)
    if convert is not None:
        refuse_misfit(what, parameter, given_type(workflow, step, parameter.name), repr(argument.reference))
    return argument


def compile_predicate(
    workflow: Declaration,
    step: Step[Any, Any],
    role: str,
    bound: Bound,
    slots: Mapping[str, int],
    dependencies: Sequence[int],
    what: str,
) -> tuple[Callback, tuple[Argument, ...]]:
    """`when` or `guard`, compiled; it may take the arguments of the step, what `bind` gives it, input fields, and
    results of what the step waits for."""
    function: Callable[..., Any] = getattr(step.options, role)
    if not callable(function):
        raise DefinitionError(f"{what}: {role}={function!r}; give a function")
    if may_need_awaiting(function):
        raise DefinitionError(
            f"{what}: `{role}` is decided on the supervisor's turn and cannot await; make it a plain function"
        )
    refuse_generator(f"`{role}` of {what}", function)
    own = {argument.name for argument in bound.arguments}
    asked = {argument.name: argument for argument in bound.asked}
    parameters = parameters_of(function, f"`{role}` of {what}")
    extra, unused = [], []
    for parameter in parameters:
        if parameter.name in own:
            continue
        if parameter.name in asked:
            extra.append(asked[parameter.name])
            continue
        slot = slots.get(parameter.name)
        if slot is not None and (parameter.name in workflow.input_model.model_fields or slot in dependencies):
            extra.append(Argument(parameter.name, slot, (), None, None, None, parameter.name))
        elif not parameter.has_default:
            is_step = slot is not None and parameter.name in workflow.steps and parameter.name != step.name
            hint = f"; it is a step: add it to what this one waits for, after=[{parameter.name!r}]" if is_step else ""
            raise UnknownArgument(
                f"`{role}` of {what}: {parameter.name!r} is neither an argument of the step, an input field, nor a "
                f"step it waits for{hint}"
                f"{unknown_hint(function, parameter.name, [*own, *workflow.input_model.model_fields])}"
            )
        else:
            unused.append(parameter.name)
    there = own | asked.keys() | slots.keys()
    takes = tuple(parameter.name for parameter in parameters if parameter.name in there)
    warn_of_near_misses(f"`{role}` of {what}", function, unused, {*own, *workflow.input_model.model_fields}, takes)
    return Callback(function, False, {}, takes), tuple(extra)
