"""Waiting for a transaction's end while its client is there and the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bitactor.errors import StaleOwner
from bitactor.messages.pulse import RUNNING
from mesh.mesh import Mesh
from mesh.transaction import Transaction

T = TypeVar("T")


class ServerStopping(Exception):
    """The server stops before the transaction's end has come."""


async def run_while_connected(receive: Receive, stopped: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The value of `work`, which is cancelled when the client has gone or the server stops.

    Raises:
        ClientDisconnect: the client went away.
        ServerStopping: `stopped` was set.
        What `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    stop = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((task, gone, stop), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ServerStopping if stop.done() else ClientDisconnect
    finally:
        for waiting in (task, gone, stop):
            waiting.cancel()
        await asyncio.gather(task, gone, stop, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def wait_for_end(mesh: Mesh, transaction: Transaction, seconds: float | None) -> Transaction | None:
    """The transaction once nothing more happens to it by itself; None if that takes longer than `seconds`.

    The transaction may be one that another process on the same store runs.

    Raises:
        StoreError: nobody here can say any more what becomes of it.
    """
    try:
        async with asyncio.timeout(seconds):
            while await transaction.ended() == RUNNING:  # this process has given it up
                try:
                    with suppress(TimeoutError):
                        await transaction.result(timeout=0)  # raises why
                except StaleOwner:  # another process has taken it over, and writes on in the same store
                    transaction = await mesh.transaction(transaction.id)
    except TimeoutError:
        return None
    return transaction
