"""A worker process: runs one hop at a time for the process that started it, and dies with it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from typing_extensions import override

from bitactor.declare.spawners import SpawnerTraits
from bitactor.errors import BitActorError, Unroutable
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import Answer, Fault, Question, Reply, Signal
from bitactor.messages.values import MAX_TOKEN_BYTES
from bitactor.messages.wire import decode_message, encode_message
from bitactor.plan.arguments import RemoteArguments
from bitactor.plan.plan import Plan
from mesh.hops.executor import Executor
from mesh.hops.exits import contain_exits, run_on
from mesh.hops.ports import Actor, Lease, Spawner
from mesh.hops.resources import ResourceManager
from mesh.limits.payload import hold_limit
from mesh.limits.timing_wheel import SystemClock, TimingWheel
from mesh.network.transports.zmq import ZmqTransport
from mesh.sinks.otel.own_spans import collect, packed
from mesh.spawners.loop import InlineSpawner, LoopSpawner
from mesh.spawners.process.definitions import SPANS, load, unpack_payload
from registry.support.log import set_up_log

logger = logging.getLogger("bitactor.worker")

RESOURCES_WITHIN: Final = 60.0
"""Seconds that resources may take to be made before the hop that asks for them is taken; then its time counts."""
MAX_SPANS: Final = 1_000
"""The most spans that users' functions may make before a reply; of more, the latest are kept."""
BACKSTOP_NS: Final = 1_000_000_000
"""Nanoseconds after its time that an attempt is ended here; by then the parent has long killed us, unless its loop
stands still."""


class BackstopWheel(TimingWheel):
    """A timing wheel that arms every timer `BACKSTOP_NS` later than asked for."""

    @override
    def arm(self, timer: Any, when_ns: int) -> int:
        return super().arm(timer, when_ns + BACKSTOP_NS)


class WorkerLease(Lease):
    """The right to start a hop's function until a moment that the parent has said."""

    def __init__(self, until_ns: int) -> None:
        self._until_ns = until_ns

    @override
    def until_ns(self) -> int:
        return self._until_ns


class WorkerSpawner(Spawner):
    """Runs `async def` on the worker's loop, `def` right in its main thread, which has nothing else to do."""

    traits = SpawnerTraits()

    def __init__(self) -> None:
        self._inline = InlineSpawner()
        self._loop = LoopSpawner()

    @override
    def start(self, actor: Actor) -> None:
        (self._loop if actor.callback.is_async else self._inline).start(actor)

    @override
    def abandon(self, actor: Actor) -> None:
        self._loop.abandon(actor)

    @override
    async def close(self, timeout: float) -> None:
        """Does nothing: the worker ends by being killed."""


