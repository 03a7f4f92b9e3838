"""`bitactor list`"""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from bitactor.ports import TransactionRow
from mesh.cli.options import Curve, Json, Registry, Store, ask, require_place, row_of
from mesh.cli.output import err, moment, print_lines, print_table, status_text
from mesh.stores import open_reader
from mesh.waterfall import duration

Status = Literal["running", "completed", "compensated", "cancelled", "halted", "stuck"]


async def list_transactions(
    *,
    store: Store = "",
    registry: Registry = "",
    status: Annotated[Status | None, Parameter(help="Only those that stand so.")] = None,
    workflow: Annotated[str | None, Parameter(help="Only those of this workflow.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, the newest.")] = 20,
    curve: Curve = None,
    json: Json = False,
) -> None:
    """List transactions, the newest first.

    From --store (read only, also while nodes write it), or from all nodes of --registry.

    Example: bitactor list --store sqlite:///pulses.db --status compensated --limit 5
    """
    require_place(store, registry)
    if store:
        with open_reader(store) as reader:
            rows = reader.list(status=status, workflow=workflow, limit=limit)
    else:
        found = await ask(registry, curve, lambda client: client.transactions(status=status, workflow=workflow, limit=limit))
        rows = [row_of(fields) for fields in found]
    if json:
        print_lines(row._asdict() for row in rows)
    elif rows:
        _show(rows)
    else:
        err().print("no transactions")


def _show(rows: list[TransactionRow]) -> None:
    print_table(
        ("transaction", "status", "took", "began", "workflow"),
        (
            (
                row.transaction,
                status_text(row.status),
                duration(max(0, row.updated_ns - row.created_ns)),
                moment(row.created_ns),
                row.workflow,
            )
            for row in rows
        ),
        fold="workflow",
        right=("took",),
    )
