"""A partner's API as one meets it: slow, with a quota, now and then busy, with tokens that expire, in two versions.

How it misbehaves depends on what is asked and how often it was asked before, never on chance; what it saw is in
`Partner.seen`.
"""

from __future__ import annotations

import asyncio
import base64
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "aggregator", "s3cret"
NAMES = (
    "Ada Bob Cleo Dan Eve Finn Gus Hal Ida Jo Kim Leo Mia Ned Ola Pia Quin Rae Sam Tess Uma Vic Wes Xia Yan Zoe Amir "
    "Bea Cy Dot"
)
USERS = {number: (name, f"{name.lower()}@example.org") for number, name in enumerate(NAMES.split(), 1)}
DELETED = 7
"""Still in the listing, but gone."""
PAGE = 10
USES = 40
"""Requests that a token is good for."""
LATENCY = 0.02
QUOTA_RATE, QUOTA_BURST = 50.0, 20
"""Requests a second, and how many at once."""
BUSY = {4: (503, "0"), 6: (429, "1"), 9: (503, None)}
"""User → how the first request for their data in each version is refused: status, and `Retry-After` in seconds."""

Answer = Callable[[Request], Awaitable[Response]]


class Quota:
    """A token bucket, as a server keeps it: who comes too fast is refused."""

    def __init__(self) -> None:
        self._left, self._at = float(QUOTA_BURST), time.monotonic()

    def take(self) -> bool:
        """Whether one more request is within the quota."""
        now = time.monotonic()
        self._left = min(QUOTA_BURST, self._left + (now - self._at) * QUOTA_RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Partner:
    """The API, and what it remembers."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.reports: dict[str, dict[str, Any]] = {}
        self.most_at_once = 0
        """Requests about users that were under way together."""
        self._at_once = 0
        self._quota = Quota()
        self._asked: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._uses: dict[str, int] = {}
        self.app = Starlette(
            routes=[
                Route("/oauth/token", self.token, methods=["POST"]),
                Route("/v1/users", self.guarded(self.numbered_page)),
                Route("/v2/users", self.guarded(self.page_behind_cursor)),
                Route("/{version}/users/{user:int}", self.guarded(self.user)),
                Route("/{version}/users/{user:int}/preferences", self.guarded(self.preferences)),
                Route("/recommendations/{somebody:int}", self.guarded(self.recommendations)),
                Route("/headlines", self.guarded(self.headlines)),
                Route("/reports", self.guarded(self.create_report), methods=["POST"]),
                Route("/reports/{report}", self.guarded(self.delete_report), methods=["DELETE"]),
                Route("/announcements", self.guarded(self.announce), methods=["POST"]),
            ]
        )

    # Who may ask, and how often

    async def token(self, request: Request) -> Response:
        """OAuth 2, client credentials (RFC 6749, 4.4), with the client's name and secret in the form or as `Basic`."""
        asked = dict(parse_qsl((await request.body()).decode()))
        basic = base64.b64decode(request.headers.get("authorization", "").removeprefix("Basic ")).decode()
        who = tuple(basic.split(":")) if basic else (asked.get("client_id"), asked.get("client_secret"))
        if asked.get("grant_type") != "client_credentials" or who != (CLIENT, SECRET):
            return JSONResponse({"error": "invalid_client"}, 401)
        self.seen["tokens"] += 1
        fresh = f"token-{self.seen['tokens']}"
        self._uses[fresh] = USES
        await asyncio.sleep(LATENCY)
        return JSONResponse({"access_token": fresh, "token_type": "Bearer", "expires_in": 3600})

    def guarded(self, answer: Answer) -> Answer:
        """A token that is good, a request within the quota, and then the partner's mood."""

        async def answered(request: Request) -> Response:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            if self._uses.get(token, 0) < 1:
                self.seen["stale tokens"] += 1
                return JSONResponse({"error": "invalid_token"}, 401)
            self._uses[token] -= 1
            path = request.url.path
            self.seen["headlines" if path == "/headlines" else "requests"] += 1
            if not self._quota.take():
                self.seen["over quota"] += 1
                return JSONResponse({"error": "too many requests"}, 429, {"Retry-After": "1"})
            self._asked[path] += 1
            if time.monotonic() < self._not_before.get(path, -math.inf):
                self.seen["too early"] += 1
            status, after = BUSY.get(request.path_params.get("user", 0), (200, None))
            if status != 200 and self._asked[path] == 1:
                self.seen[f"answered {status}"] += 1
                self._not_before[path] = time.monotonic() + float(after or 0)
                return JSONResponse({"error": "busy"}, status, {} if after is None else {"Retry-After": after})
            self._at_once += "user" in request.path_params
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                await asyncio.sleep(LATENCY)
                return await answer(request)
            finally:
                self._at_once -= "user" in request.path_params

        return answered

    # Users, in two versions

    async def numbered_page(self, request: Request) -> Response:
        """Version 1: pages by number."""
        number, everybody = int(request.query_params.get("page", 1)), list(USERS)
        ids = everybody[(number - 1) * PAGE : number * PAGE]
        return JSONResponse({"page": number, "pages": math.ceil(len(everybody) / PAGE), "user_ids": ids})

    async def page_behind_cursor(self, request: Request) -> Response:
        """Version 2: each page says where the next one is."""
        start, everybody = int(request.query_params.get("cursor", 0)), list(USERS)
        end = start + PAGE
        return JSONResponse({"ids": everybody[start:end], "next": str(end) if end < len(everybody) else None})

    async def user(self, request: Request) -> Response:
        """One user; the versions do not agree on what things are called."""
        user = request.path_params["user"]
        if user == DELETED or user not in USERS:
            raise HTTPException(404, f"no user {user}")
        name, email = USERS[user]
        if request.path_params["version"] == "v1":
            return JSONResponse({"user_id": user, "full_name": name, "email_address": email})
        return JSONResponse({"id": user, "name": name, "email": email})

    async def preferences(self, request: Request) -> Response:
        """What a user likes."""
        return JSONResponse({"theme": "dark" if request.path_params["user"] % 3 == 0 else "light"})

    # What does not work

    async def recommendations(self, request: Request) -> Response:
        """Down, and stays so."""
        self.seen["recommendations"] += 1
        return JSONResponse({"error": "down for maintenance"}, 503)

    async def headlines(self, request: Request) -> Response:
        """So slow that nobody ever waited for it."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response(status_code=204)

    # What can be changed

    async def create_report(self, request: Request) -> Response:
        """Keep a report; the same key makes the same report."""
        report = request.headers["idempotency-key"][:8]
        self.reports[report] = await request.json()
        self.seen["created"] += 1
        return JSONResponse({"id": report}, 201, {"Location": f"/reports/{report}"})

    async def delete_report(self, request: Request) -> Response:
        """Forget it."""
        if self.reports.pop(request.path_params["report"], None) is None:
            raise HTTPException(404, "no such report")
        self.seen["deleted"] += 1
        return Response(status_code=204)

    async def announce(self, request: Request) -> Response:
        """Tell an audience about a report."""
        announced = await request.json()
        if announced["audience"] == "nobody" or announced["report"] not in self.reports:
            return JSONResponse({"error": f"cannot announce to {announced['audience']}"}, 422)
        return JSONResponse({"told": announced["audience"]}, 201)


class Served:
    """A partner at a free port of this machine, in a thread of its own, while `with` lasts."""

    def __init__(self) -> None:
        self.partner = Partner()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(self.partner.app, log_level="critical", timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="partner")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
