"""Server and clients joined by a fake link under a fake clock: leases, restarts, lost frames, frozen processes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from registry import AlreadyRegistered, Entry, HolderInUse, Loss, Notice, RegistryFull, Table, wire
from registry.protocol.client import ClientProtocol
from registry.protocol.server import MAX_UNREAD_BYTES, ServerProtocol
from tests.amounts import examples

MS = 1_000_000
LEASE_MS = 1_500
STEP_MS = 20


class Peer:
    """One client on the fake link."""

    def __init__(self, world: World, holder: str) -> None:
        self.world = world
        self.holder = holder
        self.connection = 0
        self.cut = self.frozen = False
        self.inbox: deque[bytes] = deque()
        self.number = len(world.peers)
        self.protocol = ClientProtocol(holder, f"instance-{self.number}".encode(), world.now)
        self.notices: list[Notice] = []
        self.losses: list[Loss] = []

    @property
    def routing(self) -> bytes:
        return f"{self.number}/{self.connection}".encode()

    def register(self, name: str, *, unique: bool = False, value: dict[str, int] | None = None) -> Future[Entry]:
        waiting: Future[Entry] = Future()
        self.protocol.names.register(name, value or {}, unique, waiting)
        return waiting

    def current(self, name: str) -> Entry | None:
        """Our grant of `name`, if it holds this moment."""
        entry = self.protocol.names.entries().get(name)
        return entry if entry is not None and self.protocol.is_current(entry, self.world.now) else None

    def turn(self) -> None:
        if self.frozen:
            return
        now = self.world.now
        while self.inbox:
            self.protocol.receive(self.inbox.popleft(), now)
        self.protocol.tick(now)
        self.protocol.flush(now)
        if self.cut or self.world.protocol is None:
            self.protocol.blocked = bool(self.protocol.outgoing)
        else:
            self.world.inbox.extend((self.routing, frame) for frame in self.protocol.outgoing)
            self.protocol.outgoing.clear()
            self.protocol.blocked = False
        self.notices += self.protocol.notices
        self.losses += self.protocol.losses
        self.protocol.notices, self.protocol.losses = [], []


class World:
    """Frames take one step each way."""

    def __init__(self) -> None:
        self.now = 1_000_000 * MS
        self.boot = 0
        self.protocol: ServerProtocol | None = None
        self.server_frozen = False
        self.inbox: deque[tuple[bytes, bytes]] = deque()
        self.peers: list[Peer] = []

    def serve(self, **limits: int) -> None:
        self.boot += 1
        self.protocol = ServerProtocol(
            Table(boot=self.boot, lease_ns=LEASE_MS * MS),
            incarnation=f"incarnation-{self.boot}".encode(),
            heartbeat_ns=300 * MS,
            settle_until_ns=self.now + LEASE_MS * MS if self.boot > 1 else self.now,
            now_ns=self.now,
            max_clients=limits.get("max_clients", 100),
        )

    def kill_server(self) -> None:
        self.protocol = None
        self.inbox.clear()
        for peer in self.peers:
            peer.connection += 1
            peer.inbox.clear()

    def join(self, holder: str) -> Peer:
        peer = Peer(self, holder)
        self.peers.append(peer)
        return peer

    def cut(self, peer: Peer) -> None:
        peer.cut = True
        peer.connection += 1
        peer.inbox.clear()

    def step(self) -> None:
        self.now += STEP_MS * MS
        arrived, self.inbox = (self.inbox, deque()) if not self.server_frozen else (deque(), self.inbox)
        if self.protocol is not None and not self.server_frozen:
            for routing, frame in arrived:
                self.protocol.receive(routing, frame, self.now)
            self.protocol.tick(self.now)
            by_routing = {peer.routing: peer for peer in self.peers if not peer.cut}
            sent = self.protocol.take_outgoing()
        else:
            by_routing, sent = {}, deque()
        for peer in self.peers:
            peer.turn()
        for routing, frame in sent:
            if routing in by_routing:
                by_routing[routing].inbox.append(frame)
            elif self.protocol is not None:
                self.protocol.undeliverable(routing)

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds // STEP_MS):
            self.step()

    def told(self, notices: list[Notice]) -> list[tuple[str, str, str]]:
        return [(notice.kind, notice.entry.name, notice.entry.holder) for notice in notices]


@pytest.fixture
def world() -> World:
    world = World()
    world.serve()
    return world


def two(world: World) -> tuple[Peer, Peer]:
    a, b = world.join("a"), world.join("b")
    world.run(200)
    assert a.protocol.synced.done() and b.protocol.synced.done()
    return a, b


def test_what_one_registers_the_other_sees(world: World) -> None:
    a, b = two(world)
    granted = a.register("x", unique=True, value={"n": 1})
    world.run(100)
    entry = granted.result(0)
    assert a.protocol.cache.lookup("x") == b.protocol.cache.lookup("x") == (entry,)
    changed: Future[Entry] = Future()
    a.protocol.names.update("x", {"n": 2}, changed)
    world.run(100)
    assert changed.result(0).epoch == entry.epoch
    gone: Future[None] = Future()
    a.protocol.names.unregister("x", gone)
    world.run(100)
    assert gone.done() and b.protocol.cache.count() == 0
    assert world.told(b.notices) == [("appeared", "x", "a"), ("changed", "x", "a"), ("disappeared", "x", "a")]
    assert [notice.revision for notice in b.notices] == [1, 2, 3]


def test_names_of_the_dead_are_gone_within_two_seconds(world: World) -> None:
    a, b = two(world)
    a.register("x", unique=True)
    a.register("y")
    world.run(500)
    a.frozen = True
    world.run(2_000)
    assert world.told(b.notices)[2:] == [("disappeared", "x", "a"), ("disappeared", "y", "a")]


def test_a_lease_ends_here_before_it_ends_there(world: World) -> None:
    a, b = two(world)
    first = a.register("x", unique=True)
    world.run(400)
    world.cut(a)
    while a.current("x") is not None:
        assert b.protocol.cache.lookup("x"), "the server must not end a lease that its holder still counts on"
        world.step()
    world.step()
    assert a.losses == [Loss(first.result(0), None)]
    world.run(1_000)
    assert not b.protocol.cache.lookup("x")
    a.cut = False
    world.run(500)
    again = a.current("x")
    assert again is not None and again.epoch > first.result(0).epoch
    assert not a.protocol.is_current(first.result(0), world.now)


def test_a_name_taken_meanwhile_is_reported(world: World) -> None:
    a, b = two(world)
    first = a.register("x", unique=True)
    a.register("dup")
    world.run(100)
    world.cut(a)
    world.run(2_000)
    taken = b.register("x", unique=True)
    world.run(100)
    a.cut = False
    world.run(500)
    assert a.losses == [Loss(first.result(0), None), Loss(first.result(0), taken.result(0))]
    assert [entry.holder for entry in b.protocol.cache.lookup("dup")] == ["a"]
    refused = a.register("x", unique=True)
    world.run(100)
    with pytest.raises(AlreadyRegistered) as error:
        refused.result(0)
    assert error.value.entry == taken.result(0)


def test_a_frozen_process_comes_back_under_a_new_epoch(world: World) -> None:
    a, _ = two(world)
    first = a.register("x", unique=True).result
    world.run(100)
    a.frozen = True
    world.run(3_000)
    assert not a.protocol.is_current(first(0), world.now)
    a.frozen = False
    world.run(500)
    again = a.current("x")
    assert again is not None and again.epoch > first(0).epoch
    assert a.losses == [Loss(first(0), None)]


def test_a_frozen_server_ends_no_lease_when_it_thaws(world: World) -> None:
    a, b = two(world)
    a.register("dup")
    world.run(300)
    world.server_frozen = True
    world.run(5_000)
    world.server_frozen = False
    assert world.protocol is not None
    world.protocol.tick(world.now)  # before it has read what came meanwhile
    world.run(3_000)
    assert world.told(b.notices) == [("appeared", "dup", "a")]


def test_a_quick_restart_is_seen_by_nobody(world: World) -> None:
    a, b = two(world)
    first = a.register("x", unique=True)
    a.register("dup")
    world.run(300)
    seen = len(b.notices)
    world.kill_server()
    world.run(400)
    assert b.protocol.cache.count() == 2
    world.serve()
    for _ in range(4_000 // STEP_MS):
        world.step()
        assert a.current("x") == first.result(0)
        assert len(b.protocol.cache.lookup("x")) == 1
    assert b.notices[seen:] == [] and a.losses == []
    later = a.register("y", unique=True)
    world.run(100)
    assert later.result(0).epoch > first.result(0).epoch


def test_a_grant_is_not_prolonged_by_a_restarted_server_before_it_is_confirmed(world: World) -> None:
    a, b = two(world)
    first = a.register("x", unique=True)
    world.run(300)
    world.kill_server()
    world.serve()
    # It was just welcomed, and the claim that goes out with that welcome is lost.
    while a.protocol.incarnation != b"incarnation-2":
        world.step()
    world.inbox.clear()
    world.cut(a)
    taken = b.register("x", unique=True)
    while not taken.done():
        world.step()
        assert a.current("x") is None or b.current("x") is None
    world.step()
    assert a.losses == [Loss(first.result(0), None)]


def test_a_grant_that_was_reported_lost_does_not_come_back(world: World) -> None:
    a, _ = two(world)
    first = a.register("x", unique=True)
    world.run(300)
    world.kill_server()
    world.serve()
    while a.protocol.incarnation != b"incarnation-2":
        world.step()
    world.server_frozen = True
    while not a.losses:
        world.step()
    world.server_frozen = False
    world.run(1_000)
    again = a.current("x")
    assert again is not None and again.epoch > first.result(0).epoch
    assert a.losses == [Loss(first.result(0), None)]


def test_a_long_outage_costs_the_grants_but_nothing_disappears(world: World) -> None:
    a, b = two(world)
    first = a.register("x", unique=True)
    a.register("dup")
    world.run(300)
    seen = len(b.notices)
    world.kill_server()
    world.run(5_000)
    assert a.current("x") is None and a.losses == [Loss(first.result(0), None)]
    assert not b.protocol.connected and b.protocol.cache.count() == 2
    world.serve()
    world.run(5_000)
    again = a.current("x")
    assert again is not None and again.epoch > first.result(0).epoch
    assert b.protocol.connected
    assert world.told(b.notices[seen:]) == [("changed", "x", "a")]
    assert len(a.losses) == 1


def test_who_died_with_the_server_is_gone_after_the_grace(world: World) -> None:
    a, b = two(world)
    a.register("x", unique=True)
    world.run(300)
    world.kill_server()
    a.frozen = True
    world.run(300)
    world.serve()
    world.run(LEASE_MS)
    assert b.protocol.cache.lookup("x")
    world.run(2_000)
    assert not b.protocol.cache.lookup("x")
    assert world.told(b.notices)[-1] == ("disappeared", "x", "a")


def test_after_a_restart_others_wait_for_a_lease_time(world: World) -> None:
    a, b = two(world)
    a.register("x", unique=True)
    world.run(300)
    world.kill_server()
    a.frozen = True
    waiting = b.register("x", unique=True)
    world.run(200)
    world.serve()
    world.run(LEASE_MS - 100)
    assert not waiting.done()
    world.run(500)
    entry = waiting.result(0)
    assert b.current("x") == entry
    assert b.protocol.cache.lookup("x") == (entry,)
    assert world.told(b.notices)[-2:] == [("disappeared", "x", "a"), ("appeared", "x", "b")]


def test_a_client_that_missed_notices_syncs_again(world: World) -> None:
    a, b = two(world)
    assert world.protocol is not None
    world.protocol.undeliverable(b.routing)
    a.register("x", unique=True)
    a.register("y")
    world.run(60)
    assert not b.protocol.cache.lookup("x")
    world.run(600)
    assert b.protocol.cache.lookup("x") and b.protocol.cache.lookup("y")
    a.register("z")
    world.run(100)
    assert b.protocol.cache.lookup("z")
    assert world.protocol.statistics().dropped == 1


def test_a_client_that_does_not_read_is_not_written_to_for_ever(world: World) -> None:
    a, b = two(world)
    assert world.protocol is not None
    b.frozen = True
    a.register("x", value={"data": 0})
    world.run(100)
    big = {"data": "x" * 60_000}
    for number in range(MAX_UNREAD_BYTES // 60_000 + 20):
        done: Future[Entry] = Future()
        a.protocol.names.update("x", {**big, "n": number}, done)
        world.run(80)
        if world.protocol.statistics().dropped or not done.done():
            break
        # Its lease would end before it has been sent too much.
        world.protocol.table.renew("b", world.now)
    assert world.protocol.statistics().dropped == 1
    assert sum(map(len, b.inbox)) <= MAX_UNREAD_BYTES
    b.frozen = False
    world.run(2_000)
    assert b.protocol.cache.lookup("x") == a.protocol.cache.lookup("x")


def test_a_lost_answer_is_asked_for_again(world: World) -> None:
    a, b = two(world)
    waiting = a.register("x", unique=True)
    world.step()
    world.step()
    a.inbox.clear()
    world.run(4_000)
    assert waiting.done() and a.current("x") == waiting.result(0)
    assert len(b.protocol.cache.lookup("x")) == 1


def test_many_names_are_repopulated(world: World) -> None:
    a, b = two(world)
    waiting = [a.register(f"n{number}", unique=number % 2 == 0) for number in range(1_000)]
    world.run(1_000)
    assert all(future.done() for future in waiting)
    seen = len(b.notices)
    world.kill_server()
    world.serve()
    world.run(4_000)
    assert world.protocol is not None and world.protocol.table.count() == 1_000
    assert b.notices[seen:] == [] and a.losses == []
    c = world.join("c")
    world.run(500)
    assert c.protocol.cache.count() == 1_000


def test_withdrawing_frees_the_name_even_after_the_grant(world: World) -> None:
    a, b = two(world)
    waiting = a.register("x", unique=True)
    world.run(100)
    assert waiting.done()
    a.protocol.names.withdraw("x", waiting)
    again = a.register("x", unique=True)
    world.run(200)
    assert a.current("x") == again.result(0)
    assert again.result(0).epoch > waiting.result(0).epoch
    a.protocol.names.withdraw("x", again)
    world.run(100)
    assert not b.protocol.cache.lookup("x")


def test_a_verdict_on_a_withdrawn_wish_is_not_taken_for_the_next_one(world: World) -> None:
    a, b = two(world)
    first = a.register("x", unique=True)
    world.step()
    a.protocol.names.withdraw("x", first)
    second = a.register("x", unique=True)
    world.run(500)
    assert not second.cancelled() and a.current("x") == second.result(0)
    assert b.protocol.cache.lookup("x") == (second.result(0),)
    assert a.losses == []


def test_a_holder_id_is_for_one_process(world: World) -> None:
    a, _ = two(world)
    other = world.join("a")
    world.run(300)
    assert isinstance(other.protocol.refusal, HolderInUse) and not other.protocol.synced.done()
    left: Future[None] = Future()
    a.protocol.leave(left)
    world.run(300)
    assert left.done() and other.protocol.synced.done() and other.protocol.refusal is None


def test_more_clients_than_allowed_are_refused() -> None:
    world = World()
    world.serve(max_clients=1)
    world.join("a")
    world.run(200)
    b = world.join("b")
    world.run(200)
    assert isinstance(b.protocol.refusal, RegistryFull)


def test_strangers_and_nonsense_are_counted_and_change_nothing(world: World) -> None:
    assert world.protocol is not None
    protocol = world.protocol
    for frame in (b"", b"\xff" * 40, wire.encode(wire.Unknown()), wire.encode(wire.Part(1, 0, False, 1, ()))):
        protocol.receive(b"stranger", frame, world.now)
    assert protocol.statistics().malformed == 4
    for message in (
        wire.Heartbeat(1, 1),
        wire.Leave(1),
        wire.Sync(1, 0),
        wire.Unregister(1, ("x",)),
        wire.Register(1, ()),
    ):
        protocol.receive(b"stranger", wire.encode(message), world.now)
    assert protocol.statistics().strangers == 5
    assert [wire.decode(frame) for _, frame in protocol.take_outgoing()] == [wire.Unknown()] * 5
    a, b = two(world)
    protocol.receive(a.routing, wire.encode(wire.Register(1, (b"\x01",))), world.now)
    protocol.receive(a.routing, wire.encode(wire.Hello(9, "other", b"12345678")), world.now)
    protocol.receive(a.routing, wire.encode(wire.Sync(9, 1 << 40)), world.now)
    a.register("x" * 255)
    world.run(200)
    assert b.protocol.cache.count() == 1
    assert (
        protocol.statistics().malformed == 5
        and protocol.statistics().refused == 1
        and protocol.statistics().failed == 0
    )


class Turmoil(RuleBasedStateMachine):
    """Cuts, freezes and restarts in any order: a unique name never has two who both believe to hold it; in the end all
    agree."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.serve()
        self.peers = [self.world.join(holder) for holder in "abc"]
        self.highest: dict[str, int] = {}
        self.run_checked(200)

    def run_checked(self, milliseconds: int) -> None:
        for _ in range(milliseconds // STEP_MS):
            self.world.step()
            self.check()

    @rule(who=st.integers(0, 2), name=st.sampled_from(["x", "y"]))
    def want_unique(self, who: int, name: str) -> None:
        if not self.peers[who].frozen:
            self.peers[who].register(name, unique=True)

    @rule(who=st.integers(0, 2))
    def want_duplicate(self, who: int) -> None:
        if not self.peers[who].frozen:
            self.peers[who].register("dup")

    @rule(who=st.integers(0, 2), name=st.sampled_from(["x", "y", "dup"]))
    def unregister(self, who: int, name: str) -> None:
        if not self.peers[who].frozen:
            self.peers[who].protocol.names.unregister(name, Future())

    @rule(who=st.integers(0, 2))
    def cut_or_join(self, who: int) -> None:
        peer = self.peers[who]
        if peer.cut:
            peer.cut = False
        else:
            self.world.cut(peer)

    @rule(who=st.integers(0, 2))
    def freeze_or_thaw(self, who: int) -> None:
        self.peers[who].frozen = not self.peers[who].frozen

    @rule()
    def freeze_or_thaw_server(self) -> None:
        self.world.server_frozen = not self.world.server_frozen

    @rule(outage=st.sampled_from([0, 200, 1_000, 3_000]))
    def restart(self, outage: int) -> None:
        self.world.kill_server()
        self.run_checked(outage)
        self.world.serve()

    @rule(milliseconds=st.sampled_from([20, 100, 400, 1_000, 2_000]))
    def wait(self, milliseconds: int) -> None:
        self.run_checked(milliseconds)

    @invariant()
    def check(self) -> None:
        for name in ("x", "y"):
            current = [entry for peer in self.peers if (entry := peer.current(name)) is not None]
            assert len(current) <= 1, current
            assert not any(entry == loss.entry for entry in current for peer in self.peers for loss in peer.losses)
            for entry in current:
                assert entry.epoch >= self.highest.get(name, 0)
                self.highest[name] = entry.epoch
        for peer in self.peers:
            for name in ("x", "y"):
                assert len(peer.protocol.cache.lookup(name)) <= 1

    def teardown(self) -> None:
        self.world.server_frozen = False
        for peer in self.peers:
            peer.cut = peer.frozen = False
        self.run_checked(8_000)
        protocol = self.world.protocol
        assert protocol is not None and protocol.statistics().failed == 0 and protocol.statistics().malformed == 0
        truth = set_of(protocol.table.match())
        for peer in self.peers:
            cache = peer.protocol.cache
            assert set_of(tuple(entry for entries in cache.names().values() for entry in entries)) == truth
            assert cache.count() == len(truth)
            state = peer.protocol.names.entries()
            assert {(name, entry.epoch) for name, entry in state.items() if entry is not None} == {
                (entry[0], entry[2]) for entry in truth if entry[1] == peer.holder
            }
            assert all(entry is not None for entry in state.values())
            seen: set[tuple[str, str]] = set()
            for notice in peer.notices:
                key = (notice.entry.name, notice.entry.holder)
                assert (key in seen) == (notice.kind != "appeared"), "notices tell a consistent story"
                if notice.kind == "disappeared":
                    seen.discard(key)
                else:
                    seen.add(key)
            assert seen == {(entry[0], entry[1]) for entry in truth}


def set_of(entries: tuple[Entry, ...]) -> set[tuple[str, str, int]]:
    return {(entry.name, entry.holder, entry.epoch) for entry in entries}


TestTurmoil = Turmoil.TestCase
TestTurmoil.settings = examples(quick=25, long=500, stateful_step_count=25)
