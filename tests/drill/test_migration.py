"""A large store that the packages of an earlier release wrote, killed on its way into the form of this one again and
again: every pulse is there, what was open ends, old keys hold, and the earlier release refuses the file."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mesh import Mesh
from mesh.stores import SqliteReader
from mesh.stores.rows import PULSE_COLUMNS, pulse_from_row
from tests.old_stores import load
from tests.old_stores.workflows import build

RELEASE = "67fa6fb"
OPEN, ENDED = 200, 10_000
KILLS = 10
SEED = 20_777
WITHIN = 900.0
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the earlier release."""
    directory = tmp_path_factory.mktemp("release")
    archive = directory / "packages.tar"
    made = subprocess.run(
        ["git", "archive", "-o", str(archive), RELEASE, "bitactor", "mesh", "registry"], cwd=ROOT, check=False
    )
    if made.returncode:
        pytest.skip(f"this checkout does not have {RELEASE}: `git fetch --unshallow`")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    return directory


def run(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=packages, env=environment, capture_output=True, text=True, timeout=WITHIN
    )


def pulses_of(store: sqlite3.Connection) -> Iterator[tuple[str, list[object]]]:
    """Each transaction of the old store with its pulses."""
    for transaction, root, workflow in store.execute("SELECT transaction_id, root, workflow FROM transactions"):
        rows = store.execute(
            f"SELECT {PULSE_COLUMNS} FROM pulses WHERE transaction_id = ? ORDER BY seq", (transaction,)
        )
        yield transaction, [pulse_from_row(root, workflow, row) for row in rows]


def migrate_killed(store: Path) -> int:
    """Have it brought over by processes that are killed on the way, and by a last one; how many were."""
    chance = random.Random(SEED)
    kills = 0
    while True:
        with subprocess.Popen([sys.executable, "-m", "bitactor", "migrate", "--store", f"sqlite:///{store}"]) as child:
            try:
                code = child.wait(chance.uniform(0.5, 1.5) if kills < KILLS else WITHIN)
            except subprocess.TimeoutExpired:
                child.kill()
                kills += 1
                continue
        assert code == 0
        return kills


async def test_a_large_store_of_an_earlier_release(packages: Path, tmp_path: Path) -> None:
    old, store = tmp_path / "old.db", tmp_path / "pulses.db"
    given = os.environ.get("OLD_STORE")  # one that was written before
    if given:
        with closing(sqlite3.connect(given)) as source, closing(sqlite3.connect(old)) as copy:
            source.backup(copy)
    else:
        written = run(packages, "-m", "tests.old_stores.load", str(old), str(OPEN), str(ENDED))
        assert written.returncode == 9, written.stderr
    with closing(sqlite3.connect(old)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(old, store)
    began = time.monotonic()
    kills = migrate_killed(store)
    took = time.monotonic() - began
    equal = 0
    with closing(sqlite3.connect(old)) as file, SqliteReader(store) as reader:
        for transaction, pulses in pulses_of(file):
            assert reader.pulses(transaction) == pulses
            equal += len(pulses)
        statuses = Counter(status for (status,) in file.execute("SELECT status FROM transactions"))
        keyed = file.execute(
            "SELECT key, transaction_id FROM transactions WHERE workflow = 'order' AND key <> ''"
        ).fetchall()
        unfinished = file.execute(
            "SELECT transaction_id, status FROM transactions WHERE status NOT LIKE 'comp%'"
        ).fetchall()
    refused = run(packages, "-m", "mesh.cli", "list", "--store", f"sqlite:///{store}")
    assert "has schema version 3, this release knows up to 1; run the release that wrote it" in refused.stderr
    print(
        f"\n{dict(statuses)}, {equal} pulses equal, {kills} kills, {took:.1f} s with them, "
        f"{old.stat().st_size} bytes before, {store.stat().st_size} after"
    )
    async with Mesh(*build(holding=False), store=f"sqlite:///{store}") as mesh:
        for transaction, status in unfinished:
            handle = await mesh.transaction(transaction)
            if status in ("halted", "stuck"):
                await handle.resume()
            assert await handle.ended(WITHIN) in ("completed", "compensated")
        assert not mesh.about()["parked"]
        for key, transaction in keyed:
            what, _, number = key.partition(" ")
            place = load.place_of(int(number)) if what == "open" else load.ends(int(number))
            assert (await mesh.stimulate("order", load.given(place), key=key)).id == transaction
    print(f"{len(unfinished)} ended, {len(keyed)} keys held")
