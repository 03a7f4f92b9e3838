"""`python -m benchmarks [NAME...]`: see `--help`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pstats
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.catalogue import BENCHMARKS, BY_NAME
from benchmarks.measuring import Benchmark, LoopFactory, Row, Sizes, measure, profile
from benchmarks.report import document, machine, show
from bitactor.errors import suggest

_USAGE = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_PROFILE_LINES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; answers the exit code (2: asked for wrongly)."""
    options = _parse(arguments)
    if options.list:
        for benchmark in BENCHMARKS:
            print(f"{benchmark.name:<16} {benchmark.about}{'' if benchmark.by_default else ' (only when named)'}")
        return 0
    wanted = options.profile if options.profile is not None else options.names
    unknown = [name for name in ([wanted] if isinstance(wanted, str) else wanted) if name not in BY_NAME]
    if unknown:
        print(f"no benchmark {unknown[0]!r}.{suggest(unknown[0], BY_NAME)} --list shows all.", file=sys.stderr)
        return _USAGE
    uvloop = _uvloop() if options.uvloop else None
    if options.uvloop and uvloop is None:
        print("--uvloop: uvloop is not installed; pip install 'bitactor[uvloop]'", file=sys.stderr)
        return _USAGE
    for benchmark in (BY_NAME[name] for name in ([wanted] if isinstance(wanted, str) else wanted)):
        if benchmark.needs and importlib.util.find_spec(benchmark.needs) is None:
            print(f"{benchmark.name} needs {benchmark.needs!r}; pip install {benchmark.needs}", file=sys.stderr)
            return _USAGE
    sizes = Sizes(options.quick)
    if options.profile is not None:
        return _profile(BY_NAME[options.profile], sizes, uvloop)
    chosen = [BY_NAME[name] for name in options.names] or [
        benchmark for benchmark in BENCHMARKS if benchmark.by_default
    ]
    about = machine()
    rows = _run(chosen, sizes, uvloop)
    if options.json:
        print(document(rows, about, quick=sizes.quick))
    else:
        show(rows, about, quick=sizes.quick)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure BitActor, each number beside a floor from the same run.",
        epilog="Example: python -m benchmarks hop-memory workflows-5 --json",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which to run; by default all but those marked so by --list"
    )
    parser.add_argument("--list", action="store_true", help="say which there are, and run none")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="tiny counts and one repeat: to see that everything runs")
    parser.add_argument("--uvloop", action="store_true", help="measure what runs on the loop a second time, on uvloop")
    parser.add_argument(
        "--profile", metavar="NAME", help="run our side of one benchmark under cProfile, and print where time goes"
    )
    options = parser.parse_args(arguments)
    if options.profile is not None and (options.names or options.json):
        parser.error("--profile takes one benchmark and prints a table; it goes with neither names nor --json")
    return options


def _run(chosen: Sequence[Benchmark], sizes: Sizes, uvloop: LoopFactory | None) -> list[Row]:
    rows: list[Row] = []
    for benchmark in chosen:
        _say(f"{benchmark.name} …")
        rows += measure(benchmark, sizes)
        if uvloop is not None and benchmark.on_loop:
            _say(f"{benchmark.name}@uvloop …")
            rows += [row._replace(name=f"{row.name}@uvloop") for row in measure(benchmark, sizes, uvloop)]
    return rows


def _profile(benchmark: Benchmark, sizes: Sizes, uvloop: LoopFactory | None) -> int:
    if not benchmark.on_loop:
        print(
            f"{benchmark.name} does its work in other processes or threads; there is nothing here to profile",
            file=sys.stderr,
        )
        return _USAGE
    profiler = profile(benchmark, sizes, uvloop)
    print(f"{benchmark.name}: {benchmark.about}.  The profiler makes small functions look dearer than they are.\n")
    statistics = pstats.Stats(profiler)
    statistics.strip_dirs().sort_stats(pstats.SortKey.TIME).print_stats(_PROFILE_LINES)
    return 0


def _uvloop() -> LoopFactory | None:
    try:
        module: Any = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: LoopFactory = module.new_event_loop
    return factory


def _say(what: str) -> None:
    """Progress, for who waits at a terminal."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr)


def _main() -> int:
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has gone; what is still buffered must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(_main())
