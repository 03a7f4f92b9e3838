"""Every benchmark there is, in the order they are run."""

from __future__ import annotations

from benchmarks.durable import beside_dbos, file_bytes, hop_sqlite, share
from benchmarks.journal import all_pulses, catch_up, empty_look, reading, recovery
from benchmarks.kinds import map_of, undo_nine
from benchmarks.local import chain_of, fan_out_1000, hop_memory, thread_actor, workflows_of_five
from benchmarks.measuring import Benchmark
from benchmarks.remote import hop_ipc, hop_process, parked

BENCHMARKS = (
    Benchmark("hop-memory", "µs", "a hop on the loop: saga, armed deadline, pulses in memory", hop_memory, goal=8),
    Benchmark(
        "hop-sqlite-1",
        "µs",
        "the same durable in SQLite, one transaction in flight",
        hop_sqlite(1),
        goal=150,
        ratio_goal=3.3,
    ),
    Benchmark(
        "hop-sqlite-200", "µs", "the same durable in SQLite, 200 transactions in flight", hop_sqlite(200), goal=25
    ),
    Benchmark(
        "hop-power",
        "µs",
        "the same on the disk at each commit, one transaction in flight",
        hop_sqlite(1, "power"),
        ratio_goal=1.4,
        repeats=5,
    ),
    Benchmark(
        "hop-power-100",
        "µs",
        "a hop on the disk, 100 transactions in flight, beside a step of DBOS",
        beside_dbos,
        ratio_goal=1 / 50,
        repeats=5,
        by_default=False,
        needs="dbos",
    ),
    Benchmark("store-share-1", "µs", "the store's own share of a durable hop, one in flight", share(1), repeats=5),
    Benchmark("store-share-20", "µs", "the store's own share of a durable hop, 20 in flight", share(20), repeats=5),
    Benchmark("store-share-200", "µs", "the store's own share of a durable hop, 200 in flight", share(200), repeats=5),
    Benchmark(
        "bytes-chain",
        "B",
        "bytes of the file for a hop, chains of 1,000",
        file_bytes(1_000, 50, 10),
        goal=170,
        repeats=5,
        warm_up=False,
    ),
    Benchmark(
        "bytes-5",
        "B",
        "bytes of the file for a hop, 5-step workflows",
        file_bytes(5, 5_000, 20),
        goal=320,
        repeats=5,
        warm_up=False,
    ),
    Benchmark("recovery-10k", "ms", "10,000 open transactions taken over and read", recovery, repeats=5, on_loop=False),
    Benchmark(
        "read-running",
        "ms",
        "pulses of a running transaction of another process, behind a million hops",
        reading,
        goal=5,
        repeats=5,
        on_loop=False,
    ),
    Benchmark("follow-empty", "µs", "a follower's look, nothing new", empty_look, goal=10, repeats=5, on_loop=False),
    Benchmark(
        "follow-all",
        "1/s",
        "pulses for a follower that catches up",
        all_pulses(catch_up),
        better="higher",
        repeats=5,
        on_loop=False,
    ),
    Benchmark("hop-ipc-1", "µs", "a hop in another node over ipc, one in flight", hop_ipc(1), repeats=5),
    Benchmark("hop-ipc-64", "µs", "a hop in another node over ipc, 64 in flight", hop_ipc(64), goal=25),
    Benchmark("hop-process", "µs", "a hop in a warm worker process, one in flight", hop_process, repeats=5),
    Benchmark(
        "workflows-5",
        "1/s",
        "5-step workflows, one after the other",
        workflows_of_five(1),
        goal=20_000,
        better="higher",
    ),
    Benchmark(
        "workflows-5-100",
        "1/s",
        "5-step workflows, 100 in flight",
        workflows_of_five(100),
        goal=20_000,
        better="higher",
    ),
    Benchmark("fanout-1000", "ms", "1,000 steps side by side, and a join", fan_out_1000, goal=15, repeats=15),
    Benchmark("undo-9", "µs", "a failure at step 10, and nine undos", undo_nine),
    Benchmark("map-10k-10", "µs", "an element of a map of 10,000 by 10, inline", map_of(10_000, 10), goal=5),
    Benchmark("map-10k-100", "µs", "an element of a map of 10,000 by 100", map_of(10_000, 100), goal=5),
    Benchmark("map-10k-1000", "µs", "an element of a map of 10,000 by 1,000", map_of(10_000, 1_000), goal=5),
    Benchmark(
        "map-1m-10",
        "µs",
        "an element of a map of 1,000,000 by 10, kept nowhere",
        map_of(1_000_000, 10, keep=False),
        goal=5,
        repeats=3,
    ),
    Benchmark(
        "map-1m-100",
        "µs",
        "an element of a map of 1,000,000 by 100",
        map_of(1_000_000, 100, keep=False),
        goal=5,
        repeats=3,
    ),
    Benchmark(
        "map-1m-1000",
        "µs",
        "an element of a map of 1,000,000 by 1,000",
        map_of(1_000_000, 1_000, keep=False),
        goal=5,
        repeats=3,
    ),
    Benchmark("chain-10", "µs", "a hop in a chain of 10, its share of the transaction included", chain_of(10)),
    Benchmark("chain-100", "µs", "a hop in a chain of 100", chain_of(100)),
    Benchmark("chain-1000", "µs", "a hop in a chain of 1,000", chain_of(1_000)),
    Benchmark(
        "parked-100k",
        "KiB",
        "memory for each of 100,000 waiting hops",
        parked(100_000, 1_000),
        goal=3.2,
        repeats=1,
        warm_up=False,
        on_loop=False,
    ),
    Benchmark(
        "parked-million",
        "KiB",
        "memory for each of a million waiting hops",
        parked(1_000_000, 1_000),
        goal=3.2,
        repeats=1,
        warm_up=False,
        by_default=False,
        on_loop=False,
    ),
    Benchmark(
        "thread-actor",
        "µs",
        "for comparison: a stock pykka actor started, asked and stopped",
        thread_actor,
        on_loop=False,
    ),
)
"""Goals are those of DESIGN.md, "Numbers to build for"; those of the journal are of the issue that made it anew."""

BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}
