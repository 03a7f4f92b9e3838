"""From declarations to a plan: parameters are resolved to sources, shapes of callbacks checked, the graph indexed."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bitactor.declare.backoff import Backoff
from bitactor.declare.context import Context
from bitactor.declare.functions import is_coroutine_function
from bitactor.declare.resource import Resource
from bitactor.errors import BitActorError, DefinitionError, DuplicateName, MissingReturn, UnknownArgument, suggest
from bitactor.messages.codec import encode_token
from bitactor.messages.signal import DEFAULT_TTL
from bitactor.plan.arguments import Argument, Element, Input, Result, Source, Value, converter
from bitactor.plan.plan import Callback, Plan, PlanStep, plan_digest, refuse_too_deep, topological_order

if TYPE_CHECKING:
    from bitactor.consumer import Consumer
    from bitactor.declare.step import Step
    from bitactor.workflow import Workflow

_INJECTABLE = {
    "run": frozenset(("ctx", "attempt")),
    "undo": frozenset(("ctx", "attempt", "result")),
    "compensate": frozenset(("ctx", "attempt", "error")),
    "backoff": frozenset(("ctx", "attempt", "error")),
    "when": frozenset(),
}


RESERVED_FOR_CONTEXT = ("ctx", "attempt")


class Parameter(typing.NamedTuple):
    """One parameter of a function."""

    name: str
    annotation: Any
    has_default: bool


def known_dependencies(workflow: Workflow) -> dict[str, list[str]]:
    """Each step's dependencies as far as they are declared by now, in order of declaration."""
    return {name: _dependency_names(workflow, step) for name, step in workflow.steps.items()}


def forward_references(workflow: Workflow, step: Step[Any, Any]) -> set[str]:
    """The names a step refers to that are not declared by now; steps of that name may still come."""
    bind = step.options.get("bind") or {}
    named = {name for name in step.takes or () if bind.get(name) is None}
    named |= {source.step for source in bind.values() if isinstance(source, Result)}
    named |= {other if isinstance(other, str) else other.name for other in step.options.get("after") or ()}
    return named - workflow.steps.keys() - workflow.input_model.model_fields.keys()


def dependencies_of(workflow: Workflow, step: Step[Any, Any]) -> list[str]:
    """The declared steps that one waits for."""
    return _dependency_names(workflow, step)


def compile_workflow(workflow: Workflow, address: str | None = None) -> Plan:
    """The plan of a workflow; raises `DefinitionError` and its kinds.

    Args:
        address: what its steps' addresses begin with, if that is not the workflow's own name: where it is nested.
    """
    owner = f"workflow {workflow.name!r}"
    address = address or workflow.name
    names = [name for name, step in workflow.steps.items() if not step.deferred]
    later = [name for name, step in workflow.steps.items() if step.deferred]
    if not names:
        raise MissingReturn(f"{owner} has only deferred steps; one has to run first to plan them")
    dependencies = {name: _waits_for(workflow, workflow.steps[name]) for name in names}
    ordered = topological_order(dependencies, owner)
    inputs = tuple(workflow.input_model.model_fields)
    slots = {name: index for index, name in enumerate([*names, *inputs])}
    steps = tuple(
        _compile_step(
            workflow, workflow.steps[name], slots, tuple(slots[other] for other in dependencies[name]), address
        )
        for name in names
    )
    deferred = {
        name: _compile_step(
            workflow,
            workflow.steps[name],
            {**slots, name: -1},
            tuple(slots[other] for other in _waits_for(workflow, workflow.steps[name])),
            address,
        )
        for name in later
    }
    depths = {step.name: step.container.depth for step in steps if step.container is not None}
    depth = refuse_too_deep(owner, workflow.ttl, dependencies, ordered, depths)
    for step in steps:
        for dependency in step.dependencies:
            steps[dependency].dependents += (step.index,)
    returned = workflow.returned or names[-1]
    if returned in later:
        raise MissingReturn(
            f"{owner} returns {returned!r}, which is deferred, and runs only where a Then plans it, if at all"
        )
    bodies = [body for step in steps if step.container is not None for body in step.container.bodies]
    return Plan(
        workflow=workflow.name,
        digest=plan_digest(workflow.name, workflow.ttl, returned, inputs, [*steps, *deferred.values()]),
        ttl=workflow.ttl,
        deadline_ns=nanoseconds(workflow.deadline),
        undo_timeout_ns=int(workflow.undo_timeout * 1e9),
        grace_ns=int(workflow.grace * 1e9),
        redeliveries=workflow.redeliveries,
        steps=steps,
        by_name={step.name: step.index for step in steps},
        inputs=inputs,
        initial=tuple(step.index for step in steps if not step.dependencies),
        dependency_counts=tuple(len(step.dependencies) for step in steps),
        returns=slots[returned],
        errors=_errors_of(workflow, bodies),
        resources=_merged_resources(owner, workflow, bodies),
        max_concurrency=workflow.max_concurrency,
        max_hops=workflow.max_hops,
        deferred=deferred,
        depth=depth,
        has_no_undo=has_no_undo([*steps, *deferred.values()]),
    )


