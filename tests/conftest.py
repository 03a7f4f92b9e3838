"""Fixtures that many suites share, and how properties are searched."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator
from compileall import compile_dir
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.amounts import LONG

FAILURES = Path(__file__).parents[1] / ".hypothesis" / "failures"
"""What a long run found, as examples; the next one begins with them."""

settings.register_profile("quick", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "long", deadline=None, derandomize=False, database=DirectoryBasedExampleDatabase(FAILURES), print_blob=True
)
settings.load_profile("long" if LONG else "quick")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def pytest_sessionstart() -> None:
    """Make the processes that tests start the same wherever the suite is run.

    Packages are compiled, since some processes read compiled modules and write none; and a suite that a shell runs in
    the background ignores Ctrl-C, which its processes would inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for package in ("bitactor", "registry", "mesh"):
        compile_dir(ROOT / package, quiet=2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what stays: modules and tests, which it would go through again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Have each worker begin in another folder: whoever comes to a module first compiles it, and for all of them."""
    report = yield
    worker = getattr(collector.config, "workerinput", None)
    if worker is not None and collector.path == HERE and isinstance(report.result, list):
        first = len(report.result) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
        report.result = report.result[first:] + report.result[:first]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests in an order that is the same in each worker."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/pulses.db"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The URL of an SQLite store that does not exist yet."""
    return f"sqlite:///{tmp_path}/pulses.db"
