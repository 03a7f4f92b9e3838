"""A duration is a number of seconds that timers take and a journal can hold, whoever is given it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bitactor import (
    Backoff,
    BitActorError,
    ConfigurationError,
    InvalidInput,
    Workflow,
)
from bitactor.declare.stimulus import StimulusOptions
from bitactor.patterns import Bulkhead, CircuitBreaker, RateLimit, RetryPolicy, parallel_map
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.cli.app import main
from mesh.ingress.http import HttpServer
from mesh.ready.resources.cache import cache
from registry import RegistryServer

AGES = (1e300, float("inf"), float("nan"), 1e9 + 1)


def workflow() -> Workflow:
    made = Workflow("w", input={"x": int})
    made.add(lambda x: x, name="a")
    return made


async def same(value: Any) -> Any:
    return value


GIVEN: dict[str, Callable[[float], Any]] = {
    "a backoff": lambda seconds: Backoff(initial=seconds),
    "a breaker": lambda seconds: CircuitBreaker("b", failures=1, open_for=seconds),
    "a bulkhead": lambda seconds: Bulkhead("b", concurrent=1, max_wait=seconds),
    "a rate": lambda seconds: RateLimit("r", rate=1, per=seconds),
    "a retry": lambda seconds: RetryPolicy("r", max_wait=seconds),
    "elements side by side": lambda seconds: asyncio.run(parallel_map(same, [1], concurrency=1, timeout_each=seconds)),
    "a stimulus": lambda seconds: StimulusOptions(deadline=seconds),
    "a run": lambda seconds: run_workflow(workflow(), {"x": 1}, deadline=seconds),
    "a lease": lambda seconds: Mesh(workflow(), lease=seconds),
    "a drain": lambda seconds: Mesh(workflow(), drain=seconds),
    "patience": lambda seconds: Mesh(workflow(), patience=seconds),
    "a delivery timeout": lambda seconds: Mesh(workflow(), delivery_timeout=seconds),
    "a watchdog": lambda seconds: Mesh(workflow(), blocked_after=seconds),
    "a server's drain": lambda seconds: HttpServer(Mesh(workflow()), drain=seconds),
    "a registry": lambda seconds: RegistryServer("ipc:///nowhere", lease=seconds),
    "a cache": lambda seconds: cache("c", ttl=seconds),
}


@pytest.mark.parametrize("name", GIVEN)
def test_ages_are_refused_on_every_way_in(name: str) -> None:
    for seconds in AGES:
        with pytest.raises((BitActorError, ValueError)) as caught:
            GIVEN[name](seconds)
        text = str(caught.value)
        assert "1,000,000,000" in text or "1000000000" in text or "finite" in text or str(seconds) in text, text


def test_a_drain_of_ages_is_refused_when_a_mesh_is_closed() -> None:
    async def close() -> None:
        async with Mesh(workflow()) as mesh:
            with pytest.raises(ConfigurationError, match=r"drain=1e\+300; give a number of seconds"):
                await mesh.close(drain=1e300)
            with pytest.raises(InvalidInput, match="deadline=1e"):
                await mesh.stimulate("w", {"x": 1}, deadline=1e300)

    asyncio.run(close())


@pytest.mark.parametrize("option", ["--timeout", "--deadline"])
def test_ages_are_refused_on_the_command_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["stimulate", "w", option, "1e300", "--http", "http://127.0.0.1:9"])
    assert code == 2
    assert "at most 1,000,000,000" in " ".join(capsys.readouterr().err.split())


def test_a_backoff_without_a_cap_ends_somewhere() -> None:
    assert Backoff(cap=float("inf")).delay_ns(5_000, 0.0) == 10**18
    for wrong in ({"factor": float("inf")}, {"factor": "2"}, {"jitter": "x"}, {"initial": "x"}, {"cap": None}):
        with pytest.raises(ValueError, match="Backoff"):
            Backoff(**wrong)  # type: ignore[arg-type]


def test_a_key_that_is_no_text_is_refused_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stimulate", "w", "--key", "\udcff", "--http", "http://127.0.0.1:9"]) == 2
    assert "none of them a lone surrogate" in " ".join(capsys.readouterr().err.split())