def has_no_undo(steps: Iterable[PlanStep]) -> bool:
    """Whether none of these has an undo, on whatever level."""
    return all(
        step.undo is None and (step.container is None or all(body.has_no_undo for body in step.container.bodies))
        for step in steps
    )


def _errors_of(workflow: Workflow, bodies: Iterable[Plan]) -> dict[str, type[BaseException]]:
    errors = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in workflow.errors}
    for body in bodies:
        errors |= body.errors
    return errors


def _merged_resources(owner: str, workflow: Workflow, bodies: Iterable[Plan]) -> dict[str, Resource]:
    resources = dict(workflow.resources)
    for body in bodies:
        for name, resource in body.resources.items():
            if resources.setdefault(name, resource) is not resource:
                raise DuplicateName(
                    f"{owner} and what is nested in it have two different resources {name!r}; share one, or rename it"
                )
    return resources


def compile_consumer(consumer: Consumer) -> Plan:
    """The plan of a consumer: one step whose input is the signal's token."""
    what = f"consumer {consumer.name!r}"
    options = consumer.options
    injected, takes = {}, None
    for parameter in parameters_of(consumer.function, what):
        resource = resource_for(consumer.name, options["resources"], parameter)
        if parameter.name == "ctx" or parameter.annotation is Context:
            injected[parameter.name] = "ctx"
        elif parameter.name == "attempt":
            injected[parameter.name] = "attempt"
        elif resource is not None:
            injected[parameter.name] = f"resource:{resource}"
        elif takes is None:
            takes = parameter.name
        elif not parameter.has_default:
            raise DefinitionError(
                f"{what} takes the signal and, if it asks, a Context; {parameter.name!r} is one parameter too many"
            )
    if takes is None:
        raise DefinitionError(f"{what} takes no signal; give it a parameter")
    function = consumer.function
    step = PlanStep(
        index=0,
        name=consumer.__name__,
        address=consumer.listens,
        run=Callback(function, is_coroutine_function(function), injected, (), resources=resources_among(injected)),
        limit=options["limit"],
        priority=options["priority"],
        policies=tuple(options["policies"]),
        spawn=options["spawn"] or ("loop" if is_coroutine_function(function) else "thread"),
        arguments=(Argument("signal", 1, (), None, None, None, "input.signal"),),
        dependencies=(),
        retries=options["retries"],
        backoff=compile_backoff(options["backoff"], what, ()),
        timeout_ns=nanoseconds(options["timeout"]),
        takes_signal=takes,
        token_in=("input.signal",),
    )
    step.forward_code = step.code("forward", 1)
    for policy in step.policies:
        policy.check([takes])
    return Plan(
        workflow=consumer.name,
        digest=plan_digest(consumer.name, DEFAULT_TTL, step.name, ("signal",), (step,)),
        ttl=DEFAULT_TTL,
        deadline_ns=nanoseconds(options["deadline"]),
        undo_timeout_ns=60_000_000_000,
        grace_ns=2_000_000_000,
        redeliveries=3,
        steps=(step,),
        by_name={step.name: 0},
        inputs=("signal",),
        initial=(0,),
        dependency_counts=(0,),
        returns=0,
        errors={},
        resources=options["resources"],
        listens=consumer.listens,
        group=consumer.group,
        broadcast=consumer.broadcast,
        concurrency=options["concurrency"],
    )


