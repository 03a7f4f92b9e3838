"""The transactions of a node as their callers see them: those that run here, and those that are only in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bitactor.errors import BitActorError, InvalidInput, StoreError, UnknownTransaction, Unroutable
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault
from bitactor.messages.values import shown
from bitactor.plan.plan import Plan
from bitactor.saga import CancelRequested, ResumeRequested, UndoRequested
from mesh.runtime.live import LiveTransaction
from mesh.runtime.recovery import shape_changed
from mesh.runtime.supervisor import Supervisor

POLL_SECONDS: Final = 0.25
"""Seconds between two looks in the store for a transaction that another process runs."""


class Transactions:
    """Loads transactions, waits for those that other processes run, and lets settled ones go on.

    Args:
        supervisor: runs those that go on here.
        parked: transaction that cannot go on here → why.
        where: the store, as its user named it.
        require_open: raises `BitActorError` unless the node takes work.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        plans: Mapping[str, Plan],
        parked: Mapping[str, str],
        where: str,
        require_open: Callable[[], None],
    ) -> None:
        self.store = supervisor.store
        self._supervisor = supervisor
        self._plans = plans
        self._parked = parked
        self._where = where
        self._require_open = require_open
        self._closed = False

    def close(self) -> None:
        """Wait no more for transactions that other processes run."""
        self._closed = True

    def require_running(self, transaction: str) -> None:
        """Raise unless a transaction's end can be awaited here: the mesh is not closed, and lives on this loop."""
        if self._closed:
            raise StoreError(f"transaction {transaction} had not ended when this mesh was closed")
        require_loop(self._supervisor.loop)

    def pulses(self, transaction: str) -> Sequence[Pulse]:
        """The pulses that the store has of a transaction, also after the mesh was closed.

        Raises:
            StoreError: it has none any more.
        """
        try:
            pulses = self.store.pulses(transaction)
        except Exception as error:
            if isinstance(error, BitActorError) or not self._closed:
                raise
            raise StoreError(f"{self._where} cannot be read after the mesh was closed: {shown(error)}") from error
        if not pulses:
            raise StoreError(f"the pulses of transaction {transaction} are not in {self._where} any more")
        return pulses

    def owns(self, live: LiveTransaction) -> bool:
        """Whether `live` is what runs here: nobody else does, and it is no copy from the store."""
        return self._supervisor.transactions.get(live.state.transaction) is live

    async def wait_elsewhere(self, transaction: str) -> LiveTransaction:
        """The transaction that another process on the same store owns, once it has settled or is ours.

        Raises:
            StoreError: it cannot go on here, or this mesh is closed.
        """
        while True:
            why = self._parked.get(transaction)
            if why is not None:
                raise StoreError(f"transaction {transaction} cannot go on here: {why}")
            if self._closed:
                raise StoreError(f"transaction {transaction} had not ended when this mesh was closed")
            row = self.store.get(transaction)
            if row is None or row.status != "running" or transaction in self._supervisor.transactions:
                live = self.load(transaction)
                if live.settled or self.owns(live):
                    return live
            await asyncio.sleep(POLL_SECONDS)

    def load(self, transaction: str) -> LiveTransaction:
        """A transaction of ours, or, read only, one from the store.

        Raises:
            UnknownTransaction: there is none, or its workflow is not declared here.
            StoreError: its pulses make no sense, or not to the workflow as it is declared here.
        """
        live = self._supervisor.transactions.get(transaction)
        if live is not None:
            return live
        pulses = self.store.pulses(transaction)
        if not pulses:
            if self.store.get(transaction) is not None:
                raise StoreError(f"the pulses of transaction {transaction} are not in {self._where} any more")
            raise UnknownTransaction(f"no transaction {transaction!r} in {self._where}")
        plan = self._plans.get(pulses[0].workflow)
        if plan is None:
            raise UnknownTransaction(
                f"transaction {transaction} is of workflow {pulses[0].workflow!r}, which is not declared here"
            )
        try:
            return LiveTransaction.fold(plan, pulses)
        except StoreError as error:
            if pulses[0].digest == plan.digest:
                raise StoreError(f"transaction {transaction} cannot be read: {error}") from error
            raise StoreError(
                f"transaction {transaction} cannot be read here: {shape_changed(plan.workflow)}"
            ) from error

    def cancel(self, live: LiveTransaction, fault: Fault) -> LiveTransaction:
        """Enqueue a cancellation; returns the live transaction that goes on.

        Raises:
            Unroutable: another process runs it, or only another release can undo it.
        """
        if live.settled and live.state.status == "halted":
            live = self._reopen(live, ("halted",), "a halted one can be cancelled")
        if self.owns(live):
            self._supervisor.enqueue(live, CancelRequested(fault))
        elif not live.settled:
            raise Unroutable(
                f"transaction {live.state.transaction} is run by another process; cancel it there, or with `bitactor "
                "cancel`"
            )
        return live

    def resume(self, live: LiveTransaction) -> LiveTransaction:
        """Let a halted or stuck transaction go on; its deadline has stood still meanwhile.  Returns the live
        transaction.

        Raises:
            InvalidInput: the transaction is neither halted nor stuck.
            Unroutable: it began in another shape of its workflow, so only the release that declares that one can carry
                it on.
        """
        live = self._reopen(live, ("halted", "stuck"), "a halted or stuck one can be resumed")
        pulses = reversed(self.store.pulses(live.state.transaction))
        data = next((pulse.data or {} for pulse in pulses if pulse.kind == "halted"), {})
        left = data.get("left_ns")
        due_ns = None if left is None else self._supervisor.clock.wall_ns() + left
        self._supervisor.enqueue(live, ResumeRequested(due_ns))
        return live

    def undo(self, live: LiveTransaction, fault: Fault) -> LiveTransaction:
        """Take back what a completed transaction did.  Returns the live transaction.

        Raises:
            InvalidInput: the transaction did not complete, or was undone already.
            Unroutable: it began in another shape of its workflow, so only the release that declares that one can undo
                it.
        """
        live = self._reopen(live, ("completed",), "a completed one can be undone, and only once")
        self._supervisor.enqueue(live, UndoRequested(fault))
        return live

    def _reopen(self, live: LiveTransaction, statuses: Sequence[str], only: str) -> LiveTransaction:
        """Take up a transaction that has settled.  The transaction may have gone on since `live` was made, through
        another handle or in another process."""
        self._require_open()
        transaction = live.state.transaction
        found = self._supervisor.transactions.get(transaction)
        if found is not None:
            live = found
        else:
            pulses = self.store.pulses(transaction)
            if pulses and pulses[0].digest != live.plan.digest:
                raise Unroutable(f"transaction {transaction} cannot go on here: {shape_changed(live.plan.workflow)}")
            if len(pulses) != live.state.seq:
                live = self.load(transaction)
        if not live.settled or live.state.status not in statuses:
            now = live.state.status if live.settled else "running"
            raise InvalidInput(f"transaction {transaction} is {now}; only {only}")
        self._supervisor.reopen(live)
        return live


def require_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raise `BitActorError` unless this runs on `loop`, a mesh's."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is not loop:
        raise BitActorError(
            "this mesh lives on another event loop: await this where it was opened, or call `mesh.blocking` from a "
            "thread"
        )
