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
from typing import Any, Final

from bitactor.arguments import argument_values, bound_arguments
from bitactor.codec import MAX_FRAME_BYTES, decode_message, encode_message, encode_token, token_bytes
from bitactor.errors import BitActorError, ProtocolError, StepFailed
from bitactor.signal import Answer, Message, Question, Reply
from mesh.actor import QUEUED, BitActor
from mesh.faults import fault_of
from mesh.spawners.child import Child
from mesh.spawners.definitions import modules_of
from mesh.spawners.intensity import Intensity
from mesh.transports.zmq import ZmqTransport

logger = logging.getLogger("bitactor.process")

MAX_DEATHS: Final = 5
"""Workers that may die for no hop's reason within `DEATH_WINDOW`; one more, and none is started for that long."""
DEATH_WINDOW: Final = 10.0
PATIENCE: Final = 120.0
"""Seconds a worker may take to start, or to import a workflow's modules."""

_Key = tuple[str, str, int, int]
"""Transaction, hop, delivery, epoch: what a reply names."""
_Plan = tuple[str, str]
"""Workflow and digest."""


class Worker:
    """One worker process and what it is doing: starting, importing a workflow's modules, running a hop, or nothing."""

    __slots__ = ("actor", "child", "endpoint", "error", "key", "loaded", "loading", "number", "patience", "ready")

    def __init__(self, number: str, endpoint: str) -> None:
        self.number = number
        self.endpoint = endpoint
        self.child: Child
        self.ready = False
        self.loaded: set[_Plan] = set()
        self.loading: _Plan | None = None
        self.patience: asyncio.TimerHandle | None = None
        self.actor: BitActor | None = None
        """Whose hop it has, or will have once the modules are imported."""
        self.key: _Key | None = None
        """Of the hop that runs."""
        self.error: BaseException | None = None
        """Set when we kill it: how its actor ends."""

    def __repr__(self) -> str:
        return f"worker process {self.child.pid}"


