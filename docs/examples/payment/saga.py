"""A payment saga: take the money, reserve the goods, confirm; when something fails, give back what was taken, the last
thing first.

The provider and the warehouse keep their books in SQLite, so that what happened can be looked at afterwards.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from pydantic import BaseModel, PositiveInt

from bitactor import Backoff, Context, Continue, Result, Retry, Workflow


class InsufficientFunds(Exception):
    """The card says no, and would again."""


class ProviderDown(Exception):
    """The provider does not answer; a human has to look."""


class OutOfStock(Exception):
    """Not enough in the warehouse."""


class Order(BaseModel):
    """What somebody wants to buy."""

    books: str
    """Path of the books."""
    customer: str
    item: str
    amount: PositiveInt
    email: str


payment = Workflow("shop.payment", input=Order, errors=[InsufficientFunds, ProviderDown, OutOfStock], deadline=60)


@payment.step(retries=2, backoff=Backoff(initial=0.01))
def process_payment(books: str, customer: str, amount: int, ctx: Context) -> dict[str, Any]:
    """Charge the customer, once, however often this is tried."""
    with opened(books) as book:
        status, balance = book.execute("SELECT status, balance FROM accounts WHERE customer = ?", [customer]).fetchone()
        if status == "provider down":
            raise ProviderDown("the payment provider does not answer")
        if balance < amount:
            raise InsufficientFunds(f"{customer} has {balance}, and {amount} is to be paid")
        fresh = book.execute(
            "INSERT OR IGNORE INTO charges VALUES (?, ?, ?)", [ctx.idempotency_key, customer, amount]
        ).rowcount
        if fresh:
            book.execute("UPDATE accounts SET balance = balance - ? WHERE customer = ?", [amount, customer])
    return {"id": ctx.idempotency_key[:8], "status": "completed"}


@process_payment.compensate
def decide(error: Exception, attempt: int) -> Retry | Continue | None:
    """What its failure means: somebody without money stays so; a provider that is down is tried again, and then left to
    a human."""
    if not isinstance(error, ProviderDown):
        return None
    if attempt < 3:
        return Retry(after=0.01, reason=str(error))
    return Continue({"id": "fallback", "status": "manual review"})


@process_payment.undo(in_doubt=True)
def refund(books: str, customer: str, ctx: Context) -> None:
    """Give the money back, if it was taken; also when nobody knows."""
    with opened(books) as book:
        found = book.execute("DELETE FROM charges WHERE key = ? RETURNING amount", [ctx.forward_key]).fetchall()
        for (amount,) in found:
            book.execute("UPDATE accounts SET balance = balance + ? WHERE customer = ?", [amount, customer])


@payment.step(after=[process_payment])
def reserve(books: str, item: str, ctx: Context) -> str:
    """Take the item off the shelf."""
    with opened(books) as book:
        if book.execute("SELECT 1 FROM reservations WHERE key = ?", [ctx.idempotency_key]).fetchone():
            return ctx.idempotency_key
        if not book.execute("UPDATE stock SET count = count - 1 WHERE item = ? AND count > 0", [item]).rowcount:
            raise OutOfStock(f"no {item} left")
        book.execute("INSERT INTO reservations VALUES (?, ?)", [ctx.idempotency_key, item])
    return ctx.idempotency_key


@reserve.undo
def put_back(result: str, books: str, item: str) -> None:
    """Back on the shelf."""
    with opened(books) as book:
        if book.execute("DELETE FROM reservations WHERE key = ?", [result]).rowcount:
            book.execute("UPDATE stock SET count = count + 1 WHERE item = ?", [item])


@payment.step(bind={"paid": Result(process_payment, "status")}, after=[reserve])
def confirm(email: str, paid: str, item: str) -> dict[str, str]:
    """Tell the customer."""
    if email.endswith(".invalid"):
        raise ConnectionError(f"no mail server takes mail for {email}")
    return {"to": email, "text": f"Your {item} is on its way", "payment": paid}


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """The books, in one transaction."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE")) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def set_up(path: str) -> None:
    """Books with some customers and some goods."""
    with closing(sqlite3.connect(path)) as book:
        book.executescript(
            """
            CREATE TABLE accounts (customer TEXT PRIMARY KEY, balance INTEGER, status TEXT);
            CREATE TABLE charges (key TEXT PRIMARY KEY, customer TEXT, amount INTEGER);
            CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER);
            CREATE TABLE reservations (key TEXT PRIMARY KEY, item TEXT);
            INSERT INTO accounts VALUES ('ada', 500, 'ok'), ('bob', 20, 'ok'), ('cleo', 500, 'provider down');
            INSERT INTO stock VALUES ('lamp', 3), ('chair', 0);
            """
        )
