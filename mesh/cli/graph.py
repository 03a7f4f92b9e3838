"""`bitactor graph MODULE:OBJECT`"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter

from bitactor.messages.pulse import Pulse
from mesh.cli import work
from mesh.cli.exits import UsageError
from mesh.cli.load import definitions, load
from mesh.cli.options import Curve, Json, Registry, Store
from mesh.cli.output import err, print_lines
from mesh.cli.places import id_beginning, open_place, transaction_id, unknown

Plans: TypeAlias = "Mapping[str, tuple[work.Plan, work.Workflow | None]]"
"""Name → plan, and the workflow if it is one and no consumer."""


def graph(
    place: str,
    /,
    *,
    transaction: Annotated[
        str, Parameter(help="Colour it by what happened in this transaction, from --store or --registry.")
    ] = "",
    store: Store = "",
    registry: Registry = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Draw workflows as Mermaid flowcharts: steps, where arguments come from, order, what is nested, undo, when.

    Paste it into a ```mermaid block (GitHub, GitLab), or into mermaid.live.

    Example: bitactor graph mesh.demo.signup:signup

    Parameters
    ----------
    place
        MODULE:OBJECT, where OBJECT is a Workflow, a consumer, a list of them, or a Mesh.
    """
    plans = _plans(load(place), place)
    pulses: Sequence[Pulse] = ()
    if transaction:
        pulses = asyncio.run(_pulses(transaction, store, registry, curve))
        plans = _of_transaction(plans, pulses[0], place)
    if json:
        print_lines(_document(plan, workflow, pulses) for plan, workflow in plans.values())
    else:
        print("\n".join(work.mermaid(plan, pulses) for plan, _ in plans.values()), end="")


def _plans(found: Any, place: str) -> Plans:
    if isinstance(found, work.Mesh):
        return {name: (plan, found.node.workflows.get(name)) for name, plan in found.node.plans.items()}
    return {
        item.name: (item.check(), item if isinstance(item, work.Workflow) else None)
        for item in definitions(found, place)
    }


def _document(plan: work.Plan, workflow: work.Workflow | None, pulses: Sequence[Pulse]) -> dict[str, Any]:
    document = {"workflow": plan.workflow, "digest": plan.digest, "mermaid": work.mermaid(plan, pulses)}
    return document if workflow is None else document | workflow.describe()


async def _pulses(given: str, store: str, registry: str, curve: Path | None) -> Sequence[Pulse]:
    beginning = id_beginning(given)
    async with open_place(store, registry, curve) as place:
        wanted = await transaction_id(place, beginning)
        found = await place.pulses(wanted)
        if not found:
            raise unknown(wanted, place.name)
        return found


def _of_transaction(plans: Plans, pulse: Pulse, place: str) -> Plans:
    """The plan that the transaction is of, alone; a word on stderr if it has changed since.

    Raises:
        UsageError: the transaction is of another workflow.
    """
    if pulse.workflow not in plans:
        raise UsageError(
            f"transaction {pulse.transaction} is of {pulse.workflow!r}, and {place} has {', '.join(map(repr, plans))}",
            "name the module and object that declare it",
        )
    plan = plans[pulse.workflow][0]
    if plan.digest != pulse.digest:
        err().print(f"note: {pulse.workflow!r} has changed since that transaction; what it has no more is not shown")
    return {pulse.workflow: plans[pulse.workflow]}
