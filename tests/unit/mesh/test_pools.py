"""Queues, pools and permits: never too many, nobody forgotten, everybody in turn."""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakSet

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bitactor import Workflow
from bitactor.errors import ConfigurationError
from bitactor.messages.signal import FORWARD, UNDO
from mesh.limits.pools import HELD, LENT, NEW, REACQUIRING, RELEASED, WAITING, PermitSet, Pool, Pools, usable_cores
from mesh.limits.priority_queue import PriorityQueue, rank_of
from mesh.runtime.settings import settings
from tests.amounts import examples


class Recorded(PermitSet):
    """Knows what it was told."""

    __slots__ = ("grants", "needs", "number")

    def __init__(self, number: int, lendable: tuple[Pool, ...], kept: tuple[Pool, ...] = (), priority: int = 0) -> None:
        super().__init__(lendable, kept, rank_of(FORWARD, priority))
        self.number = number
        self.grants = 0
        self.needs = (lendable, kept)

    def on_acquired(self) -> None:
        assert self.state == HELD
        self.grants += 1


# Lines


@pytest.mark.parametrize("count", [1, 7, 500])
def test_a_line_serves_the_most_urgent_first_and_equals_in_order_of_arrival(count: int) -> None:
    line: PriorityQueue[int] = PriorityQueue()
    for number in range(count):
        line.add(number, rank_of(FORWARD, number % 3))
    served = [line.pop() for _ in range(count)]
    assert served == sorted(range(count), key=lambda number: (-(number % 3), number))
    assert not line


def test_what_mends_goes_ahead_of_the_highest_priority() -> None:
    order = [
        rank_of(UNDO, 0),
        rank_of(FORWARD, -9, compensating=True),
        rank_of(UNDO, -10),
        rank_of(FORWARD, 9),
        rank_of(FORWARD, 0, depth=1),
        rank_of(FORWARD, 0),
        rank_of(FORWARD, -1, depth=9),
    ]
    assert sorted([*order[3:], *order[:3]]) == order


def test_a_line_keeps_nothing_of_those_who_left() -> None:
    class Somebody:
        pass

    line: PriorityQueue[Somebody] = PriorityQueue()
    patient, left = Somebody(), WeakSet[Somebody]()
    line.add(patient, rank_of(FORWARD, 0))
    for _ in range(10_000):
        left.add(one := Somebody())
        line.add(one, rank_of(FORWARD, 0))
        assert line.discard(one) and not line.discard(one)
    assert len(line) == 1 and list(line) == [patient] and len(left) < 200
    assert line.pop() is patient


def test_who_comes_back_stands_where_it_came_back() -> None:
    line: PriorityQueue[str] = PriorityQueue()
    for name in ("a", "b"):
        line.add(name, rank_of(FORWARD, 0))
    line.discard("a")
    line.add("a", rank_of(FORWARD, 0))
    assert [line.pop(), line.pop()] == ["b", "a"]


# Claims


def test_a_claim_takes_all_its_places_or_none() -> None:
    one, two = Pool("one", 1), Pool("two", 1)
    first, both, other = Recorded(1, (one,)), Recorded(2, (one, two)), Recorded(3, (two,))
    assert first.acquire() and not both.acquire()
    assert two.in_use == 0, "it must not hold one place while it waits for another"
    assert other.acquire()
    first.release()
    assert one.in_use == 0 and both.state == WAITING
    other.release()
    assert both.state == HELD and both.grants == 1 and (one.in_use, two.in_use) == (1, 1)


def test_a_turn_is_kept_in_another_pools_line() -> None:
    """`early` waits because of `kept`, then because of `shared`, and still goes before `late`."""
    shared, kept = Pool("shared", 1), Pool("kept", 1)
    holder, early = Recorded(0, (), (kept,)), Recorded(1, (shared,), (kept,))
    assert holder.acquire() and not early.acquire()
    elsewhere, late = Recorded(2, (shared,)), Recorded(3, (shared,))
    assert elsewhere.acquire() and not late.acquire()
    holder.release()
    elsewhere.release()
    assert (early.state, late.state) == (HELD, WAITING)


