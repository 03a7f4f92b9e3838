"""The resources of a mesh: made once, when first needed; checked; made anew; closed in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from bitactor.errors import ConfigurationError, DefinitionError, DuplicateName, ResourceUnavailable, suggest
from bitactor.functions import is_coroutine_function
from bitactor.plan import Plan, order
from bitactor.ports import Clock
from bitactor.resources import Resource

logger = logging.getLogger("bitactor.resources")

CLOSE_WITHIN: Final = 2.0
"""Seconds that one resource may take to close."""

_ENTERED: Final = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)


class _Living:
    """A resource that was made."""

    __slots__ = ("checked_ns", "close", "value")

    def __init__(self, value: Any, close: Callable[[], Awaitable[None]], checked_ns: int) -> None:
        self.value = value
        self.close = close
        self.checked_ns = checked_ns


class Resources:
    """All resources of one mesh; used on its loop only.

    A factory runs as a step would: `async def` on the loop, `def` in a thread.  What `@contextmanager` or `@asynccontextmanager` makes is entered, and
    left at the end; anything else is the resource itself, and `close=` says how it ends.  Several who need it first share one making, and one of them
    that is cancelled does not cancel it for the others.  A failed check has it closed at once, also if others still use it: it is broken.

    Args:
        plans: whose resources are held.
        replaced: name → an object to be given out instead; it is neither made nor checked nor closed.

    Raises:
        DuplicateName: two different resources have one name.
        DefinitionError: a factory takes what is no resource, or they need each other in a circle.
        ConfigurationError: `replaced` names none, or one that a step in a worker process uses.
    """

    def __init__(self, plans: Iterable[Plan], replaced: Mapping[str, Any], clock: Callable[[], Clock]) -> None:
        self._declared: dict[str, Resource] = {}
        self._needs: dict[str, list[str]] = {}
        self._clock = clock
        self._replaced = dict(replaced)
        plans = list(plans)
        for plan in plans:
            self._declare(plan)
        self._connect()
        _refuse_unknown(replaced, self._declared, plans)
        self._living: dict[str, _Living] = {}
        self._making: dict[str, asyncio.Task[Any]] = {}
        self._closed = False

    def add(self, plan: Plan) -> None:
        """Hold the resources of another plan as well; raises as the constructor does."""
        self._declare(plan)
        self._connect()

    def _declare(self, plan: Plan) -> None:
        for name, resource in plan.resources.items():
            if self._declared.setdefault(name, resource) is not resource:
                raise DuplicateName(
                    f"two different resources are called {name!r} (one of {plan.workflow!r}); share one, or rename it"
                )

    def _connect(self) -> None:
        self._needs = {name: self._needs_of(resource) for name, resource in self._declared.items()}
        order(self._needs, "resources")

    @property
    def names(self) -> tuple[str, ...]:
        """All that are declared."""
        return tuple(self._declared)

    def at_hand(self, names: Iterable[str]) -> dict[str, Any] | None:
        """Those resources, if all of them are made and no check is due; otherwise None."""
        found: dict[str, Any] = {}
        for name in names:
            if name in self._replaced:
                found[name] = self._replaced[name]
                continue
            living = self._living.get(name)
            if living is None or self._is_due(name, living):
                return None
            found[name] = living.value
        return found

    async def provide(self, names: Iterable[str]) -> dict[str, Any]:
        """Those resources, made or checked if need be.

        Raises:
            ResourceUnavailable: one could not be made; the next one who needs it tries again.
        """
        return {name: await self.get(name) for name in names}

    async def get(self, name: str) -> Any:
        """One resource; see `provide`."""
        if name not in self._declared:
            raise ResourceUnavailable(f"no resource {name!r} is declared.{suggest(name, self._declared)}")
        at_hand = self.at_hand([name])
        if at_hand is not None:
            return at_hand[name]
        if self._closed:
            raise ResourceUnavailable(f"resource {name!r}: the mesh is closed")
        making = self._making.get(name)
        if making is None:
            making = asyncio.get_running_loop().create_task(self._make_or_check(name), name=f"resource {name}")
            self._making[name] = making
            making.add_done_callback(lambda _: self._making.pop(name, None))
        return await asyncio.shield(making)

    async def close(self) -> None:
        """Close what was made, the last first; errors are logged.  Twice is once."""
        self._closed = True
        for task in list(self._making.values()):
            task.cancel()
        if self._making:
            await asyncio.wait(list(self._making.values()), timeout=CLOSE_WITHIN)
        while self._living:
            name, living = self._living.popitem()
            await self._close_one(name, living)

    def about(self) -> dict[str, str]:
        """Each resource, and how it stands."""
        return {
            name: "replaced" if name in self._replaced else "made" if name in self._living else "not made"
            for name in self._declared
        }

    async def _make_or_check(self, name: str) -> Any:
        living = self._living.get(name)
        if living is not None:
            if await self._is_well(name, living):
                living.checked_ns = self._clock().monotonic_ns()
                return living.value
            if self._living.get(name) is living:
                del self._living[name]
            await self._close_one(name, living)
        resource = self._declared[name]
        try:
            needed = await self.provide(self._needs[name])
            value, close = await _made(resource, needed)
        except ResourceUnavailable:
            raise
        except Exception as error:
            raise ResourceUnavailable(f"resource {name!r} could not be made: {type(error).__name__}: {error}") from error
        self._living[name] = _Living(value, close, self._clock().monotonic_ns())
        return value

    def _is_due(self, name: str, living: _Living) -> bool:
        resource = self._declared[name]
        return resource.check is not None and self._clock().monotonic_ns() - living.checked_ns >= resource.check_every * 1e9

    async def _is_well(self, name: str, living: _Living) -> bool:
        check = self._declared[name].check
        if check is None:
            return True
        try:
            well = bool(await _called(check, living.value))
        except Exception as error:
            logger.warning("resource %r: its check raised %s: %s; it is made anew", name, type(error).__name__, error)
            return False
        if not well:
            logger.warning("resource %r did not pass its check; it is made anew", name)
        return well

    async def _close_one(self, name: str, living: _Living) -> None:
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await living.close()
        except Exception as error:
            logger.warning("resource %r did not close: %s: %s", name, type(error).__name__, error)

    def _needs_of(self, resource: Resource) -> list[str]:
        if resource.requires is not None:
            needs = list(resource.requires)
        else:
            parameters = inspect.signature(resource.factory).parameters.values()
            needs = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
        for name in needs:
            if name not in self._declared:
                raise DefinitionError(
                    f"resource {resource.name!r}: its factory takes {name!r}, which is no resource here.{suggest(name, self._declared)}"
                )
        return needs


class ResourceView:
    """The resources a step may ask for beside those it takes as parameters: `await ctx.resources.get("name")`."""

    __slots__ = ("_allowed", "_resources")

    def __init__(self, resources: Resources | None, allowed: Mapping[str, Resource]) -> None:
        self._resources = resources
        self._allowed = allowed

    def __contains__(self, name: object) -> bool:
        return name in self._allowed

    async def get(self, name: str) -> Any:
        """One resource of the step's workflow.

        Raises:
            ResourceUnavailable: the workflow has none of that name, or it could not be made.
        """
        if self._resources is None or name not in self._allowed:
            raise ResourceUnavailable(f"this workflow has no resource {name!r}.{suggest(name, self._allowed)}")
        return await self._resources.get(name)


async def _made(resource: Resource, needed: Mapping[str, Any]) -> tuple[Any, Callable[[], Awaitable[None]]]:
    """The resource, and what ends it."""
    made = await _called(resource.factory, **needed)
    if isinstance(made, contextlib._AsyncGeneratorContextManager):
        value = await made.__aenter__()

        async def leave() -> None:
            await made.__aexit__(None, None, None)

        return value, leave
    if isinstance(made, contextlib._GeneratorContextManager):
        value = await asyncio.to_thread(made.__enter__)

        async def leave_in_thread() -> None:
            await asyncio.to_thread(made.__exit__, None, None, None)

        return value, leave_in_thread

    async def close() -> None:
        if resource.close is not None:
            await _called(resource.close, made)

    return made, close


async def _called(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if is_coroutine_function(function):
        return await function(*arguments, **named)
    if inspect.isfunction(inspect.unwrap(function)) and hasattr(function, "__wrapped__") and _makes_context(function):
        return function(*arguments, **named)
    made = await asyncio.to_thread(function, *arguments, **named)
    return await made if inspect.isawaitable(made) else made


def _makes_context(function: Callable[..., Any]) -> bool:
    """Whether it is made by `@contextmanager` or `@asynccontextmanager`: calling it does nothing yet."""
    inner = inspect.unwrap(function)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _refuse_unknown(replaced: Mapping[str, Any], declared: Mapping[str, Resource], plans: Iterable[Plan]) -> None:
    for name in replaced:
        if name not in declared:
            raise ConfigurationError(f"replace names {name!r}, which is no resource of this mesh.{suggest(name, declared)}")
    for plan in plans:
        for step in plan.all_steps():
            used = next((name for name in step.run.resources if name in replaced), None)
            if used is not None and step.spawn == "process":
                raise ConfigurationError(
                    f"replace names {used!r}, but step {step.address!r} uses it in a worker process, which an object cannot reach; "
                    "replace the step as well, or let it run in a thread"
                )
