"""What the four workflows talk to, real and local: an HTTP server on a free port of the loopback, and a directory of
files.

The server does what services do, and each time the same: it limits its callers, fails for some users, is slow or down
when told to be.  It counts what reaches it, for that is where promises about callers can be checked.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.request import urlopen

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

USERS: Final = 120
PER_PAGE: Final = 5
WITHOUT_PROFILE: Final = frozenset({17, 64})
"""Users that the profile service knows nothing of."""
BLIP_AT: Final = 33
"""Whoever asks for this user's profile is refused once, and told to come again."""
MOST_PER_WINDOW: Final = 23
WINDOW: Final = 0.25
"""Seconds in which `MOST_PER_WINDOW` pages may be asked for."""

Answer = Callable[[Request], Awaitable[Response]]


class StandIns:
    """The services, as a context manager.

        with StandIns() as services:
            services.url                       # http://127.0.0.1:…
            services.slow.add("warehouse")     # it does not answer any more, until it is discarded from there
            services.down.add("primary")       # it answers 503
            services.asked["primary"]          # how often it was

    Services: `users`, `profiles`, `crm`, `shop`, `warehouse`, `analytics`, `primary`, `backup`.
    """

    def __init__(self) -> None:
        self.slow: set[str] = set()
        self.down: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.allowed = MOST_PER_WINDOW
        self.refused = 0
        """Pages that were asked for faster than allowed."""
        self.arrivals: defaultdict[str, list[float]] = defaultdict(list)
        """When each service was asked, in seconds of the monotonic clock."""
        self.most_at_once: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._blipped = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self._application(), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="stand-ins")

    @property
    def url(self) -> str:
        """Where the services are."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        with urlopen(f"{self.url}/ready"):  # who waits in the socket's queue until it serves arrives with all others
            return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.slow.clear()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _application(self) -> Starlette:
        routes = (
            ("/users", "users", self._users),
            ("/users/{user:int}/profile", "profiles", self._profile),
            ("/crm/customers", "crm", self._customers),
            ("/shop/orders", "shop", self._orders),
            ("/warehouse/products", "warehouse", self._products),
            ("/analytics/metrics", "analytics", self._metrics),
            ("/primary/process", "primary", self._process),
            ("/backup/process", "backup", self._process),
        )
        return Starlette(
            routes=[
                Route("/ready", lambda request: Response()),
                *(
                    Route(path, self._counted(service, answer), methods=["GET", "POST"])
                    for path, service, answer in routes
                ),
            ]
        )

    def _counted(self, service: str, answer: Answer) -> Answer:
        async def endpoint(request: Request) -> Response:
            self.asked[service] += 1
            self.arrivals[service].append(time.monotonic())
            self._under_way[service] += 1
            self.most_at_once[service] = max(self.most_at_once[service], self._under_way[service])
            try:
                while service in self.slow and not await request.is_disconnected():  # noqa: ASYNC110 (told from another thread)
                    await asyncio.sleep(0.01)
                if service in self.down:
                    return JSONResponse({"error": f"{service} is down"}, status_code=503)
                return await answer(request)
            finally:
                self._under_way[service] -= 1

        return endpoint

    async def _users(self, request: Request) -> Response:
        arrivals = self.arrivals["users"]
        if sum(moment > arrivals[-1] - WINDOW for moment in arrivals) > self.allowed:
            self.refused += 1
            return JSONResponse({"error": "slow down"}, status_code=429, headers={"Retry-After": "1"})
        first = (int(request.query_params.get("page", "1")) - 1) * PER_PAGE
        users = range(first + 1, min(first + PER_PAGE, USERS) + 1)
        return JSONResponse(
            {"users": [{"id": user, "name": f"User {user}", "email": f"user{user}@example.org"} for user in users]}
        )

    async def _profile(self, request: Request) -> Response:
        user: int = request.path_params["user"]
        await asyncio.sleep(0.005)
        if user in WITHOUT_PROFILE:
            return JSONResponse({"error": f"no profile of user {user}"}, status_code=404)
        if user == BLIP_AT and not self._blipped:
            self._blipped = True
            return JSONResponse({"error": "try again"}, status_code=503, headers={"Retry-After": "0"})
        return JSONResponse({"city": ("Oslo", "Kyiv", "Lima")[user % 3], "since": 2000 + user % 20})

    async def _customers(self, request: Request) -> Response:
        return JSONResponse([{"id": customer, "name": f"Customer {customer}"} for customer in range(1, 21)])

    async def _orders(self, request: Request) -> Response:
        return JSONResponse(
            [{"id": order, "customer_id": order * order % 20 + 1, "total": 10 * order} for order in range(1, 61)]
        )

    async def _products(self, request: Request) -> Response:
        return JSONResponse([{"id": product, "stock": product % 4} for product in range(1, 31)])

    async def _metrics(self, request: Request) -> Response:
        return JSONResponse({"visits": 4_200, "conversion": 0.05})

    async def _process(self, request: Request) -> Response:
        given: dict[str, Any] = await request.json()
        return JSONResponse(
            {"item": given["item"], "price": 10 * len(given["item"]), "by": request.url.path.split("/")[1]}
        )


GOOD_FILES: Final = 12
ROWS_PER_FILE: Final = 50


def make_files(directory: Path) -> None:
    """CSV files in folders; three of them cannot be processed, each for a reason of its own."""
    for number in range(GOOD_FILES):
        folder = directory / f"region-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [f"{row},{'' if row % 10 == number % 10 else row * 2},north" for row in range(ROWS_PER_FILE)]
        (folder / f"sales-{number:02d}.csv").write_text("\n".join(["id,amount,area", *rows]) + "\n", encoding="utf-8")
    (directory / "region-0" / "empty.csv").write_text("", encoding="utf-8")
    (directory / "region-1" / "ragged.csv").write_text("id,amount,area\n1,2,north\n3\n", encoding="utf-8")
    (directory / "region-2" / "latin.csv").write_bytes("id,amount,area\n1,2,Åland\n".encode("latin-1"))
    (directory / "notes.txt").write_text("no CSV", encoding="utf-8")
