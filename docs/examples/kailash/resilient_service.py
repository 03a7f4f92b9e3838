"""4. A service that fails: cached, watched by a circuit breaker, given up after a while, with another service to fall
back on."""

from __future__ import annotations

from typing import Any

from bitactor import Workflow
from bitactor.patterns import Cache, CircuitBreaker, Fallback, Timeout
from mesh.ready.resources.http import http_client
from mesh.ready.steps import http

OPEN_FOR = 60.0
PRIMARY = [
    Cache("service-data", key="service_data_{item}", ttl=1_800.0),
    CircuitBreaker("primary", failures=5, open_for=OPEN_FOR),
    Timeout("primary", 10.0),
]
"""The outermost first: a cached answer asks nobody, not even the circuit; and a call that takes too long is a failure
to it."""
BACKUP = [Fallback("nothing-known", {"json": {"item": None, "price": None, "by": "nobody"}}), Timeout("backup", 10.0)]


def resilient_service(primary: str, backup: str) -> Workflow:
    """Asks the first choice, or else the second; what the second says is never cached, so the first is tried again next
    time.

    Args:
        primary, backup: URLs of the services.
    """
    clients = [http_client("primary_api", base_url=primary), http_client("backup_api", base_url=backup)]
    workflow = Workflow("kailash.resilient_service", input={"item": str}, deadline=60, resources=clients)
    http.post(
        workflow, "primary_service", "/primary/process", client="primary_api", json={"item": "{item}"},
        required=False, policies=PRIMARY,
    )  # fmt: skip
    http.post(
        workflow, "use_backup", "/backup/process", client="backup_api", json={"item": "{item}"},
        after=["primary_service"], when=is_missing, policies=BACKUP,
    )  # fmt: skip
    workflow.add(answered, spawn="inline")
    return workflow


def is_missing(primary_service: dict[str, Any] | None) -> bool:
    """Whether the first choice has no answer."""
    return primary_service is None


def answered(primary_service: dict[str, Any] | None, use_backup: dict[str, Any] | None) -> dict[str, Any]:
    """One answer, whoever gave it."""
    answer = primary_service or use_backup
    assert answer is not None, "the second choice is asked when the first has nothing, and falls back on a value"
    return {**answer["json"], "used_backup": primary_service is None}
