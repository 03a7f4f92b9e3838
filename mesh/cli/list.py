"""`bitactor list`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from bitactor.ports import TransactionRow
from mesh.cli.exits import UsageError
from mesh.cli.options import Curve, Json, Registry, Store, ask, require_source
from mesh.cli.output import err, moment, print_lines, print_table, short, status_text
from mesh.cli.waterfall.render import duration
from mesh.stores import open_reader

Status = Literal["running", "completed", "compensated", "cancelled", "halted", "stuck"]

DEFAULT_LIMIT: Final = 20


async def list_transactions(
    *,
    store: Store = "",
    registry: Registry = "",
    status: Annotated[Status | None, Parameter(help="Only those that stand so.")] = None,
    workflow: Annotated[str | None, Parameter(help="Only those of this workflow.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, the newest.")] = DEFAULT_LIMIT,
    patterns: Annotated[
        bool,
        Parameter(
            negative=(), show_default=False, help="Instead: the resilience patterns of all nodes, and how they stand."
        ),
    ] = False,
    curve: Curve = None,
    json: Json = False,
) -> None:
    """List transactions, the newest first.

    From --store (read only, also while nodes write it), or from all nodes of --registry.  Patterns live in the nodes:
    --patterns asks those.

    Example: bitactor list --store sqlite:///pulses.db --status compensated --limit 5
    """
    if patterns:
        if status is not None or workflow is not None or limit != DEFAULT_LIMIT:
            raise UsageError(
                "--status, --workflow and --limit are about transactions; --patterns lists none", "leave them out"
            )
        await _list_patterns(registry, curve, json)
        return
    require_source(store, registry)
    if store:
        with open_reader(store) as reader:
            rows = reader.list(status=status, workflow=workflow, limit=limit)
    else:
        found = await ask(
            registry, curve, lambda client: client.transactions(status=status, workflow=workflow, limit=limit)
        )
        # Fields of a later version are left out.
        rows = [TransactionRow(**{name: fields[name] for name in TransactionRow._fields}) for fields in found]
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


async def _list_patterns(registry: str, curve: Path | None, json: bool) -> None:
    if not registry:
        raise UsageError(
            "patterns live in running nodes, and --registry was not given", "give it, or set BITACTOR_REGISTRY"
        )
    found = await ask(registry, curve, lambda client: client.patterns())
    if json:
        print_lines(found)
    elif found:
        print_table(
            ("pattern", "name", "node", "state", "counters"),
            (
                (each["pattern"], each["name"], each["node"], str(each.get("state", "")), _counters(each))
                for each in found
            ),
            fold="counters",
        )
    else:
        err().print("no patterns")


def _counters(pattern: Mapping[str, Any]) -> str:
    own = ((name, value) for name, value in pattern.items() if name not in ("pattern", "name", "node", "state"))
    return ", ".join(f"{name} {value if isinstance(value, str) else short(value)}" for name, value in own)
