"""The pytest plugin: the fixtures `mesh`, `pulses` and `fake_clock`, and the journal in the report of a failed test.

Every run of pytest in an environment with BitActor in it loads this, whether its tests know of BitActor or not.  So it
imports nothing of ours before a fixture is asked for, and it is in none of the three packages: a `mesh.py` of the
user's would hide everything in ours, and `bitactor` alone takes a tenth of a second to import.
"""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from typing import Any, Final

import pytest

_BENCH: Final = pytest.StashKey[Any]()


@pytest.fixture
def _bitactor_bench(request: pytest.FixtureRequest) -> Generator[Any, None, None]:
    """What the fixtures of one test share."""
    launcher = import_module("bitactor.launcher")
    found = launcher.stranger("mesh")
    if found is not None:
        pytest.fail(launcher.complaint("mesh", found), pytrace=False)
    with import_module("mesh.testing.bench").Bench(request.node) as bench:
        request.node.stash[_BENCH] = bench
        yield bench


@pytest.fixture
def fake_clock(_bitactor_bench: Any) -> Any:
    """Time that stands still until the test lets it pass, for every mesh of the `mesh` fixture: a
    `mesh.testing.MeshClock`."""
    return _bitactor_bench.use_fake_clock()


@pytest.fixture
def pulses(_bitactor_bench: Any) -> Any:
    """The pulses of every mesh of the `mesh` fixture: a `mesh.testing.Pulses`."""
    return _bitactor_bench.pulses


@pytest.fixture
def mesh(_bitactor_bench: Any, request: pytest.FixtureRequest) -> Any:
    """Makes meshes in this process, which open when first used and close with the test: a `mesh.testing.MeshFactory`.

    `mesh(signup, greet)` is a `Mesh`.  Use it with `await` in `async def` tests, with `submit` and `run` in others.
    """
    if "fake_clock" in request.fixturenames:
        request.getfixturevalue("fake_clock")
    return _bitactor_bench.factory


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed test what its transactions did."""
    report = yield
    bench = item.stash.get(_BENCH, None)
    if report.failed and report.when == "call" and bench is not None and (journal := bench.pulses.report()):
        report.sections.append(("BitActor pulses", journal))
    return report
