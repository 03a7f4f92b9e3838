"""Steps planned while a transaction runs: the scopes that containers open, and what a `Then` asks for.

New steps are put behind those there are, each with a place in every list of the state; a scope is one block of places,
its steps first, then its inputs, so that a step finds its arguments as it does in a plan.  All of this follows from
pulses, and so is the same live and folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, Final, cast

from bitactor.codec import token_bytes, token_from_bytes
from bitactor.kinds.port import Follow, Open, Opening, Progress, Slot, Wait
from bitactor.kinds.scope import Scope, instance, rename
from bitactor.plan import Plan, PlanStep
from bitactor.pulse import Pulse
from bitactor.saga.phases import BACKING_OFF, BROKEN, DONE, IN_DOUBT, IN_FLIGHT, OPENED, PASSED, WAITING
from bitactor.saga.resolving import has_settled, resolve
from bitactor.signal import Fault

NOTHING: Final[dict[Any, Any]] = cast("dict[Any, Any]", MappingProxyType({}))
"""Stands for every mapping that most transactions never need; a parked one would carry half a kilobyte of empty
ones."""


def writable(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """The mapping itself, or a fresh one instead of `NOTHING`."""
    return {} if mapping is NOTHING else mapping


class Growing:
    """The part of the state that can get longer; `SagaState` has the rest."""

    __slots__ = (
        "by_name",
        "hops_spent",
        "in_flight",
        "progress",
        "replaced",
        "spare",
        "stand_ins",
        "steps",
        "unsettled",
    )

    plan: Plan
    steps: Sequence[PlanStep]
    by_name: Mapping[str, int]
    grown: int
    tokens: list[Any]
    states: list[int]
    missing: list[int]
    unsettled: int
    attempts: list[int]
    deliveries: list[int]
    failures: list[int]
    undo_attempts: list[int]
    ttls: list[int]
    hops: list[str]
    causes: list[tuple[str, ...]]
    spawned_at_ns: list[int]
    decided: dict[int, Mapping[str, Any]]
    doubts: frozenset[int]
    outstanding: dict[tuple[str, int], int]
    order: list[int]
    in_flight: int
    hops_spent: int
    progress: dict[int, Progress]
    spare: dict[int, list[Scope]]
    stand_ins: dict[int, int]
    replaced: dict[int, int]
    fresh: list[int]
    attention: list[int]

    @property
    def stopping(self) -> bool:
        """Whether something failed, and nothing new begins any more."""
        raise NotImplementedError

    # Containers

    def _opened(self, index: int, opening: Sequence[Sequence[Any]]) -> None:
        """A container begins: it is no hop, so nothing is in flight and nothing was spent."""
        self.states[index] = OPENED
        self.in_flight -= 1
        self.hops_spent -= 1
        self.progress = writable(self.progress)
        self.progress[index] = Progress(self.ttls[index])
        self._open_scopes(index, map(_opening, opening))

    def _opened_further(self, pulse: Pulse, index: int) -> None:
        progress = self.progress[index]
        container = self.steps[index].container
        assert container is not None
        if container.surrounds:
            progress.proceeding = True
            progress.ttl = self.ttls[index] - 1  # they follow from the function around them, which is a hop
        else:
            progress.pending = None
        self._open_scopes(index, map(_opening, (pulse.data or {})["opening"]))

    def _closed(self, pulse: Pulse, index: int) -> None:
        progress = self.progress.pop(index)
        self.states[index] = DONE
        self.unsettled -= 1
        self.tokens[index] = pulse.token_out
        self.ttls[index] = progress.left
        self._release_dependents(index)

    def _open_scopes(self, index: int, openings: Iterable[Opening]) -> None:
        progress = self.progress[index]
        for opening in openings:
            if not progress.inputs:
                progress.inputs = opening.inputs
            progress.open += 1
            progress.opened += 1
            scope = self._scope_for(index, opening)
            at = scope.base + len(scope.body.steps)
            for position, given in enumerate(opening.inputs):
                self.tokens[at + position] = self.tokens[given.place] if type(given) is Slot else given
            self.fresh.extend(scope.base + initial for initial in scope.body.initial)

    def _scope_for(self, index: int, opening: Opening) -> Scope:
        """A settled scope of that kind to be used again, or a new one."""
        container = self.steps[index]
        assert container.container is not None
        body = container.container.bodies[opening.body]
        spare = self.spare.get(id(body))
        if spare:
            scope = spare.pop()
            scope.open(index, opening.key)
            steps = [self.steps[at] for at in scope.indices]
            for step, local in zip(steps, body.steps, strict=True):
                rename(step, _path(container.name, opening.key, local.name))
        else:
            self._begin_growing()
            scope = Scope(body, len(self.tokens), index, opening.key)
            steps = [instance(step, scope, _path(container.name, opening.key, step.name)) for step in body.steps]
            self._append(steps, len(body.inputs))
        if container.scope is not None:
            container.scope.children[scope.base] = scope
        names = cast("dict[str, int]", self.by_name)
        for step, missing in zip(steps, body.missing, strict=True):
            names[step.name] = step.index
            self.states[step.index] = WAITING
            self.missing[step.index] = missing
        return scope

    def _scope_settled(self, scope: Scope) -> None:
        index = scope.container
        progress = self.progress.get(index)
        if progress is None or self.states[index] != OPENED or self.stopping:
            return
        container = self.steps[index].container
        assert container is not None
        progress.open -= 1
        progress.left = min(progress.left, scope.left)
        if container.chained:
            progress.ttl = progress.left
        following = container.follow(progress, scope.key, self.tokens[scope.returns])
        self._let_go(scope)
        self._go_on_with(index, following)

    def _go_on_with(self, index: int, following: Follow) -> None:
        if isinstance(following, Open):
            self._open_scopes(index, following.scopes)
        elif not isinstance(following, Wait):
            self.progress[index].pending = following
            self.attention.append(index)

    # Scopes whose failure is caught

    def catching(self, index: int) -> Scope | None:
        """The innermost scope around a step whose failure is its container's own affair, if that container is still at
        work."""
        scope = self.steps[index].scope
        while scope is not None:
            container = self.steps[scope.container].container
            catches = container is not None and container.catches and scope.body is not container.bodies[0]
            if catches and scope.container in self.progress:
                return scope
            scope = self.steps[scope.container].scope
        return None

    def within(self, scope: Scope) -> list[int]:
        """The steps of a scope, on all levels, as far as they are not settled."""
        found = [*scope.indices, *scope.planned]
        for child in scope.children.values():
            found += self.within(child)
        return found

    def fails(self, index: int) -> bool:
        """Whether the step is in a scope that has failed."""
        scope = self.catching(index)
        return scope is not None and scope.base in self.progress[scope.container].failing

    def _caught(self, index: int, fault: Fault) -> None:
        """A step failed in a scope that catches that: nothing more of it begins, and once nothing runs, its container
        goes on."""
        scope = self.catching(index)
        assert scope is not None
        self.progress[scope.container].failing.setdefault(scope.base, fault)
        self._close_unfinished(index)
        for other in self.within(scope):
            if self.states[other] in (WAITING, BACKING_OFF, OPENED):
                self._break_off(other)
        self._settle_if_quiet(scope)

    def _break_off(self, index: int) -> None:
        step = self.steps[index]
        if self.states[index] == OPENED:
            expected = self.progress[index].pending is not None
        else:
            expected = self.states[index] == BACKING_OFF or (step.decides and not self.missing[index])
        if expected and step.scope is not None:
            step.scope.kept = True  # a decision of the supervisor, or a timer, may still come for it
        self.states[index] = IN_DOUBT if index in self.doubts else BROKEN
        self._close_unfinished(index)

    def _close_unfinished(self, index: int) -> None:
        progress = self.progress.pop(index, None)
        if progress is not None:
            self.ttls[index] = progress.left

    def _settle_if_quiet(self, scope: Scope) -> None:
        index = scope.container
        progress = self.progress.get(index)
        if progress is None or self.stopping or any(self.states[other] in IN_FLIGHT for other in self.within(scope)):
            return
        container = self.steps[index].container
        assert container is not None
        fault = progress.failing.pop(scope.base)
        progress.open -= 1
        progress.left = min([progress.left, *(self.ttls[at] for at in self.within(scope) if self.hops[at])])
        following = container.caught(progress, scope.key, fault)
        self._let_go(scope)
        self._go_on_with(index, following)

    def _let_go(self, scope: Scope) -> None:
        """Use its places again, if nothing can be asked of it any more; or a long map would fill the memory."""
        for child in list(scope.children.values()):
            self._let_go(child)
        above = self.steps[scope.container].scope
        if above is not None:
            above.children.pop(scope.base, None)
        if scope.kept or scope.planned or not scope.body.leaves_nothing:
            return
        indices = scope.indices
        names = cast("dict[str, int]", self.by_name)
        for at in (*indices, *range(indices.stop, indices.stop + len(scope.body.inputs))):
            self._reset(at)
        for at in indices:
            del names[self.steps[at].name]
        self.spare = writable(self.spare)
        self.spare.setdefault(id(scope.body), []).append(scope)

    def _reset(self, at: int) -> None:
        self.tokens[at] = None
        self.states[at] = PASSED
        self.attempts[at] = self.deliveries[at] = self.failures[at] = self.undo_attempts[at] = self.ttls[at] = 0
        self.hops[at] = ""
        self.causes[at] = ()
        if self.decided:
            self.decided.pop(at, None)

    def _begin_growing(self) -> None:
        if self.steps is not self.plan.steps:
            return
        self.steps = list(self.plan.steps)
        self.by_name = dict(self.plan.by_name)
        self._pad(len(self.tokens) - len(self.plan.steps))

    def _append(self, steps: Sequence[PlanStep], inputs: int) -> None:
        cast("list[PlanStep]", self.steps).extend(steps)
        self.tokens.extend([None] * (len(steps) + inputs))
        self._lengthen(len(steps))
        self._pad(inputs)

    def _pad(self, count: int) -> None:
        """Places without steps, beside the tokens of inputs."""
        cast("list[Any]", self.steps).extend([None] * count)
        self._lengthen(count)

    def _lengthen(self, count: int) -> None:
        zeros = [0] * count
        self.states.extend([PASSED] * count)
        for numbers in (
            self.missing, self.attempts, self.deliveries, self.failures, self.undo_attempts, self.ttls,
            self.spawned_at_ns,
        ):  # fmt: skip
            numbers.extend(zeros)
        self.hops.extend([""] * count)
        self.causes.extend([()] * count)

    def _stops_proceeding(self, index: int) -> None:
        """The function around nested steps has been interrupted: they wait until it proceeds again."""
        scope = self.steps[index].scope
        progress = self.progress.get(scope.container) if scope is not None else None
        if progress is not None:
            progress.proceeding = False

    def held_back(self, index: int) -> bool:
        """Whether a step is nested in a function that has not (yet, or again) called `proceed()`."""
        scope = self.steps[index].scope
        while scope is not None:
            container = self.steps[scope.container].container
            if container is not None and container.surrounds and scope.body is not container.bodies[0]:
                progress = self.progress.get(scope.container)
                if progress is not None and not progress.proceeding:
                    return True
            scope = self.steps[scope.container].scope
        return False

    # What is settled

    def _release_dependents(self, index: int) -> None:
        for dependent in self.steps[index].dependents:
            self.missing[dependent] -= 1
        if index >= self.grown:
            self._planned_step_settled(index)

    def _planned_step_settled(self, index: int) -> None:
        step = self.steps[index]
        head = step.stands_for
        if head >= 0:
            self.tokens[head] = self.tokens[index]
            self.ttls[head] = self.ttls[index]
            for dependent in self.steps[head].dependents:
                self.missing[dependent] -= 1
                self.fresh.append(dependent)
        scope = step.scope
        if scope is None:
            return
        self.unsettled += 1  # it was never counted among the plan's own
        scope.unsettled -= 1
        scope.left = min(scope.left, self.ttls[index])
        if self.fails(index):
            catching = self.catching(index)
            assert catching is not None
            self._settle_if_quiet(catching)
        elif not scope.unsettled:
            self._scope_settled(scope)

    # Then

    def takes_more(self, index: int) -> bool:
        """Whether the step, or anything in the scope it is in, still goes forward."""
        return not self.stopping and (index < self.grown or not self.fails(index))

    def _plan_more(self, index: int, planned: Sequence[Sequence[Any]]) -> bool:
        """Plan what the step asked for; the answer is whether one of the new steps replaces it."""
        wanted = resolve(self, index, planned)
        scope = self.steps[index].scope
        self._begin_growing()
        replaced = False
        for step, missing, replaces in wanted:
            self._append([step], 0)
            cast("dict[str, int]", self.by_name)[step.name] = step.index
            self.states[step.index] = WAITING
            self.missing[step.index] = missing
            if not missing:
                self.fresh.append(step.index)
            if replaces:
                replaced = True
                self.stand_ins = writable(self.stand_ins)
                self.stand_ins[step.stands_for] = step.index
        if replaced and self.steps[index].stands_for < 0:
            self._keep_own_place(index)
        for step, _, _ in wanted:
            for dependency in step.dependencies:
                if dependency != index and not has_settled(self, dependency):
                    self._add_dependent(dependency, step.index)
        if scope is None:
            self.unsettled += len(wanted)
        else:
            scope.unsettled += len(wanted)
            scope.planned += [step.index for step, _, _ in wanted]
            if replaced:
                self.unsettled += 1
                scope.unsettled -= 1
        return replaced

    def _keep_own_place(self, index: int) -> None:
        """What a step that is replaced came to itself; its own place is for what the last one comes to."""
        kept = len(self.tokens)
        self.replaced = writable(self.replaced)
        self.replaced[index] = kept
        self._pad(1)
        self.tokens.append(self.tokens[index])
        self.ttls[kept], self.hops[kept], self.causes[kept] = self.ttls[index], self.hops[index], self.causes[index]

    def _add_dependent(self, dependency: int, dependent: int) -> None:
        steps = cast("list[PlanStep]", self.steps)
        if dependency < self.grown and steps[dependency] is self.plan.steps[dependency]:
            steps[dependency] = copy(steps[dependency])
        steps[dependency].dependents += (dependent,)


def _opening(given: Sequence[Any]) -> Opening:
    key, body, inputs = given
    return Opening(key, body, tuple(Slot(token) if type(token) is int else token_from_bytes(token) for token in inputs))


def opening_data(openings: Iterable[Opening]) -> list[list[Any]]:
    """Openings as a pulse keeps them."""
    return [
        [key, body, [token.place if type(token) is Slot else bytes(token_bytes(token)) for token in inputs]]
        for key, body, inputs in openings
    ]


def _path(container: str, key: str, step: str) -> str:
    return "/".join(part for part in (container, key, step) if part)