def _compile_step(
    workflow: Workflow, step: Step[Any, Any], slots: Mapping[str, int], dependencies: tuple[int, ...], address: str
) -> PlanStep:
    what = f"step {step.name!r} of {workflow.name!r}"
    parameters = parameters_of(step.function, what) if step.kind is None else step.kind.parameters(what)
    arguments, injected = _bind(workflow, step, slots, what, parameters)
    if step.kind is None:
        compiled = function_step(workflow, step, arguments, injected, what)
    else:
        site = Site(workflow, step, what, f"{address}/{step.name}", arguments)
        compiled = PlanStep(
            0,
            step.name,
            "",
            NO_FUNCTION,
            "inline",
            arguments,
            (),
            container=step.kind.compile(site),
            kind=step.kind.label,
        )
    compiled.index, compiled.name, compiled.address = slots[step.name], step.name, f"{address}/{step.name}"
    compiled.dependencies, compiled.deferred = dependencies, step.deferred
    for role in ("when", "guard"):
        if (function := step.options.get(role)) is not None:
            callback, extra = _compile_predicate(workflow, role, function, arguments, slots, dependencies, what)
            setattr(compiled, role, callback)
            compiled.when_arguments += tuple(argument for argument in extra if argument not in compiled.when_arguments)
    decided = compiled.container is not None or any(argument.transform is not None for argument in arguments)
    compiled.needs_evaluation = decided or compiled.when is not None or compiled.guard is not None
    compiled.forward_code = compiled.code("forward", 1)
    return compiled


NO_FUNCTION = Callback(print, False, {}, ())
"""Stands where a container has no function of its own."""


