"""What every registry does, whether in this process or served: one suite over both adapters."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import (
    AlreadyRegistered,
    Entry,
    HolderInUse,
    InvalidEntry,
    LocalRegistry,
    Loss,
    Notice,
    NotRegistered,
    Registry,
    RegistryClient,
    RegistryClosed,
    RegistryError,
    RegistryServer,
    RegistryTimeout,
)

PATIENCE = 60.0
Make = Callable[[str], Registry]


@pytest.fixture(params=["local", "served"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes started registries, by holder, that share one table; all are closed at the end."""
    made: list[Registry] = []
    if request.param == "local":
        first = LocalRegistry("first")

        def join(holder: str) -> Registry:
            made.append(first.peer(holder))
            made[-1].start(PATIENCE)
            return made[-1]

        yield join
        close_all(made)
        return
    directory = Path(tempfile.mkdtemp(prefix="ba-"))
    endpoint = f"ipc://{directory}/registry.sock"
    with RegistryServer(endpoint, directory / "boot") as server:

        def connect(holder: str) -> Registry:
            made.append(RegistryClient(endpoint, holder))
            made[-1].start(PATIENCE)
            return made[-1]

        yield connect
        close_all(made)
        assert server.statistics().failed == server.statistics().malformed == 0
    shutil.rmtree(directory)


def close_all(made: list[Registry]) -> None:
    for registry in made:
        registry.close()


def becomes_current(registry: Registry, entry: Entry) -> bool:
    """Whether an entry is valid, or soon will be: on a busy machine a lease may run out for a moment."""
    ends, pause = time.monotonic() + PATIENCE, threading.Event()
    while not registry.is_current(entry):
        if time.monotonic() > ends:
            return False
        pause.wait(0.01)
    return True


def sees(registry: Registry, name: str) -> queue.Queue[Notice]:
    seen: queue.Queue[Notice] = queue.Queue()
    registry.watch(seen.put, name)
    return seen


def until_gone(registry: Registry, name: str) -> None:
    gone = threading.Event()
    watch = registry.watch(lambda notice: gone.set() if notice.kind == "disappeared" else None, name)
    registry.ping()  # the watch has begun, so what is still there now is told of when it goes
    if registry.lookup(name):
        assert gone.wait(PATIENCE)
    watch.cancel()


def test_a_name_is_found_by_everybody(make: Make) -> None:
    a, b = make("a"), make("b")
    entry = a.register("orders", {"endpoint": "ipc:///x", "tags": ("t",)}, unique=True)
    assert entry == Entry("orders", "a", {"endpoint": "ipc:///x", "tags": ["t"]}, True, entry.epoch)
    assert entry.epoch > 0
    assert b.await_name("orders", PATIENCE) == a.lookup("orders") == (entry,)
    assert b.get("orders") == a.get("orders") == entry
    assert b.keys() == () and b.keys("a") == a.keys() == ("orders",)
    assert b.count() == 1
    assert a.connected and b.connected and (a.holder, b.holder) == ("a", "b")


def test_a_unique_name_has_one_holder(make: Make) -> None:
    a, b = make("a"), make("b")
    entry = a.register("x", unique=True)
    for registry in (a, b):
        for unique in (True, False):
            with pytest.raises(AlreadyRegistered) as refused:
                registry.register("x", unique=unique)
            assert refused.value.entry == entry
    a.unregister("x")
    later = b.register("x", unique=True)
    assert later.epoch > entry.epoch
    assert becomes_current(b, later) and not a.is_current(entry) and not a.is_current(later)


def test_a_duplicate_name_has_many_holders(make: Make) -> None:
    a, b = make("a"), make("b")
    a.register("worker", {"n": 1})
    b.register("worker", {"n": 2})
    with pytest.raises(AlreadyRegistered):
        b.register("worker", unique=True)
    with pytest.raises(AlreadyRegistered):
        a.register("worker")
    assert {(entry.holder, entry.value["n"]) for entry in b.lookup("worker")} == {("a", 1), ("b", 2)}
    assert b.get("worker") is None
    assert b.count() == 2


