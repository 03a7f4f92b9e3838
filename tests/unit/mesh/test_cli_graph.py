"""`bitactor graph`: what it draws, and with what happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mesh import Mesh
from mesh.cli.app import main

SHOP = """
from bitactor import Workflow, consumer
order = Workflow("shop.order", input={"amount": int})
@order.step
def price(amount: int) -> int:
    return 10 * amount
@order.step
def charge(price: int) -> int:
    if price > 50:
        raise ValueError(price)
    return price
@consumer("user.created")
def greet(signal): ...
everything = [order, greet]
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["graph", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shop_drawn.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop_drawn", raising=False)
    for name in ("BITACTOR_STORE", "BITACTOR_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    return "shop_drawn"


def ordered(shop: str, amount: int) -> str:
    """The id of a transaction that ran."""
    module = __import__(shop)
    with Mesh(module.order, store="sqlite:///pulses.db") as mesh:
        transaction = mesh.submit("shop.order", {"amount": amount})
        transaction.ended(30)
        return transaction.id


def test_all_that_is_in_a_place_is_drawn(capsys: pytest.CaptureFixture[str], shop: str) -> None:
    code, out, err = run(capsys, f"{shop}:everything")
    assert (code, err) == (0, "") and out.count("flowchart TD") == 2 and "signal user.created" in out


def test_json_describes(capsys: pytest.CaptureFixture[str], shop: str) -> None:
    code, out, _ = run(capsys, f"{shop}:everything", "--json")
    order, greet = map(json.loads, out.splitlines())
    assert code == 0 and order["workflow"] == order["name"] == "shop.order"
    assert order["result"] == {"type": "integer"} and [step["name"] for step in order["steps"]] == ["price", "charge"]
    assert greet["mermaid"].startswith("flowchart TD") and "result" not in greet


def test_a_transaction_colours_it(capsys: pytest.CaptureFixture[str], shop: str) -> None:
    failed = ordered(shop, 6)
    code, out, err = run(capsys, f"{shop}:everything", "--transaction", failed, "--store", "sqlite:///pulses.db")
    assert (code, err) == (0, "") and out.count("flowchart TD") == 1
    assert 's0["price<br/>done"]' in out and 's1["charge<br/>failed"]' in out and "result<br/>compensated" in out
    code, out, _ = run(capsys, f"{shop}:order", "--transaction", failed, "--store", "sqlite:///pulses.db", "--json")
    assert "charge<br/>failed" in json.loads(out)["mermaid"]


def test_what_cannot_be_drawn_is_said_in_a_line(capsys: pytest.CaptureFixture[str], shop: str) -> None:
    transaction = ordered(shop, 1)
    for arguments, code, said in (
        ((f"{shop}:order", "--transaction", "xyz"), 2, "'xyz' is no transaction id"),
        ((f"{shop}:order", "--transaction", transaction), 2, "neither --store nor --registry"),
        (
            (f"{shop}:order", "--transaction", "0" * 32, "--store", "sqlite:///pulses.db"),
            1,
            f"no transaction {'0' * 32}",
        ),
        (
            (f"{shop}:greet", "--transaction", transaction, "--store", "sqlite:///pulses.db"),
            2,
            "is of 'shop.order', and shop_drawn:greet has",
        ),
    ):
        came, out, err = run(capsys, *arguments)
        assert (came, out) == (code, "") and said in err and "Traceback" not in err


def test_a_workflow_that_has_changed_is_drawn_with_a_note(capsys: pytest.CaptureFixture[str], shop: str) -> None:
    transaction = ordered(shop, 1)
    order = __import__(shop).order
    order.template("text", "{charge}")
    code, out, err = run(capsys, f"{shop}:order", "--transaction", transaction, "--store", "sqlite:///pulses.db")
    assert code == 0 and err.startswith("note: 'shop.order' has changed") and "charge<br/>done" in out
