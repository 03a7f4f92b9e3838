"""The intake of a node: validates stimuli, looks for their keys, waits for room or refuses, begins transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Final, NoReturn

from bitactor.declare.stimulus import StimulusOptions, encoded
from bitactor.errors import (
    BitActorError,
    DuplicateTransaction,
    InvalidInput,
    Overloaded,
    StoreError,
    UnknownWorkflow,
    suggest,
)
from bitactor.messages.canonical import classless_digest, request_digest, valid_digest
from bitactor.messages.codec import pack_plainly, pack_tokens
from bitactor.messages.duration import nanoseconds
from bitactor.messages.objects import Classes
from bitactor.messages.signal import Receipt, Stimulus
from bitactor.messages.values import MAX_TOKEN_BYTES, text_of
from bitactor.plan.plan import Plan
from bitactor.ports import Ids
from bitactor.saga import Accept, Saga
from bitactor.workflow import Workflow
from mesh.limits.pools import LENDER
from mesh.runtime.ids import fingerprint
from mesh.runtime.live import LiveTransaction
from mesh.runtime.settings import Settings
from mesh.runtime.supervisor import Supervisor

MAX_WAITING_FOR_ADMISSION: Final = 10_000


class Workflows(dict[str, Workflow]):
    """Name → workflow, of those declared here."""

    def __missing__(self, name: str) -> NoReturn:
        """Raises `UnknownWorkflow`."""
        raise UnknownWorkflow(f"no workflow {name[:200]!r} is declared here.{suggest(name[:200], self)}")


class Intake:
    """Takes stimuli in, from callers and from other transactions.

    Args:
        supervisor: runs what begins here.
        load: a transaction by its id, open or from the store.
        require_open: raises `BitActorError` unless the node takes work.
        takes_signals: whether the node accepts emitted signals: of other processes (True), or of its own.
        start_task: starts a task whose first step runs at once; not for use inside of another.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        ids: Ids,
        settings: Settings,
        workflows: Workflows,
        plans: Mapping[str, Plan],
        consumers: Mapping[tuple[str, str], Plan],
        *,
        load: Callable[[str], Awaitable[LiveTransaction]],
        require_open: Callable[[], None],
        takes_signals: Callable[[bool], bool],
        start_task: Callable[[Coroutine[Any, Any, None], str, Context], asyncio.Task[None]],
    ) -> None:
        self._supervisor = supervisor
        self._ids = ids
        self._settings = settings
        self._workflows = workflows
        self._plans = plans
        self._consumers = consumers
        self._load = load
        self._require_open = require_open
        self._takes_signals = takes_signals
        self._start_task = start_task
        self._receiving: set[asyncio.Task[None]] = set()
        self._asking = 0  # of these, how many wait for the store to say whether there is a transaction
        self._settled = asyncio.Event()
        supervisor.on_settled.append(lambda live: self._settled.set())

    def input_classes(self, workflow: Any) -> Classes | None:
        """The classes of objects that the input of a workflow may hold; None if none of that name is declared here."""
        declared = self._workflows.get(workflow)
        return declared.input_classes if declared is not None else None

    async def stimulate(self, workflow: str, given: Any, options: StimulusOptions) -> LiveTransaction:
        """Begin a transaction, or find the one that its key began; see `Mesh.stimulate`."""
        self._require_open()
        return await self.begin(workflow, self._workflows[workflow].validate_input(given), options, given)

    async def begin(
        self, workflow: str, values: Mapping[str, Any], options: StimulusOptions, given: Any
    ) -> LiveTransaction:
        """Begin a transaction with an input that is valid, `given` as it was sent, or find the one that its key began;
        the node is open."""
        plan, supervisor = self._plans[workflow], self._supervisor
        key, ttl, deadline, *_ = options
        token = encoded(f"input of {workflow!r}", values)
        data: dict[str, Any] = {}
        request: _Request | None = None
        if key is not None:
            request = _Request(workflow, given, values)
            data = {"key": key, **request.digests}
            known = await self._find_by_key(workflow, key, request)
            if known is not None:
                return known
        data |= options.record()
        if supervisor.running_count >= self._settings.max_in_flight:
            await self._wait_for_capacity()
            if request is not None and (known := await self._find_by_key(workflow, key or "", request)) is not None:
                return known
        budget_ns = plan.deadline_ns if deadline is None else nanoseconds(deadline)
        inputs = [encoded(f"input {name!r} of {workflow!r}", values[name]) for name in plan.inputs]
        lender = LENDER.get()
        depth = lender.depth + 1 if lender is not None and lender.loop is supervisor.loop else 0
        saga = Saga(plan, self._ids.transaction())
        live = self._start(saga, token, inputs, plan.ttl if ttl is None else ttl, budget_ns, data, depth)
        if await _is_accepted(live):
            return live
        known = await self._find_by_key(workflow, key or "", request) if request is not None else None
        if known is None:
            assert live.failure is not None
            raise live.failure
        return known

    def receive(self, stimulus: Stimulus, answer: Callable[[Receipt], None]) -> None:
        """Accept an emitted signal that has come for a consumer of ours, once, and acknowledge it when that is
        durable."""
        plan, supervisor = self._consumers.get((stimulus.name, stimulus.group)), self._supervisor
        if plan is None or not self._takes_signals(bool(stimulus.reply_to)):
            answer(Receipt(stimulus.id, "", f"no consumer of {stimulus.name!r} in group {stimulus.group!r} here"))
            return
        if supervisor.admission.waiting(plan.workflow) + self._asking >= MAX_WAITING_FOR_ADMISSION:
            answer(Receipt(stimulus.id, "", "busy"))
            return
        taking, name = self._take(plan, stimulus, answer), f"take {stimulus.name}"
        if asyncio.current_task() is None:
            task = self._start_task(taking, name, copy_context())
        else:
            task = supervisor.loop.create_task(taking, name=name)
        if not task.done():
            self._receiving.add(task)
            task.add_done_callback(self._receiving.discard)

    def close(self) -> None:
        """Take no signal more; those that have come and are not accepted are refused, and brought again."""
        self._takes_signals = lambda foreign: False
        for task in self._receiving:
            task.cancel()

    async def _take(self, plan: Plan, stimulus: Stimulus, answer: Callable[[Receipt], None]) -> None:
        """Begin the transaction of an emitted signal, unless there is one, and answer once that is durable."""
        try:
            receipt = Receipt(stimulus.id, await self._begin_consumer(plan, stimulus))
        except asyncio.CancelledError:
            answer(Receipt(stimulus.id, "", "this node stops"))
            raise
        except Exception as error:  # of the store, too
            receipt = Receipt(stimulus.id, "", text_of(error))
        answer(receipt)

    async def _begin_consumer(self, plan: Plan, stimulus: Stimulus) -> str:
        """The id of the transaction that a signal began, or begins now."""
        self._asking += 1
        try:
            found = await self._find(plan.workflow, stimulus.id)
        finally:
            self._asking -= 1
        if found is None:
            live = self._start_consumer(plan, stimulus)
            found = live if await _is_accepted(live) else await self._find(plan.workflow, stimulus.id)
            if found is None:
                assert live.failure is not None
                raise live.failure
        return found if isinstance(found, str) else found.state.transaction

    def _start_consumer(self, plan: Plan, stimulus: Stimulus) -> LiveTransaction:
        if not self._takes_signals(bool(stimulus.reply_to)):
            raise StoreError("this node took no more work when its store had answered")
        data: dict[str, Any] = {"key": stimulus.id, "parent_hop": stimulus.hop}
        if stimulus.metadata:
            data["metadata"] = stimulus.metadata
        budgets = [budget for budget in (stimulus.budget_ns, plan.deadline_ns) if budget is not None]
        token = pack_tokens({"signal": stimulus.token})
        saga = Saga(plan, self._ids.transaction(), root=stimulus.root, parent=stimulus.parent, trail=stimulus.trail)
        return self._start(saga, token, [stimulus.token], stimulus.ttl, min(budgets, default=None), data)

    async def wait_for_settlement(self, seconds: float) -> None:
        """Wait until a transaction has settled, or `seconds` have passed."""
        self._settled.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._settled.wait()

    def _start(
        self,
        saga: Saga,
        token: Any,
        inputs: list[Any],
        ttl: int,
        budget_ns: int | None,
        data: Mapping[str, Any],
        depth: int = 0,
    ) -> LiveTransaction:
        supervisor, limit = self._supervisor, self._settings.payload_limit
        if limit != MAX_TOKEN_BYTES:
            data = {**data, "payload_limit": limit}
        now_ns = supervisor.clock.wall_ns()
        live = LiveTransaction(saga, data.get("key", ""), data, depth)
        live.offset_ns = now_ns - supervisor.clock.monotonic_ns()
        deadline_ns = None if budget_ns is None else now_ns + budget_ns
        if not supervisor.synchronous_store:
            live.accepted = supervisor.loop.create_future()
        supervisor.accept(live, Accept(token, tuple(inputs), ttl, deadline_ns, data), now_ns)
        return live

    async def _find(self, workflow: str, key: str) -> LiveTransaction | str | None:
        """The transaction that has a key, once its beginning is durable; see `Supervisor.find`."""
        found = await self._supervisor.find(workflow, key)
        while isinstance(found, LiveTransaction) and not await _is_accepted(found):
            found = await self._supervisor.find(workflow, key)  # another node's, which has the key by now
        return found

    async def _find_by_key(self, workflow: str, key: str, request: _Request) -> LiveTransaction | None:
        """The transaction that a key began before.

        Raises:
            DuplicateTransaction: that transaction began with another input.
        """
        found = await self._find(workflow, key)
        if found is None:
            self._require_open()  # it may have been closed while the store was asked
            return None
        live = found if isinstance(found, LiveTransaction) else await self._load(found)
        pulses = await self._supervisor.store.pulses(live.state.transaction)
        if not pulses:
            raise StoreError(f"transaction {live.state.transaction} of key {key!r} has just been forgotten; ask again")
        first = pulses[0].data or {}
        if not request.is_one_of(first):
            raise DuplicateTransaction(
                f"key {key!r} began transaction {live.state.transaction} of {workflow!r} with another input; "
                "use a key of its own for each request"
            )
        return live

    async def _wait_for_capacity(self) -> None:
        patience = self._settings.patience
        try:
            async with asyncio.timeout(patience):
                while self._supervisor.running_count >= self._settings.max_in_flight:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise Overloaded(
                f"{self._supervisor.running_count:,} transactions are running and none ended within {patience:g} s; "
                "try again later, or raise max_in_flight"
            ) from None
        self._require_open()


