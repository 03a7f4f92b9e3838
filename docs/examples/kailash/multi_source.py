"""2. Multi-source aggregation: four services at once; one that is slow or broken loses nobody else's answer."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from bitactor import Workflow
from bitactor.patterns import parallel_fetch
from mesh.ready.resources.http import http_client
from mesh.ready.steps import http

PATIENCE = 1.0
"""Seconds for each source."""
SOURCES = {
    "customers": "/crm/customers",
    "orders": "/shop/orders",
    "inventory": "/warehouse/products",
    "analytics": "/analytics/metrics",
}


def multi_source(services: str) -> Workflow:
    """Each source is a hop: with its own time limit, its own pulse, and its answer in the journal whatever becomes of
    the others."""
    workflow = Workflow("kailash.multi_source", deadline=30, resources=[http_client("api", base_url=services)])
    for name, path in SOURCES.items():
        http.get(workflow, name, path, client="api", timeout=PATIENCE, required=False)
    workflow.collect("analyze", list(SOURCES), transform=analyse_answers)
    return workflow


def multi_source_in_one(services: str) -> Workflow:
    """The same in one hop, as the guide has it: for answers that need not be kept one by one."""
    workflow = Workflow("kailash.multi_source_in_one", deadline=30, resources=[http_client("api", base_url=services)])
    workflow.add(multi_fetch)
    workflow.add(analyze)
    return workflow


def analyse_answers(answers: dict[str, Any]) -> dict[str, Any]:
    """Insights from the answers of HTTP steps; None stands for a step that failed."""
    return analyse({name: None if answer is None else answer["json"] for name, answer in answers.items()})


def analyse(found: dict[str, Any]) -> dict[str, Any]:
    """Insights from what there is."""
    customers, orders = found["customers"] or [], found["orders"] or []
    by_customer = Counter(order["customer_id"] for order in orders)
    return {
        "insights": {
            "total_customers": len(customers),
            "total_orders": len(orders),
            "orders_per_customer": len(orders) / len(customers) if customers else 0,
            "top_customers": by_customer.most_common(3),
            "out_of_stock": sum(product["stock"] == 0 for product in found["inventory"] or []),
            "visits": (found["analytics"] or {}).get("visits"),
        },
        "data_sources": [name for name in SOURCES if found[name] is not None],
        "failed_sources": [name for name in SOURCES if found[name] is None],
    }


async def multi_fetch(api: Any) -> dict[str, Any]:
    """All at once, each with a limit of its own."""

    async def ask(path: str) -> Any:
        answer = await api.get(path)
        answer.raise_for_status()
        return answer.json()

    fetched = await parallel_fetch({name: partial(ask, path) for name, path in SOURCES.items()}, timeout=PATIENCE)
    return {
        "successful": fetched.successful,
        "failed": {name: type(error).__name__ for name, error in fetched.failed.items()},
    }


def analyze(multi_fetch: dict[str, Any]) -> dict[str, Any]:
    """Insights from what there is, and why the rest is missing."""
    found = {name: multi_fetch["successful"].get(name) for name in SOURCES}
    return {**analyse(found), "failed_sources": multi_fetch["failed"]}
