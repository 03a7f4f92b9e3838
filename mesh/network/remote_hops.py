"""Remote hops: running hops that other nodes supervise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from cachetools import LRUCache

from bitactor.errors import BitActorError, MalformedSignal, Unroutable
from bitactor.messages.codec import Packed, decode_token, token_from_bytes, unpack_tokens
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import Cancel, Reply, Signal, addressed
from bitactor.messages.values import PAYLOAD
from bitactor.messages.wire import encode_message
from bitactor.plan.arguments import RemoteArguments
from bitactor.plan.plan import Plan, PlanStep
from mesh.hops.actor import BitActor
from mesh.hops.executor import Executor
from mesh.hops.ports import ENDED
from mesh.limits.payload import require_room
from mesh.network.grant import NodeGrant
from mesh.network.remote_delivery import not_started

WINDOW: Final = 1_024
"""The most unanswered hops that this node takes from one supervisor."""
MAX_RUNNING: Final = 16_384
"""The most hops that run here for all supervisors together; beyond that they are answered `busy`."""
REMEMBERED_REPLIES: Final = 10_000

Send = Callable[[str, bytes], None]
Key = tuple[str, int, int]


class RemoteHops:
    """The hops on this node that came from elsewhere."""

    def __init__(self, executor: Executor, plans: Mapping[str, Plan], send: Send, grant: NodeGrant) -> None:
        self._executor = executor
        self._plans = plans
        self._send = send
        self._grant = grant
        self._running: dict[Key, BitActor] = {}
        self._replies: LRUCache[Key, bytes] = LRUCache(REMEMBERED_REPLIES)
        self._closed = False
        self.repeated = 0
        """How many signals came a second time; the first answer is sent again if there is one."""

    def __len__(self) -> int:
        return len(self._running)

    def receive(self, signal: Signal) -> None:
        """Run a hop, once, and answer whoever sent it."""
        key = (signal.hop, signal.delivery, signal.epoch)
        replied = self._replies.get(key)
        if replied is not None or key in self._running:
            self.repeated += 1
            if replied is not None:
                self._post(signal.reply_to, replied)
            return
        if len(self._running) >= MAX_RUNNING:
            self._reply(signal, Reply(signal.transaction, signal.hop, signal.delivery, signal.epoch, "busy"))
            return
        found = self._step_at(signal.name)
        if found is None:
            self._refuse(signal, Unroutable(f"this node does not run {signal.name!r}"))
            return
        try:
            values, result = _unpack(signal.token)
            _require_room(signal.name, values, result)
        except BitActorError as error:
            self._refuse(signal, error)
            return
        plan, step = found
        arguments = RemoteArguments(step.arguments, values, step.address)
        lease = None if signal.sending is None else self._grant.lease(signal.sending, signal.reply_to)
        plain = addressed(signal, None, signal.reply_to, None)
        actor = self._executor.launch(plan, step, plain, arguments, result, partial(self._done, key), lease=lease)
        if actor.state != ENDED:
            self._running[key] = actor

    def _step_at(self, address: str) -> tuple[Plan, PlanStep] | None:
        """The step at an address, and its plan: of the workflow whose name is the longest beginning of the address."""
        workflow = address
        while "/" in workflow:
            workflow = workflow.rpartition("/")[0]
            plan = self._plans.get(workflow)
            step = plan.at_address(address) if plan is not None else None
            if plan is not None and step is not None:
                return plan, step
        return None

    def cancel(self, cancel: Cancel) -> None:
        """Stop the hop that `cancel` names, if it runs here; one that comes later does not begin."""
        key = (cancel.hop, cancel.delivery, cancel.epoch)
        actor = self._running.get(key)
        if actor is not None:
            actor.abandon()
        elif key not in self._replies:
            reply = not_started(Reply(cancel.transaction, cancel.hop, cancel.delivery, cancel.epoch, "fail"))
            self._replies[key] = encode_message(reply)

    def close(self) -> None:
        """Stop all hops; nobody is told, the owners learn it from the registry."""
        self._closed = True
        for actor in list(self._running.values()):
            actor.abandon()
        self._running.clear()

    def _done(self, key: Key, actor: BitActor, reply: Reply, error: BaseException | None) -> None:
        if actor.state == ENDED:
            self._running.pop(key, None)
        if self._closed:
            return
        pid = actor.holder
        if isinstance(pid, int) and actor.signal.reply_to in self._grant.takes_pids:
            reply = reply._replace(pid=pid)
        self._reply(actor.signal, reply)

    def _refuse(self, signal: Signal, error: BaseException) -> None:
        self._reply(
            signal, Reply(signal.transaction, signal.hop, signal.delivery, signal.epoch, "fail", fault=fault_of(error))
        )

    def _reply(self, signal: Signal, reply: Reply) -> None:
        message = encode_message(reply)
        if reply.outcome != "busy" and len(message) <= 64 * 1024:
            self._replies[signal.hop, signal.delivery, signal.epoch] = message
        self._post(signal.reply_to, message)

    def _post(self, endpoint: str, message: bytes) -> None:
        try:
            self._send(endpoint, message)
        except BitActorError:
            return  # the owner is not reading; its lease or ours will end, and the hop be redelivered


def _unpack(token: Any) -> tuple[Any, Any]:
    """The token of the arguments and the token of the result that an undo takes back."""
    parts = decode_token(token)
    if type(parts) is not list or len(parts) != 2 or not all(type(part) is bytes for part in parts):
        raise MalformedSignal("a signal's token is its arguments and a result, each packed")
    return token_from_bytes(parts[0]), token_from_bytes(parts[1])


def _require_room(address: str, values: Any, result: Any) -> None:
    """Refuse arguments one of which is larger than values are here."""
    if type(values) is Packed and len(values) > PAYLOAD.bytes:
        for name, token in unpack_tokens(values).items():
            require_room(f"{name!r} of {address!r}", token)
    require_room(f"the result of {address!r}", result)
