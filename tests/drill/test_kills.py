"""A service that is killed every second or so, for two minutes, under load: nothing that was accepted is lost, or done
twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from bitactor import Pulse
from bitactor.messages.ids import idempotency_key
from bitactor.ports import TransactionRow
from mesh.stores.read import SqliteReader
from tests.e2e.processes import Process

SEED = 20_777
"""Of the moments at which the service is killed."""

SECONDS = 120.0
LIVES = (0.1, 1.5)
"""Seconds from when a service listens until it is killed; of each four, one is killed as long after its start instead,
listening or not."""

CLIENTS = 8
PAUSE = 0.2
"""Seconds a client waits between two orders."""

AGAIN = 0.02
"""Seconds after which a client asks again, and the end is looked for again."""

PATIENCE = 120.0
"""Seconds after the last kill in which everything must have ended."""

ORDERED = frozenset(("reserve", "pay", "pack/0/wrap", "pack/1/wrap", "pack/2/wrap", "ship"))
THANKED = frozenset(("shipped",))
"""The steps that do something outside, of an order and of the consumer of what it emits."""

pytestmark = pytest.mark.drill


class Effect(NamedTuple):
    """A line of the file outside."""

    what: str
    key: str
    transaction: str
    step: str


class Shop:
    """The service, whichever process it is at the moment, and what it has accepted."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pulses.db"
        self.effects_path = directory / "effects"
        self.url = ""
        self.kills = 0
        self.accepted: dict[str, str] = {}

    def begin(self) -> tuple[Process, asyncio.Task[None]]:
        """A process, and the task that ends once it listens."""
        process = Process("-m", "tests.drill.service", f"sqlite:///{self.path}", str(self.effects_path))

        async def listens() -> None:
            self.url = (await asyncio.to_thread(process.expect, "ready"))[1]

        return process, asyncio.create_task(listens())

    async def be_killed(self, until: float) -> None:
        moments = random.Random(SEED)
        while time.monotonic() < until:
            process, listens = self.begin()
            if moments.random() < 0.75:
                await listens
            await asyncio.sleep(moments.uniform(*LIVES))
            assert process.child.poll() is None, "it ended by itself"
            process.kill()
            self.kills += 1
            await asyncio.wait([listens])
            listens.exception()  # killed before it listened
            process.close()

    async def take_orders(self, client: httpx2.AsyncClient, numbers: count[int], until: float) -> None:
        while time.monotonic() < until:
            await self._order(client, next(numbers))
            await asyncio.sleep(PAUSE)

    async def _order(self, client: httpx2.AsyncClient, number: int) -> None:
        """Ask until it is accepted; nobody knows whether a question that was not answered was."""
        key = f"order {number}"
        headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
        while True:
            try:
                answer = await client.post(f"{self.url}/stimuli/order", json={"number": number}, headers=headers)
            except (httpx2.TransportError, httpx2.UnsupportedProtocol):
                await asyncio.sleep(AGAIN)
                continue
            if answer.status_code == 202:
                self.accepted[key] = answer.headers["BitActor-Transaction"]
                return
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(AGAIN)

    async def all_ended(self) -> None:
        with SqliteReader(self.path) as store:
            async with asyncio.timeout(PATIENCE):
                while any(row.open for row in store.list(limit=1_000_000)):  # noqa: ASYNC110 (another process's doing)
                    await asyncio.sleep(AGAIN)

    def effects(self) -> dict[str, list[Effect]]:
        """By transaction, in order."""
        found: dict[str, list[Effect]] = {}
        for line in self.effects_path.read_text().splitlines():
            effect = Effect(*line.split())
            found.setdefault(effect.transaction, []).append(effect)
        return found


async def test_killed_again_and_again_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    until = time.monotonic() + SECONDS
    numbers = count()
    async with httpx2.AsyncClient(trust_env=False) as client, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(shop.take_orders(client, numbers, until))
        await shop.be_killed(until)
        process, listens = shop.begin()
        try:
            await listens
            await shop.all_ended()
        finally:
            process.close()
    check(shop)


def check(shop: Shop) -> None:
    """Compare the journal with the file outside."""
    effects = shop.effects()
    with SqliteReader(shop.path) as store:
        rows = store.list(limit=1_000_000)
        journals = {row.transaction: list(store.pulses(row.transaction)) for row in rows}
    orders = {row.key: row.transaction for row in rows if row.workflow == "order"}
    assert orders == shop.accepted, "each order is one transaction, the one that was told"
    assert len(orders) == sum(row.workflow == "order" for row in rows)
    statuses = Counter((row.workflow, row.status) for row in rows)
    assert {status for _, status in statuses} <= {"completed", "compensated"}, statuses
    for row in rows:
        check_transaction(row, journals[row.transaction], effects.pop(row.transaction, []))
    assert not effects, "effects of what is not in the journal"
    done = [
        effect
        for of_one in shop.effects().values()
        for effect in of_one
        if effect.what == "did" and effect.step != "pay"
    ]
    again = sum(times - 1 for times in Counter(effect.key for effect in done).values())
    print(f"seed {SEED}: {shop.kills} kills, {dict(statuses)}, {len(done)} effects, {again} of them delivered again")
    assert shop.kills >= SECONDS / 10 and len(orders) >= SECONDS, "the machine is too slow for this drill"
    assert again, "no kill fell between an effect and its pulse: nothing was shown"


def check_transaction(row: TransactionRow, journal: list[Pulse], effects: list[Effect]) -> None:
    for effect in effects:
        assert effect.key == idempotency_key(row.transaction, effect.step), effect
    there: set[str] = set()
    for effect in effects:
        if effect.what == "did":
            there.add(effect.step)
        else:
            there.discard(effect.step)
    said = {kind: {pulse.step for pulse in journal if pulse.kind == kind} for kind in ("completed", "undone")}
    undid = {effect.step for effect in effects if effect.what == "undid"}
    if row.status == "completed":
        assert there == (ORDERED if row.workflow == "order" else THANKED) and not undid, (row, effects)
        assert row.workflow != "order" or said["completed"] >= ORDERED
    else:
        assert not there, (row, effects)
        assert said["undone"] == undid >= said["completed"] & ORDERED, (row, effects)
