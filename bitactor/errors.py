"""Every error of BitActor, sorted by when it happens and whose fault it is.

BitActorError
├── DefinitionError            the workflow as declared cannot work
│   ├── CycleError             steps wait for each other
│   ├── DuplicateName          two things share a name
│   ├── UnknownArgument        a parameter, binding or `after` names nothing
│   ├── WorkflowTooDeep        the longest path exceeds the TTL
│   └── MissingReturn          `returns(...)` names no step
├── CallError                  the caller asked for what cannot be
│   ├── InvalidInput           the input does not fit the workflow's model
│   ├── UnknownWorkflow        nobody here has that name
│   ├── UnknownTransaction     no store here has that id
│   ├── Unroutable             nobody holds the addressed name
│   ├── Overloaded             waited too long for room
│   └── DuplicateTransaction   same key, other input
├── RunError                   a step or a worker went wrong while running
│   ├── StepFailed             the step said so, or its retries are used up
│   ├── StepTimeout            one attempt took longer than its timeout
│   ├── StepExited             a task that the step made raised SystemExit or KeyboardInterrupt
│   ├── DeadlineExceeded       the transaction's time is up
│   ├── TtlExpired             the hop budget is used up
│   ├── TooManyHops            more hops than the workflow's `max_hops`
│   ├── InvalidOutcome         a step returned what cannot be carried or is not allowed there
│   ├── UndoFailed             an undo raised, or cannot take doubt
│   ├── ResourceUnavailable    a resource could not be made
│   ├── WorkerLost             the process that ran the hop is gone
│   ├── RemoteError            an error raised in another process
│   ├── Cancelled              somebody asked for the transaction to be cancelled
│   └── WorkflowFailed         what `result()` raises: the transaction did not complete
├── ProtocolError              the other side sent what the wire does not allow
│   ├── SignalTooLarge
│   ├── UnsupportedVersion
│   └── MalformedSignal
├── StoreError                 the journal could not be read or written
│   ├── DamagedJournal         what it keeps of a transaction cannot be read back
│   ├── InboxChanged           a write counts other messages than the transaction has
│   └── StaleOwner             this process no longer owns the transaction
└── ConfigurationError         an option is wrong, or not built yet
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class BitActorError(Exception):
    """The root of all errors raised by BitActor on purpose."""


class DefinitionError(BitActorError):
    """The workflow as declared cannot work; raised while declaring or by `workflow.check()`."""


class DefinitionWarning(UserWarning):
    """Something in a workflow as declared can work, and is probably a slip: a parameter with a default is called nearly
    as an input is."""


class CycleError(DefinitionError):
    """Steps wait for each other; the message names the circle."""


class DuplicateName(DefinitionError):
    """Two steps, inputs or definitions share one name."""


class UnknownArgument(DefinitionError):
    """A parameter, binding or `after=` names neither an input field nor a step."""


class WorkflowTooDeep(DefinitionError):
    """The longest path has more hops than the workflow's TTL; the message names the path."""


class MissingReturn(DefinitionError):
    """`returns(...)` names a step that does not exist, or the workflow has no step at all."""


class CallError(BitActorError):
    """The caller asked for something that cannot be done; nothing was started."""


