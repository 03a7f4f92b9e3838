"""A duty of the registry that raises is logged and counted, and comes again; nobody is alone for good and does not know
it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import RegistryClient, RegistryServer
from registry.protocol.client import ClientProtocol
from registry.protocol.server import ServerProtocol

BOUND = 20.0


@pytest.fixture
def endpoint() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="ba-")
    yield f"ipc://{Path(directory)}/registry"
    shutil.rmtree(directory, ignore_errors=True)


def break_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> threading.Event:
    """Let the next call of a method fail by a defect; set once one has come after it."""
    method, failed, again = getattr(owner, name), threading.Event(), threading.Event()

    def broken(self: Any, *arguments: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("a defect")
        again.set()
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, broken)
    return again


def test_a_server_goes_on_looking_at_leases(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RegistryServer(endpoint, lease=0.2, heartbeat=0.05) as server:
        again = break_once(monkeypatch, ServerProtocol, "tick")
        assert again.wait(BOUND) and server.failures == 1
        with RegistryClient(endpoint, "node") as client:
            client.register("name", {}, timeout=BOUND)


def test_a_client_begins_anew(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RegistryServer(endpoint), RegistryClient(endpoint, "node") as client:
        client.register("name", {"a": 1})
        again = break_once(monkeypatch, ClientProtocol, "tick")
        assert again.wait(BOUND) and client.failures == 1
        client.register("other", {}, timeout=BOUND)
        assert [entry.name for entry in client.match("*")] == ["name", "other"]


def test_a_server_that_ends_says_why(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RegistryServer(endpoint)
    server.start()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(ServerProtocol, "take_outgoing", broken)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        server.join()
    server.stop()
