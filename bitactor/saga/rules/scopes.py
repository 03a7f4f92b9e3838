"""Steps planned while a transaction runs: the scopes that containers open, and what a `Then` asks for.

New steps are put behind those there are, each with a place in every list of the state; a scope is one block of places,
its steps first, then its inputs, so that a step finds its arguments as it does in a plan.  All of this follows from
pulses, and so is the same live and folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from bitactor.messages.codec import token_bytes, token_from_bytes
from bitactor.messages.faults import without_tracebacks
from bitactor.messages.pulse import COMPLETED, FAILED, Pulse
from bitactor.messages.signal import Fault
from bitactor.plan.container import FailContainer, NextAction, Open, Opening, Progress, Slot, Wait
from bitactor.plan.plan import Scope
from bitactor.saga.phases import BACKING_OFF, IN_FLIGHT, OPEN, WAITING
from bitactor.saga.rules.answers import FOLLOWING, checked_answer, decision_fault, scope_paths
from bitactor.saga.state import SagaState, writable
from bitactor.saga.then import is_settled, resolve


def opened_container(state: SagaState, index: int, opening: Sequence[Sequence[Any]]) -> None:
    """Open a container: it is no hop, so none is in flight and none was spent."""
    state.states[index] = OPEN
    state.in_flight -= 1
    state.hops_spent -= 1
    writable(state, "progress")[index] = Progress(state.ttls[index], state.payload_limit)
    _open_scopes(state, index, map(_opening_of_data, opening))


def opened_more_scopes(state: SagaState, pulse: Pulse, index: int) -> None:
    progress = state.progress[index]
    container = state.container_of(index)
    if container.surrounds:
        progress.proceeding = True
        progress.ttl = state.ttls[index] - 1  # they follow from the function around them, which is a hop
    else:
        progress.next_action = None
    _open_scopes(state, index, map(_opening_of_data, (pulse.data or {})["opening"]))


def closed_container(state: SagaState, pulse: Pulse, index: int) -> None:
    progress = state.progress.pop(index)
    state.states[index] = COMPLETED
    state.unsettled_count -= 1
    state.tokens[index] = pulse.token_out
    state.ttls[index] = progress.ttl_left
    release_dependents(state, index)


def _open_scopes(state: SagaState, index: int, openings: Iterable[Opening]) -> None:
    progress = state.progress[index]
    for opening in openings:
        if not progress.inputs:
            progress.inputs = opening.inputs
        progress.open += 1
        progress.opened += 1
        scope = _scope_for(state, index, opening)
        at = scope.base + len(scope.body.steps)
        for position, given in enumerate(opening.inputs):
            state.tokens[at + position] = state.tokens[given.place] if type(given) is Slot else given
        state.ready_candidates.extend(scope.base + initial for initial in scope.body.initial)


def _scope_for(state: SagaState, index: int, opening: Opening) -> Scope:
    """A settled scope of the same body, opened again, or a new one."""
    container = state.steps[index]
    body = state.container_of(index).bodies[opening.body]
    paths = scope_paths(container.name, opening.key, body)
    free_scopes = state.free_scopes.get(id(body))
    if free_scopes:
        scope = free_scopes.pop()
        scope.open(index, opening.key)
        steps = [state.steps[at] for at in scope.indices]
        for step, path in zip(steps, paths, strict=True):
            step.rename(path)
    else:
        state.copy_plan_steps()
        scope = Scope(body, len(state.tokens), index, opening.key)
        steps = [step.instance(scope, path) for step, path in zip(body.steps, paths, strict=True)]
        state.append_steps(steps, len(body.inputs))
    if container.scope is not None:
        container.scope.children[scope.base] = scope
    names = cast("dict[str, int]", state.by_name)
    for step, unmet_dependencies in zip(steps, body.dependency_counts, strict=True):
        names[step.name] = step.index
        state.states[step.index] = WAITING
        state.unmet_dependencies[step.index] = unmet_dependencies
    return scope


def _scope_settled(state: SagaState, scope: Scope) -> None:
    index = scope.container
    if index in state.progress and state.states[index] == OPEN and not state.stopping:
        _settle_scope(state, scope, scope.ttl_left)


def _settle_scope(state: SagaState, scope: Scope, ttl_left: int, fault: Fault | None = None) -> None:
    """Take the container's next action; `fault` is that of a scope which has failed."""
    index = scope.container
    container, progress = state.container_of(index), state.progress[index]
    progress.open -= 1
    progress.ttl_left = min(progress.ttl_left, ttl_left)
    next_action: NextAction
    if fault is None and container.chained:
        progress.ttl = progress.ttl_left
    try:
        if fault is not None:
            answer = container.after_failed_scope(progress, scope.key, fault)
        else:
            answer = container.after_scope(progress, scope.key, state.tokens[scope.returns])
        next_action = checked_answer(state, index, answer, FOLLOWING)
    except BaseException as error:  # a kind from outside can do anything
        # Without a traceback it is the same when it is folded again.
        next_action = FailContainer(without_tracebacks(decision_fault(state.steps[index], error)))
    _recycle(state, scope)
    if isinstance(next_action, Open):
        _open_scopes(state, index, next_action.scopes)
    elif not isinstance(next_action, Wait):
        progress.next_action = next_action
        state.pending_containers.append(index)


def fail_scope(state: SagaState, index: int, fault: Fault) -> None:
    """Fail the scope that catches the failure of a step: nothing more of it begins, and once nothing of it runs,
    its container goes on."""
    scope = state.catching_scope(index)
    assert scope is not None
    state.progress[scope.container].failed_scopes.setdefault(scope.base, fault)
    _drop_progress(state, index)
    for other in state.steps_within(scope):
        if state.states[other] in (WAITING, BACKING_OFF, OPEN):
            _stop_step(state, other)
    _settle_failed_scope(state, scope)


