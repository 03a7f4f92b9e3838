"""The clients of a drill: each asks until it is answered, and asks some questions twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import httpx2

from tests.drill.cast import Member
from tests.drill.shop import FAILS

AGAIN = 0.05
"""Seconds after which a client asks again."""

ANSWERED_WITHIN = 1.0
"""Seconds after which a client takes a service for silent."""


class Order(NamedTuple):
    """What was asked, and accepted."""

    key: str
    workflow: str
    input: dict[str, Any]
    transaction: str

    @property
    def completes(self) -> bool:
        """Whether it completes if nothing prevents that."""
        return not self.input.get("fails") and self.input.get("takes", 0.0) < 1.0


class Load:
    """Clients that stimulate the services; with `shared`, a question is put to either, else each time to the same."""

    def __init__(self, services: Sequence[Member], seed: int, *, shared: bool) -> None:
        self._services = services
        self._shared = shared
        self._numbers = count(1)
        self._chance = random.Random(seed)
        self.orders: list[Order] = []
        self.wrong: list[str] = []
        """Answers that should not have been given."""
        self.over = False

    async def client(self, http: httpx2.AsyncClient, pause: float) -> None:
        """Order until it is over; one in four keys is sent again at once, to the other service if it may."""
        while not self.over:
            number = next(self._numbers)
            workflow, given = self._draw(number)
            key = f"order {number}"
            again = self._chance.random() < 0.25
            asked = [self._ask(http, key, workflow, given, number + turn) for turn in range(1 + again)]
            told = await asyncio.gather(*asked)
            if len(set(told)) > 1:
                self.wrong.append(f"key {key!r} began {told}")
            self.orders.append(Order(key, workflow, given, told[0]))
            await asyncio.sleep(pause)

    async def ask_all_again(self, http: httpx2.AsyncClient) -> None:
        """Send each key again, once all is over: it still gives the same transaction."""
        for order in self.orders:
            number = order.input["number"]
            told = await self._ask(http, order.key, order.workflow, order.input, number + 1)
            if told != order.transaction:
                self.wrong.append(f"key {order.key!r} began {order.transaction}, and later {told}")

    def _draw(self, number: int) -> tuple[str, dict[str, Any]]:
        workflow = self._chance.choice(("saga", "saga", "saga", "parcels", "hurried"))
        if workflow == "hurried":
            return workflow, {"number": number, "takes": self._chance.choice((0.01, 0.05, 0.1, 5.0))}
        if workflow == "parcels":
            return workflow, {"number": number, "fails": self._chance.choice(("", "close"))}
        return workflow, {"number": number, "fails": self._chance.choice(FAILS)}

    async def _ask(self, http: httpx2.AsyncClient, key: str, workflow: str, given: dict[str, Any], first: int) -> str:
        """Ask until it is accepted; nobody knows whether a question that was not answered was."""
        headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
        for service in self._turns(given["number"], first):
            try:
                answer = await http.post(
                    f"{service.url}/stimuli/{workflow}", json=given, headers=headers, timeout=ANSWERED_WITHIN
                )
            except (httpx2.TransportError, httpx2.UnsupportedProtocol):
                await asyncio.sleep(AGAIN)
                continue
            if answer.status_code in (200, 202):
                told: str = answer.headers["BitActor-Transaction"]
                return told
            if answer.status_code != 503:
                self.wrong.append(f"key {key!r} at {service.name}: {answer.status_code} {answer.text[:200]}")
            await asyncio.sleep(AGAIN)
        raise AssertionError("unreachable: turns have no end")

    def _turns(self, number: int, first: int) -> Iterator[Member]:
        for turn in count(first):
            yield self._services[(turn if self._shared else number) % len(self._services)]
