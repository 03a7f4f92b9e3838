"""BitActor's runtime: where and when things run.  `Mesh` is the face; the rest is for those who look inside."""

from typing import TYPE_CHECKING

from bitactor.face import late
from bitactor.launcher import require_own_packages

require_own_packages()  # before anything imports `registry`, which may be a file of the user's

if TYPE_CHECKING:
    from bitactor.export.dead_letters import DeadLetter
    from bitactor.ports import TransactionRow
    from mesh.hops.middleware import CallEvent
    from mesh.mesh import BlockingMesh, Mesh
    from mesh.transaction import BlockingTransaction, Transaction

__all__ = ["BlockingMesh", "BlockingTransaction", "CallEvent", "DeadLetter", "Mesh", "Transaction", "TransactionRow"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = late(
        __name__,
        {
            "mesh": "sinks",
            "bitactor.export.dead_letters": "DeadLetter",
            "bitactor.ports": "TransactionRow",
            "mesh.hops.middleware": "CallEvent",
            "mesh.mesh": "BlockingMesh Mesh",
            "mesh.transaction": "BlockingTransaction Transaction",
        },
    )
