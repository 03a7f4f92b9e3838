"""A node's links to others: its endpoint, its place in the registry, and the messages between."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any, Final

from typing_extensions import override

from bitactor.errors import BitActorError, ProtocolError, SignalTooLarge
from bitactor.messages.duration import nanoseconds
from bitactor.messages.signal import Answer, Cancel, Question, Receipt, Reply, Signal, Stimulus
from bitactor.messages.wire import decode_message, encode_message
from mesh.limits.payload import require_room
from mesh.network.control import Control
from mesh.network.grant import FENCED, TAKES_PIDS, NodeGrant
from mesh.network.remote_hops import WINDOW, RemoteHops
from mesh.network.router import HopRouter
from mesh.network.transports import open_transport
from mesh.runtime.emissions import RECEIPT_WITHIN_NS
from mesh.runtime.names import node_name, step_name, workflow_name
from mesh.runtime.node import NodeParts
from mesh.runtime.ports import Network
from registry import Curve, Entry, Notice, RegistryClient, RegistryClosed, RegistryTimeout
from registry.support.log_throttle import INTERVAL_NS, LogThrottle

logger = logging.getLogger("bitactor.links")

REFUSED_FOR: Final = 10.0
"""Seconds that a registry which refuses this node is asked again."""
REGISTER_WITHIN: Final = 5.0
SAY_AFTER: Final = 1.0
SAY_AGAIN_AFTER: Final = 10.0
SAY_AT_LEAST_EVERY: Final = 60.0
"""Seconds without a registry after which that is logged: while it is looked for, while a name is registered; again;
and, ever more rarely, from then on."""
LEAVE_WITHIN: Final = 0.5
EARLY_FLUSH: Final = 16
LEAVING: Final = "leaving"
"""In the value of a node's name: it was stopped in order, and is about to leave."""


