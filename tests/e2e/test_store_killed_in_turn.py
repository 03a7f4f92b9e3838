"""Two processes that write one file and take over from each other, killed in turn: what was acknowledged is there,
pulse by pulse, once, and who follows all the time has seen it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bitactor.messages.codec import encode_token
from bitactor.messages.pulse import Pulse
from bitactor.ports import Write
from mesh.stores import SqliteReader, SqliteStore
from mesh.stores.journal.verify import Fault
from tests.amounts import amount
from tests.e2e.processes import PATIENCE, Process
from tests.store_writes import Loop, pulse

KILLS = amount(quick=6, long=200)
SEED = 12_012
"""Of how much each process has acknowledged when it is killed."""

CHILD = """
import asyncio, os, random, sys
from mesh.stores import SqliteStore, write
from tests.e2e.test_store_killed_in_turn import next_write
from tests.store_writes import Loop

path, owner, durability, acknowledged = sys.argv[1:]
chance = random.Random(owner)
write.LOG_BYTES, write.PART_BYTES, write.ARCHIVED_A_COMMIT, write.TRUNCATED = 20_000, 4_000, 4_000, range(4, 16)
file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
loop = Loop()
store = SqliteStore(path, notify=loop.notify, durability=durability, lease=3_600)
store.open(owner)
os.write(1, b"open\\n")
stand, count, commits = {}, 0, 0  # transaction -> next seq, epoch
in_flight = 0

def append(writes):
    global in_flight
    in_flight += 1
    def done(refusals, error):
        global in_flight
        in_flight -= 1
        assert not refusals and error is None, (refusals, error)
        lines = [f"{one.transaction} {one.pulses[0].seq} {len(one.pulses)} {owner} {number} {one.status}\\n"
                 for one, number in writes]
        os.write(file, "".join(lines).encode())
    store.append([one for one, _ in writes], done)

while True:
    if commits % 25 == 0:
        for claim in asyncio.run(store.claim()):  # it waits while the other one commits
            stand[claim.transaction] = len(store.reader().pulses(claim.transaction)), claim.epoch
    commits += 1
    writes = []
    for transaction in [*chance.sample([*stand], min(len(stand), 6)), *[""] * (len(stand) < 25)]:
        transaction = transaction or f"{os.getpid():08x}{owner.encode().hex():0>16.16}{count:08x}"
        count += 1
        seq, epoch = stand.get(transaction, (0, 0))
        one = next_write(transaction, seq, epoch, owner, count)
        writes.append((one, count))
        stand[transaction] = seq + len(one.pulses), epoch
        if not one.open:
            del stand[transaction]
    for some in ([writes[0]], writes[1:2], writes[2:]):  # of one, and of several
        if some:
            append(some)
    while in_flight > 8 or not loop.calls.empty():
        loop.run_one()