def _stop_step(state: SagaState, index: int) -> None:
    step = state.steps[index]
    if state.states[index] == OPEN:
        expected = state.progress[index].next_action is not None
    else:
        expected = state.states[index] == BACKING_OFF or (step.needs_evaluation and not state.unmet_dependencies[index])
    if expected and step.scope is not None:
        step.scope.pinned = True  # a decision of the supervisor, or a timer, may still come for it
    state.states[index] = state.unless_in_doubt(index, FAILED)
    _drop_progress(state, index)


def _drop_progress(state: SagaState, index: int) -> None:
    progress = state.progress.pop(index, None)
    if progress is not None:
        state.ttls[index] = progress.ttl_left


def _settle_failed_scope(state: SagaState, scope: Scope) -> None:
    progress = state.progress.get(scope.container)
    steps = state.steps_within(scope)
    if progress is None or state.stopping or any(state.states[other] in IN_FLIGHT for other in steps):
        return
    fault = progress.failed_scopes.pop(scope.base)
    _settle_scope(state, scope, min([progress.ttl_left, *(state.ttls[at] for at in steps if state.hops[at])]), fault)


def _recycle(state: SagaState, scope: Scope) -> None:
    """Keep the scope's places for another scope, if nothing can be asked of it any more; a long map would else fill
    the memory."""
    for child in list(scope.children.values()):
        _recycle(state, child)
    above = state.steps[scope.container].scope
    if above is not None:
        above.children.pop(scope.base, None)
    if scope.pinned or scope.planned or not scope.body.has_no_undo:
        return
    indices = scope.indices
    names = cast("dict[str, int]", state.by_name)
    for at in (*indices, *range(indices.stop, indices.stop + len(scope.body.inputs))):
        state.clear_place(at)
    for at in indices:
        del names[state.steps[at].name]
    writable(state, "free_scopes").setdefault(id(scope.body), []).append(scope)


def interrupt_proceed(state: SagaState, index: int) -> None:
    """A step was interrupted; if it is a function around nested steps, those wait until it proceeds again."""
    step = state.steps[index]
    if step.around_container is not None and step.scope is not None and step.scope.container in state.progress:
        state.progress[step.scope.container].proceeding = False


def release_dependents(state: SagaState, index: int) -> None:
    for dependent in state.steps[index].dependents:
        state.unmet_dependencies[dependent] -= 1
    if index >= state.plan_size:
        planned_step_settled(state, index)


def planned_step_settled(state: SagaState, index: int) -> None:
    step = state.steps[index]
    head = step.replaces
    if head >= 0:
        state.tokens[head] = state.tokens[index]
        state.ttls[head] = state.ttls[index]
        for dependent in state.steps[head].dependents:
            state.unmet_dependencies[dependent] -= 1
            state.ready_candidates.append(dependent)
    scope = step.scope
    if scope is None:
        return
    state.unsettled_count += 1  # it was never counted among the plan's own
    scope.unsettled_count -= 1
    scope.ttl_left = min(scope.ttl_left, state.ttls[index])
    failed_scope = state.failed_scope(index)
    if failed_scope is not None:
        _settle_failed_scope(state, failed_scope)
    elif not scope.unsettled_count:
        _scope_settled(state, scope)


def add_planned_steps(state: SagaState, index: int, planned: Sequence[Sequence[Any]]) -> bool:
    """Add the steps that a step has planned; True: one of them replaces it."""
    resolved = resolve(state, index, planned)
    scope = state.steps[index].scope
    state.copy_plan_steps()
    replaced = False
    for step, unmet_dependencies, is_replacement in resolved:
        state.append_steps([step], 0)
        cast("dict[str, int]", state.by_name)[step.name] = step.index
        state.states[step.index] = WAITING
        state.unmet_dependencies[step.index] = unmet_dependencies
        if not unmet_dependencies:
            state.ready_candidates.append(step.index)
        if is_replacement:
            replaced = True
            writable(state, "replacements")[step.replaces] = step.index
    if replaced and state.steps[index].replaces < 0:
        _keep_own_result(state, index)
    for step, _, _ in resolved:
        for dependency in step.dependencies:
            if dependency != index and not is_settled(state, dependency):
                state.add_dependent(dependency, step.index)
    if scope is None:
        state.unsettled_count += len(resolved)
    else:
        scope.unsettled_count += len(resolved)
        scope.planned += [step.index for step, _, _ in resolved]
        if replaced:
            state.unsettled_count += 1
            scope.unsettled_count -= 1
    return replaced


def _keep_own_result(state: SagaState, index: int) -> None:
    """Copy the result of a step that is replaced to a place of its own; the step's place is for the last
    replacement's result."""
    kept = len(state.tokens)
    writable(state, "own_result_slots")[index] = kept
    state.append_places([None])
    state.tokens.append(state.tokens[index])
    state.ttls[kept], state.hops[kept], state.causes[kept] = state.ttls[index], state.hops[index], state.causes[index]


def _opening_of_data(given: Sequence[Any]) -> Opening:
    key, body, inputs = given
    return Opening(key, body, tuple(Slot(token) if type(token) is int else token_from_bytes(token) for token in inputs))


def opening_data(openings: Iterable[Opening]) -> list[list[Any]]:
    """Openings as plain data, for a pulse."""
    return [
        [key, body, [token.place if type(token) is Slot else bytes(token_bytes(token)) for token in inputs]]
        for key, body, inputs in openings
    ]
