"""What is in a journal outlasts the release that wrote it, and can be had out of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import StoreError
from mesh import Mesh
from mesh.cli import main
from mesh.stores.lease import identify
from tests.conformance.claims import claim
from tests.old_stores import form
from tests.old_stores.workflows import build

SECTION = "When the world misbehaves"
OLD = Path(form.__file__).with_name("at_67fa6fb.db")
BOUND = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shutil.copy(OLD, tmp_path / "pulses.db")
    return tmp_path / "pulses.db"


@claim(
    SECTION,
    "Of a journal of an earlier release one cannot be read: its rows are kept aside, it is parked, and all others "
    "go on.",
)
async def test_one_of_an_earlier_release_that_cannot_be_read(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        (hurt,) = file.execute("SELECT transaction_id FROM transactions WHERE open AND workflow = 'order'").fetchone()
        file.execute("UPDATE pulses SET body = x'c1' WHERE transaction_id = ? AND seq = 3", (hurt,))
        others = file.execute("SELECT transaction_id FROM transactions WHERE open AND transaction_id <> ?", (hurt,))
        others = [transaction for (transaction,) in others]
    async with Mesh(*build(holding=False), store=f"sqlite:///{path}") as mesh:
        assert list(mesh.about()["parked"]) == [hurt]
        for transaction in others:
            assert await (await mesh.transaction(transaction)).ended(BOUND) in ("completed", "compensated")
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM damaged_pulses WHERE seq = 3").fetchone() == (1,)


@claim(
    SECTION,
    "A journal that a living process of an earlier release uses is left as it is, and the process is named; once it is "
    "brought over, that release refuses it.",
)
async def test_a_living_process_of_an_earlier_release(path: Path) -> None:
    pid, boot_id, started = identify()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(form.REGISTER, ("old", pid, boot_id, started, 1))
        with pytest.raises(StoreError, match=f"process {pid} of that release .* nothing was changed: stop all nodes"):
            async with Mesh(*build(holding=False), store=f"sqlite:///{path}"):
                pass
        assert form.journal_version(file, path) == form.NEWEST
        file.execute("DELETE FROM owners WHERE owner = 'old'")
        async with Mesh(*build(holding=False), store=f"sqlite:///{path}"):
            pass
        with pytest.raises(RuntimeError, match="has schema version 3, this release knows up to 1"):
            form.journal_version(file, path)


@claim("The command line", "`export` copies transactions as lines of JSON, CSV, or tables to be asked by SQL.")
def test_export(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{path}"
    known = form.read(path)
    assert main(["migrate", "--store", url]) == 0
    assert main(["export", "--store", url]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["transaction"]: len(line["pulses"]) for line in lines} == {
        transaction: len(pulses) for transaction, pulses in known.items()
    }
    assert main(["export", "--store", url, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + sum(map(len, known.values()))
    assert main(["export", "--store", url, "--format", "sqlite", "-o", str(tmp_path / "asked.db")]) == 0
    assert form.read(tmp_path / "asked.db") == known
