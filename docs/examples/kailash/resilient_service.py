"""4. A service that fails: cached, watched by a circuit breaker, given up after a while, with another service to fall back on."""

from __future__ import annotations

from typing import Any

from places import backup_api, primary_api

from bitactor import Input, Workflow
from bitactor.patterns import Cache, CircuitBreaker, Fallback, Timeout
from mesh.ready.steps import http

OPEN_FOR = 60.0

resilient_service = Workflow(
    "kailash.resilient_service", input={"item": str}, deadline=60, resources=[primary_api, backup_api]
)


http.post(
    resilient_service,
    "primary_service",
    "/primary/process",
    json={"item": Input("item")},
    client="primary_api",
    required=False,
    policies=[
        Cache("service-data", key="service_data_{item}", ttl=1_800.0),
        CircuitBreaker("primary", failures=5, open_for=OPEN_FOR),
        Timeout("primary", 10.0),
    ],
)

# Asked only if the first choice has no answer; so what it says is never cached, and the first choice is tried again next time.
http.post(
    resilient_service,
    "use_backup",
    "/backup/process",
    json={"item": Input("item")},
    client="backup_api",
    after=["primary_service"],
    when=lambda primary_service: primary_service is None,
    policies=[Fallback("nothing-known", {"json": {"item": None, "price": None, "by": "nobody"}}), Timeout("backup", 10.0)],
)


@resilient_service.step(spawn="inline")
def answered(primary_service: dict[str, Any] | None, use_backup: dict[str, Any] | None) -> dict[str, Any]:
    """One answer, whoever gave it."""
    answer = primary_service or use_backup
    assert answer is not None, "use_backup runs when primary_service has nothing, and falls back on a value"
    return {**answer["json"], "used_backup": primary_service is None}
