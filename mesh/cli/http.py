"""Questions to a node's HTTP ingress."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

from mesh.cli.exits import FAILED, UNREACHABLE, USAGE, CommandError, UsageError

_REFUSED: Final = {400: USAGE, 404: FAILED, 409: FAILED, 413: USAGE, 422: USAGE}
_HINTS: Final = {
    "urn:bitactor:problem:other-status": "'bitactor trace ID' shows what became of it",
    "urn:bitactor:problem:store-unavailable": "GET /readyz of the node says when it takes work again",
}
"""What to do about a problem, where its title would say no more than its detail."""
_KINDS: Final[Mapping[str, type[HTTPConnection]]] = {"http": HTTPConnection, "https": HTTPSConnection}
_ANSWERS_WITHIN: Final = 30.0
"""Seconds that an ingress may take to say that it has done what it was asked, where that takes no time of its own."""
_BETWEEN_LOOKS: Final = 0.1


class Ingress:
    """The ingress at an address.

    Args:
        base: such as http://127.0.0.1:8000.

    Raises:
        UsageError: `base` is no http address.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        url = urlsplit(base)
        try:
            port = url.port
        except ValueError:
            port = -1
        if url.scheme not in _KINDS or not url.hostname or port == -1:
            raise UsageError(f"--http {base!r} is no address", "such as http://127.0.0.1:8000")
        self._path = url.path.rstrip("/")
        self._address = _KINDS[url.scheme], url.hostname, port

    async def change(
        self, path: str, content: Any, headers: Mapping[str, str], *, wait: bool, timeout: float | None
    ) -> dict[str, Any]:
        """How a transaction stands that was begun or changed, if `wait` once it has ended.

        What is asked is asked, however short the end is waited for.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds; it goes on.
            CommandError: as `ask`; or the ingress has refused it.
        """
        if wait and timeout is None:
            return summary_of(*await self.ask("POST", path, content, headers))
        asynchronous = {**headers, "Prefer": "respond-async"}
        summary = summary_of(*await self.ask("POST", path, content, asynchronous, within=_ANSWERS_WITHIN))
        loop = asyncio.get_running_loop()
        until = loop.time() + (timeout or 0)
        while wait and summary["status"] == "running":
            transaction, left = summary["transaction"], until - loop.time()
            if left <= 0:
                raise TimeoutError(f"transaction {transaction} was still running after {timeout:g} s")
            await asyncio.sleep(min(left, _BETWEEN_LOOKS))
            summary = summary_of(*await self.ask("GET", f"/transactions/{transaction}", within=_ANSWERS_WITHIN))
        return summary

    async def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        within: float | None = None,
    ) -> tuple[int, Any]:
        """HTTP status and JSON document of the answer.

        Raises:
            CommandError: nobody answers there, or not within so many seconds, or what answers is no ingress.
        """
        return await _in_thread(lambda: self._ask(method, f"{self._path}{path}", content, headers or {}, within))

    def _ask(self, method: str, path: str, content: Any, headers: Mapping[str, str], within: float | None) -> Any:
        kind, host, port = self._address
        connection = kind(host, port, timeout=within)
        asked = False
        try:
            body = None if method == "GET" else json.dumps(content)
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            asked = method != "GET"
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except TimeoutError:
            raise CommandError(
                f"{self.base} did not answer within {within:g} s; the transaction, if it began, goes on", UNREACHABLE
            ) from None
        except ValueError:
            raise CommandError(
                f"what answers at {self.base} is no BitActor ingress: its answer is not JSON", UNREACHABLE
            ) from None
        except (OSError, HTTPException) as error:
            if asked:
                raise CommandError(
                    f"{self.base} went away before it answered ({error}); what was asked may have been taken, and goes "
                    "on with whoever carries its store on",
                    UNREACHABLE,
                    "'bitactor list' shows how it stands",
                ) from None
            raise CommandError(
                f"nobody answers at {self.base}: {error}",
                UNREACHABLE,
                "'bitactor run MODULE:OBJECT --http 8000' serves it",
            ) from None
        finally:
            connection.close()


def summary_of(status: int, answer: Any) -> dict[str, Any]:
    """The ingress' answer about a transaction, as `mesh.transaction.transaction_as_plain` would say it.

    Raises:
        CommandError: it is a refusal.
    """
    content = answer if isinstance(answer, dict) else {}
    if "transaction" in content and "status" in content and isinstance(content["status"], str):
        return content
    if "transaction" in content:  # a problem that tells about a transaction
        return {**content, "status": content.get("transaction_status", "failed")}
    raise refusal(status, answer)


def refusal(status: int, answer: Any) -> CommandError:
    """The error of an answer that is a problem."""
    content = answer if isinstance(answer, dict) else {}
    return CommandError(
        str(content.get("detail") or f"the ingress answered {status}"),
        USAGE if content.get("type") == "urn:bitactor:problem:other-status" else _REFUSED.get(status, UNREACHABLE),
        _HINTS.get(str(content.get("type", "")), str(content.get("title", ""))),
    )


async def _in_thread(call: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """What `call` returns or raises.  Its thread is a daemon: the command can end (Ctrl-C) while nobody answers."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[int, Any]] = loop.create_future()

    def settle(value: tuple[int, Any] | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif value is not None:
            future.set_result(value)

    def work() -> None:
        value, raised = None, None
        try:
            value = call()
        except BaseException as error:
            raised = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, value, raised)

    threading.Thread(target=work, name="http", daemon=True).start()
    return await future
