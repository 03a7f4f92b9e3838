"""The payment saga of the docs, tested as its readers would test theirs."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitactor.testing import Crash, Hang, run_workflow

SAGA = Path(__file__).parents[2] / "docs" / "examples" / "payment" / "saga.py"
ORDER = {"customer": "ada", "item": "lamp", "amount": 80, "email": "ada@example.org"}


@pytest.fixture(scope="module")
def saga() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("payment_saga", SAGA)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["payment_saga"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["payment_saga"]


@pytest.fixture
def books(saga: ModuleType, tmp_path: Path) -> str:
    path = str(tmp_path / "books.db")
    saga.set_up(path)
    return path


def standing(books: str) -> dict[str, Any]:
    with closing(sqlite3.connect(books)) as book:
        accounts = dict(book.execute("SELECT customer, balance FROM accounts"))
        return {**accounts, **dict(book.execute("SELECT item, count FROM stock"))}


def test_a_payment_goes_through(saga: ModuleType, books: str) -> None:
    trace = run_workflow(saga.payment, {"books": books, **ORDER})
    assert trace.status == "completed"
    assert trace.result["payment"] == "completed"
    assert standing(books) == {"ada": 420, "bob": 20, "cleo": 500, "lamp": 2, "chair": 0}


def test_without_money_nothing_has_to_be_undone(saga: ModuleType, books: str) -> None:
    trace = run_workflow(saga.payment, {"books": books, **ORDER, "customer": "bob"})
    assert (trace.status, trace.undone) == ("compensated", [])
    assert "retried process_payment" not in trace.kinds


def test_a_provider_that_is_down_is_tried_again_and_then_left_to_a_human(saga: ModuleType, books: str) -> None:
    trace = run_workflow(saga.payment, {"books": books, **ORDER, "customer": "cleo"})
    assert trace.result["payment"] == "manual review"
    assert trace.kinds.count("retried process_payment") == 2


@pytest.mark.parametrize(
    ("changed", "undone"),
    [({"item": "chair"}, ["process_payment"]), ({"email": "ada@nowhere.invalid"}, ["reserve", "process_payment"])],
)
def test_a_later_failure_leaves_the_books_as_they_were(
    saga: ModuleType, books: str, changed: dict[str, str], undone: list[str]
) -> None:
    before = standing(books)
    trace = run_workflow(saga.payment, {"books": books, **ORDER, **changed})
    assert (trace.status, trace.undone) == ("compensated", undone)
    assert standing(books) == before


def test_a_crash_while_paying_pays_once(saga: ModuleType, books: str) -> None:
    trace = run_workflow(saga.payment, {"books": books, **ORDER}, faults={"process_payment": Crash()})
    assert trace.status == "completed"
    assert standing(books)["ada"] == 420


def test_a_payment_nobody_knows_about_is_looked_for_and_refunded(saga: ModuleType, books: str) -> None:
    trace = run_workflow(saga.payment, {"books": books, **ORDER}, faults={"process_payment": Hang()}, deadline=5)
    assert (trace.status, trace.undone) == ("compensated", ["process_payment"])
    assert standing(books)["ada"] == 500
