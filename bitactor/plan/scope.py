"""A scope: one instance of a container's body within a transaction."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from bitactor.messages.signal import MAX_TTL

if TYPE_CHECKING:
    from bitactor.plan.plan import Plan, PlanStep


class Scope:
    """Where a body's steps and inputs lie among the transaction's: one block, steps first, then inputs."""

    __slots__ = ("base", "body", "children", "container", "key", "pinned", "planned", "ttl_left", "unsettled_count")

    def __init__(self, body: Plan, base: int, container: int, key: str) -> None:
        self.body = body
        self.base = base
        self.planned: list[int] = []
        """Steps that a `Then` has planned into it, elsewhere."""
        self.pinned = False
        """Whether something may still come for one of its steps: a late reply, a timer, a decision."""
        self.open(container, key)

    def open(self, container: int, key: str) -> None:
        """Begin, or begin again for another container or key."""
        self.container = container
        self.key = key
        self.unsettled_count = len(self.body.steps)
        self.ttl_left = MAX_TTL
        """The least hop budget that any of its settled steps has left."""
        self.children: dict[int, Scope] = {}
        """Scopes within it that are not settled, by their place."""

    @property
    def indices(self) -> range:
        """Its steps."""
        return range(self.base, self.base + len(self.body.steps))

    @property
    def returns(self) -> int:
        """The step whose result is the scope's."""
        return self.base + self.body.returns


def instantiate(step: PlanStep, scope: Scope, path: str) -> PlanStep:
    """A body's step as a step of the transaction: named by its whole path, its places moved to the scope's block."""
    base = scope.base
    made = copy(step)
    made.index = base + step.index
    made.scope = scope
    made.arguments = tuple(
        argument._replace(slot=argument.slot + base) if argument.slot >= 0 else argument for argument in step.arguments
    )
    made.when_arguments = tuple(argument._replace(slot=argument.slot + base) for argument in step.when_arguments)
    made.dependencies = tuple(base + index for index in step.dependencies)
    made.dependents = tuple(base + index for index in step.dependents)
    rename(made, path)
    return made


def rename(step: PlanStep, path: str) -> None:
    """Give an instance another path."""
    step.name = path
    step._codes = {}
    step.forward_code = step.code("forward", 1)
