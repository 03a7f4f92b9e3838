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

from bitactor.messages.codec import token_bytes, token_from_bytes
from bitactor.messages.pulse import COMPLETED, FAILED, SKIPPED, Pulse
from bitactor.messages.signal import Fault
from bitactor.plan.container import NextAction, Open, Opening, Progress, Slot, Wait
from bitactor.plan.plan import Plan, PlanStep, Scope
from bitactor.saga.phases import BACKING_OFF, IN_DOUBT, IN_FLIGHT, OPEN, WAITING
from bitactor.saga.then import is_settled, resolve

EMPTY: Final[dict[Any, Any]] = cast("dict[Any, Any]", MappingProxyType({}))
"""A read-only empty mapping, in place of each mapping that most transactions never need; fresh ones would take half a
kilobyte of each parked transaction."""


def writable(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """The mapping itself, or a fresh one instead of `EMPTY`."""
    return {} if mapping is EMPTY else mapping


class Scopes:
    """The part of the state that grows while a transaction runs; `SagaState` has the rest."""

    __slots__ = (
        "by_name",
        "free_scopes",
        "hops_spent",
        "in_flight",
        "own_result_slots",
        "progress",
        "replacements",
        "steps",
        "unsettled_count",
    )

    plan: Plan
    steps: Sequence[PlanStep]
    by_name: Mapping[str, int]
    plan_size: int
    tokens: list[Any]
    states: list[str]
    unmet_dependencies: list[int]
    unsettled_count: int
    attempts: list[int]
    deliveries: list[int]
    failures: list[int]
    undo_attempts: list[int]
    ttls: list[int]
    hops: list[str]
    causes: list[tuple[str, ...]]
    spawned_at_ns: list[int]
    evaluated: dict[int, Mapping[str, Any]]
    steps_in_doubt: frozenset[int]
    unanswered_runs: dict[tuple[str, int], int]
    order: list[int]
    in_flight: int
    hops_spent: int
    progress: dict[int, Progress]
    free_scopes: dict[int, list[Scope]]
    replacements: dict[int, int]
    own_result_slots: dict[int, int]
    ready_candidates: list[int]
    pending_containers: list[int]

    @property
    def stopping(self) -> bool:
        """Whether something has failed, or the transaction has ended, so that nothing new begins."""
        raise NotImplementedError

    # Containers

    def _opened_container(self, index: int, opening: Sequence[Sequence[Any]]) -> None:
        """Open a container: it is no hop, so none is in flight and none was spent."""
        self.states[index] = OPEN
        self.in_flight -= 1
        self.hops_spent -= 1
        self.progress = writable(self.progress)
        self.progress[index] = Progress(self.ttls[index])
        self._open_scopes(index, map(_opening_of_data, opening))

    def _opened_more_scopes(self, pulse: Pulse, index: int) -> None:
        progress = self.progress[index]
        container = self.steps[index].container
        assert container is not None
        if container.surrounds:
            progress.proceeding = True
            progress.ttl = self.ttls[index] - 1  # they follow from the function around them, which is a hop
        else:
            progress.next_action = None
        self._open_scopes(index, map(_opening_of_data, (pulse.data or {})["opening"]))

    def _closed_container(self, pulse: Pulse, index: int) -> None:
        progress = self.progress.pop(index)
        self.states[index] = COMPLETED
        self.unsettled_count -= 1
        self.tokens[index] = pulse.token_out
        self.ttls[index] = progress.ttl_left
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
            self.ready_candidates.extend(scope.base + initial for initial in scope.body.initial)

    def _scope_for(self, index: int, opening: Opening) -> Scope:
        """A settled scope of the same body, opened again, or a new one."""
        container = self.steps[index]
        assert container.container is not None
        body = container.container.bodies[opening.body]
        free_scopes = self.free_scopes.get(id(body))
        if free_scopes:
            scope = free_scopes.pop()
            scope.open(index, opening.key)
            steps = [self.steps[at] for at in scope.indices]
            for step, local in zip(steps, body.steps, strict=True):
                step.rename(_path(container.name, opening.key, local.name))
        else:
            self._copy_plan_steps()
            scope = Scope(body, len(self.tokens), index, opening.key)
            steps = [step.instance(scope, _path(container.name, opening.key, step.name)) for step in body.steps]
            self._append_steps(steps, len(body.inputs))
        if container.scope is not None:
            container.scope.children[scope.base] = scope
        names = cast("dict[str, int]", self.by_name)
        for step, unmet_dependencies in zip(steps, body.dependency_counts, strict=True):
            names[step.name] = step.index
            self.states[step.index] = WAITING
            self.unmet_dependencies[step.index] = unmet_dependencies
        return scope

    def _scope_settled(self, scope: Scope) -> None:
        index = scope.container
        progress = self.progress.get(index)
        if progress is None or self.states[index] != OPEN or self.stopping:
            return
        container = self.steps[index].container
        assert container is not None
        progress.open -= 1
        progress.ttl_left = min(progress.ttl_left, scope.ttl_left)
        if container.chained:
            progress.ttl = progress.ttl_left
        next_action = container.after_scope(progress, scope.key, self.tokens[scope.returns])
        self._recycle(scope)
        self._apply_next_action(index, next_action)

    def _apply_next_action(self, index: int, next_action: NextAction) -> None:
        if isinstance(next_action, Open):
            self._open_scopes(index, next_action.scopes)
        elif not isinstance(next_action, Wait):
            self.progress[index].next_action = next_action
            self.pending_containers.append(index)

    # Scopes whose failure is caught

    def catching_scope(self, index: int) -> Scope | None:
        """The innermost scope around a step whose failure its container handles, if that container is open; else
        None."""
        scope = self.steps[index].scope
        while scope is not None:
            container = self.steps[scope.container].container
            catches = container is not None and container.catches and scope.body is not container.bodies[0]
            if catches and scope.container in self.progress:
                return scope
            scope = self.steps[scope.container].scope
        return None

    def steps_within(self, scope: Scope) -> list[int]:
        """The steps of a scope, and of those scopes within it that have not settled."""
        found = [*scope.indices, *scope.planned]
        for child in scope.children.values():
            found += self.steps_within(child)
        return found

    def is_in_failed_scope(self, index: int) -> bool:
        """Whether the step is in a scope that has failed."""
        scope = self.catching_scope(index)
        return scope is not None and scope.base in self.progress[scope.container].failed_scopes

    def _fail_scope(self, index: int, fault: Fault) -> None:
        """Fail the scope that catches the failure of a step: nothing more of it begins, and once nothing of it runs,
        its container goes on."""
        scope = self.catching_scope(index)
        assert scope is not None
        self.progress[scope.container].failed_scopes.setdefault(scope.base, fault)
        self._drop_progress(index)
        for other in self.steps_within(scope):
            if self.states[other] in (WAITING, BACKING_OFF, OPEN):
                self._stop_step(other)
        self._settle_failed_scope(scope)

    def _stop_step(self, index: int) -> None:
        step = self.steps[index]
        if self.states[index] == OPEN:
            expected = self.progress[index].next_action is not None
        else:
            expected = self.states[index] == BACKING_OFF or (
                step.needs_evaluation and not self.unmet_dependencies[index]
            )
        if expected and step.scope is not None:
            step.scope.pinned = True  # a decision of the supervisor, or a timer, may still come for it
        self.states[index] = IN_DOUBT if index in self.steps_in_doubt else FAILED
        self._drop_progress(index)

    def _drop_progress(self, index: int) -> None:
        progress = self.progress.pop(index, None)
        if progress is not None:
            self.ttls[index] = progress.ttl_left

    def _settle_failed_scope(self, scope: Scope) -> None:
        index = scope.container
        progress = self.progress.get(index)
        if (
            progress is None
            or self.stopping
            or any(self.states[other] in IN_FLIGHT for other in self.steps_within(scope))
        ):
            return
        container = self.steps[index].container
        assert container is not None
        fault = progress.failed_scopes.pop(scope.base)
        progress.open -= 1
        progress.ttl_left = min(
            [progress.ttl_left, *(self.ttls[at] for at in self.steps_within(scope) if self.hops[at])]
        )
        next_action = container.after_failed_scope(progress, scope.key, fault)
        self._recycle(scope)
        self._apply_next_action(index, next_action)

    def _recycle(self, scope: Scope) -> None:
        """Keep the scope's places for another scope, if nothing can be asked of it any more; a long map would else fill
        the memory."""
        for child in list(scope.children.values()):
            self._recycle(child)
        above = self.steps[scope.container].scope
        if above is not None:
            above.children.pop(scope.base, None)
        if scope.pinned or scope.planned or not scope.body.has_no_undo:
            return
        indices = scope.indices
        names = cast("dict[str, int]", self.by_name)
        for at in (*indices, *range(indices.stop, indices.stop + len(scope.body.inputs))):
            self._reset_slot(at)
        for at in indices:
            del names[self.steps[at].name]
        self.free_scopes = writable(self.free_scopes)
        self.free_scopes.setdefault(id(scope.body), []).append(scope)

    def _reset_slot(self, at: int) -> None:
        self.tokens[at] = None
        self.states[at] = SKIPPED
        self.attempts[at] = self.deliveries[at] = self.failures[at] = self.undo_attempts[at] = self.ttls[at] = 0
        self.hops[at] = ""
        self.causes[at] = ()
        if self.evaluated:
            self.evaluated.pop(at, None)

    def _copy_plan_steps(self) -> None:
        if self.steps is not self.plan.steps:
            return
        self.steps = list(self.plan.steps)
        self.by_name = dict(self.plan.by_name)
        self._append_empty_slots(len(self.tokens) - len(self.plan.steps))

    def _append_steps(self, steps: Sequence[PlanStep], inputs: int) -> None:
        cast("list[PlanStep]", self.steps).extend(steps)
        self.tokens.extend([None] * (len(steps) + inputs))
        self._extend_lists(len(steps))
        self._append_empty_slots(inputs)

    def _append_empty_slots(self, count: int) -> None:
        """Append places that have no step, such as those of input tokens."""
        cast("list[Any]", self.steps).extend([None] * count)
        self._extend_lists(count)

    def _extend_lists(self, count: int) -> None:
        zeros = [0] * count
        self.states.extend([SKIPPED] * count)
        for numbers in (
            self.unmet_dependencies, self.attempts, self.deliveries, self.failures, self.undo_attempts, self.ttls,
            self.spawned_at_ns,
        ):  # fmt: skip
            numbers.extend(zeros)
        self.hops.extend([""] * count)
        self.causes.extend([()] * count)

    def _interrupt_proceed(self, index: int) -> None:
        """The function around nested steps was interrupted: those steps wait until it proceeds again."""
        scope = self.steps[index].scope
        progress = self.progress.get(scope.container) if scope is not None else None
        if progress is not None:
            progress.proceeding = False

    def awaits_proceed(self, index: int) -> bool:
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
            self.unmet_dependencies[dependent] -= 1
        if index >= self.plan_size:
            self._planned_step_settled(index)

    def _planned_step_settled(self, index: int) -> None:
        step = self.steps[index]
        head = step.replaces
        if head >= 0:
            self.tokens[head] = self.tokens[index]
            self.ttls[head] = self.ttls[index]
            for dependent in self.steps[head].dependents:
                self.unmet_dependencies[dependent] -= 1
                self.ready_candidates.append(dependent)
        scope = step.scope
        if scope is None:
            return
        self.unsettled_count += 1  # it was never counted among the plan's own
        scope.unsettled_count -= 1
        scope.ttl_left = min(scope.ttl_left, self.ttls[index])
        if self.is_in_failed_scope(index):
            catching_scope = self.catching_scope(index)
            assert catching_scope is not None
            self._settle_failed_scope(catching_scope)
        elif not scope.unsettled_count:
            self._scope_settled(scope)

    # Then

    def goes_forward(self, index: int) -> bool:
        """Whether a step still goes forward: neither the transaction nor a scope around the step has failed."""
        return not self.stopping and (index < self.plan_size or not self.is_in_failed_scope(index))

    def _add_planned_steps(self, index: int, planned: Sequence[Sequence[Any]]) -> bool:
        """Add the steps that a step has planned; True: one of them replaces it."""
        resolved = resolve(self, index, planned)
        scope = self.steps[index].scope
        self._copy_plan_steps()
        replaced = False
        for step, unmet_dependencies, is_replacement in resolved:
            self._append_steps([step], 0)
            cast("dict[str, int]", self.by_name)[step.name] = step.index
            self.states[step.index] = WAITING
            self.unmet_dependencies[step.index] = unmet_dependencies
            if not unmet_dependencies:
                self.ready_candidates.append(step.index)
            if is_replacement:
                replaced = True
                self.replacements = writable(self.replacements)
                self.replacements[step.replaces] = step.index
        if replaced and self.steps[index].replaces < 0:
            self._keep_own_result(index)
        for step, _, _ in resolved:
            for dependency in step.dependencies:
                if dependency != index and not is_settled(self, dependency):
                    self._add_dependent(dependency, step.index)
        if scope is None:
            self.unsettled_count += len(resolved)
        else:
            scope.unsettled_count += len(resolved)
            scope.planned += [step.index for step, _, _ in resolved]
            if replaced:
                self.unsettled_count += 1
                scope.unsettled_count -= 1
        return replaced

    def _keep_own_result(self, index: int) -> None:
        """Copy the result of a step that is replaced to a place of its own; the step's place is for the last
        replacement's result."""
        kept = len(self.tokens)
        self.own_result_slots = writable(self.own_result_slots)
        self.own_result_slots[index] = kept
        self._append_empty_slots(1)
        self.tokens.append(self.tokens[index])
        self.ttls[kept], self.hops[kept], self.causes[kept] = self.ttls[index], self.hops[index], self.causes[index]

    def _add_dependent(self, dependency: int, dependent: int) -> None:
        steps = cast("list[PlanStep]", self.steps)
        if dependency < self.plan_size and steps[dependency] is self.plan.steps[dependency]:
            steps[dependency] = copy(steps[dependency])
        steps[dependency].dependents += (dependent,)


def _opening_of_data(given: Sequence[Any]) -> Opening:
    key, body, inputs = given
    return Opening(key, body, tuple(Slot(token) if type(token) is int else token_from_bytes(token) for token in inputs))


def opening_data(openings: Iterable[Opening]) -> list[list[Any]]:
    """Openings as plain data, for a pulse."""
    return [
        [key, body, [token.place if type(token) is Slot else bytes(token_bytes(token)) for token in inputs]]
        for key, body, inputs in openings
    ]


def _path(container: str, key: str, step: str) -> str:
    return "/".join(part for part in (container, key, step) if part)