class Site(typing.NamedTuple):
    """Where a kind is compiled."""

    workflow: Workflow
    step: Step[Any, Any]
    what: str
    address: str
    arguments: tuple[Argument, ...]

    def body(self, nested: Workflow, address: str) -> Plan:
        """A workflow as a body: its steps are addressed below `address`.

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


def single_step_plan(workflow: Workflow, step: PlanStep, inputs: tuple[str, ...]) -> Plan:
    """A body of one step."""
    return Plan(
        workflow=workflow.name,
        digest=plan_digest(step.address, 0, step.name, inputs, (step,)),
        ttl=workflow.ttl,
        deadline_ns=None,
        undo_timeout_ns=int(workflow.undo_timeout * 1e9),
        grace_ns=int(workflow.grace * 1e9),
        redeliveries=workflow.redeliveries,
        steps=(step,),
        by_name={step.name: 0},
        inputs=inputs,
        initial=(0,),
        dependency_counts=(0,),
        returns=0,
        errors={},
        resources=workflow.resources,
        depth=1,
        has_no_undo=has_no_undo((step,)),
    )


def function_step(
    workflow: Workflow,
    step: Step[Any, Any],
    arguments: tuple[Argument, ...],
    injected: dict[str, str],
    what: str,
    *,
    function: Callable[..., Any] | None = None,
    undo: bool = True,
) -> PlanStep:
    """A step that calls a function, with the options of its declaration; its name and places are still to be filled in.

    Args:
        function: instead of the declared one.
        undo: whether the declared undo is compiled too.
    """
    function = function or step.function
    options = step.options
    takes = tuple(argument.name for argument in arguments)
    is_async = is_coroutine_function(function)
    compiled = PlanStep(
        index=0,
        name="",
        address="",
        run=Callback(function, is_async, injected, takes, resources=resources_among(injected)),
        spawn=options.get("spawn") or ("loop" if is_async else "thread"),
        required=options.get("required", True),
        priority=options.get("priority", 0),
        limit=options.get("limit"),
        policies=tuple(options.get("policies") or ()),
        arguments=arguments,
        dependencies=(),
        retries=options.get("retries", 0),
        backoff=compile_backoff(options.get("backoff"), what, takes, workflow),
        retry_on=exception_types(options.get("retry_on", Exception), what),
        timeout_ns=nanoseconds(options.get("timeout")),
        kind=step.label,
        token_in=tuple(argument.reference for argument in arguments),
    )
    for policy in compiled.policies:
        policy.check(takes)
    if step.undo_function is not None and undo:
        compiled.undo = compile_callback("undo", step.undo_function, takes, f"undo of {what}", workflow)
        compiled.undo.in_doubt, compiled.undo.retries = step.undo_in_doubt, step.undo_retries
        if step.undo_in_doubt and not compiled.undo.takes and not compiled.undo.injected:
            raise DefinitionError(
                f"undo of {what}: with in_doubt=True it needs `ctx` or an argument to know what to look for"
            )
    if step.compensate_function is not None:
        compiled.compensate = compile_callback(
            "compensate", step.compensate_function, takes, f"compensate of {what}", workflow
        )
    return compiled


def injected_as(workflow: Workflow, parameter: Parameter) -> str | None:
    """What a parameter is given that is neither input nor result: `ctx`, `attempt`, or `resource:name`."""
    if parameter.annotation is Context:
        return "ctx"
    if parameter.name in ("ctx", "attempt"):
        return parameter.name
    resource = resource_for(workflow.name, workflow.resources, parameter)
    return None if resource is None else f"resource:{resource}"


def _bind(
    workflow: Workflow, step: Step[Any, Any], slots: Mapping[str, int], what: str, parameters: Iterable[Parameter]
) -> tuple[tuple[Argument, ...], dict[str, str]]:
    bind = dict(step.options.get("bind") or {})
    arguments, injected = [], {}
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
                if step.deferred:
                    arguments.append(_unbound(parameter, what))
                continue
            raise UnknownArgument(
                f"{what}: parameter {parameter.name!r} is neither an input field nor a "
                f"step.{suggest(parameter.name, {*slots, *workflow.resources})}"
            )
        arguments.append(_argument(workflow, parameter, source, slots, what))
    for name in bind:
        taken = [argument.name for argument in arguments]
        raise UnknownArgument(
            f"{what}: bind names {name!r}, which is no parameter of {step.noun}.{suggest(name, taken)}"
        )
    return tuple(arguments), injected


def _unbound(parameter: Parameter, what: str) -> Argument:
    """A parameter of a deferred step that whoever plans it has to bind; None if nobody does."""
    return Argument(parameter.name, -1, (), None, converter(parameter.annotation, what), None, "unbound")


def _argument(workflow: Workflow, parameter: Parameter, source: Any, slots: Mapping[str, int], what: str) -> Argument:
    convert = converter(parameter.annotation, f"{what}, parameter {parameter.name!r}")
    if source is None:
        source = (
            Input(parameter.name) if parameter.name in workflow.input_model.model_fields else Result(parameter.name)
        )
    if isinstance(source, Value):
        try:
            constant = encode_token(source.value)
        except BitActorError as error:
            raise DefinitionError(f"{what}: bind[{parameter.name!r}]: {error}") from None
        return Argument(parameter.name, -1, (), source.transform, convert, constant, "value")
    origin = source.name if isinstance(source, Input) else source.step
    reference = ".".join(str(part) for part in ("input", origin, *source.path)[isinstance(source, Result) :])
    return Argument(parameter.name, slots[origin], source.path, source.transform, convert, None, reference)


def _dependency_names(workflow: Workflow, step: Step[Any, Any], *, strict: bool = False) -> list[str]:
    """The steps this one waits for; unknown names raise when `strict`, and are passed over otherwise (they may come
    later)."""
    what = f"step {step.name!r} of {workflow.name!r}"
    found: dict[str, None] = {}
    bind = step.options.get("bind") or {}
    if step.takes is None:
        parameters = parameters_of(step.function, what) if step.kind is None else step.kind.parameters(what)
        step.takes = tuple(parameter.name for parameter in parameters)
    for parameter in step.takes:
        if bind.get(parameter) is None and parameter in workflow.steps and parameter not in RESERVED_FOR_CONTEXT:
            found[parameter] = None
    for name, source in bind.items():
        if not isinstance(source, Source):
            raise DefinitionError(
                f"{what}: bind[{name!r}] is {source!r}; use Input(name, …), Result(step, …) or Value(v)"
            )
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
    after = step.options.get("after") or ()
    if isinstance(after, str):
        raise DefinitionError(f"{what}: after={after!r}; give a list of steps")
    for other in after:
        if not isinstance(other, str) and other.workflow is not workflow:
            raise UnknownArgument(f"{what}: after names {other!r}, which is a step of another workflow")
        _require(other if isinstance(other, str) else other.name, workflow.steps, f"{what}: after names", strict, found)
    return list(found)


def _waits_for(workflow: Workflow, step: Step[Any, Any]) -> list[str]:
    """The declared steps that one waits for.

    Raises:
        DefinitionError: one of them is deferred; what a deferred step leaves for others to bind may be called like one.
    """
    found = _dependency_names(workflow, step, strict=True)
    sources = (step.options.get("bind") or {}).values()
    named = {source.step for source in sources if isinstance(source, Result)}
    named |= {other if isinstance(other, str) else other.name for other in step.options.get("after") or ()}
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


def _compile_predicate(
    workflow: Workflow,
    role: str,
    function: Callable[..., Any],
    arguments: Sequence[Argument],
    slots: Mapping[str, int],
    dependencies: Sequence[int],
    what: str,
) -> tuple[Callback, tuple[Argument, ...]]:
    """`when` or `guard`: it may take the step's arguments, input fields, and the results of what the step waits for."""
    if not callable(function):
        raise DefinitionError(f"{what}: {role}={function!r}; give a function")
    if is_coroutine_function(function):
        raise DefinitionError(
            f"{what}: `{role}` is decided on the supervisor's turn and cannot await; make it a plain function"
        )
    own = {argument.name for argument in arguments}
    parameters = parameters_of(function, f"`{role}` of {what}")
    extra = []
    for parameter in parameters:
        if parameter.name in own:
            continue
        slot = slots.get(parameter.name)
        if slot is not None and (parameter.name in workflow.input_model.model_fields or slot in dependencies):
            extra.append(Argument(parameter.name, slot, (), None, None, None, parameter.name))
        elif not parameter.has_default:
            raise UnknownArgument(
                f"`{role}` of {what}: {parameter.name!r} is neither an argument of the step, an input field, nor a "
                "step it waits for."
                f"{suggest(parameter.name, [*own, *workflow.input_model.model_fields])}"
            )
    takes = tuple(parameter.name for parameter in parameters if parameter.name in own or parameter.name in slots)
    return Callback(function, False, {}, takes), tuple(extra)


