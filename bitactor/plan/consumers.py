"""The compilation of a consumer's declaration to a plan."""

from __future__ import annotations

from bitactor.declare.context import Context
from bitactor.declare.functions import is_coroutine_function
from bitactor.declare.spawners import default_spawn
from bitactor.errors import DefinitionError
from bitactor.messages.duration import nanoseconds_or_none
from bitactor.messages.signal import DEFAULT_TTL
from bitactor.plan.arguments import Argument
from bitactor.plan.callbacks import compile_backoff, parameters_of, resource_for, resources_among
from bitactor.plan.declaration import ConsumerDeclaration
from bitactor.plan.plan import Callback, Plan, PlanStep, plan_digest


def compile_consumer(consumer: ConsumerDeclaration) -> Plan:
    """The plan of a consumer: one step whose input is the signal's token."""
    what = f"consumer {consumer.name!r}"
    options = consumer.options
    injected, takes = _bind_signal(consumer, what)
    function = consumer.function
    step = PlanStep(
        index=0,
        name=consumer.__name__,
        address=consumer.listens,
        run=Callback(function, is_coroutine_function(function), injected, (), resources=resources_among(injected)),
        limit=options["limit"],
        priority=options["priority"],
        policies=tuple(options["policies"]),
        spawn=options["spawn"] or default_spawn(is_coroutine_function(function)),
        arguments=(Argument("signal", 1, (), None, None, None, "input.signal"),),
        dependencies=(),
        retries=options["retries"],
        backoff=compile_backoff(options["backoff"], what, ()),
        timeout_ns=nanoseconds_or_none(options["timeout"]),
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
        deadline_ns=nanoseconds_or_none(options["deadline"]),
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


def _bind_signal(consumer: ConsumerDeclaration, what: str) -> tuple[dict[str, str], str]:
    """Parameter → what the function is given beside the signal; and the parameter that takes the signal."""
    injected: dict[str, str] = {}
    takes = None
    for parameter in parameters_of(consumer.function, what):
        resource = resource_for(consumer.name, consumer.options["resources"], parameter)
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
    return injected, takes
