"""The ASGI application over a mesh: its endpoints, its guard, and its answers to errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from bitactor.errors import BitActorError, ConfigurationError
from mesh.ingress.endpoints import Endpoints
from mesh.ingress.guard import Guard
from mesh.ingress.headers import prefix_of
from mesh.ingress.problems import CLIENT_CLOSED_REQUEST, Problem, problem_of
from mesh.mesh import Mesh


def application(
    mesh: Mesh,
    *,
    open_mesh: bool = True,
    max_body_bytes: int | None = None,
    allowed_hosts: Sequence[str] | None = None,
) -> Starlette:
    """An ASGI application over a mesh.

    Args:
        mesh: lives on the loop that serves the application.
        open_mesh: open the mesh when the application starts and close it when that stops, unless somebody has opened it
            already.  It may start again afterwards.  Of an application that is mounted in another, no lifespan is run:
            open the mesh in the outer one's.
        max_body_bytes: larger bodies are refused; None: as much as the mesh's `payload_limit`.
        allowed_hosts: names (without port) that `Host` may give; None: any.  Guards a server on localhost against pages
            that rebind their name to it.

    Raises:
        ConfigurationError: `mesh` is no Mesh, or an option is wrong.
    """
    if not isinstance(mesh, Mesh):
        raise ConfigurationError(
            f"an ingress awaits its mesh: give it the Mesh itself, as in `mesh = Mesh(…)`, not {type(mesh).__name__}, "
            "what `with` gives"
        )
    if max_body_bytes is None:
        max_body_bytes = mesh.settings.payload_limit
    if type(max_body_bytes) is not int or max_body_bytes < 1:
        raise ConfigurationError(f"max_body_bytes={max_body_bytes!r}; give a number of bytes, at least 1")
    is_list = isinstance(allowed_hosts, Sequence | AbstractSet) and not isinstance(allowed_hosts, str | bytes)
    if allowed_hosts is not None and not (is_list and all(isinstance(host, str) for host in allowed_hosts)):
        raise ConfigurationError(f"allowed_hosts={allowed_hosts!r}; give a list of names, or None")
    endpoints = Endpoints(mesh, max_body_bytes)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        require_own_loop(mesh)
        if not open_mesh or mesh.state in ("opening", "open"):
            yield
            return
        async with mesh:
            yield

    app = Starlette(
        routes=endpoints.routes(),
        middleware=[Middleware(Guard, allowed_hosts=allowed_hosts)],
        exception_handlers={
            HTTPException: _router_refusal,
            ClientDisconnect: _client_gone,
            Problem: _problem,
            BitActorError: _problem,
            Exception: _problem,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.endpoints = endpoints
    return app


def require_own_loop(mesh: Mesh) -> None:
    """Raise `BitActorError` if the mesh was opened on another event loop."""
    if mesh.state in ("opening", "open") and mesh.loop is not asyncio.get_running_loop():
        raise BitActorError("the mesh lives on another event loop; open it on the one that serves HTTP")


async def _problem(request: Request, error: Exception) -> Response:
    endpoints: Endpoints = request.app.state.endpoints
    return problem_of(error, endpoints.unready()).response()


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _router_refusal(request: Request, error: Exception) -> Response:
    """The problem response to a request that the router refuses: an unknown path or method."""
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        place = f"{prefix_of(request.scope)}/openapi.json"
        return Problem("not-found", f"there is nothing at this path; {place} says what there is").response()
    methods = sorted({*(error.headers or {}).get("Allow", "").split(", "), "OPTIONS"})
    headers = {"Allow": ", ".join(methods)}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    return Problem(
        "method-not-allowed", f"{request.method[:32]} is not for this resource; use {' or '.join(methods)}", headers
    ).response()
