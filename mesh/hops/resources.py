"""The resources of a mesh: made once, when first needed; checked; made anew; closed in reverse order."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from bitactor.declare.resource import Resource
from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import ConfigurationError, CycleError, DefinitionError, DuplicateName, ResourceUnavailable, suggest
from bitactor.messages.values import shown
from bitactor.plan.order import topological_order
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.ports import Clock
from mesh.hops.exits import CODE_OF
from mesh.hops.lifecycle import ResourceLifecycle, call_user_function

logger = logging.getLogger("bitactor.resources")

CHECK_WITHIN: Final = 10.0
"""Seconds that a check may take; one that takes longer has failed."""


class ResourceManager:
    """All resources of one mesh; used on its loop only.

    A factory runs as a step would: `async def` on the loop, `def` in a thread.  What `@contextmanager` or
    `@asynccontextmanager` makes is entered, and left at the end; anything else is the resource itself, and `close=`
    says how it ends.  Each lives in a task of its own from its making to its end.

    Several who need one that is not there share one making, and one of them that is cancelled does not cancel it for
    the others.  How long that takes does not count towards a step's timeout; the transaction's deadline holds.  A check
    says that all is well by any true answer, or by None. When one fails, the resource is closed at once, also if others
    still use it, for it is broken; so is what was made of it.

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
        self._dependencies: dict[str, list[str]] = {}
        self._clock = clock
        self.replaced = dict(replaced)  # resources in whose place something else is given out
        # Names of resources replaced in the parent process, which this worker process cannot provide
        self.replaced_in_parent: frozenset[str] = frozenset()
        plans = list(plans)
        for plan in plans:
            self._declare(plan)
        self._resolve_dependencies()
        self._refuse_replaced(plans)
        self._made: dict[str, ResourceLifecycle] = {}
        # All resources that are not closed yet, in the order of their making
        self.lifecycles: dict[ResourceLifecycle, None] = {}
        self._in_making: dict[str, asyncio.Task[Any]] = {}
        self._context = contextvars.copy_context()
        self._context.run(CODE_OF.set, True)
        self._closed = False

    def add(self, plan: Plan) -> None:
        """Hold the resources of another plan as well; raises as the constructor does."""
        self._declare(plan)
        self._resolve_dependencies()

    def get_ready(self, names: Iterable[str]) -> dict[str, Any] | None:
        """The resources of these names, if all are made and no check is due; otherwise None."""
        found: dict[str, Any] = {}
        for name in names:
            if name in self.replaced:
                found[name] = self.replaced[name]
            elif self._is_ready(name):
                found[name] = self._made[name].value
            else:
                return None
        return found

    async def get_many(self, names: Iterable[str]) -> dict[str, Any]:
        """The resources of these names, made or checked if need be.

        Raises:
            ResourceUnavailable: one could not be made; the next one who needs it tries again.
        """
        return {name: await self.get(name) for name in names}

    async def get(self, name: str) -> Any:
        """The resource of that name; see `get_many`."""
        if name not in self._declared:
            raise ResourceUnavailable(f"no resource {name!r} is declared.{suggest(name, self._declared)}")
        if name in self.replaced_in_parent:
            raise ResourceUnavailable(
                f"resource {name!r} is replaced by an object of another process, which cannot come here"
            )
        ready = self.get_ready([name])
        if ready is not None:
            return ready[name]
        if self._closed:
            raise ResourceUnavailable(f"resource {name!r}: the mesh is closed")
        making = self._in_making.get(name)
        if making is None:
            making = asyncio.get_running_loop().create_task(
                self._make_or_check(name), name=f"resource {name}", context=self._context.copy()
            )
            self._in_making[name] = making
            making.add_done_callback(lambda task: self._making_done(name, task))
        return await asyncio.shield(making)

    async def close(self) -> None:
        """Close all resources, the last made first; errors are logged.  Twice is once."""
        self._closed = True
        for task in list(self._in_making.values()):
            task.cancel()
        self._made.clear()
        for lifecycle in reversed(list(self.lifecycles)):
            await lifecycle.close()

    def about(self) -> dict[str, str]:
        """Resource name → `replaced`, `made` or `not made`."""
        return {
            name: "replaced" if name in self.replaced else "made" if name in self._made else "not made"
            for name in self._declared
        }

    # Making and checking

    def _making_done(self, name: str, task: asyncio.Task[Any]) -> None:
        self._in_making.pop(name, None)
        if not task.cancelled():
            task.exception()  # also if nobody waits for it any longer

    async def _make_or_check(self, name: str) -> Any:
        """The resource of that name; runs in a task that all who need it share.

        What it needs comes first: when the check of one of those fails, this one is closed with it.
        """
        needed = await self.get_many(self._dependencies[name])
        lifecycle = self._made.get(name)
        if lifecycle is not None:
            if not self._check_is_due(lifecycle) or await self._passes_check(lifecycle):
                return lifecycle.value
            await self._close_with_dependents(lifecycle)
        lifecycle = ResourceLifecycle(self._declared[name], needed, self._context.copy(), self._ended)
        self.lifecycles[lifecycle] = None
        try:
            value = await asyncio.shield(lifecycle.ready)
        except asyncio.CancelledError:
            lifecycle.end()
            raise
        if lifecycle not in self.lifecycles:
            raise ResourceUnavailable(f"resource {name!r} ended by itself as soon as it was made")
        lifecycle.checked_ns = self._clock().monotonic_ns()
        self._made[name] = lifecycle
        return value

    def _is_ready(self, name: str) -> bool:
        lifecycle = self._made.get(name)
        if lifecycle is None or self._check_is_due(lifecycle):
            return False
        return all(need in self.replaced or self._is_ready(need) for need in self._dependencies[name])

    def _check_is_due(self, lifecycle: ResourceLifecycle) -> bool:
        resource = lifecycle.resource
        return (
            resource.check is not None
            and self._clock().monotonic_ns() - lifecycle.checked_ns >= resource.check_every * 1e9
        )

    async def _passes_check(self, lifecycle: ResourceLifecycle) -> bool:
        name, check = lifecycle.resource.name, lifecycle.resource.check
        assert check is not None
        try:
            async with asyncio.timeout(CHECK_WITHIN):
                answer = await call_user_function(check, lifecycle.value)
            passed = answer is None or bool(answer)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            what = (
                f"took longer than {CHECK_WITHIN:g} s" if isinstance(error, TimeoutError) else f"raised {shown(error)}"
            )
            logger.warning("resource %r: its check %s; it is made anew", name, what)
            return False
        if not passed:
            logger.warning("resource %r did not pass its check; it is made anew", name)
            return False
        lifecycle.checked_ns = self._clock().monotonic_ns()
        return True

    async def _close_with_dependents(self, lifecycle: ResourceLifecycle) -> None:
        name = lifecycle.resource.name
        for other, needs in self._dependencies.items():
            if name in needs and other in self._made:
                await self._close_with_dependents(self._made[other])
        if self._made.get(name) is lifecycle:
            del self._made[name]
        await lifecycle.close()

    def _ended(self, lifecycle: ResourceLifecycle) -> None:
        """Forget a resource that has ended, perhaps by itself."""
        self.lifecycles.pop(lifecycle, None)
        if self._made.get(lifecycle.resource.name) is lifecycle:
            del self._made[lifecycle.resource.name]

    # Declaring

    def _declare(self, plan: Plan) -> None:
        for name, resource in plan.resources.items():
            if self._declared.setdefault(name, resource) is not resource:
                raise DuplicateName(
                    f"two different resources are called {name!r} (one of {plan.workflow!r}); share one, or rename it"
                )

    def _resolve_dependencies(self) -> None:
        self._dependencies = {name: self._dependencies_of(resource) for name, resource in self._declared.items()}
        try:
            topological_order(self._dependencies, "resources")
        except CycleError as error:
            raise CycleError(str(error).replace("steps wait for each other", "factories need each other")) from None

    def _dependencies_of(self, resource: Resource) -> list[str]:
        needs, required = _parameters(resource)
        for name in required:
            if name not in self._declared:
                raise DefinitionError(
                    f"resource {resource.name!r}: its factory takes {name!r}, which is no resource "
                    f"here.{suggest(name, self._declared)}"
                )
        return [name for name in needs if name in self._declared]

    def _refuse_replaced(self, plans: Iterable[Plan]) -> None:
        for name in self.replaced:
            if name not in self._declared:
                raise ConfigurationError(
                    f"replace names {name!r}, which is no resource of this mesh.{suggest(name, self._declared)}"
                )
        for plan in plans:
            for step in plan.all_steps():
                if not SPAWNERS[step.spawn].carries_objects and (used := self._replaced_for(step)) is not None:
                    raise ConfigurationError(
                        f"replace names {used!r}, but step {step.address!r} uses it in a worker process, which an "
                        "object cannot reach; "
                        "replace the step as well, or let it run in a thread"
                    )

    def _replaced_for(self, step: PlanStep) -> str | None:
        """The name of a replaced resource that a function of the step needs; None if there is none."""
        for callback in (step.run, step.undo, step.compensate, step.backoff):
            if isinstance(callback, Callback):
                for name in self._with_dependencies(callback.resources):
                    if name in self.replaced:
                        return name
        return None

    def _with_dependencies(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            yield name
            yield from self._with_dependencies(self._dependencies[name])


class ResourceView:
    """The resources of a step's workflow, beside those it takes as parameters: `await ctx.resources.get("name")`.

    `get` may also be awaited on a loop that a `def` step runs in its thread; the resource is made on the mesh's loop
    all the same.
    """

    __slots__ = ("_allowed", "_loop", "_resources")

    def __init__(
        self, resources: ResourceManager | None, allowed: Mapping[str, Resource], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._resources = resources
        self._allowed = allowed
        self._loop = loop

    def __contains__(self, name: object) -> bool:
        return name in self._allowed

    def __iter__(self) -> Iterator[str]:
        return iter(self._allowed)

    def __len__(self) -> int:
        return len(self._allowed)

    async def get(self, name: str) -> Any:
        """The resource of that name, of the step's workflow.

        Raises:
            ResourceUnavailable: the workflow has none of that name, or it could not be made.
        """
        if self._resources is None or name not in self._allowed:
            raise ResourceUnavailable(f"this workflow has no resource {name!r}.{suggest(name, self._allowed)}")
        if asyncio.get_running_loop() is self._loop:
            return await self._resources.get(name)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._resources.get(name), self._loop))


def _parameters(resource: Resource) -> tuple[list[str], list[str]]:
    """The names of the parameters that a factory may take, and of those that it must be given."""
    if resource.requires is not None:
        return list(resource.requires), list(resource.requires)
    try:
        parameters = inspect.signature(resource.factory).parameters.values()
    except (TypeError, ValueError):  # of builtins some have none to look at
        return [], []
    named = [
        parameter for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    for parameter in named:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise DefinitionError(
                f"resource {resource.name!r}: {parameter.name!r} of its factory is positional-only, but resources are "
                "passed by name"
            )
    by_name = [parameter for parameter in named if parameter.kind is not parameter.POSITIONAL_ONLY]
    return [parameter.name for parameter in by_name], [
        parameter.name for parameter in by_name if parameter.default is parameter.empty
    ]
