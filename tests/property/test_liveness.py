"""Whether an owner is dead, for any course of renewals, looks, sleep and wall clocks: nobody who renews in time is
declared dead, and nobody who has ceased to is kept for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.stores.liveness import LONGEST_BELIEVED_NS, RELEASED, Identity, Observer, OwnerRow, bounds_of
from tests.amounts import examples

LEASE, HUNG = 6_000_000_000, 24_000_000_000
HERE = Identity(1, "boot/pid:[1]", 7)
JUMPS = st.sampled_from((0, 0, 0, 3_600 * 10**9, -3_600 * 10**9, 40 * 365 * 86_400 * 10**9))


class World:
    """An owner and who watches it, on one machine."""

    def __init__(self, boot: str, runs: bool) -> None:
        self.now_ns = 0
        self.wall_ns = 10**18
        self.runs = runs
        self.boot = boot
        self.expires_ns = self.wall_ns + LEASE
        started = 7 if runs else 8
        self.observer = Observer(
            HERE, bounds_of(6.0, 24.0), lambda: self.now_ns, lambda: self.wall_ns, lambda pid: started
        )

    def pass_time(self, ns: int) -> None:
        self.now_ns += ns
        self.wall_ns += ns

    def renew(self) -> None:
        self.expires_ns = self.wall_ns + LEASE

    def look(self) -> dict[str, bool]:
        return self.observer.look([OwnerRow("owner", 2, self.boot, 7, self.expires_ns)])


SEEN, ELSEWHERE, BEFORE = "boot/pid:[1]", "boot/pid:[2]", "earlier boot/pid:[1]"


@examples(quick=100, long=5_000)
@given(st.sampled_from((SEEN, ELSEWHERE)), st.lists(st.tuples(JUMPS, st.sampled_from((0, 0, 0, 9 * 3_600 * 10**9)))))
def test_who_renews_in_time_is_alive_whatever_the_wall_clock_says_and_whoever_sleeps(
    boot: str, course: list[tuple[int, int]]
) -> None:
    """Both sleep with their machine, and the owner renews a third of a lease after it has woken."""
    world = World(boot, runs=True)
    assert world.look() == {}
    for jump_ns, asleep_ns in course:
        world.wall_ns += jump_ns
        world.pass_time(asleep_ns)
        assert world.look() == {}, "before it has renewed"
        world.pass_time(LEASE // 3)
        world.renew()
        assert world.look() == {}
        world.pass_time(LEASE // 6)


@examples(quick=100, long=5_000)
@given(st.sampled_from((SEEN, ELSEWHERE, BEFORE)), st.lists(JUMPS, max_size=3), st.integers(LEASE // 20, LEASE // 2))
def test_who_renews_no_more_is_dead_after_its_bound_whatever_the_wall_clock_says(
    boot: str, jumps: list[int], pause_ns: int
) -> None:
    world = World(boot, runs=True)
    world.look()
    for jump_ns in jumps:
        world.wall_ns += jump_ns
        assert world.look() == {}
    bound_ns = max(HUNG if boot == SEEN else LEASE, LEASE)
    watched_ns = 0
    while not world.look():
        assert watched_ns < bound_ns
        world.pass_time(pause_ns)
        watched_ns += pause_ns
    assert bound_ns <= watched_ns < bound_ns + pause_ns
    assert world.look() == {"owner": False}, "and it stays so, for it may run"
    world.renew()
    assert world.look() == {}


def test_who_is_gone_or_has_given_its_lease_back_is_dead_at_once() -> None:
    assert World(SEEN, runs=False).look() == {"owner": True}
    for boot in (SEEN, ELSEWHERE, BEFORE):
        world = World(boot, runs=True)
        world.expires_ns = RELEASED
        assert world.look() == {"owner": True}


def test_who_opens_a_store_does_not_watch_the_dead_of_an_earlier_boot() -> None:
    for boot, dead in ((BEFORE, {"owner": False}), (ELSEWHERE, {}), (SEEN, {})):
        world = World(boot, runs=True)
        world.wall_ns += LEASE + 1
        assert world.look() == world.look() == dead


def test_a_clock_that_was_set_back_before_we_came_keeps_the_dead_for_a_minute() -> None:
    world = World(ELSEWHERE, runs=True)
    world.wall_ns -= 3_600 * 10**9
    looks = 0
    while not world.look():
        world.pass_time(LEASE // 2)
        looks += 1
    assert looks * (LEASE // 2) == LONGEST_BELIEVED_NS
