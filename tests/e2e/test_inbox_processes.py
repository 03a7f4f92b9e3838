"""Messages from a process that only has the file, while another one owns the transaction: read, counted, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from bitactor.errors import InboxChanged
from bitactor.ports import Write
from mesh.runtime.settled import at_once
from mesh.stores import SqliteStore
from tests import warm
from tests.amounts import LONG, amount
from tests.store_writes import BOUND, Loop, Told, first, fresh, hop, last

SENDER = """
import os, sys, time
from mesh.stores import open_inbox
from tests.store_writes import message

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

with open_inbox(f"sqlite:///{sys.argv[1]}") as inbox:
    for line in sys.stdin:
        transaction, key = line.strip(), 0
        while True:
            key += 1
            sent = inbox.send(message(transaction, key=str(key)))
            if sent.outcome == "full":  # it is faster than who reads
                time.sleep(0.002)
                continue
            if sent.outcome not in ("kept", "known"):
                say(sent.outcome, sent.status)
                break
            say("kept", sent.id)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(path, notify=Loop().notify, lease=3_600)
    found.open("owner")
    yield found
    found.close()


class Sender(NamedTuple):
    """A process that sends to the transactions it is told, until it is refused."""

    process: warm.Child
    stdin: IO[bytes]
    stdout: IO[bytes]

    def begin(self, transaction: str) -> None:
        self.stdin.write(f"{transaction}\n".encode())
        self.stdin.flush()

    def hear(self) -> list[bytes]:
        return self.stdout.readline().split()


@pytest.fixture
def start(path: Path, store: SqliteStore) -> Iterator[Callable[[], Sender]]:
    started: list[Sender] = []

    def start_one() -> Sender:
        process = warm.start(["-c", SENDER, str(path)])
        assert process.stdin is not None and process.stdout is not None
        started.append(Sender(process, process.stdin, process.stdout))
        return started[-1]

    yield start_one
    for process, stdin, stdout in started:
        process.kill()
        process.wait(BOUND)
        stdin.close()
        stdout.close()


def _append(store: SqliteStore, loop: Loop, write: Write) -> Exception | None:
    told = Told()
    store.append([write], told.done())
    loop.run_until(lambda: told.complete)
    [(_, refusals, error)] = told.outcomes
    assert error is None
    return refusals[0].error if refusals else None


def test_a_send_that_races_with_the_end_is_counted_or_refused(path: Path, start: Callable[[], Sender]) -> None:
    """Whoever of the two has the file's lock first is right; also where commits go to the commit thread."""
    sender, loop, changed = start(), Loop(), 0
    owner = SqliteStore(path, notify=loop.notify, lease=3_600)
    owner.open("racer")
    for number in range(amount(quick=6, long=300)):
        one = fresh()
        assert _append(owner, loop, first(one)._replace(receives=True)) is None
        sender.begin(one)
        kept = [sender.hear() for _ in range(3)]
        assert [what for what, _ in kept] == [b"kept"] * 3
        read = [each.id for each in at_once(owner.inbox(one))[: number % 3]]
        assert _append(owner, loop, hop(one, 2)._replace(receives=True, read=read)) is None
        unread = len(at_once(owner.inbox(one)))
        while (error := _append(owner, loop, last(one, 4)._replace(unread=unread))) is not None:
            assert isinstance(error, InboxChanged) and error.unread > unread
            unread = error.unread
            changed += 1
        while (said := sender.hear())[0] == b"kept":
            kept.append(said)
        assert said == [b"closed", b"completed"]
        assert len(kept) == len(read) + unread, "as many as were acknowledged"
        assert at_once(owner.inbox(one)) == []
    assert changed or not LONG
    owner.close()


def test_a_sender_that_is_killed_sends_again_and_is_heard_once(store: SqliteStore, start: Callable[[], Sender]) -> None:
    one = fresh()
    assert _append(store, Loop(), first(one)._replace(receives=True)) is None
    kept: set[int] = set()
    for _ in range(2):
        sender = start()
        sender.begin(one)
        kept.add(int(sender.hear()[1]))
        sender.process.kill()
        kept |= {int(line.split()[1]) for line in sender.stdout if line.endswith(b"\n")}
    found = at_once(store.inbox(one))
    assert kept <= {each.id for each in found} and len(found) <= len(kept) + 2
    assert len({each.key for each in found}) == len(found)
