"""The right to begin what others sent: whether a node's place in the registry has held without a break since it was
sent, and the sender still waits for it.

A holder that was stopped (a paused container, a laptop's lid) finds in its sockets and queues what was given to others
long ago.  So who sends says to which grant of the node's name, and when; the node begins under that grant only, as long
as the grant is valid by its own clock and the sender's time is not over.  Where that is in doubt, it asks the sender,
who alone knows: what is still wanted is sent once more, with the moment of the question, and may begin soon after that
moment without regard to the registry, which may be down.
"""

from __future__ import annotations

from typing import Final

from typing_extensions import override

from bitactor.messages.signal import Sending
from bitactor.ports import Clock
from mesh.hops.ports import FOREVER, Lease
from mesh.limits.timing_wheel import SystemClock
from mesh.runtime.names import node_name
from registry import Entry, Notice, RegistryClient
from registry.entry import DISAPPEARED
from registry.support.clock import clock_id
from registry.table import DEFAULT_LEASE_NS

FENCED: Final = "fenced"
"""In the value of a step's or consumer's name: its holder takes signals with a `Sending`."""
TAKES_PIDS: Final = "takes_pids"
"""In the value of a node's name: it takes replies with the `pid` of the worker process that ran the hop."""
CONFIRMED_NS: Final = 1_000_000_000
"""Nanoseconds after a question in which what was sent again in answer to it may begin."""


class NodeGrant:
    """A node's grant of its own name, and what it knows of others' grants of theirs."""

    def __init__(self, registry: RegistryClient, node: str, clock: Clock) -> None:
        self._name = node_name(node)
        self._granted_until_ns = registry.granted_until_ns
        self._monotonic_ns = clock.monotonic_ns
        self._clock_id = clock_id() if isinstance(clock, SystemClock) else 0
        self._epochs: dict[str, int] = {}
        self._endpoints: dict[str, str] = {}
        self.senders: frozenset[str] = frozenset()
        """Endpoints of the nodes that are there, as far as the registry has said."""
        self._pids_to: set[str] = set()
        self.takes_pids: frozenset[str] = frozenset()
        """Those of them that take replies with the process id of a worker."""

    def on_notice(self, notice: Notice) -> None:
        """Take a change of a node's name in the registry."""
        entry = notice.entry
        if notice.kind == DISAPPEARED:
            self._epochs.pop(entry.holder, None)
            self._endpoints.pop(entry.holder, None)
        else:
            self._epochs[entry.holder] = entry.epoch
            self._endpoints[entry.holder] = str(entry.value.get("endpoint"))
        takes_pids = notice.kind != DISAPPEARED and entry.value.get(TAKES_PIDS)
        (self._pids_to.add if takes_pids else self._pids_to.discard)(entry.holder)
        self.senders = frozenset(self._endpoints.values())
        self.takes_pids = frozenset(self._endpoints[node] for node in self._pids_to)

    def is_there(self, node: str) -> bool:
        """Whether a node is there, so that we shall be told when it goes: what else it registers may outlive it here
        while a registry that was restarted is waited for."""
        return node in self._endpoints

    def sending(
        self, receiver: Entry, within_ns: int | None, asked_ns: int = 0, now_ns: int | None = None
    ) -> Sending | None:
        """What is said with a message that is sent now to the holder of `receiver`, a step's or consumer's entry; None:
        it does not take that.

        The sender does not give up within `within_ns` nanoseconds, unless the holder is gone.  `asked_ns`: the moment
        of the question that this answers.  `now_ns`: the time, if the clock has just been read.
        """
        if not receiver.value.get(FENCED):
            return None
        epoch = self._epochs.get(receiver.holder, 0)
        sent_ns = self._monotonic_ns() if now_ns is None else now_ns
        return tuple.__new__(Sending, (epoch, self._clock_id, sent_ns, within_ns, asked_ns))

    def lease(self, sending: Sending, sender: str) -> Lease:
        """The right to begin what has just been received from the node at the endpoint `sender`."""
        now_ns = self._monotonic_ns()
        asked_ns = sending.asked_ns if 0 < sending.asked_ns <= now_ns else 0
        until_ns = FOREVER
        if sending.within_ns is not None:
            if asked_ns:
                began_ns = asked_ns
            elif sending.clock == self._clock_id != 0:
                began_ns = min(sending.sent_ns, now_ns)
            else:  # if it was on its way for longer than that, the grant it was sent to is over
                began_ns = now_ns - DEFAULT_LEASE_NS
            until_ns = began_ns + sending.within_ns
        return SentLease(self, sender, sending.grant, until_ns, asked_ns + CONFIRMED_NS if asked_ns else 0)

    def until_ns(self, epoch: int) -> int:
        """Until when our grant is valid as far as is known, if it is the one of this epoch; else 0."""
        return self._granted_until_ns(self._name, epoch)


class SentLease(Lease):
    """The right to begin one hop, or to accept one stimulus."""

    __slots__ = ("_confirmed_until_ns", "_epoch", "_grant", "_sender", "_sender_until_ns")

    def __init__(
        self, grant: NodeGrant, sender: str, epoch: int, sender_until_ns: int, confirmed_until_ns: int
    ) -> None:
        self._grant = grant
        self._sender = sender
        self._epoch = epoch
        self._sender_until_ns = sender_until_ns
        self._confirmed_until_ns = confirmed_until_ns

    @override
    def until_ns(self) -> int:
        grant = self._grant
        # Whoever took over from a sender that is gone has given the hop to another.
        granted_ns = grant.until_ns(self._epoch) if self._sender in grant.senders else 0
        return min(self._sender_until_ns, max(self._confirmed_until_ns, granted_ns))
