"""BitActor: where and when things run.  `Mesh` is the face; the rest is for those who look inside."""

from mesh.mesh import Mesh
from mesh.transaction import BlockingTransaction, Transaction

__all__ = ["BlockingTransaction", "Mesh", "Transaction"]
