"""`bitactor resume ID`"""

from __future__ import annotations

from rich.text import Text

from mesh.cli.options import Curve, Json, Registry, ask, transaction_id
from mesh.cli.output import out, print_document, status_text


async def resume(transaction: str, /, *, registry: Registry = "", curve: Curve = None, json: Json = False) -> None:
    """Let a halted or stuck transaction go on.

    Returns at once; its deadline has stood still meanwhile.

    Example: bitactor resume 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    wanted = transaction_id(transaction)
    summary = await ask(registry, curve, lambda client: client.resume(wanted))
    if json:
        print_document(summary)
    else:
        out().print(Text.assemble(f"{wanted} ", status_text(summary["status"])))
