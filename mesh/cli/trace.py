"""`bitactor trace ID`"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from cyclopts import Parameter

from bitactor.errors import DamagedJournal, UnknownTransaction
from bitactor.messages.pulse import EMITTED, Pulse
from mesh.cli.exits import FAILED, CommandError
from mesh.cli.options import Curve, Json, Registry, Store
from mesh.cli.output import WATERFALL_WIDTH, out
from mesh.cli.places import id_beginning, open_place, transaction_id, unknown
from mesh.cli.waterfall.render import show, to_json

MAX_TREE: Final = 200
"""The most transactions of one causal tree that are shown."""

Pulses = Callable[[str], Awaitable[list[Pulse]]]


async def trace(
    transaction: str,
    /,
    *,
    store: Store = "",
    registry: Registry = "",
    children: Annotated[bool, Parameter(negative="--no-children", help="Also what its emitted signals began.")] = True,
    all: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Each row; else one stands for many alike in a long one."),
    ] = False,
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Show one transaction as a waterfall: hops, durations, attempts, TTL left, tombstones, undo.

    From --store (read only, also while nodes write it), or asked of the nodes of --registry.

    Of a transaction that is damaged what can be read is shown, and then what is wrong; the exit code is 1.

    Of many batches, rounds, elements or tries only some are shown, and all that went wrong; --all and --json show each.

    Example: bitactor trace 01993a0e7c5b --store sqlite:///pulses.db

    Parameters
    ----------
    transaction
        Its id, as stimulate, list or Jaeger show it, or the beginning of it.
    """
    beginning = id_beginning(transaction)
    async with open_place(store, registry, curve) as place:
        wanted = await transaction_id(place, beginning)
        damaged: list[str] = []

        async def pulses_of(other: str) -> list[Pulse]:
            try:
                return await place.pulses(other)
            except DamagedJournal as error:
                damaged.append(str(error))
                return place.readable(other)
            except UnknownTransaction:
                if other == wanted:
                    raise
                return []  # its node is gone, and took it along

        found = await _tree(wanted, pulses_of, children)
    if not found and not damaged:
        raise unknown(wanted, place.name)
    if found and json:
        print(to_json(found, time.time_ns()))
    elif found:
        show(found, out(WATERFALL_WIDTH), now_ns=time.time_ns(), fold=not all)
    if damaged:
        raise CommandError("; ".join(damaged), FAILED)


async def _tree(wanted: str, pulses_of: Pulses, children: bool) -> list[Pulse]:
    """The transaction's pulses, and those of everything its signals began, breadth first."""
    found: list[Pulse] = []
    due, seen = deque([wanted]), {wanted}
    while due and len(seen) <= MAX_TREE:
        for pulse in await pulses_of(due.popleft()):
            found.append(pulse)
            if children and pulse.kind == EMITTED:
                receivers = [child for child in (pulse.data or {}).get("receivers", ()) if child not in seen]
                seen.update(receivers)
                due.extend(receivers)
    return found