class InvalidInput(CallError):
    """The input does not fit the workflow's input model.

    `fields` lists (path, what is wrong) for each offending field.
    """

    def __init__(self, message: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class UnknownWorkflow(CallError):
    """No workflow of that name is declared here or registered in the mesh."""


class UnknownTransaction(CallError):
    """No transaction of that id is in the store that was asked."""


class Unroutable(CallError):
    """Nobody holds the name a signal is addressed to."""


class Overloaded(CallError):
    """There was no room for the work within the time allowed to wait for it."""


class DuplicateTransaction(CallError):
    """The idempotency key was used before with a different input."""


class RunError(BitActorError):
    """Something went wrong while a transaction ran."""


class StepFailed(RunError):
    """A step failed: it said so, or its retries are used up."""


class StepTimeout(RunError):
    """One attempt of a step took longer than its timeout."""


class StepExited(RunError):
    """A task that a step made raised `SystemExit` or `KeyboardInterrupt`, which is its `__cause__`; asyncio would let
    that end the node."""


class DeadlineExceeded(RunError):
    """The transaction's time budget is used up.

    `late_by` is how many seconds ago that was.  `clock` is what measured it: `"monotonic"` if one process ran the
    transaction all the time, else `"wall"`.  `unattended`: it happened while no process ran the transaction.
    """

    def __init__(self, message: str, late_by: float = 0.0, clock: str = "monotonic", unattended: bool = False) -> None:
        super().__init__(message)
        self.late_by = late_by
        self.clock = clock
        self.unattended = unattended


class TtlExpired(RunError):
    """A hop's causes had no hop budget left.

    `path` has the addresses of the steps that led there, all of them, the one without a hop last; the message leaves
    out the middle of a long one.
    """

    def __init__(self, message: str, path: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.path = tuple(path)


class TooManyHops(RunError):
    """The transaction would have taken more hops than its workflow's `max_hops` allows."""


class InvalidOutcome(RunError):
    """A step returned a value that cannot be carried, or an outcome not allowed there."""


class UndoFailed(RunError):
    """An undo raised, or was needed for a hop in doubt that it cannot take."""


class ResourceUnavailable(RunError):
    """A resource that a step needs could not be made, or is not declared."""


class WorkerLost(RunError):
    """The process that ran the hop is gone, and its redeliveries are used up."""


class RemoteError(RunError):
    """An error raised in another process, or before a restart: `type_name`, `message` and `remote_traceback` were
    carried."""

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback


class Cancelled(RunError):
    """The transaction was cancelled on request."""


class WorkflowFailed(RunError):
    """A transaction did not complete.

    `transaction` is its id, `status` how it ended, `errors` the original error first, then those of compensation and
    undo in the order they happened; a note says where each of these others happened.  `__cause__` is the original
    error.

    `workflow` is the workflow's name, `step` the path of the step that failed first, below that name
    (`shop/orders/17/charge`), and `attempt` which try of it that was, from 1: that of the step that was at work when
    the time was up, or that asked to halt; empty and 0 if none is to blame (it was cancelled).
    """

    def __init__(
        self,
        message: str,
        transaction: str,
        status: str,
        errors: Iterable[BaseException] = (),
        step: str = "",
        attempt: int = 0,
        workflow: str = "",
    ) -> None:
        super().__init__(message)
        self.workflow = workflow
        self.step = step
        self.attempt = attempt
        self.transaction = transaction
        self.status = status
        self.errors = tuple(errors)


class ProtocolError(BitActorError):
    """The other side sent something the wire does not allow; it is counted and dropped, never obeyed."""


class SignalTooLarge(ProtocolError):
    """A token, signal or frame is larger than the limit; that of values is the setting `payload_limit`."""


class UnsupportedVersion(ProtocolError):
    """The frame speaks a version this process does not."""


class MalformedSignal(ProtocolError):
    """The bytes are no signal: truncated, too deep, or of the wrong shape."""


class StoreError(BitActorError):
    """The journal could not be read or written."""


class DamagedJournal(StoreError):
    """What the journal keeps of a transaction cannot be read back; asking again does not help."""


class InboxChanged(StoreError):
    """A write says that its transaction reads messages that are not there, or leaves another number of them unread than
    it has by now; it is to be decided again.

    `unread` is how many it has, beside those that it reads.
    """

    def __init__(self, message: str, unread: int = 0) -> None:
        super().__init__(message)
        self.unread = unread


class StaleOwner(StoreError):
    """Another process has taken this transaction over; what was about to be written is void."""

    owner = ""
    """The name of an owner that was declared dead, if all that it had was taken over."""


class ConfigurationError(BitActorError):
    """An option is wrong, or names something that is not built."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, ` Known: …` for a short list, or nothing."""
    names = sorted(known)
    near = get_close_matches(wrong, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if names:
        shown = ", ".join(repr(name) for name in names[:8])
        return f" Known: {shown}{', …' if len(names) > 8 else ''}."
    return ""
