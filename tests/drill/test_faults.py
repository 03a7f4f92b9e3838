"""A mesh of processes under load, each killed, stopped, woken, ended and started again at random: what was accepted
ends as it should, in the journals and outside.

`make drill` runs it for `DRILL_SECONDS`, with the seed that `DRILL_SEED` gives or one that is drawn and printed; a
plain run has a short form with a plan of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from mesh.stores.read import SqliteReader
from tests import warm
from tests.drill.cast import HEALED_WITHIN, Cast, Fault, drawn
from tests.drill.invariants import Journals, Violation, reason_of, violations
from tests.drill.load import Load
from tests.drill.shop import ENOUGH, read_effects

SECONDS = float(os.environ.get("DRILL_SECONDS", "120"))
SEED = int(os.environ.get("DRILL_SEED") or random.randrange(1_000_000))

EVERY = 1.5
"""Seconds from one fault to the next, on the whole."""

SETTLED_WITHIN = 120.0
"""Seconds after the last fault in which all must have ended."""

SHOWN = 5
"""Transactions whose trace is printed, for each invariant that does not hold."""

SHORT = (
    Fault(0.6, "x", "stop", 2.6),
    Fault(1.0, "a", "kill", 0.1),
    Fault(1.8, "registry", "kill", 0.2),
    Fault(2.4, "y", "terminate", 0.1),
)
"""The plan of the short form: one of each kind."""


class Drill:
    """One run, and what became of it."""

    def __init__(self, directory: Path, seed: int, *, shared: bool) -> None:
        self.seed = seed
        self.cast = Cast(directory, shared=shared)
        self.load = Load(self.cast.services, seed, shared=shared)
        self.wrong: list[str] = []
        """What was noticed while it ran."""
        self.faults = 0
        self._seen: dict[str, tuple[int, str, bool]] = {}

    async def run(self, plan: Sequence[Fault], seconds: float, clients: int, pause: float) -> None:
        await self.cast.start()
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=5.0) as http:
                async with asyncio.TaskGroup() as group:
                    asking = [group.create_task(self.load.client(http, pause)) for _ in range(clients)]
                    looking = group.create_task(self._look())
                    await self._warm()
                    suffering = group.create_task(self.cast.suffer(plan))
                    await asyncio.sleep(seconds)
                    self.faults = await suffering
                    self.load.over = True
                    await asyncio.gather(*asking)
                    await self._heal(http)
                    await self._settle()
                    looking.cancel()
                await self.load.ask_all_again(http)
            self.wrong += await self.cast.end()
        finally:
            self.cast.abandon()
        self.wrong += self.load.wrong

    async def _warm(self) -> None:
        """Wait until both workers have a worker process, for a hop that waits for one waits long."""
        async with asyncio.timeout(HEALED_WITHIN):
            while len({one.pid for one in read_effects(self.cast.effects) if one.step == "label"}) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _heal(self, http: httpx2.AsyncClient) -> None:
        for member in self.cast.members.values():
            try:
                await member.healthy(http)
            except TimeoutError:
                self.wrong.append(f"{member.name} does not get well again")
                await member.end()
                await member.start()

    async def _look(self) -> None:
        """Look now and then whether what is over stays so, and whether epochs rise."""
        while True:
            await asyncio.sleep(0.5)
            for row in await asyncio.to_thread(self._rows):
                epoch, status, over = self._seen.get(row.transaction, (0, "running", False))
                if row.epoch < epoch:
                    self.wrong.append(f"{row.transaction}: epoch {row.epoch} after {epoch}")
                if over and (row.status, row.open) != (status, False):
                    self.wrong.append(f"{row.transaction}: {row.status}, open {row.open}, after {status}")
                self._seen[row.transaction] = row.epoch, row.status, not row.open

    def _rows(self) -> list:
        found = []
        for store in self.cast.stores:
            with SqliteReader(store) as reader:
                found += reader.list(limit=1_000_000)
        return found

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(SETTLED_WITHIN):
                while any(row.open for row in await asyncio.to_thread(self._rows)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return  # the invariants name each

    def found(self) -> dict[str, list[Violation]]:
        """Invariant → what does not hold, with a report printed."""
        effects = read_effects(self.cast.effects)
        stops = [stop for member in self.cast.members.values() for stop in member.stops]
        journals = Journals(self.cast.stores, effects, stops)
        found: dict[str, list[Violation]] = defaultdict(list)
        for violation in violations(journals, self.load.orders):
            found[violation.what].append(violation)
        statuses = Counter((journal.row.workflow, journal.row.status) for journal in journals.all.values())
        ends = Counter(
            reason_of(journal).partition(":")[0]
            for journal in journals.all.values()
            if journal.row.status != "completed"
        )
        again = sum(times - 1 for times in Counter((one.hop, one.direction) for one in effects).values())
        print(
            f"\nseed {self.seed}, {'one store' if self.cast.shared else 'two stores'}: {self.faults} faults, "
            f"{len(self.load.orders)} orders, {len(journals.all)} transactions, {len(effects)} effects, {again} again, "
            f"{len(journals.in_window)} in the window"
        )
        print(f"  {dict(statuses)}; {dict(ends)}")
        for what, those in found.items():
            print(f"  {what}: {len(those)} violations")
            for violation in those[:SHOWN]:
                print(f"    {violation.transaction}: {violation.text}")
                self._print_trace(journals, violation.transaction)
        for text in self.wrong:
            print(f"  noticed: {text}")
        return found

    def _print_trace(self, journals: Journals, transaction: str) -> None:
        if (journal := journals.all.get(transaction)) is None:
            return
        words = ("-m", "mesh.cli", "trace", transaction, "--store", f"sqlite:///{journal.store}", "--all")
        print(warm.run(words, timeout=30, together=True).stdout)
        for pulse in journal.pulses:
            data = {name: value for name, value in (pulse.data or {}).items() if name not in ("fault", "digests")}
            print(
                "     ",
                pulse.seq,
                pulse.at_ns,
                pulse.kind,
                pulse.step,
                pulse.direction,
                pulse.attempt,
                pulse.error,
                data,
            )
        for effect in journal.effects:
            print("     ", effect)


@pytest.mark.drill
@pytest.mark.parametrize("shared", [False, True], ids=["two stores", "one store"])
async def test_at_random(tmp_path: Path, shared: bool) -> None:
    drill = Drill(tmp_path, SEED, shared=shared)
    plan = drawn(SEED, SECONDS, EVERY, list(drill.cast.members))
    assert len(plan) < ENOUGH
    print(f"\nDRILL_SEED={SEED} DRILL_SECONDS={SECONDS:g}")
    await drill.run(plan, SECONDS, clients=6, pause=0.4)
    found = drill.found()
    assert not found and not drill.wrong


async def test_one_fault_of_each_kind(tmp_path: Path) -> None:
    drill = Drill(tmp_path, 11, shared=False)
    await drill.run(SHORT, 3.0, clients=4, pause=0.2)
    found = drill.found()
    assert not found and not drill.wrong
    assert drill.faults == len(SHORT)
