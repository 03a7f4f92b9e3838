"""2. Multi-source aggregation: four services at once; one that is slow or broken loses nobody else's answer."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from places import api

from bitactor import Workflow
from bitactor.patterns import parallel_fetch
from mesh.ready.steps import http

PATIENCE = 0.5
"""Seconds for each source."""
SOURCES = {
    "customers": "/crm/customers",
    "orders": "/shop/orders",
    "inventory": "/warehouse/products",
    "analytics": "/analytics/metrics",
}

multi_source = Workflow("kailash.multi_source", deadline=30, resources=[api])


# Each source is a hop: with its own time limit, its own pulse, and its answer in the journal whatever becomes of the others.
for source, path in SOURCES.items():
    http.get(multi_source, source, path, client="api", timeout=PATIENCE, required=False)


def analyse(found: dict[str, Any]) -> dict[str, Any]:
    """Insights from what there is; None stands for what is missing."""
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


def analyse_answers(found: dict[str, Any]) -> dict[str, Any]:
    """The same from the answers of HTTP steps."""
    return analyse({name: None if answer is None else answer["json"] for name, answer in found.items()})


multi_source.collect("analyze", list(SOURCES), transform=analyse_answers)

multi_source_in_one = Workflow("kailash.multi_source_in_one", deadline=30, resources=[api])
"""The same in one hop, as the guide has it: for answers that need not be kept one by one."""


@multi_source_in_one.step
async def multi_fetch(api: Any) -> dict[str, Any]:
    """All at once, each with a limit of its own."""

    async def ask(path: str) -> Any:
        answer = await api.get(path)
        answer.raise_for_status()
        return answer.json()

    fetched = await parallel_fetch({name: partial(ask, path) for name, path in SOURCES.items()}, timeout=PATIENCE)
    return {"successful": fetched.successful, "failed": {name: type(error).__name__ for name, error in fetched.failed.items()}}


@multi_source_in_one.step
def analyze(multi_fetch: dict[str, Any]) -> dict[str, Any]:
    """Insights from what there is, and why the rest is missing."""
    found = {name: multi_fetch["successful"].get(name) for name in SOURCES}
    return {**analyse(found), "failed_sources": multi_fetch["failed"]}
