"""python docs/examples/api_aggregation

A partner's server on this machine, and what is fetched from it: in both versions of its API, with a failure at the end,
in a version there is not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from aggregate import AT_ONCE, aggregate
from server import Partner, Served

from bitactor import Pulse, WorkflowFailed
from mesh import Mesh, Transaction

WISHES: tuple[dict[str, Any], ...] = (
    {"version": "v1"},
    {"version": "v2"},
    {"version": "v2", "audience": "nobody"},
    {"version": "v3"},
)


async def ask(partner: Partner) -> None:
    """Each wish, and then what the partner saw of it."""
    async with Mesh(aggregate, pools={AT_ONCE: 4}) as mesh:
        for wish in WISHES:
            print(", ".join(f"{name} {value}" for name, value in wish.items()))
            transaction = await mesh.stimulate(aggregate, wish)
            try:
                show(**summary(await transaction.result(60)))
            except WorkflowFailed as error:
                show(status=error.status, because=str(error.errors[0]).replace(os.environ["PARTNER_URL"], ""))
            show(**journal(transaction))
    print("what the partner saw")
    show(**saw(partner))


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What came."""
    report = result["report"]
    missing = {user: error.partition(" was ")[2] for user, error in report["missing"].items()}
    return {
        "status": "completed",
        **report,
        "people": f"{len(report['people'])}, from {report['people'][0]} to {report['people'][-1]}",
        "missing": missing,
        "announced": f"to {result['announced']}",
    }


def journal(transaction: Transaction) -> dict[str, Any]:
    """What the journal knows of trouble."""
    pulses: Sequence[Pulse] = transaction.pulses()
    retried = sum(pulse.kind == "retried" for pulse in pulses)
    undone = [pulse.step for pulse in pulses if pulse.kind == "undone"]
    return {"tried again": f"{retried} times", "undone": ", ".join(undone) or "nothing"}


def saw(partner: Partner) -> dict[str, Any]:
    """What the partner counted."""
    seen = partner.seen
    return {
        "requests": seen["requests"],
        "refused as busy": f"{seen['answered 503']} with 503, {seen['answered 429']} with 429",
        "over quota": seen["over quota"],
        "too early": seen["too early"],
        "about users": f"at most 4 at once: {partner.most_at_once <= 4}",
        "tokens": seen["tokens"],
        "recommendations": f"asked {seen['recommendations']} times, then left alone",
        "reports": f"{seen['created']} created, {seen['deleted']} deleted",
    }


def show(**facts: Any) -> None:
    """Name by name."""
    for name, value in facts.items():
        print(f"  {name:>15}: {value}")


def main() -> int:
    """The command line."""
    with Served() as served:
        os.environ["PARTNER_URL"] = served.url
        asyncio.run(ask(served.partner))
    return 0


if __name__ == "__main__":
    sys.exit(main())
