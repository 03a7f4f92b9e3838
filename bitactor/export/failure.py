"""How a transaction that did not complete is told to its caller: the exception, and its errors as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitactor.errors import WorkflowFailed
from bitactor.messages.faults import fault_as_plain, faults_beside
from bitactor.messages.pulse import HALTED, Pulse
from bitactor.messages.signal import FORWARD, UNDO, Fault
from bitactor.saga import SagaState


def failure_of(
    state: SagaState, errors: Sequence[BaseException], pulses: Sequence[Pulse], hint: str = ""
) -> WorkflowFailed:
    """The exception of a transaction that ended in another way than `completed`.

    Args:
        errors: its errors as exceptions.
        pulses: its journal; asked only if it has no errors.
        hint: where to see more.
    """
    errors_as_data = errors_as_plain(state) or [halt_as_plain(pulses)]
    failure = failure_of_plain(state.plan.workflow, state.transaction, state.status, errors_as_data, errors, hint)
    failure.__cause__ = errors[0] if errors else None
    return failure


def failure_of_plain(
    workflow: str,
    transaction: str,
    status: str,
    given: Sequence[Mapping[str, Any]],
    errors: Sequence[BaseException],
    hint: str = "",
) -> WorkflowFailed:
    """The exception of a transaction whose errors are `given` as `errors_as_plain` has them; `errors` as exceptions."""
    first: Mapping[str, Any] = given[0] if given else {}
    step, attempt = first.get("step", ""), first.get("attempt", 0)
    why = _summary(first) or "no error was recorded"
    text = f"{workflow!r} ended {status}{_where(workflow, first)}: {why}{hint}"
    path = f"{workflow}/{step}" if step else ""
    failure = WorkflowFailed(text, transaction, status, errors, path, attempt, workflow)
    for other in given[1:]:
        failure.add_note(f"then{_where(workflow, other)}: {_summary(other)}")
    return failure


def errors_as_plain(state: SagaState) -> list[dict[str, Any]]:
    """The errors of a transaction, the original one first, as plain data: what each is (see `fault_as_plain`), and
    which step it came from, in which direction and attempt."""
    found: list[dict[str, Any]] = []
    for failed in state.errors:
        place = {"step": failed.step, "direction": failed.direction, "attempt": failed.attempt} if failed.step else {}
        faults = (failed.fault, *faults_beside(failed.fault))
        found += [{"type": "", "message": "", **place, **fault_as_plain(fault)} for fault in faults]
    return found


def halt_as_plain(pulses: Sequence[Pulse]) -> dict[str, Any]:
    """The halt of a step, in the form of an error; that of the step itself, not of what was around it and paused."""
    halts = [pulse for pulse in pulses if pulse.kind == HALTED and pulse.step]
    asked = [pulse for pulse in halts if (pulse.data or {}).get("reason")] or halts
    if not asked:
        return {"message": "a step asked to halt"}
    last = asked[-1]
    reason = str((last.data or {}).get("reason") or "a step asked to halt")
    return {"message": reason, "step": last.step, "direction": last.direction, "attempt": last.attempt}


def _where(workflow: str, error: Mapping[str, Any]) -> str:
    if not error.get("step"):
        return ""
    path = f"{workflow}/{error['step']}"
    undo = "undo of " if error.get("direction", FORWARD) == UNDO else ""
    return f" at {undo}{path!r}, attempt {error.get('attempt', 0)}"


def _summary(error: Mapping[str, Any]) -> str:
    kind, message = error.get("type", ""), error.get("message", "")
    return Fault(kind, message).summary() if kind else message
