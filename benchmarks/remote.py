"""Work that crosses to another process."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import zmq

from benchmarks.local import per_hop
from benchmarks.measuring import Contest, Sizes
from benchmarks.peers import answer_of, peer
from benchmarks.workflows import in_other_node, in_worker_process
from mesh import Mesh
from registry import RegistryServer

MESSAGE = b"\x00" * 265
"""As large as a signal of a chain."""


class RawEcho:
    """Two raw sockets towards a process that answers each frame with itself; drained from the loop's reader callback,
    like ours."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], inbox: str, outbox: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._pull = context.socket(zmq.PULL)
        self._pull.bind(inbox)
        self._push = context.socket(zmq.PUSH)
        self._push.linger = 0
        self._push.connect(outbox)
        self._left_to_send = 0
        self._left_to_come = 0
        self._frame = b""
        self._done: asyncio.Future[None] | None = None
        self._loop.add_reader(self._pull.fileno(), self._drain)

    async def per_message(self, messages: int, in_flight: int, messages_per_frame: int) -> float:
        """µs for a message there and back."""
        frames, window = messages // messages_per_frame, in_flight // messages_per_frame
        self._frame = MESSAGE * messages_per_frame
        self._left_to_come, self._left_to_send = frames, frames - window
        self._done = self._loop.create_future()
        began = time.perf_counter()
        for _ in range(window):
            self._push.send(self._frame)
        await self._done
        return (time.perf_counter() - began) / messages * 1e6

    def _drain(self) -> None:
        while True:
            try:
                self._pull.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._left_to_come -= 1
            if self._left_to_send:
                self._left_to_send -= 1
                self._push.send(self._frame)
            elif not self._left_to_come and self._done is not None:
                self._done.set_result(None)

    def close(self) -> None:
        """Release both sockets."""
        self._loop.remove_reader(self._pull.fileno())
        self._pull.close(0)
        self._push.close(0)


@asynccontextmanager
async def raw_echo() -> AsyncIterator[RawEcho]:
    """A raw echo and its process."""
    with tempfile.TemporaryDirectory(prefix="ba-") as directory:
        there, here = f"ipc://{directory}/there", f"ipc://{directory}/here"
        with zmq.Context() as context, peer("echo", there, here):
            echo = RawEcho(context, here, there)
            try:
                yield echo
            finally:
                echo.close()


def hop_ipc(in_flight: int) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """µs for a hop that another node runs; the transactions, their journal and their timers are here."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        transactions = in_flight * sizes.pick(20 if in_flight == 1 else 3, 1)
        messages = transactions * len(in_other_node.steps)
        with tempfile.TemporaryDirectory(prefix="ba-") as directory:
            endpoint = f"ipc://{directory}/registry"
            with RegistryServer(endpoint, Path(directory) / "boot"), peer("host", endpoint):
                async with (
                    raw_echo() as echo,
                    Mesh(in_other_node, registry=endpoint, hosts=False, store="memory://") as mesh,
                ):
                    floors = {"raw echo, a message a frame": partial(echo.per_message, messages, in_flight, 1)}
                    if in_flight > 1:
                        floors[f"joined echo, {in_flight} messages a frame"] = partial(
                            echo.per_message, messages, in_flight, in_flight
                        )
                    yield Contest(partial(per_hop, mesh, in_other_node, transactions, in_flight), floors)

    return enter


@asynccontextmanager
async def hop_process(sizes: Sizes) -> AsyncIterator[Contest]:
    """µs for a hop in a worker process that is warm; the first sample, which is not counted, starts it."""
    transactions = sizes.pick(20, 1)
    messages = transactions * len(in_worker_process.steps)
    async with raw_echo() as echo, Mesh(in_worker_process, processes=1, store="memory://") as mesh:
        floors = {"raw echo, a message a frame": partial(echo.per_message, messages, 1, 1)}
        yield Contest(partial(per_hop, mesh, in_worker_process, transactions), floors)


def parked(count: int, quick_count: int) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """KiB for each of so many hops that wait; each sample has a process of its own, whose memory nothing else has
    touched."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        parked = str(sizes.pick(count, quick_count))

        async def run(what: str) -> float:
            return float(await answer_of("park", what, parked))

        yield Contest(partial(run, "mesh"), {"a task awaiting an Event": partial(run, "tasks")})

    return enter
