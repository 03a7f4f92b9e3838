"""What `MemoryStore` promises beyond the contract: how much it keeps."""

from __future__ import annotations

import pytest

from bitactor.errors import ConfigurationError
from bitactor.ports import Write
from mesh.stores import MemoryStore
from tests.store_writes import Told, first, fresh, hop, last


def _store(retained: int) -> MemoryStore:
    store = MemoryStore(retained)
    store.open("owner-1")
    return store


def _append(store: MemoryStore, *writes: Write) -> None:
    told = Told()
    store.append(writes, told.done())
    assert [(len(refusals), error) for _, refusals, error in told.outcomes] == [(0, None)]


def test_keeps_what_is_open_and_the_last_that_ended() -> None:
    store = _store(3)
    running, *ended = (fresh() for _ in range(6))
    _append(store, first(running), *[first(transaction, key=transaction) for transaction in ended])
    for transaction in reversed(ended):
        _append(store, last(transaction, 2))
    assert [row.transaction for row in store.reader().list()] == [ended[2], ended[1], ended[0], running]
    assert store.reader().pulses(ended[4]) == [] and store.reader().find("users.signup", ended[4]) is None
    assert store.reader().find("users.signup", ended[0]) == ended[0]


def test_a_forgotten_key_can_be_given_again() -> None:
    store = _store(1)
    _append(store, first(fresh(), key="k", open=False))
    _append(store, first(fresh(), open=False))
    again = fresh()
    _append(store, first(again, key="k"))
    assert store.reader().find("users.signup", "k") == again


def test_what_waits_to_be_resumed_is_not_pushed_out_by_what_ended() -> None:
    store = _store(2)
    halted = fresh()
    _append(store, first(halted), last(halted, 2, "halted"))
    for _ in range(5):
        _append(store, first(fresh(), open=False))
    assert len(store.reader().list()) == 3
    _append(store, hop(halted, 3, epoch=1))
    _append(store, last(halted, 5, epoch=1))
    assert len(store.reader().list()) == 2 and store.reader().get(halted) is not None


def test_retaining_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        MemoryStore(0)