def test_who_came_first_is_first_also_from_another_line() -> None:
    """One leaves two pools at once; whoever waited longest for both is served, in whichever line that was."""
    shared, kept = Pool("shared", 1), Pool("kept", 1)
    holder, early, urgent = (
        Recorded(0, (), (kept,)),
        Recorded(1, (shared,), (kept,)),
        Recorded(2, (shared,), (kept,), priority=1),
    )
    assert holder.acquire() and not early.acquire() and not urgent.acquire()
    holder.release()
    late = Recorded(3, (shared,), (kept,))
    assert urgent.state == HELD and not late.acquire()
    assert (list(kept.queue), list(shared.queue)) == ([early], [late])
    urgent.release()
    assert (early.state, late.state) == (HELD, WAITING)


def test_what_was_lent_comes_back_ahead_of_others() -> None:
    pool = Pool("one", 1)
    lender, borrower, urgent = Recorded(1, (pool,)), Recorded(2, (pool,)), Recorded(3, (pool,), priority=99)
    assert lender.acquire() and not borrower.acquire()
    told: list[str] = []
    lender.on_reacquired = lambda: told.append("back")
    lender.lend()
    assert borrower.state == HELD and (pool.in_use, pool.lent) == (1, 1)
    assert not urgent.acquire() and not lender.reacquire() and not told
    borrower.release()
    assert lender.state == HELD and told == ["back"] and urgent.state == WAITING and pool.lent == 0
    lender.release()
    assert urgent.state == HELD


def test_who_leaves_while_coming_back_is_told() -> None:
    pool = Pool("one", 1)
    lender, borrower = Recorded(1, (pool,)), Recorded(2, (pool,))
    assert lender.acquire() and not borrower.acquire()
    told: list[str] = []
    lender.on_reacquired = lambda: told.append("gone")
    lender.lend()
    assert not lender.reacquire()
    lender.release()
    lender.release()
    assert told == ["gone"] and lender.reacquire()
    borrower.release()
    assert (pool.in_use, pool.lent, len(pool.queue)) == (0, 0, 0)


