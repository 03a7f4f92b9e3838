"""A real HTTP server on loopback that behaves as badly as it is told to."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


class Server:
    """What it was asked, and what it answers next."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[str, list[Response]] = {}
        """Path → what to answer before the ordinary."""
        self.held: dict[str, threading.Event] = {}
        """Path → set when it may be answered."""
        self.token_life = 3600.0
        self.tokens: set[str] = set()
        self.issued = 0

    def hold(self, path: str) -> None:
        """Answer nothing there until it is released."""
        self.held[path] = threading.Event()

    def release(self, path: str) -> None:
        """Answer what is held, and what comes."""
        self.held[path].set()

    async def waits_for(self, path: str) -> None:
        """Until somebody has asked there."""
        async with asyncio.timeout(30):
            while not self.asked[path]:  # noqa: ASYNC110 - the server runs on a loop of its own
                await asyncio.sleep(0.005)

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked[path] += 1
        body = (await request.body()).decode()
        self.requests.append(
            {
                "method": request.method,
                "path": path,
                "query": dict(request.query_params),
                "headers": dict(request.headers),
                "body": body,
            }
        )
        while path in self.held and not self.held[path].is_set() and not await request.is_disconnected():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if self.answers.get(path):
            return self.answers[path].pop(0)
        if path == "/token":
            return self._token(request)
        if (
            path.startswith("/private")
            and request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens
        ):
            return JSONResponse({"error": "token expired"}, 401)
        if path == "/text":
            return PlainTextResponse("plain")
        return JSONResponse({"path": path, "method": request.method, "body": body})

    def _token(self, request: Request) -> Response:
        if not request.headers.get("Authorization", "").startswith("Basic "):
            return JSONResponse({"error": "invalid_client"}, 401)
        self.issued += 1
        token = f"token-{self.issued}"
        self.tokens = {token}
        return JSONResponse({"access_token": token, "expires_in": self.token_life, "token_type": "Bearer"})


@contextmanager
def serving() -> Iterator[Server]:
    """A server, up until the block is left."""
    server = Server()
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
    application = Starlette(routes=[Route("/{path:path}", server.answer, methods=methods)])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until = time.monotonic() + 30
        while not running.started and time.monotonic() < until:
            time.sleep(0.005)  # uvicorn tells nobody else
        try:
            yield server
        finally:
            for held in server.held.values():
                held.set()
            running.should_exit = True
            thread.join(30)
