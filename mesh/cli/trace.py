"""`bitactor trace ID`"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from cyclopts import Parameter

from bitactor.errors import UnknownTransaction
from bitactor.messages.pulse import EMITTED, Pulse
from mesh.cli.exits import FAILED, CommandError
from mesh.cli.options import Curve, Json, Registry, Store, ask, require_source, transaction_id
from mesh.cli.output import WATERFALL_WIDTH, out
from mesh.cli.waterfall.render import show, to_json
from mesh.network.client import Client
from mesh.stores import open_reader

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
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Show one transaction as a waterfall: hops, durations, attempts, TTL left, tombstones, undo.

    From --store (read only, also while nodes write it), or asked of the nodes of --registry.

    Example: bitactor trace 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --store sqlite:///pulses.db

    Parameters
    ----------
    transaction
        Its id, as stimulate, list or Jaeger show it.
    """
    wanted = transaction_id(transaction)
    require_source(store, registry)
    if store:
        with open_reader(store) as reader:

            async def read(wanted: str) -> list[Pulse]:
                return reader.pulses(wanted)

            found = await _tree(wanted, read, children)
    else:
        found = await ask(registry, curve, lambda client: _fetch_tree(client, wanted, children))
    if not found:
        raise CommandError(
            f"no transaction {wanted} in {store or registry}", FAILED, "'bitactor list' shows those that are there"
        )
    if json:
        print(to_json(found))
    else:
        show(found, out(WATERFALL_WIDTH))


async def _fetch_tree(client: Client, wanted: str, children: bool) -> list[Pulse]:
    async def ask_for(transaction: str) -> list[Pulse]:
        try:
            return await client.pulses(transaction)
        except UnknownTransaction:
            if transaction == wanted:
                raise
            return []  # its node is gone, and took it along

    return await _tree(wanted, ask_for, children)


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
