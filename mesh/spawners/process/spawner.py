"""The process spawner: worker processes, for functions that compute for long, crash, or must really stop when their
time is up."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from typing_extensions import override

from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import BitActorError, ProtocolError, StepFailed
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.signal import Answer, Message, Question, Reply, Sending
from bitactor.messages.values import MAX_TOKEN_BYTES, PAYLOAD
from bitactor.messages.wire import decode_message, encode_message
from mesh.hops.ports import QUEUED, Actor, Spawner
from mesh.limits.priority_queue import PriorityQueue
from mesh.network.transports.zmq import ZmqTransport
from mesh.sinks.otel.own_spans import unpacked
from mesh.sinks.otel.record import SpanRecord
from mesh.spawners.process.child import WorkerProcess
from mesh.spawners.process.definitions import SPANS, modules_of, pack_payload
from mesh.spawners.process.restart_intensity import RestartIntensity
from mesh.spawners.process.worker_table import LoadKey, WorkerHandle, WorkerTable, load_key_of
from registry.support.clock import monotonic_ns
from registry.support.log import log_set_up

logger = logging.getLogger("bitactor.process")

MAX_DEATHS: Final = 5
"""Workers that may die without a hop to blame within `DEATH_WINDOW`; after one more, none is started for that long."""
DEATH_WINDOW: Final = 10.0
PATIENCE: Final = 120.0
"""Seconds a worker may take to start, or to import a workflow's modules."""