class ProcessSpawner:
    """Up to `processes` workers, started afresh when first needed and kept warm; each runs one hop at a time.

    A hop's time counts from when a worker that is ready gets it.  A hop whose time is up, or that is abandoned, is
    stopped by SIGKILL to its worker and to what the function has started there.  A worker that dies with a hop loses it
    (`actor.lose()`); dying otherwise, more than `MAX_DEATHS` times in `DEATH_WINDOW` seconds, is a collapse:
    `on_collapse` is called with what to tell people, no worker is started for `DEATH_WINDOW` seconds, and hops that no
    worker is left for are lost.
    """

    def __init__(self, processes: int) -> None:
        self.on_collapse: Callable[[str], None] | None = None
        self._limit = processes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: ZmqTransport | None = None
        self._directory = ""
        self._waiting: dict[BitActor, None] = {}
        self._workers: dict[str, Worker] = {}
        self._idle: dict[Worker, None] = {}
        self._assigned: dict[BitActor, Worker] = {}
        self._running: dict[_Key, Worker] = {}
        self._modules: dict[_Plan, list[str]] = {}
        self._intensity = Intensity(MAX_DEATHS, DEATH_WINDOW)
        self._retry: asyncio.TimerHandle | None = None
        self._pumping = False
        self._closed = False
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
        self._waiting[actor] = None
        self._pump()

    def abandon(self, actor: BitActor) -> None:
        """Forget it if it waits; kill its worker if it runs, after which it settles as cancelled."""
        if actor in self._waiting:
            del self._waiting[actor]
            return
        worker = self._assigned.get(actor)
        if worker is None:
            return
        if worker.key is None:
            self._detach(worker)
        elif worker.error is None:
            self._kill(worker, asyncio.CancelledError(f"{worker} was killed"))

    async def close(self, timeout: float) -> None:
        """Let workers end, kill those that have not after half of `timeout`, and leave nothing behind.  Twice is once."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            if self._retry is not None:
                self._retry.cancel()
            for worker in self._workers.values():
                worker.error = worker.error or asyncio.CancelledError(f"{worker} was stopped")
                worker.child.terminate()
        if self._workers:
            self._all_gone = self._all_gone or asyncio.Event()
        try:
            if not await self._gone_within(timeout / 2):
                for worker in list(self._workers.values()):
                    self._kill(worker, asyncio.CancelledError(f"{worker} was killed"))
                await self._gone_within(timeout / 2)
        finally:
            self._release()

    # Looking

    def workers(self) -> list[tuple[int, str | None]]:
        """Each worker's process id, and the hop it runs if it runs one."""
        return [
            (worker.child.pid, worker.key[1] if worker.key is not None else None) for worker in self._workers.values()
        ]

    def statistics(self) -> dict[str, int]:
        """Totals: `starts`, `deaths` (of any kind), `kills` (by us), `collapses`; and what is now: `waiting`, `busy`."""
        return {**self._counts, "waiting": len(self._waiting), "busy": len(self._running)}

    # Handing out hops

    def _pump(self) -> None:
        """Give waiting hops to idle workers, and start workers for the rest."""
        if self._pumping:
            return  # called by an actor that ended while we were at it; the loop below goes on
        self._pumping = True
        try:
            while self._waiting and not self._closed:
                if self._idle:
                    actor = next(iter(self._waiting))
                    del self._waiting[actor]
                    self._assign(self._take_idle(actor), actor)
                elif self._wants_worker():
                    self._start_worker()
                elif not self._workers:
                    self._lose_waiting()
                else:
                    return
        finally:
            self._pumping = False

    def _take_idle(self, actor: BitActor) -> Worker:
        """The one used last, or better one that has the workflow imported already."""
        known = _plan_of(actor)
        worker = next((idle for idle in reversed(self._idle) if known in idle.loaded), None) or next(
            reversed(self._idle)
        )
        del self._idle[worker]
        return worker

    def _assign(self, worker: Worker, actor: BitActor) -> None:
        worker.actor = actor
        self._assigned[actor] = worker
        known = _plan_of(actor)
        if known in worker.loaded:
            self._hand_over(worker, actor)
            return
        worker.loading = known
        self._wait_patiently(worker)
        argument = encode_token([*known, self._modules_for(actor)])
        self._send(worker, encode_message(Question(worker.number, "load", argument, "")))

    def _hand_over(self, worker: Worker, actor: BitActor) -> None:
        signal = actor.signal
        key = (signal.transaction, signal.hop, signal.delivery, signal.epoch)
        try:
            message = encode_message(signal._replace(token=_errand(actor), metadata=None))
        except (BitActorError, ValueError, TypeError) as error:
            self._set_idle(worker)
            actor.judge(None, error, fault_of(error))
            return
        if key in self._running:
            # A second one of the same delivery could not be told from the first when the reply comes.
            self._set_idle(worker)
            actor.lose()
            return
        worker.key = key
        self._running[key] = worker
        actor.begin()
        self._send(worker, message)

    def _modules_for(self, actor: BitActor) -> list[str]:
        known = _plan_of(actor)
        modules = self._modules.get(known)
        if modules is None:
            modules = self._modules[known] = modules_of(actor.plan)
        return modules

    def _detach(self, worker: Worker) -> BitActor | None:
        """The worker has nobody's hop any more."""
        actor, worker.actor = worker.actor, None
        if actor is not None:
            del self._assigned[actor]
        if worker.key is not None:
            del self._running[worker.key]
            worker.key = None
        return actor

    def _set_idle(self, worker: Worker) -> BitActor | None:
        """Take the next hop; answers whose it had."""
        actor = self._detach(worker)
        if worker.error is None:
            self._idle[worker] = None
        return actor

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
        worker = self._workers.get(question.id)
        if worker is not None and not worker.ready:
            worker.ready = True
            self._stop_waiting(worker)
            self._set_idle(worker)
            self._pump()

    def _answered(self, answer: Answer) -> None:
        """A worker has imported a workflow's modules, or could not."""
        worker = self._workers.get(answer.id)
        if worker is None or worker.loading is None or worker.error is not None:
            return
        self._stop_waiting(worker)
        if not answer.error:
            worker.loaded.add(worker.loading)
        worker.loading = None
        actor = worker.actor
        if actor is not None and not answer.error:
            self._hand_over(worker, actor)
        else:
            self._set_idle(worker)
        if actor is not None and answer.error:
            error = StepFailed(f"{actor.signal.name!r}: {answer.error}")
            actor.judge(None, error, fault_of(error))
        self._pump()

    def _replied(self, reply: Reply) -> None:
        worker = self._running.get((reply.transaction, reply.hop, reply.delivery, reply.epoch))
        if worker is None:
            return
        if reply.outcome == "timed_out":
            self._kill(worker, asyncio.CancelledError())  # what it had to answer for may still be running there
        actor = self._set_idle(worker)
        self._pump()
        if actor is not None:
            actor.answer(reply)

    # Workers' lives

    def _wants_worker(self) -> bool:
        if len(self._workers) >= self._limit or self._intensity.resting(self._now()):
            return False
        return len(self._waiting) > sum(not worker.ready for worker in self._workers.values())

    def _start_worker(self) -> None:
        assert self._loop is not None and self._transport is not None
        self._counts["starts"] += 1
        number = str(self._counts["starts"])
        worker = Worker(number, f"ipc://{self._directory}/{number}")
        arguments = [number, str(os.getpid()), self._transport.endpoint, worker.endpoint]
        try:
            worker.child = Child(self._loop, arguments, partial(self._ended, worker))
        except OSError as error:
            self._counts["deaths"] += 1
            self._unexpected(f"no worker process could be started: {error}")
            return
        self._workers[number] = worker
        self._wait_patiently(worker)

    def _wait_patiently(self, worker: Worker) -> None:
        assert self._loop is not None
        worker.patience = self._loop.call_later(PATIENCE, self._lose_patience, worker)

    def _stop_waiting(self, worker: Worker) -> None:
        if worker.patience is not None:
            worker.patience.cancel()
            worker.patience = None

    def _lose_patience(self, worker: Worker) -> None:
        what = f"import what {worker.loading[0]!r} needs" if worker.loading is not None else "start"
        self._kill(worker, StepFailed(f"a worker process took longer than {PATIENCE:g} s to {what}"))
        self._unexpected(f"{worker} took longer than {PATIENCE:g} s to {what}")

    def _kill(self, worker: Worker, error: BaseException) -> None:
        worker.error = error
        self._idle.pop(worker, None)
        self._counts["kills"] += 1
        worker.child.kill()

    def _ended(self, worker: Worker) -> None:
        """Its process is gone.  A reply that came in the same turn of the loop is still taken first."""
        self._idle.pop(worker, None)
        assert self._loop is not None
        self._loop.call_soon(self._bury, worker)

    def _bury(self, worker: Worker) -> None:
        if self._workers.pop(worker.number, None) is None:
            return
        self._idle.pop(worker, None)
        self._counts["deaths"] += 1
        self._stop_waiting(worker)
        self._forget(worker)
        began = worker.key is not None
        actor = self._detach(worker)
        if worker.error is None:
            self._died(worker, actor, began)
        elif actor is not None:
            self._end(actor, worker.error)
        if not self._workers and self._all_gone is not None:
            self._all_gone.set()
        self._pump()

    def _died(self, worker: Worker, actor: BitActor | None, began: bool) -> None:
        """Nobody had asked it to."""
        doing = "starting" if not worker.ready else "idle"
        if actor is not None:
            doing = f"running {actor.signal.name!r}" if began else f"importing what {actor.plan.workflow!r} needs"
        logger.warning("%s died (%s) while %s", worker, worker.child.ending, doing)
        if not began:
            self._unexpected(f"{worker} died ({worker.child.ending}) while {doing}")
        if actor is not None:
            actor.lose()

    def _end(self, actor: BitActor, error: BaseException) -> None:
        if actor.state != QUEUED:
            actor.settle(None, error)
        elif not self._closed:
            actor.judge(None, error, fault_of(error))

    def _forget(self, worker: Worker) -> None:
        if self._transport is not None:
            self._transport.forget(worker.endpoint)
        Path(worker.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)

    # Collapsing

    def _unexpected(self, what: str) -> None:
        if not self._closed and self._intensity.record(self._now()):
            assert self._loop is not None
            self._counts["collapses"] += 1
            self._retry = self._loop.call_later(DEATH_WINDOW, self._pump)
            text = (
                f"worker processes keep failing, more than {MAX_DEATHS} times in {DEATH_WINDOW:g} s; none is started for "
                f"{DEATH_WINDOW:g} s, and process hops that find no worker are lost; the last: {what}"
            )
            logger.critical("%s", text)
            self._tell(text)

    def _tell(self, text: str) -> None:
        if self.on_collapse is not None:
            try:
                self.on_collapse(text)
            except Exception:
                logger.exception("on_collapse raised")

    def _lose_waiting(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for actor in waiting:
            actor.lose()

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
        if not self._workers:
            return True
        assert self._all_gone is not None
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True

    def _release(self) -> None:
        for worker in list(self._workers.values()):
            if not worker.child.kill_now(0.2):
                logger.error("%s does not die; it is left behind", worker)
            self._bury(worker)
        if self._transport is not None:
            self._transport.close(0)
            self._transport = None
            shutil.rmtree(self._directory, ignore_errors=True)

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _send(self, worker: Worker, message: bytes) -> None:
        assert self._transport is not None
        self._transport.send(worker.endpoint, message)


def _plan_of(actor: BitActor) -> _Plan:
    return actor.plan.workflow, actor.plan.digest


def _errand(actor: BitActor) -> Any:
    """What a worker needs beside the signal: whose step it is, its arguments and its result as tokens, and the metadata."""
    values = token_bytes(encode_token(_plain_arguments(actor), MAX_FRAME_BYTES))
    result = token_bytes(encode_token(_result(actor)))
    errand = [*_plan_of(actor), actor.step.index, bytes(values), bytes(result), actor.signal.metadata]
    return encode_token(errand, MAX_FRAME_BYTES)


def _plain_arguments(actor: BitActor) -> dict[str, Any]:
    """The arguments not yet as their annotations ask: not everything can be carried once it is converted."""
    arguments = actor.arguments
    if isinstance(arguments, partial) and arguments.func is bound_arguments:
        return argument_values(*arguments.args)
    return arguments()


def _result(actor: BitActor) -> Any:
    return next((actor.kwargs[name] for name, what in actor.callback.injected.items() if what == "result"), None)