_EXACT: Final = "2:"
"""What stands before digests in which the classes of objects and all fields count; those of releases before lack it."""


class _Request:
    """A request with a key: what tells it from others."""

    def __init__(self, workflow: str, given: Any, values: Mapping[str, Any]) -> None:
        self._given = given
        self._values = values
        try:
            valid = valid_digest(values)
        except InvalidInput as error:
            raise InvalidInput(f"input of {workflow!r}: {error}") from error
        plain, sent = "", valid
        with suppress(BitActorError):  # it has what releases of before cannot carry
            plain = fingerprint(pack_plainly(values))
        with suppress(InvalidInput):  # it was sent as what can be read but once, or not be carried
            sent = request_digest(given)
        self.digests = {"input_digest": plain, "request_digest": _EXACT + sent, "valid_digest": _EXACT + valid}
        """As releases of before take it, as it was sent, and of its valid input."""

    def is_one_of(self, first: Mapping[str, Any]) -> bool:
        """Whether a transaction began with this request, as the data of its first pulse say: the same as it was sent,
        or the same input however it was written."""
        digests = self.digests
        if str(first.get("request_digest", "")).startswith(_EXACT):
            digests = {**digests, "input_digest": ""}
        else:
            digests = {**digests, "request_digest": "", "valid_digest": classless_digest(self._values)}
            with suppress(InvalidInput):
                digests["request_digest"] = classless_digest(self._given)
        return any(digest and digest == first.get(name) for name, digest in digests.items())


async def _is_accepted(live: LiveTransaction) -> bool:
    """Whether a transaction's beginning is durable, once that is known; False: its key, or its id, was taken by another
    node meanwhile."""
    if live.accepted is not None:
        with suppress(DuplicateTransaction):
            await asyncio.shield(live.accepted)
    return not isinstance(live.failure, DuplicateTransaction)
