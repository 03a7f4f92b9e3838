"""The phases of a transaction and the states of a step: each is the word it prints, and the pulse kind or status of
that word, where there is one."""

from __future__ import annotations

from typing import Final

from bitactor.messages.pulse import COMPLETED, FAILED, HALTED, RUNNING, SKIPPED, UNDO_FAILED, UNDONE

# Phases of a transaction, beside RUNNING and HALTED

NEW: Final = "new"
HALTING: Final = "halting"
"""A step asked to halt; hops in flight are awaited and kept."""
FAILING: Final = "failing"
"""Hops in flight are cancelled, and awaited for the grace period."""
UNDOING: Final = "undoing"
ENDED: Final = "ended"

PHASES: Final = (NEW, RUNNING, HALTING, HALTED, FAILING, UNDOING, ENDED)

# States of a step, beside RUNNING, COMPLETED, SKIPPED, FAILED, UNDONE and UNDO_FAILED.
# SKIPPED: or failed without being required.  FAILED: known not to have happened; nothing to undo.

WAITING: Final = "waiting"
"""The step waits for its dependencies, or for the supervisor to evaluate it."""
BACKING_OFF: Final = "backing off"
COMPENSATING: Final = "compensating"
"""The attempt was lost or timed out; its compensation or backoff is being asked."""
IN_DOUBT: Final = "in doubt"
UNDO_RUNNING: Final = "undo running"
UNDO_BACKING_OFF: Final = "undo backing off"
OPEN: Final = "open"
"""The container has scopes that are not settled, or its next action is to be taken."""

STEP_STATES: Final = (
    WAITING, RUNNING, BACKING_OFF, COMPENSATING, COMPLETED, SKIPPED, FAILED, IN_DOUBT, UNDO_RUNNING, UNDO_BACKING_OFF,
    UNDONE, UNDO_FAILED, OPEN,
)  # fmt: skip

IN_FLIGHT: Final = frozenset((RUNNING, COMPENSATING))
HAS_RESULT: Final = frozenset((COMPLETED, SKIPPED, UNDO_RUNNING, UNDO_BACKING_OFF, UNDONE, UNDO_FAILED))
SETTLED: Final = frozenset((COMPLETED, SKIPPED))
UNDOABLE: Final = (COMPLETED, IN_DOUBT, UNDO_RUNNING, UNDO_BACKING_OFF)
"""A step that has an undo is undone from these."""
