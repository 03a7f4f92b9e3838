"""4. A service that fails: cached, watched by a circuit breaker, given up after a while, with another service to fall back on."""

from __future__ import annotations

from typing import Any

from places import backup_api, primary_api

from bitactor import Workflow
from bitactor.patterns import Cache, CircuitBreaker, Fallback, Timeout

OPEN_FOR = 60.0

resilient_service = Workflow(
    "kailash.resilient_service", input={"item": str}, deadline=60, resources=[primary_api, backup_api]
)


@resilient_service.step(
    required=False,
    policies=[
        Cache("service-data", key="service_data_{item}", ttl=1_800.0),
        CircuitBreaker("primary", failures=5, open_for=OPEN_FOR),
        Timeout("primary", 10.0),
    ],
)
async def primary_service(item: str, primary_api: Any) -> dict[str, Any]:
    """The answer of the first choice; only such answers are cached."""
    answer = await primary_api.post("/primary/process", json={"item": item})
    answer.raise_for_status()
    return dict(answer.json())


@resilient_service.step(
    when=lambda primary_service: primary_service is None,
    policies=[Fallback("nothing-known", {"item": None, "price": None, "by": "nobody"}), Timeout("backup", 10.0)],
)
async def use_backup(item: str, primary_service: dict[str, Any] | None, backup_api: Any) -> dict[str, Any]:
    """The answer of the second choice, asked only if there is none of the first; without either, a value that says so."""
    answer = await backup_api.post("/backup/process", json={"item": item})
    answer.raise_for_status()
    return dict(answer.json())


@resilient_service.step(spawn="inline")
def answered(primary_service: dict[str, Any] | None, use_backup: dict[str, Any] | None) -> dict[str, Any]:
    """One answer, whoever gave it."""
    answer = primary_service or use_backup
    assert answer is not None, "use_backup runs when primary_service has nothing, and falls back on a value"
    return {**answer, "used_backup": primary_service is None}
