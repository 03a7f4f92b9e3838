"""The table alone: examples, limits, and a model that hypothesis drives."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from registry import AlreadyRegistered, InvalidEntry, Notice, NotRegistered, RegistryFull, Table
from registry.limits import MAX_VALUE_BYTES, name_filter
from registry.table import BUCKETS
from tests.amounts import examples

LEASE = 1_500_000_000


def test_a_unique_name_has_one_holder_and_the_refusal_says_who() -> None:
    table = Table()
    notice = table.register("orders", "a", {"endpoint": "ipc:///x"}, unique=True, now_ns=0)
    assert notice.kind == "appeared" and notice.revision == 1
    with pytest.raises(AlreadyRegistered) as refused:
        table.register("orders", "b", None, unique=True, now_ns=0)
    assert refused.value.entry == notice.entry
    with pytest.raises(AlreadyRegistered):
        table.register("orders", "b", None, unique=False, now_ns=0)
    with pytest.raises(AlreadyRegistered):
        table.register("orders", "a", None, unique=True, now_ns=0)
    assert table.lookup("orders") == (notice.entry,)


def test_a_duplicate_name_has_many_holders_and_excludes_a_unique_one() -> None:
    table = Table()
    for holder in "abc":
        table.register("worker", holder, {"group": holder}, unique=False, now_ns=0)
    assert [entry.holder for entry in table.lookup("worker")] == ["a", "b", "c"]
    assert {entry.epoch for entry in table.lookup("worker")} == {0}
    with pytest.raises(AlreadyRegistered):
        table.register("worker", "d", None, unique=True, now_ns=0)


def test_epochs_rise_over_grants_and_boots() -> None:
    first = Table(boot=1)
    epochs = []
    for _ in range(3):
        epochs.append(first.register("x", "a", None, unique=True, now_ns=0).entry.epoch)
        first.unregister("x", "a")
    epochs.append(Table(boot=2).register("x", "a", None, unique=True, now_ns=0).entry.epoch)
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == (2 << 32) + 1


def test_a_lease_ends_with_all_its_names_unless_renewed() -> None:
    table = Table(lease_ns=LEASE)
    for name in ("x", "y"):
        table.register(name, "a", None, unique=True, now_ns=0)
    table.register("z", "b", None, unique=True, now_ns=0)
    assert table.expire(LEASE - 1) == ([], [])
    assert table.renew("b", LEASE - 1)
    gone, notices = table.expire(LEASE)
    assert gone == ["a"]
    assert [(notice.kind, notice.entry.name) for notice in notices] == [("disappeared", "x"), ("disappeared", "y")]
    assert not table.renew("a", LEASE)
    assert table.count() == 1


def test_an_earlier_time_does_not_shorten_a_lease() -> None:
    table = Table(lease_ns=LEASE)
    table.open("a", 100)
    assert table.renew("a", 0)
    assert table.expire(LEASE + 99) == ([], [])


def test_update_and_unregister_are_for_the_holder() -> None:
    table = Table()
    table.register("x", "a", {"n": 1}, unique=False, now_ns=0)
    changed = table.update("x", "a", {"n": 2})
    assert changed is not None and changed.kind == "changed" and changed.entry.value == {"n": 2}
    assert table.update("x", "a", {"n": 2}) is None
    with pytest.raises(NotRegistered):
        table.update("x", "b", {})
    assert table.unregister("x", "b") is None
    gone = table.unregister("x", "a")
    assert gone is not None and gone.kind == "disappeared"
    assert table.unregister("x", "a") is None


def test_a_claim_may_be_repeated_and_changes_the_value() -> None:
    table = Table()
    first = table.claim("x", "a", {"n": 1}, unique=True, former=0, now_ns=0).entry
    assert first is not None
    again = table.claim("x", "a", {"n": 1}, unique=True, former=first.epoch, now_ns=0)
    assert again == (first, ())
    changed = table.claim("x", "a", {"n": 2}, unique=True, former=first.epoch, now_ns=0)
    assert changed.entry is not None and changed.entry.epoch == first.epoch
    fresh = table.claim("x", "a", {"n": 2}, unique=True, former=0, now_ns=0)
    assert fresh.entry is not None and fresh.entry.epoch > first.epoch
    with pytest.raises(AlreadyRegistered):
        table.claim("x", "a", {}, unique=False, former=0, now_ns=0)


def test_while_settling_unique_names_go_only_to_who_had_them() -> None:
    table = Table(boot=2)
    former = (1 << 32) + 7
    assert table.claim("x", "a", {}, unique=True, former=0, now_ns=0, settling=True) == (None, ())
    assert table.claim("x", "a", {}, unique=True, former=2 << 32, now_ns=0, settling=True).entry is None
    resumed = table.claim("x", "a", {}, unique=True, former=former, now_ns=0, settling=True).entry
    assert resumed is not None and resumed.epoch == former
    with pytest.raises(AlreadyRegistered):
        table.claim("x", "b", {}, unique=True, former=former - 1, now_ns=0, settling=True)
    with pytest.raises(AlreadyRegistered):
        table.claim("x", "b", {}, unique=True, former=0, now_ns=0, settling=True)
    later = table.claim("x", "b", {}, unique=True, former=former + 1, now_ns=0, settling=True)
    assert [notice.kind for notice in later.notices] == ["disappeared", "appeared"]
    assert table.lookup("x") == (later.entry,)
    assert table.claim("y", "a", {}, unique=False, former=0, now_ns=0, settling=True).entry is not None


def test_after_settling_a_former_grant_gets_a_fresh_epoch() -> None:
    table = Table(boot=2)
    entry = table.claim("x", "a", {}, unique=True, former=(1 << 32) + 7, now_ns=0).entry
    assert entry is not None and entry.epoch == (2 << 32) + 1


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\x00", "\x85", "\ud800", 7, None])
def test_names_that_are_not_allowed(name: object) -> None:
    with pytest.raises(InvalidEntry):
        Table().register(name, "a", None, unique=False, now_ns=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [["x"], {1: "x"}, {"x": object()}, {"x": "y" * MAX_VALUE_BYTES}, "text"])
def test_values_that_are_not_allowed(value: object) -> None:
    table = Table()
    with pytest.raises(InvalidEntry):
        table.register("x", "a", value, unique=False, now_ns=0)  # type: ignore[arg-type]
    assert table.count() == 0 and table.lookup("x") == ()


def test_a_value_is_a_read_only_copy() -> None:
    value = {"tags": ["a"]}
    table = Table()
    entry = table.register("x", "a", value, unique=False, now_ns=0).entry
    value["tags"].append("b")
    assert entry.value == {"tags": ["a"]}
    with pytest.raises(TypeError):
        entry.value["tags"] = []  # type: ignore[index]


def test_limits_are_clear_errors_and_room_comes_back() -> None:
    table = Table(max_names_per_holder=2, max_entries=3)
    for name in "xy":
        table.register(name, "a", None, unique=False, now_ns=0)
    with pytest.raises(RegistryFull, match="'a' holds 2 names"):
        table.register("z", "a", None, unique=False, now_ns=0)
    table.register("z", "b", None, unique=False, now_ns=0)
    with pytest.raises(RegistryFull, match="3 entries"):
        table.register("zz", "b", None, unique=False, now_ns=0)
    table.leave("a")
    table.register("zz", "b", None, unique=False, now_ns=0)
    small = Table(max_bytes=2_000)
    small.register("x", "a", {"x": "y" * 1_000}, unique=False, now_ns=0)
    with pytest.raises(RegistryFull):
        small.update("x", "a", {"x": "y" * 3_000})
    with pytest.raises(RegistryFull):
        small.register("y", "a", {"x": "y" * 1_000}, unique=False, now_ns=0)
    small.unregister("x", "a")
    small.register("y", "a", {"x": "y" * 1_000}, unique=False, now_ns=0)


@given(st.text("ab.*?[]!", max_size=6), st.text("ab.*", max_size=6))
@examples(quick=100, long=5_000)
def test_patterns_are_fnmatch_patterns(pattern: str, name: str) -> None:
    assert name_filter(pattern)(name) == fnmatchcase(name, pattern)


NAMES = st.sampled_from(["x", "y", "orders.a", "orders.b"])
HOLDERS = st.sampled_from(["a", "b", "c"])


class TableModel(RuleBasedStateMachine):
    """The table against plain dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(lease_ns=LEASE)
        self.now = 0
        self.entries: dict[tuple[str, str], tuple[bool, int]] = {}  # (name, holder) -> (unique, value)
        self.leases: dict[str, int] = {}
        self.last_epoch = 0
        self.revision = 0

    def saw(self, *notices: Notice | None) -> None:
        for notice in notices:
            if notice is not None:
                self.revision += 1
                assert notice.revision == self.revision

    @rule(name=NAMES, holder=HOLDERS, unique=st.booleans(), value=st.integers(0, 2), claim=st.booleans())
    def register(self, name: str, holder: str, unique: bool, value: int, claim: bool) -> None:
        held = {key[1]: entry for key, entry in self.entries.items() if key[0] == name}
        free = not held or (not unique and holder not in held and not any(entry[0] for entry in held.values()))
        own = claim and holder in held and held[holder][0] == unique
        try:
            if claim:
                claimed = self.table.claim(name, holder, {"n": value}, unique=unique, former=0, now_ns=self.now)
                assert claimed.entry is not None
                entry = claimed.entry
                self.saw(*claimed.notices)
            else:
                notice = self.table.register(name, holder, {"n": value}, unique=unique, now_ns=self.now)
                entry = notice.entry
                self.saw(notice)
        except AlreadyRegistered as error:
            assert not free and not own
            assert (error.entry.name, error.entry.holder) in self.entries
            return
        assert free or own
        if unique:
            assert entry.epoch > self.last_epoch
            self.last_epoch = entry.epoch
        self.entries[name, holder] = (unique, value)
        self.leases.setdefault(holder, self.now + LEASE)

    @rule(name=NAMES, holder=HOLDERS)
    def unregister(self, name: str, holder: str) -> None:
        notice = self.table.unregister(name, holder)
        assert (notice is not None) == (self.entries.pop((name, holder), None) is not None)
        self.saw(notice)

    @rule(name=NAMES, holder=HOLDERS, value=st.integers(0, 2))
    def update(self, name: str, holder: str, value: int) -> None:
        known = self.entries.get((name, holder))
        if known is None:
            with pytest.raises(NotRegistered):
                self.table.update(name, holder, {"n": value})
            return
        notice = self.table.update(name, holder, {"n": value})
        assert (notice is None) == (known[1] == value)
        self.saw(notice)
        self.entries[name, holder] = (known[0], value)

    @rule(holder=HOLDERS)
    def leave(self, holder: str) -> None:
        self.gone([holder], self.table.leave(holder))

    @rule(holder=HOLDERS)
    def renew(self, holder: str) -> None:
        assert self.table.renew(holder, self.now) == (holder in self.leases)
        if holder in self.leases:
            self.leases[holder] = self.now + LEASE

    @rule(by=st.integers(0, LEASE))
    def expire(self, by: int) -> None:
        self.now += by
        holders, notices = self.table.expire(self.now)
        assert set(holders) == {holder for holder, until in self.leases.items() if until <= self.now}
        self.gone(holders, notices)

    def gone(self, holders: list[str], notices: list[Notice]) -> None:
        expected = {key for key in self.entries if key[1] in holders}
        assert {(notice.entry.name, notice.entry.holder) for notice in notices} == expected
        assert len(notices) == len(expected)
        self.saw(*notices)
        for key in expected:
            del self.entries[key]
        for holder in holders:
            self.leases.pop(holder, None)

    @invariant()
    def agrees(self) -> None:
        found = {(entry.name, entry.holder): (entry.unique, entry.value["n"]) for entry in self.table.match()}
        assert found == self.entries
        assert self.table.count() == len(self.entries)
        assert self.table.revision == self.revision
        assert sum(len(self.table.bucket(index)) for index in range(BUCKETS)) == len(self.entries)
        for name in {key[0] for key in self.entries}:
            entries = self.table.lookup(name)
            assert len(entries) == 1 or not any(entry.unique for entry in entries)
        for holder in "abc":
            assert set(self.table.keys(holder)) == {key[0] for key in self.entries if key[1] == holder}
        if not self.entries:
            assert self.table.size() == 0


TestTableModel = TableModel.TestCase
TestTableModel.settings = examples(quick=40, long=1_000, stateful_step_count=30)