def resource_for(owner: str, resources: Mapping[str, Resource], parameter: Parameter) -> str | None:
    """The resource a parameter asks for, by its name or else by its annotation.

    Raises:
        DefinitionError: several resources are what its annotation says.
    """
    if parameter.name in resources:
        return parameter.name
    kind = parameter.annotation
    if not isinstance(kind, type):
        return None
    found = [resource.name for resource in resources.values() if resource.provides is kind]
    if len(found) > 1:
        raise DefinitionError(
            f"{owner!r}: parameter {parameter.name!r} asks for a {kind.__name__}, and {' and '.join(found)} are; "
            "call the parameter like one of them"
        )
    return found[0] if found else None


def resources_among(injected: Mapping[str, str]) -> tuple[str, ...]:
    prefix = "resource:"
    return tuple(what.removeprefix(prefix) for what in injected.values() if what.startswith(prefix))


def compile_backoff(
    backoff: Any, what: str, takes: Sequence[str], workflow: Workflow | None = None
) -> Backoff | Callback | None:
    if backoff is None or isinstance(backoff, Backoff):
        return backoff
    if callable(backoff):
        return compile_callback("backoff", backoff, takes, f"backoff of {what}", workflow)
    raise DefinitionError(f"{what}: backoff={backoff!r}; give a Backoff(initial, factor, cap, jitter) or a function")


