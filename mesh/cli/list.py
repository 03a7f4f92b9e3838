"""`bitactor list`"""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter
from rich.cells import cell_len
from rich.text import Text

from bitactor.errors import suggest
from bitactor.ports import TransactionRow
from mesh.cli.exits import UsageError
from mesh.cli.options import Curve, Http, Json, Registry, Store, ask
from mesh.cli.output import err, moment, out, print_lines, print_table, printable, short, short_ids, status_text
from mesh.cli.places import open_place
from mesh.cli.waterfall.render import duration

Status = Literal["running", "completed", "compensated", "cancelled", "halted", "stuck"]

DEFAULT_LIMIT: Final = 20
NAMES_FROM: Final = 100
"""Number of the newest transactions whose workflows are named where the one asked for has none."""

_LEAST_NAME: Final = 10
"""Cells that a workflow's name is folded into at least."""


async def list_transactions(
    *,
    store: Store = "",
    registry: Registry = "",
    http: Http = "",
    status: Annotated[Status | None, Parameter(help="Only those that stand so.")] = None,
    workflow: Annotated[str | None, Parameter(help="Only those of this workflow, or consumer.")] = None,
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

    From --store (read only, also while nodes write it), from all nodes of --registry, or from the node at --http.
    Patterns live in the nodes:
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
    if limit < 1:
        raise UsageError(f"--limit {limit} lists nothing", "give 1 or more")
    async with open_place(store, registry, curve, http) as place:
        rows = await place.rows(status=status, workflow=workflow, limit=limit)
        parked = await place.parked(rows)
        others = await place.rows(limit=NAMES_FROM) if workflow and not rows and not json else []
    if json:
        print_lines({**row._asdict(), "took_ns": _took(row), "parked": parked.get(row.transaction)} for row in rows)
    elif rows:
        _show(rows, parked)
    else:
        err().print(f"no transactions{asked_text(status, workflow, {row.workflow for row in others})}")


def asked_text(status: str | None, workflow: str | None, names: Set[str]) -> str:
    """What was asked for and is not there; with the names there are, if that is none of them."""
    asked = "" if status is None else f" that are {status}"
    if workflow is None:
        return asked
    hint = "" if workflow in names else suggest(workflow, names)
    return f"{asked} of workflow {workflow!r}{hint and '.' + hint}"


def _show(rows: list[TransactionRow], parked: Mapping[str, str]) -> None:
    columns = _columns(
        [row._replace(status="parked") if row.transaction in parked else row for row in rows], out().width
    )
    print_table([*columns], zip(*columns.values(), strict=True), fold="workflow", right=("took",))
    for row in rows:
        if row.transaction in parked:
            err().print(f"{row.transaction} cannot go on where it is: {parked[row.transaction]}", soft_wrap=True)


def _columns(rows: list[TransactionRow], width: int) -> dict[str, list[str | Text]]:
    """The columns that `width` has room for: where it is narrow, ids are told by beginnings that tell those listed
    apart, and `began` goes, then `took`, until `workflow` is not folded into slivers."""
    columns: dict[str, list[str | Text]] = {
        "transaction": [row.transaction for row in rows],
        "status": [status_text(row.status) for row in rows],
        "took": [duration(_took(row)) for row in rows],
        "began": [moment(row.created_ns) for row in rows],
        "workflow": [printable(row.workflow) for row in rows],
    }
    for step in ("transaction", "began", "took"):
        widths = [max(cell_len(str(cell)) for cell in (name, *cells)) for name, cells in columns.items()]
        if sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], _LEAST_NAME) <= width:
            break
        if step == "transaction":
            columns[step] = short_ids([row.transaction for row in rows])
        else:
            del columns[step]
    return columns


def _took(row: TransactionRow) -> int:
    """Nanoseconds from its beginning to its end; of one that runs, until now."""
    return max(0, (time.time_ns() if row.status == "running" else row.updated_ns) - row.created_ns)


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