class Claiming(RuleBasedStateMachine):
    """Anybody may do anything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = [Pool("wide", 3), Pool("narrow", 1), Pool("kept", 2)]
        self.claims: list[Recorded] = []

    def _pick(self, states: tuple[str, ...], index: int) -> Recorded | None:
        found = [permit_set for permit_set in self.claims if permit_set.state in states]
        return found[index % len(found)] if found else None

    @rule(
        which=st.sampled_from(
            [((0,), ()), ((1,), ()), ((0, 1), ()), ((0,), (2,)), ((1,), (2,)), ((), (2,)), ((0, 1), (2,)), ((), ())]
        ),
        priority=st.integers(-1, 1),
    )
    def acquire(self, which: tuple[tuple[int, ...], tuple[int, ...]], priority: int) -> None:
        lendable, kept = (tuple(self.pools[index] for index in side) for side in which)
        permit_set = Recorded(len(self.claims), lendable, kept, priority)
        assert permit_set.state == NEW
        self.claims.append(permit_set)
        assert permit_set.acquire() == (permit_set.state == HELD)

    @rule(index=st.integers(0, 99))
    def lend(self, index: int) -> None:
        permit_set = self._pick((HELD, REACQUIRING, RELEASED), index)
        if permit_set is not None:
            self._in_turn(permit_set.lend)

    @rule(index=st.integers(0, 99))
    def reacquire(self, index: int) -> None:
        permit_set = self._pick((LENT, REACQUIRING, HELD, RELEASED), index)
        if permit_set is not None:
            assert permit_set.reacquire() == (permit_set.state != REACQUIRING)

    @precondition(lambda self: self.claims)
    @rule(index=st.integers(0, 99))
    def release(self, index: int) -> None:
        self._in_turn(self.claims[index % len(self.claims)].release)

    def _in_turn(self, what: object) -> None:
        """Of those who need the same, nobody is served while somebody with an earlier turn still waits."""
        before = {permit_set: permit_set.state for permit_set in self.claims}
        assert callable(what)
        what()
        served = [
            permit_set
            for permit_set, state in before.items()
            if state in (WAITING, REACQUIRING) and permit_set.state == HELD
        ]
        for permit_set in served:
            for other in self.claims:
                if other.needs == permit_set.needs and other.state == before[other] == before[permit_set]:
                    assert (permit_set.rank, permit_set.arrival) < (other.rank, other.arrival)

    @invariant()
    def never_more_than_there_are_and_all_accounted_for(self) -> None:
        for pool in self.pools:
            lend = [permit_set for permit_set in self.claims if pool in permit_set.needs[0]]
            keep = [permit_set for permit_set in self.claims if pool in permit_set.needs[1]]
            holders = [permit_set for permit_set in lend if permit_set.state == HELD]
            holders += [
                permit_set
                for permit_set in keep
                if permit_set.state == HELD or (permit_set.state in (LENT, REACQUIRING))
            ]
            assert pool.in_use == len(holders) <= pool.permits
            assert pool.lent == sum(permit_set.state in (LENT, REACQUIRING) for permit_set in lend)

    @invariant()
    def nobody_waits_who_need_not(self) -> None:
        for permit_set in self.claims:
            lendable, kept = permit_set.needs
            if permit_set.state == WAITING:
                assert any(pool.in_use == pool.permits for pool in lendable + kept)
            elif permit_set.state == REACQUIRING:
                assert any(pool.in_use == pool.permits for pool in lendable)

    @invariant()
    def granted_once(self) -> None:
        assert all(permit_set.grants <= 1 for permit_set in self.claims)

    def teardown(self) -> None:
        for permit_set in self.claims:
            permit_set.release()
        assert all((pool.in_use, pool.lent, len(pool.queue)) == (0, 0, 0) for pool in self.pools)


TestClaiming = Claiming.TestCase
TestClaiming.settings = examples(quick=100, long=3_000, stateful_step_count=40)


# Declaring


def limited(pool: str) -> Workflow:
    workflow = Workflow("limited", ttl=1)

    @workflow.step(limit=pool)
    async def works() -> None: ...

    return workflow


def test_a_pool_that_is_not_there_is_refused_by_name() -> None:
    pools = Pools({"database": 5, "mail": 1})
    pools.declare(limited("mail").check())
    with pytest.raises(ConfigurationError, match=r"'limited/works'.*'databse'.*Did you mean 'database'"):
        pools.declare(limited("databse").check())


def test_what_pools_say_of_themselves() -> None:
    pools = Pools({"mail": 1})
    pool = pools.find("mail", "somebody")
    first, second = Recorded(1, (pool,)), Recorded(2, (pool,))
    first.acquire()
    second.acquire()
    assert pools.about() == {"mail": {"places": 1, "taken": 1, "waiting": 1, "lent": 0}}
    first.lend()
    assert pools.about() == {"mail": {"places": 1, "taken": 1, "waiting": 0, "lent": 1}}


@pytest.mark.parametrize("places", [0, -1, True, 1.5, "3", None, 2_000_000])
def test_places_are_a_number(places: object) -> None:
    with pytest.raises(ConfigurationError, match=r"pools\.mail=.*BITACTOR_POOLS\)"):
        settings(pools={"mail": places})


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_a_pool_has_a_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="pools"):
        settings(pools={name: 1})


def test_pools_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITACTOR_POOLS", '{"mail": 2}')
    assert settings().pools == {"mail": 2}
    assert settings(pools={"mail": 3}).pools["mail"] == 3
    monkeypatch.setenv("BITACTOR_POOLS", "mail=2")
    with pytest.raises(
        ConfigurationError, match=r'BITACTOR_POOLS takes JSON, such as {"mail": 5}|BITACTOR_POOLS takes JSON'
    ):
        settings()


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000\n", 6), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("900000 100000\n", 6),
     ("0 0\n", 6), ("", 6), (None, 6)],
)  # fmt: skip
def test_defaults_go_by_the_cores_that_may_be_used(
    limit: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    path = tmp_path / "cpu.max"
    if limit is not None:
        path.write_text(limit)
    assert usable_cores(path) == cores
    assert settings().processes <= 6
