"""The log of an SQLite journal under writes of every kind: what it keeps, what goes to the archive, what a follower
sees."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from bitactor.ports import Write
from mesh.runtime.settled import at_once
from mesh.stores import SqliteReader, SqliteStore, write
from mesh.stores.journal import frames, takeover
from tests.amounts import examples
from tests.store_writes import Loop, Told, first, fresh, hop, last, pulse


@pytest.fixture(scope="module", autouse=True)
def small_log() -> Iterator[None]:
    """All bounds as small as they can be, so that few writes meet them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "LOG_BYTES", 6_000)
        patch.setattr(write, "PART_BYTES", 1_500)
        patch.setattr(write, "ARCHIVED_A_COMMIT", 1_000)
        patch.setattr(write, "TRUNCATED", range(3, 8))
        yield


class Model:
    """A store with what was acknowledged by it, beside a follower."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, list[Pulse]] = {}
        self.status: dict[str, str] = {}
        self.owners = 0
        self.stores: list[SqliteStore] = []
        self.epochs: dict[str, int] = {}
        self.cursor: str | None = ""
        self.seen: dict[str, list[Pulse]] = {}
        self.open()

    def open(self) -> None:
        """Another owner, which takes over what is open."""
        self.owners += 1
        self.store = SqliteStore(self.path, notify=Loop().notify, lease=3_600)  # nobody renews it meanwhile
        self.stores.append(self.store)
        self.store.open(f"owner-{self.owners}")
        for claim in at_once(self.store.claim()):
            self.epochs[claim.transaction] = claim.epoch
            assert claim.pulses is None or claim.pulses == self.kept[claim.transaction]

    def append(self, *writes: Write) -> None:
        told = Told()
        self.store.append(writes, told.done())
        [(_, refusals, error)] = told.outcomes
        assert not refusals and error is None, (refusals, error)
        for one in writes:
            self.kept.setdefault(one.transaction, []).extend(one.pulses)
            self.status[one.transaction] = one.status

    def write(self, transaction: str, kind: str) -> Write:
        """The next write of a transaction."""
        seq, epoch = len(self.kept.get(transaction, ())), self.epochs.get(transaction, 0)
        if seq == 0:
            return first(transaction)
        if kind == "settle":
            return last(transaction, seq, epoch=epoch)
        if kind == "halt":
            return last(transaction, seq, "halted", epoch=epoch)
        if kind == "large":
            noise = random.Random(seq).randbytes(900).hex()
            return Write(transaction, epoch, (pulse(transaction, seq, error=noise),), "running", True)
        return hop(transaction, seq, epoch=epoch)

    def follow(self, reader: SqliteReader) -> None:
        while True:
            found = reader.follow(self.cursor)
            self.cursor = found.cursor
            for one in found.pulses:
                self.seen.setdefault(one.transaction, []).append(one)
            if not found.more:
                return

    def check(self, reader: SqliteReader) -> None:
        for transaction, pulses in self.kept.items():
            assert reader.pulses(transaction) == pulses
            row = reader.get(transaction)
            assert row is not None and row.status == self.status[transaction]


_KINDS = ("hop", "hop", "hop", "large", "settle", "halt")
_steps = st.lists(
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(_KINDS)), min_size=1, max_size=6)
    | st.sampled_from(["reopen", "crash", "follow", "follow", "reclaim", "read"]),
    max_size=60,
)


@examples(quick=60, long=3_000)
@given(steps=_steps, closely=st.booleans())
def test_whatever_is_acknowledged_is_read_and_followed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], closely: bool
) -> None:
    """Over bounds, restarts and crashes; a follower misses nothing, and one that looks after each write sees nothing
    twice."""
    model = Model(tmp_path_factory.mktemp("log") / "pulses.db")
    names = [fresh() for _ in range(8)]
    with closing(SqliteReader(model.path)) as reader:
        for step in steps:
            if step in ("reopen", "crash"):
                if step == "crash":
                    with closing(sqlite3.connect(model.path)) as connection, connection:
                        connection.execute("UPDATE owners SET expires_ns = 0")
                    model.open()
                else:
                    model.store.close()
                    model.open()
            elif step == "follow":
                model.follow(reader)
            elif step == "reclaim":
                model.epochs.update((claim.transaction, claim.epoch) for claim in at_once(model.store.reclaim(())))
            elif step == "read":
                model.check(reader)
            else:
                writes: dict[int, Write] = {}
                for number, kind in step:
                    if number not in writes:
                        writes[number] = model.write(names[number], kind)
                model.append(*writes.values())
                if closely:
                    model.follow(reader)
        model.check(reader)
        model.follow(reader)
        for transaction, pulses in model.kept.items():
            seen = model.seen[transaction]
            assert list(dict.fromkeys(one.seq for one in seen)) == [one.seq for one in pulses]
            assert not closely or seen == pulses
    with closing(sqlite3.connect(model.path)) as connection:
        [(size,)] = connection.execute("SELECT coalesce(sum(length(body)), 0) FROM log")
        assert size < 40_000
    for store in model.stores:
        store.close()


def test_a_claim_has_the_pulses_that_were_read_of_it_if_they_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "LOG_BYTES", 1_000_000)
    monkeypatch.setattr(takeover, "MOST_COPIES", 3)
    monkeypatch.setattr(frames, "BLOB_BYTES", 100)
    model = Model(tmp_path / "pulses.db")
    long, *others, named = [fresh() for _ in range(6)]
    model.append(*(model.write(name, "hop") for name in (long, *others, named)))
    for _ in range(3):
        model.append(model.write(long, "large"))
    seq = len(model.kept[named])
    token = encode_token("x" * 200)
    model.append(Write(named, 0, (pulse(named, seq, "completed", token_out=token),), "running", True))
    with closing(sqlite3.connect(model.path)) as connection, connection:
        connection.execute("UPDATE owners SET expires_ns = 0")
    heir = SqliteStore(model.path, notify=Loop().notify, lease=3_600)
    with closing(heir):
        heir.open("heir")
        claims = at_once(heir.claim())
        assert [claim.transaction for claim in claims] == [long, *others, named]
        handed = {claim.transaction: claim.pulses for claim in claims if claim.pulses is not None}
        assert handed == {name: model.kept[name] for name in others[:3]}
        assert all(heir.reader().pulses(name) == model.kept[name] for name in model.kept)
    for store in model.stores:
        store.close()