def compile_callback(
    role: str, function: Callable[..., Any], takes: Sequence[str], what: str, workflow: Workflow | None = None
) -> Callback:
    injected, taken, convert_result = {}, [], None
    for parameter in parameters_of(function, what):
        resource = (
            resource_for(workflow.name, workflow.resources, parameter)
            if workflow is not None and parameter.name not in takes
            else None
        )
        if parameter.annotation is Context:
            injected[parameter.name] = "ctx"
        elif parameter.name in _INJECTABLE[role]:
            injected[parameter.name] = parameter.name
            if parameter.name == "result":
                convert_result = converter(parameter.annotation, what)
        elif parameter.name in takes:
            taken.append(parameter.name)
        elif resource is not None:
            injected[parameter.name] = f"resource:{resource}"
        elif not parameter.has_default:
            allowed = [*sorted(_INJECTABLE[role]), *takes]
            raise UnknownArgument(
                f"{what}: parameter {parameter.name!r} is not to be had there.{suggest(parameter.name, allowed)}"
            )
    is_async, resources = is_coroutine_function(function), resources_among(injected)
    return Callback(function, is_async, injected, tuple(taken), convert_result=convert_result, resources=resources)


def parameters_of(function: Callable[..., Any], what: str) -> list[Parameter]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise DefinitionError(
            f"{what}: the signature of {function!r} cannot be read ({error}); wrap it in a def"
        ) from None
    hints = _hints(function)
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DefinitionError(
                f"{what}: takes *{parameter.name}; name the parameters, for their names say what they are given"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise DefinitionError(f"{what}: {parameter.name!r} is positional-only, but arguments are passed by name")
        annotation = hints.get(parameter.name, parameter.annotation)
        found.append(Parameter(parameter.name, annotation, parameter.default is not parameter.empty))
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = inspect.unwrap(function)
    try:
        return typing.get_type_hints(inner, include_extras=True)
    except Exception:
        found: dict[str, Any] = {}
        for name, kind in getattr(inner, "__annotations__", {}).items():
            found |= _hint(inner, name, kind)
        return found


def _hint(function: Any, name: str, kind: Any) -> dict[str, Any]:
    """One annotation by itself, for where another one cannot be resolved; left out if it cannot either."""
    if kind in ("Context", "bitactor.Context"):
        return {name: Context}
    alone = types.SimpleNamespace(__annotations__={name: kind})
    try:
        return typing.get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)
    except Exception:
        return {}


def exception_types(retry_on: Any, what: str) -> tuple[type[BaseException], ...]:
    kinds = tuple(retry_on) if isinstance(retry_on, Sequence) else (retry_on,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise DefinitionError(f"{what}: retry_on={retry_on!r}; give an exception class or several")
    return kinds


def nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)


def with_function(step: PlanStep, function: Callable[..., Any]) -> PlanStep:
    """The same step with another function in its place; it may take any of the step's arguments, `ctx` and `attempt`.

    Raises:
        DefinitionError: it is no function, or asks for something else.
    """
    takes = [argument.name for argument in step.arguments]
    return replace(step, run=compile_callback("run", function, takes, f"replacement of {step.address!r}"))
