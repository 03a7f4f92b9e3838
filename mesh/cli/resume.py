"""`bitactor resume ID`"""

from __future__ import annotations

from mesh.cli.options import Curve, Json, Registry, change


async def resume(transaction: str, /, *, registry: Registry = "", curve: Curve = None, json: Json = False) -> None:
    """Let a halted or stuck transaction go on.

    Returns at once; its deadline has stood still meanwhile.

    Example: bitactor resume 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    await change(transaction, registry, curve, lambda client, wanted: client.resume(wanted), machine=json)
