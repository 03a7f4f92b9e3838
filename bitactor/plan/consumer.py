"""Consumers: functions that take signals by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from typing_extensions import override

from bitactor.declare.backoff import Backoff
from bitactor.declare.context import Context
from bitactor.declare.options import StepOptions, named_resources, refuse_bad_name, refuse_negative, refuse_no_bool
from bitactor.declare.policy import Policy
from bitactor.declare.resource import Resource
from bitactor.errors import DefinitionError
from bitactor.messages.duration import nanoseconds_or_none
from bitactor.messages.signal import DEFAULT_TTL, Signal
from bitactor.messages.values import is_text, shown
from bitactor.plan.arguments import Argument, converter_for
from bitactor.plan.callbacks import METHOD_PARAMETERS, Parameter, parameters_of, resource_for, unknown_hint
from bitactor.plan.plan import Plan, plan_digest
from bitactor.plan.steps import step_with_options


class Consumer:
    """A declared consumer of a signal name.  Calling it calls the function it was made from."""

    _calls_its_function = True

    def __init__(
        self,
        listens: str,
        function: Callable[..., Any],
        options: StepOptions,
        *,
        concurrency: int | None,
        group: str | None,
        broadcast: bool,
        deadline: float | None,
        resources: Mapping[str, Resource],
    ) -> None:
        self.listens, self.function, self.options = listens, function, options
        self.concurrency, self.broadcast, self.deadline, self.resources = concurrency, broadcast, deadline, resources
        self.group = group or _group_of(listens, function)
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", "consumer")
        refuse_bad_name(f"a consumer of {listens!r}", self.__name__)
        self.name = f"{self.__name__}@{listens}"
        self.__doc__ = function.__doc__
        self._plan: Plan | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @override
    def __repr__(self) -> str:
        return f"<Consumer {self.name}>"

    def check(self) -> Plan:
        """The consumer's plan, of one step."""
        if self._plan is None:
            self._plan = compile_consumer(self)
        return self._plan


def consumer(
    listens: str,
    *,
    concurrency: int | None = None,
    group: str | None = None,
    broadcast: bool = False,
    retries: int = 0,
    backoff: Backoff | Callable[..., float] | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
    spawn: str | None = None,
    limit: str | None = None,
    priority: int = 0,
    policies: Sequence[Policy] = (),
    resources: Iterable[Resource] = (),
) -> Callable[[Callable[..., Any]], Consumer]:
    """Declare a function as a consumer of the signals named `listens`.

    It takes the signal (`.name`, `.token`, `.ttl`, `.transaction`, …) and, if it asks for one, a `Context`.  Annotated
    with something else than `Signal` (a model, a dataclass, `dict`), it takes the emitted value itself, converted to
    that as a step's argument is; so is `.token` of a `Signal[Order]`.

    Args:
        concurrency: at most this many at once in one process; None: no limit of its own.
        group: of all consumers of one group in the mesh, one gets each signal; by default each function is a group.
        broadcast: every process that has this consumer gets each signal.
        retries, backoff, timeout, spawn, limit, priority, policies: as for a step.
        resources: what it may ask for by name or annotation, as a workflow's steps do.
        deadline: seconds from acceptance; the sender's remaining deadline holds as well.
    """
    refuse_bad_name("a consumer's signal", listens)
    what = f"consumer of {listens!r}"
    for option, value in (("concurrency", concurrency), ("deadline", deadline)):
        refuse_negative(what, option, value)
    if concurrency == 0:
        raise DefinitionError(f"{what}: concurrency=0 would never take a signal")
    refuse_no_bool(what, broadcast=broadcast)
    if group is not None and group != "":
        refuse_bad_name(f"the group of a {what}", group)
    named = named_resources(what, resources)
    given = {"retries": retries, "backoff": backoff, "timeout": timeout, "spawn": spawn, "limit": limit}
    options = StepOptions.of(what, {**given, "priority": priority, "policies": policies})

    def declare(function: Callable[..., Any]) -> Consumer:
        options.refuse_unfit(what, function)
        made = Consumer(
            listens, function, options, concurrency=concurrency, group=group, broadcast=broadcast, deadline=deadline,
            resources=named,
        )  # fmt: skip
        made.check()
        return made

    return declare


def _group_of(listens: str, function: Callable[..., Any]) -> str:
    """The group of a consumer for which none is named: its function's."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not (is_text(module) and is_text(name)):
        raise DefinitionError(
            f"consumer of {listens!r}: {shown(function)} has no name that its group could be called by; give it group=…"
        )
    return f"{module}.{name}"


def compile_consumer(consumer: Consumer) -> Plan:
    """The plan of a consumer: one step whose input is the signal's token."""
    what = f"consumer {consumer.name!r}"
    injected, takes = _bind_signal(consumer, what)
    is_value, annotation = _payload_of(takes.annotation)
    convert = converter_for(annotation, f"{what}, parameter {takes.name!r}")
    signal = Argument(takes.name if is_value else "signal", 1, (), None, convert, None, "input.signal")
    named = (takes.name,) if is_value else ()
    step = step_with_options(consumer.options, consumer.function, (signal,), injected, named, what)
    step.name, step.address = consumer.__name__, consumer.listens
    step.takes_signal = None if is_value else takes.name
    step.forward_code = step.code("forward", 1)
    for policy in step.policies:
        policy.check([takes.name])
    return Plan(
        workflow=consumer.name,
        digest=plan_digest(consumer.name, DEFAULT_TTL, step.name, ("signal",), (step,)),
        ttl=DEFAULT_TTL,
        deadline_ns=nanoseconds_or_none(consumer.deadline),
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
        resources=consumer.resources,
        listens=consumer.listens,
        group=consumer.group,
        broadcast=consumer.broadcast,
        concurrency=consumer.concurrency,
    )


def _payload_of(annotation: Any) -> tuple[bool, Any]:
    """Whether a parameter takes the emitted value itself, and not the signal that carries it; and what the value is
    annotated with."""
    nothing = inspect.Parameter.empty
    if any(annotation is plain for plain in (nothing, Any, object, Signal)):
        return False, nothing
    if isinstance(annotation, str) and annotation.rpartition(".")[2] == Signal.__name__:  # not known there
        return False, nothing
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Signal:
        return False, parts[0]
    if origin in (Annotated, Union, UnionType):
        for part in parts[: 1 if origin is Annotated else None]:
            is_value, value = _payload_of(part)
            if not is_value:
                return False, value
    return True, annotation


def _bind_signal(consumer: Consumer, what: str) -> tuple[dict[str, str], Parameter]:
    """Parameter → what the function is given beside the signal; and the parameter that takes the signal, or its
    value."""
    injected: dict[str, str] = {}
    takes = None
    for parameter in parameters_of(consumer.function, what):
        resource = resource_for(consumer.name, consumer.resources, parameter)
        if parameter.name == "ctx" or parameter.annotation is Context:
            injected[parameter.name] = "ctx"
        elif parameter.name == "attempt":
            injected[parameter.name] = "attempt"
        elif resource is not None:
            injected[parameter.name] = f"resource:{resource}"
        elif parameter.name in METHOD_PARAMETERS:
            raise DefinitionError(
                f"{what}: parameter {parameter.name!r}{unknown_hint(consumer.function, parameter.name, ())}"
            )
        elif takes is None:
            takes = parameter
        elif not parameter.has_default:
            raise DefinitionError(
                f"{what} takes the signal and, if it asks, a Context; {parameter.name!r} is one parameter too many"
            )
    if takes is None:
        raise DefinitionError(f"{what} takes no signal; give it a parameter")
    return injected, takes
