"""`bitactor undo ID`"""

from __future__ import annotations

from mesh.cli.options import Curve, Json, Reason, Registry, change


async def undo(
    transaction: str,
    /,
    *,
    registry: Registry = "",
    reason: Reason = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Take back what a completed transaction did, the last step first, once.

    Waits until that has ended, and shows how.

    Example: bitactor undo 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    await change(transaction, registry, curve, lambda client, wanted: client.undo(wanted, reason), machine=json)