class Worker:
    """A worker process: answers the parent's messages, `load` this workflow and run that hop.

    It has resources of its own, made when a hop first needs them, before its time counts.  They are closed when the
    parent asks the worker to end; not when it is killed, as it is with a hop whose time is up, or when the parent dies.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, parent: str, endpoint: str, *, collects_spans: bool = False
    ) -> None:
        clock = SystemClock(loop)
        self._parent = parent
        self._transport = ZmqTransport(endpoint, loop=loop)
        self._spans: deque[ReadableSpan] | None = deque(maxlen=MAX_SPANS) if collects_spans else None
        take = self._spans.append if self._spans is not None else None
        self._executor = Executor(loop, clock, BackstopWheel(clock), {"process": WorkerSpawner()}, take=take)
        self._executor.enforces_timeouts = False
        self._executor.resources = self._resources = ResourceManager((), {}, lambda: clock)
        self._plans: dict[tuple[str, str], Plan] = {}
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, number: str) -> None:
        """Bind our endpoint, and tell the parent that this worker is ready."""
        self._transport.open(self._receive)
        self._send(encode_message(Question(number, "ready", None, self._transport.endpoint)))

    def close(self) -> None:
        """Release the sockets."""
        self._transport.close()

    def _receive(self, messages: list[bytes]) -> None:
        for data in messages:
            message = decode_message(data)
            if isinstance(message, Signal):
                self._run(message)
            elif isinstance(message, Question):
                self._load(message)

    def _load(self, question: Question) -> None:
        error, resources = "", []
        try:
            workflow, digest, modules, resources, replaced = decode_token(question.argument)
            if (workflow, digest) not in self._plans:
                plan = load(workflow, digest, modules)
                if self._spans is not None and not self._plans:
                    collect(self._spans.append)  # now that the user's modules may have set a tracer provider
                self._resources.add(plan)
                self._resources.replaced_in_parent = frozenset(replaced)
                self._plans[workflow, digest] = plan
                if plan.resources:
                    self._loop.add_signal_handler(signal.SIGTERM, lambda: self._add_task(self._shut_down()))
        except BitActorError as problem:
            logger.error("%s", problem, exc_info=problem.__cause__)
            error = str(problem)
        if resources and not error:
            self._add_task(self._make_resources(resources, question))
        else:
            self._send(encode_message(Answer(question.id, None, _utf8_safe(error), "DefinitionError" if error else "")))

    async def _make_resources(self, resources: Sequence[str], question: Question) -> None:
        """Make resources before the hop that needs them comes; a resource that cannot be made now is left to that
        hop."""
        with contextlib.suppress(BitActorError, TimeoutError):
            async with asyncio.timeout(RESOURCES_WITHIN):
                await self._resources.get_many(resources)
        self._send(encode_message(Answer(question.id)))

    async def _shut_down(self) -> None:
        """Close the resources, as far as the parent, which wants us to end, gives us time."""
        try:
            await self._resources.close()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(0)

    def _add_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self, signal: Signal) -> None:
        try:
            payload = unpack_payload(signal.token)
            plan = self._plans[payload.workflow, payload.digest]
            step = plan.at_address(payload.step)
            if step is None:
                raise Unroutable(f"{payload.step!r} is no step of {payload.workflow!r}")
            arguments = RemoteArguments(step.arguments, payload.values, step.address)
            plain = signal._replace(token=None, metadata=payload.metadata)
            sending = signal.sending
            lease = None if sending is None else WorkerLease(sending.sent_ns + (sending.within_ns or 0))
            self._executor.launch(plan, step, plain, arguments, payload.result, self._done, lease=lease)
        except BaseException as problem:
            logger.exception("%s could not be run", signal.name)
            fault = fault_of(problem)
            self._reply(
                Reply(signal.transaction, signal.hop, signal.delivery, signal.epoch, "fail", fault=fault), signal.name
            )

    def _done(self, actor: Actor, reply: Reply, error: BaseException | None) -> None:
        self._send_spans()
        self._reply(reply, actor.signal.name)

    def _reply(self, reply: Reply, name: str) -> None:
        try:
            message = encode_message(reply)
        except (BitActorError, ValueError, TypeError) as problem:
            message = encode_message(_reduced(reply, f"the reply of {name!r} cannot be carried: {problem}"))
        self._send(message)

    def _send_spans(self) -> None:
        """Send the spans that the user's functions have made, ahead of the reply: after it we may be killed."""
        if not self._spans:
            return
        spans = [self._spans.popleft() for _ in range(len(self._spans))]
        try:
            self._send(encode_message(Question("", SPANS, encode_token(packed(spans), MAX_TOKEN_BYTES), "")))
        except (BitActorError, ValueError, TypeError) as problem:
            logger.warning("%d spans cannot be carried: %s", len(spans), problem)

    def _send(self, message: bytes) -> None:
        self._transport.send(self._parent, message)


def _reduced(reply: Reply, problem: str) -> Reply:
    """The part of a reply that the wire takes, for one that it refused with `problem`: its fault, without token and
    emitted signals."""
    if reply.fault is None:
        fault = Fault("bitactor.errors:InvalidOutcome", _utf8_safe(problem))
        return reply._replace(outcome="fail", token=None, emits=(), fault=fault, reason="")
    kind, message, traceback, *_ = reply.fault
    fault = Fault(_utf8_safe(kind), _utf8_safe(message), _utf8_safe(traceback))
    return reply._replace(token=None, emits=(), fault=fault, reason=_utf8_safe(reply.reason))


def _utf8_safe(text: str) -> str:
    """`text` without what UTF-8 cannot encode, such as the undecodable bytes of a file name."""
    return text.encode(errors="backslashreplace").decode()


def die_with(parent: int) -> None:
    """Let this process, and what it has started, be killed once process `parent` is gone.

    The kernel does it: it sends our group SIGKILL when the other end of standard input closes.  No code of ours needs
    to run for that, so it holds also while the user's code keeps the interpreter to itself.  A thread looks after the
    rest: the pipe that closed before, the pipe that a fork of the parent holds open.
    """
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)
    threading.Thread(target=_watch, args=(pipe, parent), name="bitactor-parent-watch", daemon=True).start()


def _watch(pipe: int, parent: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        ends = select.poll()
        ends.register(os.pidfd_open(parent), select.POLLIN)
        ends.register(pipe, 0)
        if os.getppid() == parent:
            ends.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """Run a worker as `mesh.spawners.process.child` starts it: `<number> <parent's pid> <parent's endpoint> <own
    endpoint> <how to log> <payload limit>`, and `spans` if the parent takes those that users make."""
    number, parent_pid, parent, endpoint, log, limit, *options = arguments
    die_with(int(parent_pid))
    set_up_log(log)
    hold_limit(int(limit))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    contain_exits(loop)
    worker = Worker(loop, parent, endpoint, collects_spans=SPANS in options)
    worker.open(number)
    try:
        run_on(loop.run_forever)
    finally:
        worker.close()
        loop.close()
