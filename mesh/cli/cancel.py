"""`bitactor cancel ID`"""

from __future__ import annotations

from mesh.cli.options import Curve, Json, Reason, Registry, change


async def cancel(
    transaction: str,
    /,
    *,
    registry: Registry = "",
    reason: Reason = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Stop a running transaction and undo what it did.

    Waits until it has ended, and shows how; one that had ended before stays as it is.

    Example: bitactor cancel 01993a0e7c5b7d14a3f2c1d0e9b8a7f6 --registry ipc:///run/user/1000/bitactor/registry

    Parameters
    ----------
    transaction
        Its id.
    """
    await change(transaction, registry, curve, lambda client, wanted: client.cancel(wanted, reason), machine=json)
