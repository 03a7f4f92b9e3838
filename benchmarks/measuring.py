"""One benchmark is a contest: a sample of ours, samples of the floors it is held against, and medians over interleaved
repeats."""

from __future__ import annotations

import asyncio
import cProfile
import gc
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Sample = Callable[[], Awaitable[float]]
"""Does the work once and answers in the benchmark's unit."""


class Other(NamedTuple):
    """A further value of the same benchmark, in the same unit, which stands in a row of its own."""

    sample: Sample
    goal: float | None = None


LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True, slots=True)
class Contest:
    """What a benchmark measures, ready to run."""

    value: Sample
    floors: Mapping[str, Sample]
    """What it is → its sample.  The first one is the row's own; each other one gives another row."""
    others: Mapping[str, Other] = field(default_factory=dict[str, Other])
    """Name → a further value, beside the first floor."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a sample does."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """`full`, or `quick` when only the way through is of interest."""
        return quick if self.quick else full


Enter = Callable[[Sizes], AbstractAsyncContextManager[Contest]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One name on the command line."""

    name: str
    unit: str
    about: str
    enter: Enter
    goal: float | None = None
    ratio_goal: float | None = None
    """What the value may be of the first floor, at most."""
    better: Literal["lower", "higher"] = "lower"
    repeats: int = 7
    warm_up: bool = True
    by_default: bool = True
    needs: str = ""
    """A package that nothing of ours depends on, to be installed by hand."""
    on_loop: bool = True
    """Whether the work is done on this process's loop, so that another kind of loop, or a profile, says something."""


class Row(NamedTuple):
    """What a benchmark found."""

    name: str
    value: float
    """The median."""
    unit: str
    goal: float | None
    floor: float
    """The floor's median, in the same unit."""
    ratio: float
    """value / floor."""
    floor_is: str
    better: str
    low: float
    high: float
    repeats: int
    about: str
    ratio_goal: float | None = None

    @property
    def best(self) -> float:
        """The repeat that was disturbed least."""
        return self.low if self.better == "lower" else self.high

    @property
    def missed_by(self) -> float | None:
        """How many times as good the goal is; None when there is no goal, or it is met."""
        if self.goal is None:
            return None
        factor = self.value / self.goal if self.better == "lower" else self.goal / self.value
        return factor if factor > 1 else None


def measure(benchmark: Benchmark, sizes: Sizes, loop_factory: LoopFactory | None = None) -> list[Row]:
    """Run a benchmark on a loop of its own."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_measure(benchmark, sizes))


def profile(benchmark: Benchmark, sizes: Sizes, loop_factory: LoopFactory | None = None) -> cProfile.Profile:
    """Run our side of a benchmark under the profiler, and nothing of its floors."""
    profiler = cProfile.Profile()

    async def run() -> None:
        async with benchmark.enter(sizes) as contest:
            await contest.value()
            for _ in range(sizes.pick(benchmark.repeats, 1)):
                gc.collect()
                profiler.enable()
                try:
                    await contest.value()
                finally:
                    profiler.disable()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
    return profiler


async def _measure(benchmark: Benchmark, sizes: Sizes) -> list[Row]:
    async with benchmark.enter(sizes) as contest:
        others = {f"{benchmark.name}:{name}": other.sample for name, other in contest.others.items()}
        samples = {"": contest.value, **contest.floors, **others}
        if benchmark.warm_up:
            for sample in samples.values():
                await sample()
        found: dict[str, list[float]] = {name: [] for name in samples}
        for name, sample in _interleaved(samples, sizes.pick(benchmark.repeats, 1)):
            gc.collect()
            found[name].append(await sample())
    own, *further = contest.floors
    rows = [_row(benchmark, benchmark.name, found[""], found[own], own)._replace(ratio_goal=benchmark.ratio_goal)]
    rows += [
        _row(benchmark, f"{benchmark.name}:{label.partition(' ')[0]}", found[""], found[label], label)._replace(
            goal=None
        )
        for label in further
    ]
    rows += [
        _row(benchmark, name, found[name], found[own], own)._replace(goal=other.goal)
        for name, other in zip(others, contest.others.values(), strict=True)
    ]
    return rows


def _row(benchmark: Benchmark, name: str, values: Sequence[float], floors: Sequence[float], floor_is: str) -> Row:
    value, floor = statistics.median(values), statistics.median(floors)
    return Row(
        name=name,
        value=value,
        unit=benchmark.unit,
        goal=benchmark.goal,
        floor=floor,
        ratio=value / floor,
        floor_is=floor_is,
        better=benchmark.better,
        low=min(values),
        high=max(values),
        repeats=len(values),
        about=benchmark.about,
    )


def _interleaved(samples: Mapping[str, Sample], repeats: int) -> Iterator[tuple[str, Sample]]:
    """Each sample once a round, forwards and backwards in turn, so that a machine that drifts drifts for all of
    them."""
    for round_number in range(repeats):
        items = list(samples.items())
        yield from items if round_number % 2 else reversed(items)
