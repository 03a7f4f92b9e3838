"""The other processes of a benchmark; each ends when its standard input does, and so with the process that started it.

python -m benchmarks.peers echo INBOX OUTBOX      answers each frame with itself
python -m benchmarks.peers host REGISTRY          a node that runs steps for others
python -m benchmarks.peers park mesh|tasks COUNT  prints how many KiB each parked hop, or each bare task, takes
python -m benchmarks.peers journal FILE HOPS      writes a journal of so many hops, and keeps it open
python -m benchmarks.peers dbos IN_FLIGHT EACH    prints µs for a durable step of DBOS, installed by hand
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from benchmarks.workflows import first, following, in_other_node, parking
from benchmarks.writes import keep_long_log, open_journal
from mesh import Mesh

READY = b"ready\n"
_END_WITHIN = 10.0


class PeerFailed(RuntimeError):
    """A process of a benchmark ended before it had done its part."""


@contextmanager
def peer(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this module, ready; ended, with force if need be, when the block is left."""
    process = _start(arguments)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != READY:
            raise PeerFailed(f"`{' '.join(arguments)}` ended with {process.wait(_END_WITHIN)} before it was ready")
        yield process
    finally:
        _end(process)


async def answer_of(*arguments: str) -> str:
    """What such a process prints, once it has ended."""
    process = _start(arguments)
    try:
        assert process.stdout is not None
        said = (await asyncio.to_thread(process.stdout.read)).decode()
        code = process.wait(_END_WITHIN)
    finally:
        _end(process)
    if code != 0:
        raise PeerFailed(f"`{' '.join(arguments)}` ended with {code}")
    return said


def _start(arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(_END_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()


# In the other process


def say_ready() -> None:
    """Tell who started us."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


async def until_told() -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        await reader.read()
    finally:
        transport.close()


async def echo(inbox: str, outbox: str) -> None:
    """Answer each frame with itself, from the loop's reader callback."""
    loop = asyncio.get_running_loop()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        push.linger = 0
        pull.bind(inbox)
        push.connect(outbox)

        def drain() -> None:
            while True:
                try:
                    frame = pull.recv(zmq.NOBLOCK)
                except zmq.Again:
                    return
                push.send(frame)

        loop.add_reader(pull.fileno(), drain)
        say_ready()
        drain()
        await until_told()
        loop.remove_reader(pull.fileno())


async def host(registry: str) -> None:
    """Run the steps of a chain for another node."""
    async with Mesh(in_other_node, registry=registry, store="memory://"):
        say_ready()
        await until_told()


async def park(what: str, count: int) -> None:
    """Print KiB for each of `count` hops, or bare tasks, that wait at an event."""
    told = asyncio.create_task(until_told())
    await asyncio.sleep(0)
    work = asyncio.create_task((_parked_hops if what == "mesh" else _parked_tasks)(asyncio.Event(), count))
    await asyncio.wait((work, told), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        print(work.result() / count)
    for task in (work, told):
        task.cancel()
    await asyncio.gather(work, told, return_exceptions=True)


async def _parked_hops(gate: asyncio.Event, count: int) -> float:
    workflow = parking("benchmarks.parked", gate)
    open_gate = asyncio.Event()
    open_gate.set()
    warm = parking("benchmarks.warm", open_gate)
    async with Mesh(workflow, warm, store="memory://", max_in_flight=count + 1) as mesh:
        for _ in range(100):
            await (await mesh.stimulate(warm)).result()
        before = resident_kib()
        for number in range(count - 1):
            await mesh.stimulate(workflow)
            if number % 1_000 == 0:
                await asyncio.sleep(0)  # `stimulate` does not suspend when the journal is in memory
        last = await mesh.stimulate(workflow)
        await asyncio.sleep(0)  # let the last one's hop begin
        taken = resident_kib() - before
        gate.set()
        if await last.result(timeout=600) != 1:
            raise RuntimeError("a parked hop gave another result")
    return taken


async def _parked_tasks(gate: asyncio.Event, count: int) -> float:
    before = resident_kib()
    tasks = [asyncio.create_task(gate.wait()) for _ in range(count)]
    await asyncio.sleep(0)
    taken = resident_kib() - before
    gate.set()
    await asyncio.gather(*tasks)
    return taken


async def journal(file: str, hops: int) -> None:
    """Write a long journal, and keep it open."""
    store = await open_journal(f"sqlite:///{file}", "writer")
    try:
        await keep_long_log(store, hops)
        say_ready()
        await until_told()
    finally:
        store.close()


async def dbos(in_flight: int, each: int) -> None:
    """Print µs for a step of a workflow of ten, so many side by side, one after the other `each`."""
    module: Any = importlib.import_module("dbos")
    with tempfile.TemporaryDirectory(prefix="ba-") as directory:
        kit = module.DBOS
        kit(config={"name": "benchmarks", "system_database_url": f"sqlite:///{directory}/dbos.db"})
        first_step, following_step = kit.step()(first), kit.step()(following)

        async def ten() -> Any:
            value = await first_step()
            for _ in range(9):
                value = await following_step(value)
            return value

        workflow = kit.workflow()(ten)
        kit.launch()
        try:

            async def run(count: int) -> None:
                for _ in range(count):
                    if await workflow() != 10:
                        raise RuntimeError("a workflow of ten gave another result than 10")

            await run(1)
            began = time.perf_counter()
            await asyncio.gather(*(run(each) for _ in range(in_flight)))
            print((time.perf_counter() - began) / (in_flight * each * 10) * 1e6)
        finally:
            kit.destroy()


def resident_kib() -> float:
    """Memory of this process that is in RAM, after the garbage is out.

    Raises:
        OSError: not on Linux.
    """
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    match arguments:
        case ["echo", inbox, outbox]:
            asyncio.run(echo(inbox, outbox))
        case ["host", registry]:
            asyncio.run(host(registry))
        case ["park", ("mesh" | "tasks") as what, count]:
            asyncio.run(park(what, int(count)))
        case ["journal", file, hops]:
            asyncio.run(journal(file, int(hops)))
        case ["dbos", in_flight, each]:
            asyncio.run(dbos(int(in_flight), int(each)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