class ProcessSpawner(Spawner):
    """A spawner with up to `processes` worker processes, started afresh when first needed and kept warm; each runs one
    hop at a time.

    Who waits for a worker is served by rank (undo, then the highest priority), and in order of arrival among equals.  A
    hop's time counts from when a worker that is ready gets it.  A hop whose time is up, or that is abandoned, is
    stopped by SIGKILL to its worker and to what the function has started there.  A worker that dies with a hop loses it
    (`actor.worker_lost()`).  Workers that die otherwise (starting, importing, idle) more than `MAX_DEATHS` times in
    `DEATH_WINDOW` seconds are a collapse: `on_collapse` is called with what to tell people, no worker is started for
    `DEATH_WINDOW` seconds, and hops that no worker is left for are lost.  Another `intensity` takes the place of that
    bound.
    """

    traits = SPAWNERS["process"]

    def __init__(self, processes: int, intensity: RestartIntensity | None = None) -> None:
        self.on_collapse: Callable[[str], None] | None = None
        # Takes the spans that users' functions make in workers; None: nobody does, or a tracer provider of theirs
        self.on_spans: Callable[[list[SpanRecord]], object] | None = None
        # Resources that a worker must not make, for a replacement stands for them in this process
        self.replaced: tuple[str, ...] = ()
        self._limit = processes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: ZmqTransport | None = None
        self._directory = ""
        self._waiting: PriorityQueue[Actor] = PriorityQueue()
        self._table = WorkerTable()
        self._modules: dict[LoadKey, list[str]] = {}
        self._intensity = intensity or RestartIntensity(MAX_DEATHS, DEATH_WINDOW)
        self._retry: asyncio.TimerHandle | None = None
        self._pumping = False
        self._closed = False
        self._frozen = False
        self._all_exited: asyncio.Event | None = None
        self._counts = {"starts": 0, "deaths": 0, "kills": 0, "collapses": 0}

    # The port

    @override
    def start(self, actor: Actor) -> None:
        """The actor waits for a free worker; its time does not count meanwhile."""
        if self._closed:
            actor.worker_lost()
            return
        try:
            self._open(actor.executor.loop)
            self._modules_for(actor)
        except (BitActorError, OSError) as error:
            actor.fail(error)
            return
        self._waiting.add(actor, actor.rank)
        self._pump()

    @override
    def abandon(self, actor: Actor) -> None:
        """Forgets an actor that waits; kills the worker of one that runs, after which it replies as cancelled."""
        if self._waiting.discard(actor):
            return
        worker = self._table.assigned.get(actor)
        if worker is None:
            return
        if worker.key is None:
            self._table.detach(worker)
        elif worker.error is None:
            self._kill(worker, asyncio.CancelledError(f"{worker} was killed"))

    def freeze(self) -> None:
        """Start nothing more: our owner, whose workers keep failing, is about to close us.  Hops that wait for a worker
        are lost, or no restart would ever count for them; those that come wait."""
        self._frozen = True
        self._fail_waiting_as_lost()

    @override
    async def close(self, timeout: float) -> None:
        """Lets workers end, kills those that have not after half of `timeout`, and leaves no process behind."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            if self._retry is not None:
                self._retry.cancel()
            for worker in self._table.workers.values():
                worker.error = worker.error or asyncio.CancelledError(f"{worker} was stopped")
                worker.process.terminate()
        if len(self._table):
            self._all_exited = self._all_exited or asyncio.Event()
        try:
            if not await self._exited_within(timeout / 2):
                for worker in self._table.workers.values():
                    self._kill(worker, asyncio.CancelledError(f"{worker} was killed"))
                await self._exited_within(timeout / 2)
        finally:
            self._release()

    # Looking

    def workers(self) -> list[tuple[int, str | None]]:
        """Process id of each worker, and the hop it runs if it runs one."""
        workers = self._table.workers.values()
        return [(worker.process.pid, None if worker.key is None else worker.key[1]) for worker in workers]

    def statistics(self) -> dict[str, int]:
        """Totals: `starts`, `deaths` (of any kind), `kills` (by us), `collapses`; and what is now: `waiting`,
        `busy`."""
        return {**self._counts, "waiting": len(self._waiting), "busy": len(self._table.running)}

    @property
    def importing(self) -> int:
        """How many workers import the modules of the hop that they were given."""
        return sum(worker.loading is not None for worker in self._table.workers.values())

    # Handing out hops

    def _pump(self) -> None:
        if self._pumping:
            return  # called by an actor that ended while we were at it; the loop below goes on
        self._pumping = True
        try:
            while self._waiting and not self._closed and not self._frozen:
                if self._table.idle:
                    self._assign(self._waiting.pop())
                elif self._wants_worker():
                    self._start_worker()
                elif not len(self._table):
                    self._fail_waiting_as_lost()
                else:
                    return
        finally:
            self._pumping = False

    def _assign(self, actor: Actor) -> None:
        worker = self._table.assign(actor)
        load_key = load_key_of(actor)
        if load_key in worker.loaded:
            self._send_hop(worker, actor)
            return
        worker.loading = load_key
        self._arm_patience(worker)
        workflow, digest, *resources = load_key
        argument = encode_token(
            [workflow, digest, self._modules_for(actor), resources, list(self.replaced)], MAX_TOKEN_BYTES
        )
        self._send(worker, encode_message(Question(worker.number, "load", argument, "")))

    def _send_hop(self, worker: WorkerHandle, actor: Actor) -> None:
        signal = actor.signal
        left_ns = actor.starts_until_ns() - actor.executor.monotonic_ns()
        if signal.budget_ns is not None:
            left_ns = min(left_ns, signal.budget_ns)
        sending = Sending(0, 0, monotonic_ns(), left_ns)
        try:
            message = encode_message(signal._replace(token=pack_payload(actor), metadata=None, sending=sending))
        except BaseException as error:  # a path may lead through a user's object
            self._table.release(worker)
            actor.fail(error)
            return
        if not self._table.run(worker, (signal.transaction, signal.hop, signal.delivery, signal.epoch)):
            self._table.release(worker)
            actor.worker_lost()
            return
        actor.holder = worker.process.pid
        if actor.begin():
            self._send(worker, message)
        else:
            self._table.release(worker)

    def _modules_for(self, actor: Actor) -> list[str]:
        load_key = load_key_of(actor)
        modules = self._modules.get(load_key)
        if modules is None:
            modules = self._modules[load_key] = modules_of(actor.plan)
        return modules

    def _fail_waiting_as_lost(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for actor in waiting:
            actor.worker_lost()

    def _send(self, worker: WorkerHandle, message: bytes) -> None:
        assert self._transport is not None
        self._transport.send(worker.endpoint, message)

    # What workers say

    def _receive(self, messages: list[bytes]) -> None:
        for data in messages:
            try:
                message: Message = decode_message(data)
            except ProtocolError as error:
                logger.error("a worker process sent what cannot be read: %s", error)
                continue
            if isinstance(message, Reply):
                self._on_reply(message)
            elif isinstance(message, Answer):
                self._on_loaded(message)
            elif isinstance(message, Question) and message.verb == SPANS:
                if self.on_spans is not None:
                    self.on_spans(unpacked(decode_token(message.argument)))
            elif isinstance(message, Question):
                self._became_ready(message)

    def _became_ready(self, question: Question) -> None:
        worker = self._table.workers.get(question.id)
        if worker is not None and not worker.ready:
            worker.ready = True
            worker.disarm()
            self._table.release(worker)
            self._pump()

    def _on_loaded(self, answer: Answer) -> None:
        """Run the hop of a worker that has imported a workflow's modules, or fail it if the worker could not."""
        worker = self._table.workers.get(answer.id)
        if worker is None or worker.loading is None or worker.error is not None:
            return
        worker.disarm()
        if not answer.error:
            worker.loaded.add(worker.loading)
        worker.loading = None
        actor = worker.actor
        if actor is not None and not answer.error:
            self._send_hop(worker, actor)
        else:
            self._table.release(worker)
        if actor is not None and answer.error:
            error = StepFailed(f"{actor.signal.name!r}: {answer.error}")
            actor.fail(error)
        self._pump()

    def _on_reply(self, reply: Reply) -> None:
        worker = self._table.running.get((reply.transaction, reply.hop, reply.delivery, reply.epoch))
        if worker is None:
            return
        if reply.outcome == "timed_out":
            self._kill(worker, asyncio.CancelledError())  # what it had to answer for may still be running there
        actor = self._table.release(worker)
        self._pump()
        if actor is not None and reply.outcome == "busy":
            actor.give_back()
        elif actor is not None:
            actor.relay_reply(reply)

    # Workers' lives

    def _wants_worker(self) -> bool:
        if len(self._table) >= self._limit or self._intensity.cooling_down(self._now()):
            return False
        return len(self._waiting) > self._table.starting

    def _start_worker(self) -> None:
        assert self._loop is not None and self._transport is not None
        self._counts["starts"] += 1
        number = str(self._counts["starts"])
        worker = WorkerHandle(number, f"ipc://{self._directory}/{number}")
        arguments = [
            number,
            str(os.getpid()),
            self._transport.endpoint,
            worker.endpoint,
            log_set_up(),
            str(PAYLOAD.bytes),
        ]
        if self.on_spans is not None:
            arguments.append(SPANS)
        try:
            worker.process = WorkerProcess(self._loop, arguments, partial(self._on_exit, worker))
        except OSError as error:
            self._counts["deaths"] += 1
            text = f"no worker process could be started: {error}"
            logger.warning("%s", text)
            self._count_failure(text)
            return
        self._table.workers[number] = worker
        self._arm_patience(worker)

    def _arm_patience(self, worker: WorkerHandle) -> None:
        assert self._loop is not None
        worker.patience_timer = self._loop.call_later(PATIENCE, self._patience_over, worker)

    def _patience_over(self, worker: WorkerHandle) -> None:
        text = f"{worker} was still {worker.doing()} after {PATIENCE:g} s"
        logger.warning("%s", text)
        self._kill(worker, StepFailed(text))
        self._count_failure(text)

    def _kill(self, worker: WorkerHandle, error: BaseException) -> None:
        worker.error = error
        self._table.retire(worker)
        self._counts["kills"] += 1
        worker.process.kill()

    def _on_exit(self, worker: WorkerHandle) -> None:
        """Take note that a worker's process is gone.  A reply that came in the same turn of the loop is still taken
        first."""
        assert self._loop is not None
        self._table.retire(worker)
        self._loop.call_soon(self._reap, worker)

    def _reap(self, worker: WorkerHandle) -> None:
        if not self._table.remove(worker):
            return
        self._counts["deaths"] += 1
        worker.disarm()
        self._disconnect(worker)
        doing, began = worker.doing(), worker.key is not None
        actor = self._table.detach(worker)
        if worker.error is None:
            text = f"{worker} died ({worker.process.exit_text}) while {doing}"
            logger.warning("%s", text)
            if not began:
                self._count_failure(text)
            if actor is not None:
                actor.worker_lost()
        elif actor is not None:
            self._end_actor(actor, worker.error)
        if not len(self._table) and self._all_exited is not None:
            self._all_exited.set()
        self._pump()

    def _end_actor(self, actor: Actor, error: BaseException) -> None:
        """End the actor of a worker that we have ended, with `error`."""
        if actor.state != QUEUED:
            actor.stop_requested = (
                True  # nobody knows how far it came, also where it was not the actor that asked for the end
            )
            actor.finish(None, error)
        elif not self._closed:
            actor.fail(error)

    def _disconnect(self, worker: WorkerHandle) -> None:
        if self._transport is not None:
            self._transport.forget(worker.endpoint)
        Path(worker.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)

    def _count_failure(self, what: str) -> None:
        """Count the failure of a worker for which no hop's function can be blamed; one too many is a collapse."""
        if self._closed or not self._intensity.record(self._now()):
            return
        assert self._loop is not None
        self._counts["collapses"] += 1
        resting = self._intensity.seconds
        self._retry = self._loop.call_later(resting, self._pump)
        text = (
            f"worker processes keep failing, more than {self._intensity.limit} times in {resting:g} s; none is started "
            "for "
            f"{resting:g} s, and hops that find no worker are lost; the last: {what}"
        )
        logger.critical("%s", text)
        if self.on_collapse is not None:
            try:
                self.on_collapse(text)
            except Exception:
                logger.exception("on_collapse raised")

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    # Opening and closing

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._transport is not None:
            return
        directory = tempfile.mkdtemp(prefix="ba-")
        transport = ZmqTransport(f"ipc://{directory}/parent", loop=loop)
        try:
            transport.open(self._receive)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._loop, self._transport, self._directory = loop, transport, directory

    async def _exited_within(self, seconds: float) -> bool:
        if not len(self._table):
            return True
        assert self._all_exited is not None
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._all_exited.wait()
        except TimeoutError:
            return False
        return True

    def _release(self) -> None:
        for worker in list(self._table.workers.values()):
            if not worker.process.kill_and_wait(0.2):
                logger.error("%s does not die; it is left behind", worker)
            self._reap(worker)
        if self._transport is not None:
            self._transport.close(0)
            self._transport = None
            shutil.rmtree(self._directory, ignore_errors=True)
