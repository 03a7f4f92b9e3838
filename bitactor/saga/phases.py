"""The phases of a transaction, and the states of a step."""

from __future__ import annotations

from typing import Final

# Phases of a transaction

NEW: Final = "new"
ACTIVE: Final = "running"
HALTING: Final = "halting"
"""A step asked to halt; hops in flight are awaited and kept."""
SUSPENDED: Final = "halted"
FAILING: Final = "failing"
"""Hops in flight are cancelled, and awaited for the grace period."""
UNDOING: Final = "undoing"
ENDED: Final = "ended"

PHASES: Final = (NEW, ACTIVE, HALTING, SUSPENDED, FAILING, UNDOING, ENDED)

# States of a step

WAITING: Final = 0
"""For its dependencies, or for the supervisor's decision."""
RUNNING: Final = 1
BACKING_OFF: Final = 2
ASSESSING: Final = 3
"""Lost or timed out; its compensation or backoff is being asked."""
DONE: Final = 4
PASSED: Final = 5
"""Skipped, or failed without being required."""
BROKEN: Final = 6
"""Known not to have happened; nothing to undo."""
IN_DOUBT: Final = 7
UNDO_RUNNING: Final = 8
UNDO_BACKING_OFF: Final = 9
TAKEN_BACK: Final = 10
UNDO_BROKEN: Final = 11
OPENED: Final = 12
"""A container whose scopes are at work."""

STEP_STATES: Final = (
    "waiting", "running", "backing off", "assessing", "done", "skipped", "failed", "in doubt",
    "undo running", "undo backing off", "undone", "undo failed", "open",
)  # fmt: skip

IN_FLIGHT: Final = frozenset((RUNNING, ASSESSING))
HAS_RESULT: Final = frozenset((DONE, PASSED, UNDO_RUNNING, UNDO_BACKING_OFF, TAKEN_BACK, UNDO_BROKEN))
SETTLED: Final = frozenset((DONE, PASSED))
