"""BitActor's runtime: where and when things run.  `Mesh` is the face; the rest is for those who look inside."""

from bitactor.launcher import require_own_packages

require_own_packages()  # before anything imports `registry`, which may be a file of the user's

from bitactor.ports import TransactionRow  # noqa: E402
from mesh.hops.middleware import CallEvent  # noqa: E402
from mesh.mesh import BlockingMesh, Mesh  # noqa: E402
from mesh.transaction import BlockingTransaction, Transaction  # noqa: E402

__all__ = ["BlockingMesh", "BlockingTransaction", "CallEvent", "Mesh", "Transaction", "TransactionRow"]
