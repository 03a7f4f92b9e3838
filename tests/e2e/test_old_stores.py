"""Stores that earlier commits wrote: they open, what is in them ends, and what was asked once is not done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitactor import DuplicateTransaction, Workflow
from bitactor.errors import StoreError
from mesh import Mesh, Transaction
from mesh.cli import main
from mesh.stores import open_reader
from tests.e2e.support import BOUND, audit, until
from tests.old_stores import typed
from tests.old_stores.workflows import build

STORES = sorted((Path(__file__).parents[1] / "old_stores").glob("at_*.db"), key=lambda path: path.stem)
TYPED = sorted((Path(__file__).parents[1] / "old_stores").glob("typed_at_*.db"), key=lambda path: path.stem)
DONE = {
    "price": 7, "stock": "stock for card", "doubled": [20, 40, 60, 80], "paid": "card 7", "halved": {"number": 1},
    "packed": "parcel of 7",
}  # fmt: skip
BILLED = {**DONE, "stock": "stock for bill", "paid": "bill 7"}
ENDS = {"undo": "compensated", "nobody": "compensated", "stuck": "compensated"}
"""Place → how its transaction ends; elsewhere it completes."""


@pytest.fixture(params=STORES, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The URL of a copy of an old store, and what was known of it when it was written."""
    shutil.copy(request.param, tmp_path / "old.db")
    return f"sqlite:///{tmp_path}/old.db", json.loads(request.param.with_suffix(".json").read_text())


@pytest.fixture(params=TYPED, ids=lambda path: path.stem)
def old_typed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The URL of a copy of an old store with models in it, and its transactions by their places."""
    shutil.copy(request.param, tmp_path / "typed.db")
    rows = json.loads(request.param.with_suffix(".json").read_text())["transactions"]
    return f"sqlite:///{tmp_path}/typed.db", {row["place"]: row for row in rows}


def test_an_old_store_that_is_only_read_is_to_be_migrated_and_lists_what_is_stuck(
    old: tuple[str, dict[str, Any]],
) -> None:
    """It did not note what else has dead letters."""
    url, _ = old
    with pytest.raises(StoreError, match="bitactor migrate"), open_reader(url):
        pass
    assert main(["migrate", "--store", url]) == 0
    with open_reader(url) as reader:
        found = reader.list(dead=True)
        assert found == reader.list(status="stuck") != []


def test_there_are_old_stores() -> None:
    assert STORES and TYPED


async def test_models_of_an_old_store_go_on_as_such(old_typed: tuple[str, dict[str, dict[str, Any]]]) -> None:
    """They were plain data then; steps and undos get objects of the class they name."""
    url, known = old_typed
    assert set(known) == set(typed.PLACES)
    assert known["done"]["status"] == "completed" and known["halt"]["status"] == "halted"
    typed.UNDONE.clear()
    async with Mesh(*typed.build(holding=False), store=url) as mesh:
        found = {place: await mesh.transaction(row["id"]) for place, row in known.items()}
        await found["halt"].resume()
        for place, transaction in found.items():
            fails = place in ("undo", "failed")
            assert await transaction.ended(BOUND) == ("compensated" if fails else "completed"), place
            if not fails:
                assert await transaction.result() == ["Receipt", 2, "Line"], place
            audit(transaction)
        assert [(known["undo"]["id"], typed.RECEIPT)] == typed.UNDONE
        await found["done"].undo()
        assert await found["done"].ended(BOUND) == "compensated"
        assert typed.UNDONE[1:] == [(known["done"]["id"], typed.RECEIPT)]


async def test_an_old_key_of_a_model_is_still_the_same_request(
    old_typed: tuple[str, dict[str, dict[str, Any]]],
) -> None:
    """Also with fields whose defaults are others each time, if the request gives them."""
    url, known = old_typed
    async with Mesh(*typed.build(holding=False), store=url) as mesh:
        for place, row in known.items():
            again = await mesh.stimulate("typed", row["input"], key=row["key"])
            assert again.id == row["id"], place
            with pytest.raises(DuplicateTransaction):
                await mesh.stimulate("typed", {**row["input"], "number": 2}, key=row["key"])


async def test_everything_in_it_ends(old: tuple[str, dict[str, Any]]) -> None:
    url, known = old
    async with Mesh(*build(holding=False), store=url) as mesh:
        for row in known["transactions"]:
            transaction = await mesh.transaction(row["id"])
            if row["status"] in ("halted", "stuck"):
                assert transaction.status == row["status"]
                await transaction.resume()
            assert await transaction.ended(BOUND) == ENDS.get(row["place"], "completed"), row["place"]
            if transaction.status == "completed":
                assert await transaction.result() == (BILLED if row["place"] == "between" else DONE), row["place"]
            audit(transaction)
        for child in known["children"]:
            assert await (await mesh.transaction(child)).ended(BOUND) == "completed"
        await until(lambda: not mesh.node.about()["running"])
        assert not mesh.node.about()["parked"]
        assert not [row for row in await mesh.transactions(limit=1000) if row.status in ("running", "halted", "stuck")]


async def test_what_ended_in_it_is_as_it_was(old: tuple[str, dict[str, Any]]) -> None:
    url, known = old
    ended = [row for row in known["transactions"] if row["status"] in ("completed", "compensated")]
    assert {row["status"] for row in ended} == {"completed", "compensated"}
    async with Mesh(*build(holding=False), store=url) as mesh:
        for row in ended:
            transaction = await mesh.transaction(row["id"])
            assert (transaction.status, len(transaction.pulses())) == (row["status"], row["pulses"])
            audit(transaction)
        done = await mesh.transaction(next(row["id"] for row in ended if row["place"] == "nowhere"))
        await done.undo()
        assert await done.ended(BOUND) == "compensated"


async def test_an_old_key_is_still_the_same_request(old: tuple[str, dict[str, Any]]) -> None:
    url, known = old
    keyed = [row for row in known["transactions"] if row["key"]]
    async with Mesh(*build(holding=False), store=url) as mesh:
        for row in keyed:
            again: Transaction = await mesh.stimulate(row["workflow"], row["input"], key=row["key"])
            assert again.id == row["id"], row["place"]
            other = {"n": 2} if row["workflow"] == "stubborn" else {**row["input"], "by": "cash"}
            with pytest.raises(DuplicateTransaction):
                await mesh.stimulate(row["workflow"], other, key=row["key"])
    assert len(keyed) > 10


def test_plans_have_the_digests_they_had(old: tuple[str, dict[str, Any]]) -> None:
    digests = {made.name: made.check().digest for made in build(holding=False) if isinstance(made, Workflow)}
    for row in old[1]["transactions"]:
        assert row["digest"] == digests[row["workflow"]]