class Links(Network):
    """The links of a node, on the node's loop: one transport, one registry client, and the handlers of messages."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node
        settings = node.settings
        self._curve = Curve.load(settings.curve) if settings.curve is not None else None
        self._directory: Path | None = None
        endpoint = settings.endpoint
        if not endpoint:
            self._directory = Path(tempfile.mkdtemp(prefix="bitactor-"))
            endpoint = f"ipc://{self._directory}/{node.id}"
        self.transport = open_transport(endpoint, loop=node.loop, curve=self._curve, early_flush=EARLY_FLUSH)
        self.registry = RegistryClient(settings.registry, node.id, curve=self._curve)
        self.refused: Counter[str] = Counter()
        """Kind of error → how many messages were refused as no messages of ours."""
        self._throttle = LogThrottle(logger)
        self._announced: list[str] = []
        self._registry_missing = False  # and that has been logged
        send = self.transport.send
        self._grant = NodeGrant(self.registry, node.id, node.clock)
        self._hop_router = HopRouter(
            node.enqueue,
            self.registry,
            node.clock,
            node.wheel,
            send,
            lambda: self.transport.endpoint,
            nanoseconds(settings.patience),
            nanoseconds(settings.delivery_timeout),
            self._grant,
            node.executor,
        )
        self.router = None if settings.hosts else self._hop_router
        self._remote_hops = RemoteHops(node.executor, node.plans, send, self._grant)
        self._control = Control(node.loop, send, node.intake, node.transactions, node.about, node.patterns)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Signal: self._remote_hops.receive,
            Reply: self._hop_router.on_reply,
            Cancel: self._remote_hops.cancel,
            Stimulus: self._on_stimulus,
            Receipt: node.on_receipt,
            Question: self._control.on_question,
            Answer: lambda answer: None,
        }

    @property
    @override
    def endpoint(self) -> str:
        return self.transport.endpoint

    @override
    async def open(self) -> None:
        """Waits for a registry that answers, as long as it takes, and says so in the log."""
        self.transport.open(self._receive)
        joined = asyncio.wrap_future(self.registry.connect())
        joined.add_done_callback(lambda _: joined.cancelled() or joined.exception())  # who waits may be gone
        began = self._node.loop.time()
        pauses = pauses_between_lines(SAY_AFTER)
        while not (await asyncio.wait([joined], timeout=next(pauses)))[0]:
            refusal = self.registry.refusal
            if refusal is not None and self._node.loop.time() - began >= REFUSED_FOR:
                raise refusal
            missing = f"nobody answers at {self.registry.endpoint}; is it running, and with the same keys?"
            self._say_missing(missing if refusal is None else str(refusal))
        try:
            joined.result()
        except RegistryClosed:
            raise BitActorError("this mesh was closed while it waited for a registry") from None
        self._say_found()

    @override
    async def announce(self, consumers: Mapping[str, Any]) -> None:
        """Steps and consumers are registered only if the node hosts; workflows always."""
        node = self._node
        entries: dict[str, dict[str, Any]] = {}
        if node.settings.hosts:
            entries |= {name: {**value, FENCED: True} for name, value in consumers.items()}
            for workflow in node.workflows:
                plan = node.plans[workflow]
                for step in plan.all_steps():
                    if step.container is not None or step.is_local_only:
                        continue
                    entries[step_name(step.address)] = {
                        "endpoint": self.endpoint,
                        "digest": plan.digest,
                        "window": WINDOW,
                        FENCED: True,
                    }
        for workflow in node.workflows:
            entries[workflow_name(workflow)] = {"endpoint": self.endpoint}
        await self._register(node_name(node.id), {"endpoint": self.endpoint, TAKES_PIDS: True}, unique=True)
        for name, value in entries.items():
            await self._register(name, value)
        self._announced = list(entries)
        self._say_found()

    async def _register(self, name: str, value: Mapping[str, Any], *, unique: bool = False) -> None:
        """Register a name, also with a registry that is gone at the moment."""
        for seconds in pauses_between_lines(REGISTER_WITHIN):
            try:
                await asyncio.to_thread(self.registry.register, name, value, unique=unique, timeout=seconds)
                return
            except RegistryTimeout as error:
                self._say_missing(str(error))

    def _say_missing(self, why: str) -> None:
        self._registry_missing = True
        logger.warning("this node waits for its registry, and takes no work meanwhile: %s", why)

    def _say_found(self) -> None:
        if self._registry_missing:
            self._registry_missing = False
            logger.warning("the registry at %s answers now; this node goes on", self.registry.endpoint)

    @override
    async def withdraw(self) -> None:
        """Unregisters each name; stops at the first that the registry does not confirm, for our lease ends by
        itself."""
        for name in self._announced:
            if not self.registry.connected:
                return  # nobody can be told; our lease ends by itself
            try:
                await asyncio.to_thread(self.registry.unregister, name, timeout=LEAVE_WITHIN)
            except BitActorError as error:
                logger.info("could not unregister %s: %s", name, error)
                return

    @override
    def revoke(self, address: str, cancel: Cancel) -> None:
        self._remote_hops.cancel(cancel)
        message = encode_message(cancel)
        for entry in self.registry.lookup(step_name(address)):
            endpoint = entry.value.get("endpoint")
            if entry.holder != self._node.id and isinstance(endpoint, str):
                try:
                    self.transport.send(endpoint, message)
                except BitActorError as error:
                    logger.debug("could not ask %s to stop %s: %s", entry.holder, address, error)

    @override
    def send_stimulus(self, entry: Entry, stimulus: Stimulus, asked_ns: int = 0) -> None:
        """A stimulus that cannot be sent is answered with a receipt that says so."""
        endpoint = entry.value.get("endpoint")
        sending = self._grant.sending(entry, RECEIPT_WITHIN_NS, asked_ns)
        sent = stimulus._replace(reply_to=self.endpoint, sending=sending)
        try:
            if not isinstance(endpoint, str):
                raise ProtocolError(f"node {entry.holder} registers {entry.name!r} without an endpoint")
            self.transport.send(endpoint, encode_message(sent))
        except BitActorError as error:
            self._node.on_receipt(Receipt(stimulus.id, "", str(error)))

    @override
    def about(self) -> dict[str, Any]:
        """Keys: `transport` (its statistics), `refused`, `repeated`, `waiting` (hops, for a holder)."""
        return {
            "transport": self.transport.statistics(),
            "refused": dict(self.refused),
            "repeated": self._remote_hops.repeated,
            "waiting": self._hop_router.about(),
        }

    @override
    def on_notice(self, notice: Notice) -> None:
        entry = notice.entry
        if entry.name == node_name(entry.holder):
            self._grant.on_notice(notice)
        if notice.kind == "appeared":
            self._hop_router.appeared(entry)
        elif notice.kind == "disappeared" and entry.name == node_name(entry.holder):
            self._hop_router.disappeared(entry.holder, said_goodbye=entry.value.get(LEAVING, False))
            self.transport.forget(entry.value["endpoint"])

    @override
    async def close(self) -> None:
        self._remote_hops.close()
        self._hop_router.close()
        await self._say_goodbye()
        await asyncio.to_thread(self.registry.close)
        self.transport.close()
        self._control.close()
        if self._directory is not None:
            rmtree(self._directory, ignore_errors=True)

    async def _say_goodbye(self) -> None:
        """Say in the registry that what others have sent here and was not answered is given back, not lost."""
        if self.registry.connected:
            value = {"endpoint": self.endpoint, LEAVING: True}
            try:
                await asyncio.to_thread(self.registry.update, node_name(self._node.id), value, timeout=LEAVE_WITHIN)
            except BitActorError as error:
                logger.info("could not say goodbye: %s", error)

    def _receive(self, messages: list[bytes]) -> None:
        for data in messages:
            try:
                message = decode_message(data)
                self._handlers[type(message)](message)
            except ProtocolError as error:
                self._refuse(error)

    def _refuse(self, error: ProtocolError) -> None:
        self.refused[type(error).__name__] += 1
        if self._throttle.is_due(time.monotonic_ns()):
            every = INTERVAL_NS / 1e9
            logger.warning(
                "dropped a message: %s (%d so far; logged at most every %g s)", error, self.refused.total(), every
            )

    def _on_stimulus(self, stimulus: Stimulus) -> None:
        def answer(receipt: Receipt) -> None:
            try:
                self.transport.send(stimulus.reply_to, encode_message(receipt))
            except BitActorError as error:
                logger.debug("could not acknowledge %s: %s", receipt.id, error)

        if stimulus.sending is not None:
            now_ns = self._node.clock.monotonic_ns()
            if now_ns >= self._grant.lease(stimulus.sending, stimulus.reply_to).until_ns():
                answer(Receipt(stimulus.id, "", "this node may have been away since that was sent", now_ns))
                return
        try:
            require_room(f"the signal {stimulus.name!r}", stimulus.token)
        except SignalTooLarge as error:
            self._refuse(error)
            answer(Receipt(stimulus.id, "", str(error)))
            return
        self._node.intake.receive(stimulus, answer)


def pauses_between_lines(first: float) -> Iterator[float]:
    """Seconds between the lines of the log about a registry that is missing, ever more of them."""
    yield first
    pause = SAY_AGAIN_AFTER
    while True:
        yield pause
        pause = min(2 * pause, SAY_AT_LEAST_EVERY)