"""


def next_write(transaction: str, seq: int, epoch: int, owner: str, number: int) -> Write:
    """The write number `number` of an owner, which says in each of its pulses by whom it is."""
    chance = random.Random(f"{owner} {number}")
    data = {"by": owner, "number": number}
    if seq == 0:
        begun = pulse(transaction, 0, "accepted", data=data | {"ttl": 8})
        return Write(transaction, epoch, (begun, pulse(transaction, 1, data=data)), "running", True)
    fields: dict[str, object] = {}
    if chance.random() < 0.01:
        fields["token_out"] = encode_token(["long", chance.randrange(3), "x" * 66_000])
    elif chance.random() < 0.05:
        fields["error"] = chance.randbytes(1_500).hex()
    step = f"step {chance.randrange(60)}"
    ends = chance.random() < 0.06
    pulses = [pulse(transaction, seq, "completed", step=step, elapsed_ns=number, data=data, **fields)]
    if ends:
        pulses.append(pulse(transaction, seq + 1, "finished", data=data))
    elif chance.random() < 0.5:
        pulses.append(pulse(transaction, seq + 1, step=step, data=data))
    return Write(transaction, epoch, tuple(pulses), "completed" if ends else "running", not ends)


class Follower:
    """Who follows the journal all the time."""

    def __init__(self, path: Path) -> None:
        self.reader = SqliteReader(path)
        self.cursor = ""
        self.seen: dict[str, dict[int, Pulse]] = {}
        self.again = 0

    def look(self) -> None:
        """See what is new; first sights come in order, a second sight is of the same."""
        more = True
        while more:
            pulses, self.cursor, more = self.reader.follow(self.cursor)
            for one in pulses:
                seen = self.seen.setdefault(one.transaction, {})
                if one.seq in seen:
                    self.again += 1
                    assert seen[one.seq] == one
                else:
                    assert one.seq == len(seen), f"{one.transaction}: pulse {one.seq} after {len(seen)}"
                    seen[one.seq] = one


class Pair:
    """The two processes, whichever they are at the moment."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pulses.db"
        self.acknowledged = directory / "acknowledged"
        self.begun = 0
        self.running: list[Process] = []

    def begin(self) -> None:
        """One more process."""
        self.begun += 1
        durability = "power" if self.begun % 3 == 0 else "process"
        words = (str(self.path), f"owner-{self.begun}", durability, str(self.acknowledged))
        self.running.append(Process("-c", CHILD, *words))
        self.running[-1].expect("open")

    def size(self) -> int:
        return self.acknowledged.stat().st_size if self.acknowledged.exists() else 0

    def kill_oldest(self) -> None:
        oldest = self.running.pop(0)
        assert oldest.child.poll() is None, "it ended by itself"
        oldest.kill()
        oldest.close()

    def writes(self) -> Iterator[Write]:
        """What was acknowledged."""
        for line in self.acknowledged.read_text().splitlines():
            transaction, seq, count, owner, number, status = line.split()
            one = next_write(transaction, int(seq), 0, owner, int(number))
            assert (len(one.pulses), one.status) == (int(count), status)
            yield one


def test_two_processes_killed_in_turn_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    pair, chance = Pair(tmp_path), random.Random(SEED)
    try:
        pair.begin()
        pair.begin()
        follower = Follower(pair.path)
        for _ in range(KILLS):
            enough = pair.size() + chance.randrange(500, amount(quick=3_000, long=40_000))
            deadline = time.monotonic() + PATIENCE
            while pair.size() < enough:
                follower.look()
                time.sleep(0.002)  # leaves the processor to those who write
                assert time.monotonic() < deadline and all(one.child.poll() is None for one in pair.running)
            pair.kill_oldest()
            pair.begin()
        for _ in range(2):
            pair.kill_oldest()
        _compare(pair, follower)
    finally:
        for process in pair.running:
            process.kill()
            process.close()


def _compare(pair: Pair, follower: Follower) -> None:
    """Every acknowledged write with what a last owner finds."""
    with closing(SqliteStore(pair.path, notify=Loop().notify)) as heir:
        heir.open("heir")
        asyncio.run(heir.claim())
        follower.look()
        rows = {row.transaction: row for row in follower.reader.list(limit=1_000_000)}
        kept = {transaction: follower.reader.pulses(transaction) for transaction in rows}
        acknowledged: dict[str, int] = {}
        writes = compared = 0
        for one in pair.writes():
            first = one.pulses[0].seq
            assert kept[one.transaction][first : first + len(one.pulses)] == list(one.pulses)
            assert first >= acknowledged.get(one.transaction, 0), "it was acknowledged twice"
            acknowledged[one.transaction] = first + len(one.pulses)
            writes, compared = writes + 1, compared + len(one.pulses)
            if not one.open:
                assert (rows[one.transaction].status, rows[one.transaction].open) == (one.status, False)
        for transaction, pulses in kept.items():
            assert [one.seq for one in pulses] == list(range(len(pulses)))
            by = [(one.data["by"], one.data["number"]) for one in pulses if one.data]
            runs = [one for before, one in zip([None, *by], by, strict=False) if one != before]
            assert len(runs) == len(set(runs)) and len(by) == len(pulses), "no write is there twice"
            assert list(follower.seen[transaction].values()) == pulses
        faults = [found for found in follower.reader.verify() if isinstance(found, Fault)]
        assert not faults
    follower.reader.close()
    print(
        f"\n{KILLS + 2} kills, {writes} acknowledged writes and {compared} pulses of {len(kept)} transactions compared,"
        f" {follower.again} pulses followed twice"
    )
