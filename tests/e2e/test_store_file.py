"""A real node under load whose journal is deleted, replaced or truncated: in a second it is not ready, and refuses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bitactor import Workflow
from bitactor.errors import StoreError
from mesh import Mesh
from tests.e2e.processes import Process
from tests.e2e.support import until

LOADED = """
import asyncio, sys, time
from bitactor import Workflow
from bitactor.errors import StoreError
from mesh import Mesh

orders = Workflow("orders", input={"n": int})
orders.step(lambda n: n, name="take", spawn="inline")
slow = Workflow("slow")


@slow.step
async def sleep() -> None:
    await asyncio.sleep(3600)


async def main() -> None:
    async with Mesh(orders, slow, store=sys.argv[1], drain=0) as mesh:
        waiting = await mesh.stimulate(slow)
        n = 0
        while mesh.about()["healthy"]:
            n += 1
            try:
                begun = await mesh.stimulate(orders, {"n": n})
                await begun.result()
            except StoreError:
                continue
            if n == 20:
                print("loaded", flush=True)
            last = time.time()
        print("unready", last, flush=True)
        try:
            await waiting.result()
        except StoreError as error:
            print("given-up", error, flush=True)
        try:
            await mesh.stimulate(orders, {"n": 0})
        except StoreError as error:
            print("refused", error, flush=True)

asyncio.run(main())
"""

orders = Workflow("orders", input={"n": int})
orders.step(lambda n: n, name="take", spawn="inline")


def moved(path: Path) -> None:
    path.rename(path.with_name("away.db"))


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "replaced": replaced,
    "truncated": lambda path: os.truncate(path, 0),
    "moved": moved,
}


@pytest.mark.parametrize("name", CHANGES)
async def test_within_a_second(name: str, tmp_path: Path) -> None:
    """What is acknowledged a second after it, and later, is nothing; the next mesh takes a file that is put back."""
    path = tmp_path / "pulses.db"
    node = Process("-c", LOADED, f"sqlite:///{path}")
    try:
        node.expect("loaded")
        CHANGES[name](path)
        happened = path.parent.stat().st_mtime if name != "truncated" else path.stat().st_mtime
        last = float(node.expect("unready")[1])
        assert last - happened < 1.0
        for said in (node.expect("given-up"), node.expect("refused")):
            assert str(path) in said and "in" in said and "use" in " ".join(said)
        if name == "moved":
            path.with_name("away.db").rename(path)
            async with Mesh(orders, store=f"sqlite:///{path}") as mesh:
                assert await (await mesh.stimulate(orders, {"n": 1})).result() == 1
    finally:
        node.close()


async def test_a_second_node_notices_too_and_each_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pulses.db"
    url = f"sqlite:///{path}"
    async with Mesh(orders, store=url, drain=0) as one, Mesh(orders, store=url, drain=0) as two:
        path.unlink()
        await until(lambda: not one.about()["healthy"] and not two.about()["healthy"])
        for mesh in (one, two):
            assert str(path) in mesh.about()["unready"]["store file"]
            with pytest.raises(StoreError, match="was deleted or moved away"):
                await mesh.stimulate(orders, {"n": 1})
    said = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(said) == 2 and all("this node takes no more work" in line for line in said)
    assert not path.exists(), "nobody makes it anew"
