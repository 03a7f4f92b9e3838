"""In a pooled thread: for `def` functions that block."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any

from mesh.actor import REPLIED, BitActor

DEFAULT_THREADS = min(32, (os.cpu_count() or 1) + 4)
MAX_ZOMBIES = 256
"""More threads than this stuck in functions that had to be given up, and no replacements are started for them."""

_Job = tuple[BitActor, contextvars.Context]


class ThreadSpawner:
    """A pool of daemon threads, started when first needed.

    A thread cannot be stopped from outside.  A function that outlives its attempt is *fenced*: its actor has answered for it, its thread is
    replaced, and what it returns in the end is told as a late reply.
    """

    def __init__(self, threads: int = DEFAULT_THREADS) -> None:
        self._limit = threads
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._waiting: deque[BitActor] = deque()
        self._busy: set[BitActor] = set()
        self._fenced: set[BitActor] = set()
        self._threads: set[threading.Thread] = set()
        self._serving = 0
        """Threads that have not been told to end: at least one for each function that runs."""
        self._finished: deque[tuple[BitActor, Any, BaseException | None]] = deque()
        self._closed = False

    def start(self, actor: BitActor) -> None:
        """See the port; waits for a free thread, and its time does not count meanwhile."""
        if len(self._busy) >= self._limit:
            self._waiting.append(actor)
            return
        self._busy.add(actor)
        if self._serving < len(self._busy) + len(self._fenced):
            thread = threading.Thread(target=self._work, name="bitactor-thread", daemon=True)
            thread.start()
            self._threads.add(thread)
            self._serving += 1
        actor.begin()
        self._jobs.put((actor, actor.host.context_for(actor)))

    def abandon(self, actor: BitActor) -> None:
        """Forget it if it waits; if it has had to answer already, its thread does not count any more."""
        if actor in self._busy:
            if actor.state == REPLIED and len(self._fenced) < MAX_ZOMBIES:
                self._busy.discard(actor)
                self._fenced.add(actor)
                self._start_waiting()
        else:
            try:
                self._waiting.remove(actor)
            except ValueError:
                return

    async def close(self, timeout: float) -> None:
        """Let idle threads end; wait for running functions as long as there is time.  Threads that are stuck die with the process."""
        self._closed = True
        self._waiting.clear()
        for _ in list(self._threads):
            self._jobs.put(None)
        deadline = asyncio.get_running_loop().time() + timeout
        for thread in list(self._threads):
            left = deadline - asyncio.get_running_loop().time()
            if left > 0 and thread.is_alive():
                await asyncio.to_thread(thread.join, left)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            actor, context = job
            value, error = None, None
            try:
                value = context.run(actor.callback.function, **actor.kwargs)
            except BaseException as raised:
                error = raised
            self._finished.append((actor, value, error))
            try:
                actor.host.call_threadsafe(self._collect)
            except RuntimeError:
                return  # the loop is closed; nobody is left to tell
            del job, actor, context, value, error
        self._threads.discard(threading.current_thread())

    def _collect(self) -> None:
        while self._finished:
            actor, value, error = self._finished.popleft()
            self._busy.discard(actor)
            if actor in self._fenced:
                self._fenced.discard(actor)
                self._retire()
            actor.settle(value, error)
        self._start_waiting()

    def _retire(self) -> None:
        """One that had to be replaced is back; its replacement, or it, is one too many."""
        if self._serving > self._limit:
            self._serving -= 1
            self._jobs.put(None)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._busy) < self._limit and not self._closed:
            self.start(self._waiting.popleft())
