"""In a worker process: for functions that compute for long, crash, or must really stop when their time is up."""

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

from bitactor.codec import decode_message, encode_message, encode_token
from bitactor.errors import BitActorError, ProtocolError, StepFailed
from bitactor.signal import Answer, Message, Question, Reply
from mesh.actor import QUEUED, BitActor
from mesh.faults import fault_of
from mesh.line import Line
from mesh.spawners.child import Child
from mesh.spawners.definitions import modules_of
from mesh.spawners.errand import pack_errand
from mesh.spawners.intensity import Intensity
from mesh.spawners.roster import Known, Member, Roster, known_as
from mesh.transports.zmq import ZmqTransport

logger = logging.getLogger("bitactor.process")

MAX_DEATHS: Final = 5
"""Workers that may die for no hop's reason within `DEATH_WINDOW`; one more, and none is started for that long."""
DEATH_WINDOW: Final = 10.0
PATIENCE: Final = 120.0
"""Seconds a worker may take to start, or to import a workflow's modules."""


class ProcessSpawner:
    """Up to `processes` workers, started afresh when first needed and kept warm; each runs one hop at a time.

    Who waits for one is served by urgency (undo, then the highest priority), and in order of arrival among equals.
    A hop's time counts from when a worker that is ready gets it.  A hop whose time is up, or that is abandoned, is
    stopped by SIGKILL to its worker and to what the function has started there.  A worker that dies with a hop loses it
    (`actor.lose()`).  Workers that die otherwise (starting, importing, idle) more than `MAX_DEATHS` times in
    `DEATH_WINDOW` seconds are a collapse: `on_collapse` is called with what to tell people, no worker is started for
    `DEATH_WINDOW` seconds, and hops that no worker is left for are lost.  Another `intensity` takes the place of that
    bound.
    """

    def __init__(self, processes: int, intensity: Intensity | None = None) -> None:
        self.on_collapse: Callable[[str], None] | None = None
        self.replaced: tuple[str, ...] = ()
        """Resources that a worker must not make, for something of this process is in their place."""
        self._limit = processes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: ZmqTransport | None = None
        self._directory = ""
        self._waiting: Line[BitActor] = Line()
        self._roster = Roster()
        self._modules: dict[Known, list[str]] = {}
        self._intensity = intensity or Intensity(MAX_DEATHS, DEATH_WINDOW)
        self._retry: asyncio.TimerHandle | None = None
        self._pumping = False
        self._closed = False
        self._held = False
        self._all_gone: asyncio.Event | None = None
        self._counts = {"starts": 0, "deaths": 0, "kills": 0, "collapses": 0}

    # The port

    def start(self, actor: BitActor) -> None:
        """See the port; waits for a free worker, and its time does not count meanwhile."""
        if self._closed:
            actor.lose()
            return
        try:
            self._open(actor.host.loop)
            self._modules_for(actor)
        except (BitActorError, OSError) as error:
            actor.judge(None, error, fault_of(error))
            return
        self._waiting.add(actor, actor.urgency)
        self._pump()

    def abandon(self, actor: BitActor) -> None:
        """Forget it if it waits; kill its worker if it runs, after which it settles as cancelled."""
        if self._waiting.discard(actor):
            return
        worker = self._roster.whose(actor)
        if worker is None:
            return
        if worker.key is None:
            self._roster.detach(worker)
        elif worker.error is None:
            self._kill(worker, asyncio.CancelledError(f"{worker} was killed"))

    def hold(self) -> None:
        """Start nothing more, and lose nothing that waits: whoever owns us is about to close us."""
        self._held = True

    async def close(self, timeout: float) -> None:
        """Let workers end, kill those that have not after half of `timeout`, and leave nothing behind.  Twice is
        once."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            if self._retry is not None:
                self._retry.cancel()
            for worker in self._roster.members.values():
                worker.error = worker.error or asyncio.CancelledError(f"{worker} was stopped")
                worker.child.terminate()
        if len(self._roster):
            self._all_gone = self._all_gone or asyncio.Event()
        try:
            if not await self._gone_within(timeout / 2):
                for worker in self._roster.members.values():
                    self._kill(worker, asyncio.CancelledError(f"{worker} was killed"))
                await self._gone_within(timeout / 2)
        finally:
            self._release()

    # Looking

    def workers(self) -> list[tuple[int, str | None]]:
        """Each worker's process id, and the hop it runs if it runs one."""
        members = self._roster.members.values()
        return [(member.child.pid, None if member.key is None else member.key[1]) for member in members]

    def statistics(self) -> dict[str, int]:
        """Totals: `starts`, `deaths` (of any kind), `kills` (by us), `collapses`; and what is now: `waiting`,
        `busy`."""
        return {**self._counts, "waiting": len(self._waiting), "busy": self._roster.running}

    @property
    def importing(self) -> int:
        """How many workers import what the hop that they were given needs."""
        return sum(member.loading is not None for member in self._roster.members.values())

    # Handing out hops

    def _pump(self) -> None:
        """Give waiting hops to idle workers, and start workers for the rest."""
        if self._pumping:
            return  # called by an actor that ended while we were at it; the loop below goes on
        self._pumping = True
        try:
            while self._waiting and not self._closed and not self._held:
                if self._roster.has_idle:
                    self._assign(self._waiting.pop())
                elif self._wants_worker():
                    self._start_worker()
                elif not len(self._roster):
                    self._lose_waiting()
                else:
                    return
        finally:
            self._pumping = False

    def _assign(self, actor: BitActor) -> None:
        worker = self._roster.assign(actor)
        known = known_as(actor)
        if known in worker.loaded:
            self._hand_over(worker, actor)
            return
        worker.loading = known
        self._wait_patiently(worker)
        workflow, digest, *resources = known
        argument = encode_token([workflow, digest, self._modules_for(actor), resources, list(self.replaced)])
        self._send(worker, encode_message(Question(worker.number, "load", argument, "")))

    def _hand_over(self, worker: Member, actor: BitActor) -> None:
        signal = actor.signal
        try:
            message = encode_message(signal._replace(token=pack_errand(actor), metadata=None))
        except (BitActorError, ValueError, TypeError) as error:
            self._roster.release(worker)
            actor.judge(None, error, fault_of(error))
            return
        if not self._roster.run(worker, (signal.transaction, signal.hop, signal.delivery, signal.epoch)):
            self._roster.release(worker)
            actor.lose()
            return
        actor.begin()
        self._send(worker, message)

    def _modules_for(self, actor: BitActor) -> list[str]:
        known = known_as(actor)
        modules = self._modules.get(known)
        if modules is None:
            modules = self._modules[known] = modules_of(actor.plan)
        return modules

    def _lose_waiting(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for actor in waiting:
            actor.lose()

    def _send(self, worker: Member, message: bytes) -> None:
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
                self._replied(message)
            elif isinstance(message, Answer):
                self._answered(message)
            elif isinstance(message, Question):
                self._became_ready(message)

    def _became_ready(self, question: Question) -> None:
        worker = self._roster.members.get(question.id)
        if worker is not None and not worker.ready:
            worker.ready = True
            worker.stop_waiting()
            self._roster.release(worker)
            self._pump()

    def _answered(self, answer: Answer) -> None:
        """A worker has imported a workflow's modules, or could not."""
        worker = self._roster.members.get(answer.id)
        if worker is None or worker.loading is None or worker.error is not None:
            return
        worker.stop_waiting()
        if not answer.error:
            worker.loaded.add(worker.loading)
        worker.loading = None
        actor = worker.actor
        if actor is not None and not answer.error:
            self._hand_over(worker, actor)
        else:
            self._roster.release(worker)
        if actor is not None and answer.error:
            error = StepFailed(f"{actor.signal.name!r}: {answer.error}")
            actor.judge(None, error, fault_of(error))
        self._pump()

    def _replied(self, reply: Reply) -> None:
        worker = self._roster.runner((reply.transaction, reply.hop, reply.delivery, reply.epoch))
        if worker is None:
            return
        if reply.outcome == "timed_out":
            self._kill(worker, asyncio.CancelledError())  # what it had to answer for may still be running there
        actor = self._roster.release(worker)
        self._pump()
        if actor is not None:
            actor.answer(reply)

    # Workers' lives

    def _wants_worker(self) -> bool:
        if len(self._roster) >= self._limit or self._intensity.resting(self._now()):
            return False
        return len(self._waiting) > self._roster.starting

    def _start_worker(self) -> None:
        assert self._loop is not None and self._transport is not None
        self._counts["starts"] += 1
        number = str(self._counts["starts"])
        worker = Member(number, f"ipc://{self._directory}/{number}")
        arguments = [number, str(os.getpid()), self._transport.endpoint, worker.endpoint]
        try:
            worker.child = Child(self._loop, arguments, partial(self._ended, worker))
        except OSError as error:
            self._counts["deaths"] += 1
            text = f"no worker process could be started: {error}"
            logger.warning("%s", text)
            self._unexpected(text)
            return
        self._roster.add(worker)
        self._wait_patiently(worker)

    def _wait_patiently(self, worker: Member) -> None:
        assert self._loop is not None
        worker.patience = self._loop.call_later(PATIENCE, self._lose_patience, worker)

    def _lose_patience(self, worker: Member) -> None:
        text = f"{worker} was still {worker.doing()} after {PATIENCE:g} s"
        logger.warning("%s", text)
        self._kill(worker, StepFailed(text))
        self._unexpected(text)

    def _kill(self, worker: Member, error: BaseException) -> None:
        worker.error = error
        self._roster.retire(worker)
        self._counts["kills"] += 1
        worker.child.kill()

    def _ended(self, worker: Member) -> None:
        """Its process is gone.  A reply that came in the same turn of the loop is still taken first."""
        assert self._loop is not None
        self._roster.retire(worker)
        self._loop.call_soon(self._bury, worker)

    def _bury(self, worker: Member) -> None:
        if not self._roster.remove(worker):
            return
        self._counts["deaths"] += 1
        worker.stop_waiting()
        self._forget(worker)
        doing, began = worker.doing(), worker.key is not None
        actor = self._roster.detach(worker)
        if worker.error is None:
            text = f"{worker} died ({worker.child.ending}) while {doing}"
            logger.warning("%s", text)
            if not began:
                self._unexpected(text)
            if actor is not None:
                actor.lose()
        elif actor is not None:
            self._end(actor, worker.error)
        if not len(self._roster) and self._all_gone is not None:
            self._all_gone.set()
        self._pump()

    def _end(self, actor: BitActor, error: BaseException) -> None:
        """We have ended its worker."""
        if actor.state != QUEUED:
            actor.stopping = (
                True  # nobody knows how far it came, also where it was not the actor that asked for the end
            )
            actor.settle(None, error)
        elif not self._closed:
            actor.judge(None, error, fault_of(error))

    def _forget(self, worker: Member) -> None:
        if self._transport is not None:
            self._transport.forget(worker.endpoint)
        Path(worker.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)

    def _unexpected(self, what: str) -> None:
        """A worker failed and no hop's function can be blamed."""
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

    async def _gone_within(self, seconds: float) -> bool:
        if not len(self._roster):
            return True
        assert self._all_gone is not None
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True

    def _release(self) -> None:
        for worker in list(self._roster.members.values()):
            if not worker.child.kill_now(0.2):
                logger.error("%s does not die; it is left behind", worker)
            self._bury(worker)
        if self._transport is not None:
            self._transport.close(0)
            self._transport = None
            shutil.rmtree(self._directory, ignore_errors=True)
