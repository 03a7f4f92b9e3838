"""Consumers: functions that take signals by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import override

from bitactor.declare.backoff import Backoff
from bitactor.declare.options import (
    named_resources,
    refuse_bad_extras,
    refuse_bad_name,
    refuse_bad_spawn,
    refuse_negative,
    refuse_without_effect,
)
from bitactor.declare.policy import Policy
from bitactor.declare.resource import Resource
from bitactor.errors import DefinitionError
from bitactor.plan.consumers import compile_consumer
from bitactor.plan.plan import Plan


class Consumer:
    """A declared consumer of a signal name.  Calling it calls the function it was made from."""

    def __init__(self, listens: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.listens = listens
        self.function = function
        self.options = options
        self.group: str = options.get("group") or f"{function.__module__}.{function.__qualname__}"
        self.name = f"{getattr(function, '__name__', 'consumer')}@{listens}"
        self.broadcast: bool = options.get("broadcast", False)
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", "consumer")
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

    It takes the signal (`.name`, `.token`, `.ttl`, `.transaction`, …) and, if it asks for one, a `Context`.

    Args:
        concurrency: at most this many at once in one process; None: no limit of its own.
        group: of all consumers of one group in the mesh, one gets each signal; by default each function is a group.
        broadcast: every process that has this consumer gets each signal.
        retries, backoff, timeout, spawn, limit, priority, policies: as for a step.
        resources: what it may ask for by name or annotation, as a workflow's steps do.
        deadline: seconds from acceptance; the sender's remaining deadline holds as well.
    """
    refuse_bad_name("a consumer's signal", listens)
    for option, value in (
        ("concurrency", concurrency),
        ("retries", retries),
        ("timeout", timeout),
        ("deadline", deadline),
    ):
        refuse_negative(f"consumer of {listens!r}", option, value)
    if concurrency == 0:
        raise DefinitionError(f"consumer of {listens!r}: concurrency=0 would never take a signal")
    options = {
        "concurrency": concurrency, "group": group, "broadcast": broadcast, "retries": retries, "backoff": backoff,
        "timeout": timeout, "deadline": deadline, "spawn": spawn, "limit": limit, "priority": priority,
        "policies": policies, "resources": named_resources(f"consumer of {listens!r}", resources),
    }  # fmt: skip

    refuse_bad_extras(f"consumer of {listens!r}", options)

    def declare(function: Callable[..., Any]) -> Consumer:
        refuse_bad_spawn(f"consumer of {listens!r}", function, spawn)
        refuse_without_effect(f"consumer of {listens!r}", options)
        made = Consumer(listens, function, options)
        made.check()
        return made

    return declare
