"""A transaction as its caller sees it: on the mesh's loop, and from other threads."""

from mesh.transaction.mirror import BlockingTransaction
from mesh.transaction.transaction import (
    Transaction,
    begin_cancel,
    begin_undo,
    pulses_of,
    standing_of,
    transaction_as_plain,
    why_not_here,
)

__all__ = [
    "BlockingTransaction",
    "Transaction",
    "begin_cancel",
    "begin_undo",
    "pulses_of",
    "standing_of",
    "transaction_as_plain",
    "why_not_here",
]
