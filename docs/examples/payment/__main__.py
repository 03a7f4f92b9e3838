"""python docs/examples/payment"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from saga import payment, set_up

from bitactor import WorkflowFailed
from mesh import Mesh

STORIES = (
    ("all goes well", {"customer": "ada", "item": "lamp", "amount": 80, "email": "ada@example.org"}),
    ("no money: nothing to undo", {"customer": "bob", "item": "lamp", "amount": 80, "email": "bob@example.org"}),
    (
        "out of stock: the payment is undone",
        {"customer": "ada", "item": "chair", "amount": 40, "email": "ada@example.org"},
    ),
    (
        "the mail bounces: both are undone",
        {"customer": "ada", "item": "lamp", "amount": 80, "email": "ada@nowhere.invalid"},
    ),
    (
        "the provider is down: continue, for a human",
        {"customer": "cleo", "item": "lamp", "amount": 80, "email": "cleo@example.org"},
    ),
)


async def main() -> int:
    """Each story, and what is in the books in the end."""
    with tempfile.TemporaryDirectory() as directory:
        books = str(Path(directory) / "books.db")
        set_up(books)
        async with Mesh(payment, store=f"sqlite:///{directory}/pulses.db") as mesh:
            for title, order in STORIES:
                transaction = await mesh.stimulate(payment, {"books": books, **order})
                try:
                    said = str(await transaction.result(timeout=30))
                except WorkflowFailed as error:
                    said = f"{type(error.errors[0]).__name__}: {error.errors[0]}"
                undone = [pulse.step for pulse in transaction.pulses() if pulse.kind == "undone"]
                print(f"{title}\n  {transaction.status}: {said}\n  undone: {', '.join(undone) or 'nothing'}")
            with closing(sqlite3.connect(books)) as book:
                print("accounts", book.execute("SELECT customer, balance FROM accounts").fetchall())
                print("stock", book.execute("SELECT item, count FROM stock").fetchall())
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