def test_one_of_many_contenders_gets_a_unique_name(make: Make) -> None:
    registries = [make(f"holder-{number}") for number in range(4)]
    won: list[Entry] = []
    lost: list[Entry] = []
    together = threading.Barrier(len(registries))

    def contend(registry: Registry) -> None:
        together.wait(PATIENCE)
        for number in range(20):
            try:
                won.append(registry.register(f"name-{number}", unique=True))
            except AlreadyRegistered as error:
                lost.append(error.entry)

    threads = [threading.Thread(target=contend, args=(registry,)) for registry in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted({entry.name for entry in won}) == sorted(entry.name for entry in won)
    assert len(won) == 20 and len(lost) == 60
    assert {entry.epoch for entry in lost} <= {entry.epoch for entry in won}
    assert len({entry.epoch for entry in won}) == 20


def test_values_change(make: Make) -> None:
    a, b = make("a"), make("b")
    seen = sees(b, "x")
    entry = a.register("x", {"n": 1}, unique=True)
    assert seen.get(timeout=PATIENCE)[:2] == ("appeared", entry)
    changed = a.update("x", {"n": 2})
    assert changed.value == {"n": 2} and changed.epoch == entry.epoch and becomes_current(a, entry)
    assert seen.get(timeout=PATIENCE)[:2] == ("changed", changed)
    assert a.lookup("x") == (changed,)
    with pytest.raises(NotRegistered):
        b.update("x", {"n": 3})


def test_unregistering_what_we_do_not_hold_does_nothing(make: Make) -> None:
    a, b = make("a"), make("b")
    a.register("x")
    b.unregister("x")
    a.unregister("never")
    assert len(a.lookup("x")) == 1
    a.unregister("x")
    a.unregister("x")
    assert a.lookup("x") == ()


def test_patterns_select_names(make: Make) -> None:
    a = make("a")
    for name in ("orders.eu.1", "orders.us.2", "users", "Orders"):
        a.register(name)

    def matched(pattern: str) -> set[str]:
        return {entry.name for entry in a.match(pattern)}

    assert matched("orders.*") == {"orders.eu.1", "orders.us.2"}
    assert matched("orders.??.1") == {"orders.eu.1"}
    assert matched("users") == {"users"}
    assert matched("[oO]rders") == {"Orders"}
    assert matched("none*") == set()
    assert len(a.match()) == 4


def test_a_watch_tells_first_what_is_there_then_what_changes(make: Make) -> None:
    a, b = make("a"), make("b")
    a.register("x.1")
    b.await_name("x.1", PATIENCE)
    seen = sees(b, "x.*")
    told = [seen.get(timeout=PATIENCE)]
    a.register("y")
    a.register("x.2", {"n": 1})
    told.append(seen.get(timeout=PATIENCE))
    a.update("x.2", {"n": 2})
    a.unregister("x.1")
    told += [seen.get(timeout=PATIENCE) for _ in range(2)]
    assert [(notice.kind, notice.entry.name) for notice in told] == [
        ("appeared", "x.1"),
        ("appeared", "x.2"),
        ("changed", "x.2"),
        ("disappeared", "x.1"),
    ]
    assert told[0].revision == 0
    assert [notice.revision for notice in told[1:]] == sorted({notice.revision for notice in told[1:]})


def test_a_cancelled_watch_is_silent(make: Make) -> None:
    a = make("a")
    seen: list[Notice] = []
    watch = a.watch(seen.append)
    other = sees(a, "*")
    a.register("x")
    other.get(timeout=PATIENCE)
    watch.cancel()
    watch.cancel()
    told = len(seen)
    a.register("y")
    other.get(timeout=PATIENCE)
    assert len(seen) == told


def test_a_callback_that_raises_is_cancelled_and_harms_nobody(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    a = make("a")
    calls: list[Notice] = []

    def broken(notice: Notice) -> None:
        calls.append(notice)
        raise RuntimeError("broken on purpose")

    a.watch(broken)
    seen = sees(a, "*")
    a.register("x")
    a.register("y")
    assert [seen.get(timeout=PATIENCE).entry.name for _ in range(2)] == ["x", "y"]
    assert len(calls) == 1
    assert "broken on purpose" in caplog.text


def test_a_callback_may_ask_and_start_things(make: Make) -> None:
    a = make("a")
    answers: queue.Queue[Any] = queue.Queue()

    def curious(notice: Notice) -> None:
        if notice.kind == "appeared" and notice.entry.name == "x":
            answers.put(a.lookup("x"))
            answers.put(a.when_name("x").result(0))
            a.watch(answers.put, "x")
            try:
                a.await_name("never", PATIENCE)
            except RegistryError as error:
                answers.put(str(error))

    a.watch(curious)
    entry = a.register("x")
    told = [answers.get(timeout=PATIENCE) for _ in range(4)]
    assert told[:2] == [(entry,), (entry,)]
    assert Notice("appeared", entry, 0) in told
    assert any("must not wait" in str(answer) for answer in told)


def test_awaiting_a_name(make: Make) -> None:
    a, b = make("a"), make("b")
    future = b.when_name("later")
    with pytest.raises(RegistryTimeout):
        b.await_name("later", 0.01)
    assert not future.done()
    entry = a.register("later")
    assert future.result(PATIENCE) == (entry,)
    assert b.when_name("later").result(0) == (entry,)
    unanswered = b.when_name("never")
    assert unanswered.cancel()
    forgotten = b.when_name("not yet")
    b.close()
    assert forgotten.cancelled()


def test_leaving_takes_all_names_along_at_once(make: Make) -> None:
    a, b = make("a"), make("b")
    for name in ("x", "y"):
        a.register(name, unique=name == "x")
    b.await_name("y", PATIENCE)
    seen = sees(b, "*")
    for _ in range(2):
        assert seen.get(timeout=PATIENCE).kind == "appeared"
    a.close()
    told = [seen.get(timeout=PATIENCE) for _ in range(2)]
    assert {(notice.kind, notice.entry.name) for notice in told} == {("disappeared", "x"), ("disappeared", "y")}
    assert b.count() == 0
    a.close()
    b.register("x", unique=True)


def test_who_left_can_come_back(make: Make) -> None:
    a = make("a")
    before = a.register("x", unique=True)
    a.close()
    again = make("a")
    assert again.register("x", unique=True).epoch > before.epoch
    assert not again.is_current(before)


def test_what_is_not_open_is_refused(make: Make) -> None:
    a = make("a")
    entry = a.register("x", unique=True)
    a.close()
    calls: list[Callable[[], object]] = [
        lambda: a.register("y"),
        lambda: a.unregister("x"),
        lambda: a.update("x", {}),
        lambda: a.watch(print),
        lambda: a.when_name("y"),
        lambda: a.await_name("y", 1),
        lambda: a.ping(),
        lambda: a.start(1),
    ]
    for call in calls:
        with pytest.raises(RegistryClosed):
            call()
    assert not a.connected and not a.is_current(entry)


def test_bad_names_and_values_are_refused_at_once(make: Make) -> None:
    a = make("a")
    for name in ("", "x" * 256, "a\nb"):
        with pytest.raises(InvalidEntry):
            a.register(name)
    with pytest.raises(InvalidEntry):
        a.register("x", {"x": "y" * 70_000})
    with pytest.raises(InvalidEntry):
        a.register("x", {"x": object()})
    a.register("x" * 255, {"x": "y" * 60_000})
    with pytest.raises(InvalidEntry):
        a.update("x" * 255, {"x": {1, print}})
    assert a.count() == 1


def test_a_holder_takes_part_once(make: Make) -> None:
    make("a")
    with pytest.raises(HolderInUse):
        if isinstance(first := make("b"), LocalRegistry):
            first.peer("a").start(0.5)
        else:
            assert isinstance(first, RegistryClient)
            RegistryClient(first.endpoint, "a").start(0.5)


def test_nobody_loses_anything_by_itself(make: Make) -> None:
    a = make("a")
    losses: list[tuple[Loss, ...]] = []
    watch = a.on_lost(losses.append)
    entry = a.register("x", unique=True)
    duplicate = a.register("y")
    assert a.ping(PATIENCE) >= 0
    assert becomes_current(a, entry) and becomes_current(a, duplicate) and losses == []
    watch.cancel()
    a.unregister("x")
    assert not a.is_current(entry)


def test_many_threads_share_one_registry(make: Make) -> None:
    a, b = make("a"), make("b")

    def work(number: int) -> None:
        for turn in range(10):
            name = f"{number}.{turn}"
            a.register(name, {"n": turn})
            a.update(name, {"n": -1})
            if turn % 2:
                a.unregister(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert a.count() == len(a.keys()) == 40
    a.register("last")
    b.await_name("last", PATIENCE)
    assert sorted(b.match(), key=str) == sorted(a.match(), key=str)


def test_context_managers_close(make: Make) -> None:
    a, b = make("a"), make("b")
    assert isinstance(a, LocalRegistry | RegistryClient)
    with a:
        a.register("x")
        b.await_name("x", PATIENCE)
    until_gone(b, "x")
    assert not a.connected
