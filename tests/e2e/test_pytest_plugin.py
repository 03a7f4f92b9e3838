"""The fixtures `mesh`, `pulses` and `fake_clock`: used here as a user would, and in test sessions of their own where a
test has to fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock, create_autospec

import pytest

from bitactor import Backoff, Context, Continue, Halt, Retry, Signal, Workflow, WorkflowFailed, consumer
from bitactor.errors import BitActorError, ConfigurationError, DefinitionError, StepTimeout
from bitactor.testing import run_workflow
from mesh.testing import MeshClock, MeshFactory, Pulses, assert_trace
from tests.e2e.support import BOUND, turns, until

pytest_plugins = ["pytester"]

order = Workflow("orders.place", input={"item": str, "amount": int}, deadline=600.0)
LAMP = {"item": "lamp", "amount": 40}
put_back_items: list[str] = []


@order.step
def reserve(item: str) -> str:
    return item


@reserve.undo
def put_back(result: str) -> None:
    put_back_items.append(result)


@order.step(retries=2, timeout=5.0, backoff=Backoff(initial=10, factor=2, jitter=0))
async def pay(reserve: str, amount: int) -> int:
    return amount


@pay.compensate
def on_failure(error: Exception) -> Any:
    return Continue(0) if isinstance(error, LookupError) else None


@order.step
async def ship(reserve: str, pay: int, ctx: Context) -> str:
    await ctx.emit("order.shipped", {"item": reserve})
    return f"{reserve} for {pay}"


@consumer("order.shipped")
async def tell(signal: Signal) -> str:
    return f"{signal.token['item']} is on its way"


@pytest.fixture(autouse=True)
def _nothing_put_back() -> None:
    put_back_items.clear()


async def never(reserve: str) -> None:
    await asyncio.Event().wait()


# A mesh


async def test_a_mesh_opens_by_itself_when_it_is_first_used(mesh: MeshFactory, pulses: Pulses) -> None:
    tx = await mesh(order, tell).stimulate(order, LAMP)
    assert await tx.result(BOUND) == "lamp for 40"
    assert pulses.of("pay", "completed")[0].token_out == 40
    assert pulses.of("ship", "spawned")[0].token_in == {"reserve": "lamp", "pay": 40}
    assert pulses.lines(tx)[:3] == ["accepted", "spawned reserve", "completed reserve"]
    assert pulses.kinds(tx)[0] == "accepted"


def test_a_test_that_is_no_coroutine_uses_it_from_its_thread(mesh: MeshFactory, pulses: Pulses) -> None:
    mine = mesh(order, tell)
    assert mine.run(order, LAMP, timeout=BOUND) == "lamp for 40"
    tx = mine.submit(order, LAMP)
    assert tx.result(BOUND) == "lamp for 40"
    assert len(pulses.transactions("orders.place")) == 2
    with mesh(order) as other:
        assert other.run(order, LAMP, timeout=BOUND) == "lamp for 40"
    assert other.node.state == "closed"
    assert mine.node.state == "open"


async def test_it_can_be_opened_and_closed_in_a_block(mesh: MeshFactory) -> None:
    async with mesh(order) as mine:
        assert await (await mine.stimulate(order, LAMP)).result(BOUND) == "lamp for 40"
    assert mine.node.state == "closed"


async def test_many_may_be_the_first_to_use_it(mesh: MeshFactory) -> None:
    mine = mesh(order)
    transactions = await asyncio.gather(*(mine.stimulate(order, LAMP) for _ in range(10)))
    assert [await tx.result(BOUND) for tx in transactions] == ["lamp for 40"] * 10


async def test_ids_are_the_same_at_each_run(mesh: MeshFactory) -> None:
    tx = await mesh(order).stimulate(order, LAMP)
    assert tx.id.startswith("0000000000000002")
    await tx.result(BOUND)


async def test_blocking_calls_are_refused_in_a_coroutine(mesh: MeshFactory) -> None:
    with pytest.raises(BitActorError, match="await `stimulate`"):
        mesh(order).run(order, LAMP)


def test_a_loop_that_is_not_asyncios_is_refused(mesh: MeshFactory) -> None:
    begun = mesh(order).stimulate(order, LAMP)
    with pytest.raises(BitActorError, match=r"lives on an asyncio loop"):
        begun.send(None)


def test_the_environment_does_not_count(mesh: MeshFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITACTOR_STORE", f"sqlite:///{tmp_path}/other.db")
    mesh(order).run(order, LAMP, timeout=BOUND)
    assert not list(tmp_path.iterdir())


async def test_what_halts_goes_on_in_another_mesh_on_the_same_store(mesh: MeshFactory, sqlite: str) -> None:
    asked: list[int] = []

    def halt_once(reserve: str) -> int:
        asked.append(1)
        if len(asked) == 1:
            raise Halt("a person must look at this")
        return 7

    first = mesh(order, store=sqlite, steps={"pay": halt_once})
    tx = await first.stimulate(order, LAMP)
    assert await tx.ended(BOUND) == "halted"
    await first.close()
    again = await mesh(order, store=sqlite, steps={"pay": halt_once}).transaction(tx.id)
    await again.resume()
    assert await again.result(BOUND) == "lamp for 7"
    assert_trace(again, ..., "halted pay", ..., "resumed", ..., "completed pay", ..., "finished", ...)


class TestInAClass:
    """Fixtures and their wrapped functions know about `self`."""

    async def test_methods_are_tests_too(self, mesh: MeshFactory) -> None:
        assert await (await mesh(order).stimulate(order, LAMP)).result(BOUND) == "lamp for 40"


# Other functions


async def test_a_step_is_replaced(mesh: MeshFactory) -> None:
    def fake(amount: int) -> int:
        return amount * 2

    tx = await mesh(order, steps={"pay": fake}).stimulate(order, LAMP)
    assert await tx.result(BOUND) == "lamp for 80"
    assert run_workflow(order, LAMP).result == "lamp for 40", "the workflow itself stays as it is"
    assert await (await mesh(order).stimulate(order, LAMP)).result(BOUND) == "lamp for 40"


@pytest.mark.parametrize("kind", [Mock, AsyncMock])
async def test_a_mock_is_given_what_the_step_takes(mesh: MeshFactory, kind: Callable[..., Any]) -> None:
    fake = kind(return_value=5)
    tx = await mesh(order, steps={"orders.place/pay": fake}).stimulate(order, LAMP)
    assert await tx.result(BOUND) == "lamp for 5"
    fake.assert_called_once_with(reserve="lamp", amount=40)


async def test_a_mock_with_a_signature_goes_by_that(mesh: MeshFactory) -> None:
    fake = create_autospec(pay.function, return_value=5)
    tx = await mesh(order, steps={"pay": fake}).stimulate(order, LAMP)
    assert await tx.result(BOUND) == "lamp for 5"
    fake.assert_called_once_with(reserve="lamp", amount=40)


async def test_undo_and_compensate_are_replaced(mesh: MeshFactory) -> None:
    undo, compensate = Mock(return_value=None), Mock(return_value=None)
    replaced = {
        "pay": Mock(side_effect=LookupError("no such card")),
        "reserve.undo": undo,
        "pay.compensate": compensate,
    }
    tx = await mesh(order, steps=replaced).stimulate(order, LAMP)
    with pytest.raises(WorkflowFailed, match=r"no such card"):
        await tx.result(BOUND)
    undo.assert_called_once_with(result="lamp")
    assert isinstance(compensate.call_args.kwargs["error"], LookupError)
    assert put_back_items == []


async def test_a_consumer_is_replaced(mesh: MeshFactory, pulses: Pulses) -> None:
    def other(message: Signal) -> str:
        return message.token["item"].upper()

    for fake in (other, Mock(return_value="LAMP")):
        mine = mesh(order, tell, steps={"tell": fake})
        await (await mine.stimulate(order, LAMP)).result(BOUND)
        await mine.close()
    assert [pulse.token_out for pulse in pulses.of("tell", "completed")] == ["LAMP", "LAMP"]


async def test_a_step_that_would_run_in_a_process_runs_here(mesh: MeshFactory) -> None:
    away = Workflow("away")
    away.step(name="far", spawn="process")(compute)
    tx = await mesh(away, steps={"far": lambda: threading.get_native_id()}).stimulate(away)
    assert await tx.result(BOUND) in {thread.native_id for thread in threading.enumerate()}


def compute() -> int:
    raise AssertionError("replaced in the test")


async def test_a_nested_step_is_replaced(mesh: MeshFactory) -> None:
    inner, outer = Workflow("inner", input={"item": str}), Workflow("outer", input={"item": str})

    @inner.step
    def wrap(item: str) -> str:
        return f"[{item}]"

    outer.compose("wrapped", inner)
    tx = await mesh(outer, steps={"outer/wrapped/wrap": lambda item: f"<{item}>"}).stimulate(outer, {"item": "lamp"})
    assert await tx.result(BOUND) == "<lamp>"
    assert await (await mesh(outer).stimulate(outer, {"item": "lamp"})).result(BOUND) == "[lamp]"


def test_what_cannot_be_replaced_is_said_at_once(mesh: MeshFactory) -> None:
    other = Workflow("orders.cancel", input={"item": str})
    other.step(name="reserve")(reserve.function)
    with pytest.raises(ConfigurationError, match=r"'shipp'.*'ship'"):
        mesh(order, steps={"shipp": Mock()})
    with pytest.raises(ConfigurationError, match=r"'ship.undo'"):
        mesh(order, steps={"ship.undo": Mock()})
    with pytest.raises(ConfigurationError, match=r"may be orders.place/reserve or orders.cancel/reserve"):
        mesh(order, other, steps={"reserve": Mock()})
    with pytest.raises(DefinitionError, match=r"'colour'"):
        mesh(order, steps={"ship": lambda colour: colour})
    with pytest.raises(DefinitionError, match=r"takes the signal"):
        mesh(tell, steps={"tell": lambda first, second: None})


# Time


async def test_time_passes_until_what_is_awaited_is_done(mesh: MeshFactory, fake_clock: MeshClock) -> None:
    broken = Mock(side_effect=[ConnectionError("down"), ConnectionError("down"), 3])
    tx = await mesh(order, steps={"pay": broken, "pay.compensate": lambda error: Retry()}).stimulate(order, LAMP)
    assert await fake_clock.run_until(tx.result()) == "lamp for 3"
    assert 30 <= fake_clock.monotonic_ns() / 1e9 < 31, "two waits of 10 and 20 s"


def test_time_passes_for_a_test_that_is_no_coroutine(mesh: MeshFactory, fake_clock: MeshClock) -> None:
    tx = mesh(order, steps={"pay": never}).submit(order, LAMP)
    with fake_clock.passing():
        assert tx.ended(BOUND) == "compensated"
    assert isinstance(tx.errors()[0], StepTimeout)
    assert 5 <= fake_clock.monotonic_ns() / 1e9 < 6


def test_what_follows_has_happened_when_advance_returns(
    mesh: MeshFactory, fake_clock: MeshClock, pulses: Pulses
) -> None:
    slow = Mock(side_effect=lambda **_: str(threading.Event().wait(0.05)))
    tx = mesh(order, steps={"reserve": slow, "pay": never, "pay.compensate": lambda error: None}).submit(order, LAMP)
    fake_clock.advance(4.9)
    assert "timed_out pay" not in pulses.lines(tx)
    fake_clock.advance(0.2)
    assert "timed_out pay" in pulses.lines(tx)
    assert tx.ended(BOUND) == "compensated"


async def test_time_stands_while_a_function_runs_in_a_thread(mesh: MeshFactory, fake_clock: MeshClock) -> None:
    go, started = threading.Event(), threading.Event()

    def slow(reserve: str) -> int:
        started.set()
        assert go.wait(BOUND)
        return 1

    tx = await mesh(order, steps={"pay": slow}).stimulate(order, LAMP)
    ended = asyncio.ensure_future(fake_clock.run_until(tx.ended(), idle=0))
    await until(started.is_set)
    await turns(500)
    assert fake_clock.monotonic_ns() == 0, "or the step would have exceeded its five seconds"
    go.set()
    assert await ended == "completed"


async def test_a_function_in_a_thread_exceeds_its_time_when_that_passes(
    mesh: MeshFactory, fake_clock: MeshClock
) -> None:
    go, started = threading.Event(), threading.Event()

    def slow(reserve: str) -> int:
        started.set()
        go.wait(BOUND)
        return 1

    tx = await mesh(order, steps={"pay": slow, "pay.compensate": lambda error: None}).stimulate(order, LAMP)
    await until(started.is_set)
    with pytest.raises(TimeoutError, match=r"'orders.place/pay' still runs in a thread"):
        await fake_clock.run_until(tx.ended(), within=0.05)
    with pytest.raises(TimeoutError, match=r"`pass_time\(…, wait=False\)`"):
        await fake_clock.pass_time(6, within=0.05)
    assert fake_clock.monotonic_ns() == 0
    await fake_clock.pass_time(6, wait=False)
    assert await fake_clock.run_until(tx.ended()) == "compensated"
    go.set()


async def test_run_until_says_what_time_cannot_bring(mesh: MeshFactory, fake_clock: MeshClock) -> None:
    with pytest.raises(TimeoutError, match=r"nothing waits for time to pass"):
        await fake_clock.run_until(asyncio.Event().wait(), within=0.05)
    tx = await mesh(order, steps={"pay": never}).stimulate(order, LAMP)
    with pytest.raises(TimeoutError, match=r"nothing waits for time|time alone does not bring it"):
        await fake_clock.run_until(asyncio.Event().wait(), within=0.5)
    assert tx.status == "compensated"


async def test_what_is_awaited_is_real_meanwhile(mesh: MeshFactory, fake_clock: MeshClock) -> None:
    """A step that waits for something outside is given a moment before time jumps over its timeout."""

    async def real(reserve: str) -> int:
        await asyncio.sleep(0.005)
        return 1

    tx = await mesh(order, steps={"pay": real}).stimulate(order, LAMP)
    assert await fake_clock.run_until(tx.result(), idle=BOUND) == "lamp for 1"
    assert fake_clock.monotonic_ns() == 0


# Traces


async def test_a_trace_is_what_was_expected(mesh: MeshFactory, pulses: Pulses) -> None:
    tx = await mesh(order, steps={"ship": Mock(side_effect=OSError("no carrier"))}).stimulate(order, LAMP)
    await tx.ended(BOUND)
    undone = ("spawned reserve.undo", "undone reserve", "finished: OSError*")
    assert_trace(
        tx, "accepted", "spawned reserve", "completed reserve", ..., "failed ship: OSError: no carrier", *undone
    )
    assert_trace(tx, ...)
    assert_trace(pulses.of(transaction=tx), ..., "undone reserve", ...)
    assert_trace(run_workflow(order, LAMP), "accepted", ..., "finished", "emitted")


def test_side_by_side_means_in_whatever_order() -> None:
    trace = run_workflow(order, LAMP)
    branches = {("spawned pay", "completed pay"), ("spawned reserve", "completed reserve"), "accepted"}
    assert_trace(trace, branches, ..., "emitted")
    assert_trace(trace, "accepted", {("completed reserve", "spawned pay"), "spawned reserve", "completed pay"}, ...)
    with pytest.raises(AssertionError):
        assert_trace(
            trace, {("completed pay", "spawned pay"), ("spawned reserve", "completed reserve"), "accepted"}, ...
        )


@pytest.mark.parametrize(
    "expected",
    [
        ("accepted",),
        ("accepted", ..., "spawned pay", "spawned ship", ...),
        (..., "failed pay", ...),
        (..., "finished"),
        ("accepted", ..., "emitted", ..., "emitted"),
        (),
    ],
)
def test_a_trace_that_is_not_what_was_expected(expected: Any) -> None:
    with pytest.raises(AssertionError, match=r"'orders.place' [0-9a-f]{32} did not go as expected: "):
        assert_trace(run_workflow(order, LAMP), *expected)


@pytest.mark.parametrize(
    ("expected", "said", "marked"),
    [
        (
            ("accepted", "spawned reserve", {"failed reserve", "skipped reserve"}, ...),
            "instead of 'failed reserve' or 'skipped reserve' there came 'completed reserve'",
            (2, "> completed reserve", 9),
        ),
        (
            (..., "completed pay", "completed ship", ...),
            "instead of 'completed ship' there came 'spawned ship'",
            (5, "> spawned ship", 9),
        ),
        (("accepted", ..., "failed pay", ...), "there is no 'failed pay'", (1, "> no 'failed pay' from here on", 10)),
        (("accepted", ..., "completed ship"), "instead of the end there came 'finished'", (7, "> finished", 9)),
        ((..., "emitted", "emitted"), "instead of 'emitted' there came the end", (9, "> the end", 10)),
        (
            ("accepted", {("spawned reserve", "completed pay"), "completed reserve"}, ...),
            "instead of 'completed pay' there came 'spawned pay'",
            (3, "> spawned pay", 9),
        ),
    ],
)
def test_the_difference_is_shown_where_it_is(expected: Any, said: str, marked: tuple[int, str, int]) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_trace(run_workflow(order, LAMP), *expected)
    first, *lines = str(caught.value).splitlines()
    place, line, length = marked
    assert first.endswith(said)
    assert (lines[place], len(lines)) == (line, length)


def test_expectations_that_are_none_are_refused() -> None:
    trace = run_workflow(order, LAMP)
    with pytest.raises(ValueError, match=r"'complete'.*completed"):
        assert_trace(trace, "complete pay")
    with pytest.raises(TypeError, match=r"expectations are"):
        assert_trace(trace, 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a line is .*, and `\*` stands for anything in the step and the error"):
        assert_trace(trace, {("spawned pay", 7)})  # type: ignore[arg-type]


# Sessions in which a test fails

APP = """
import asyncio
import threading

import pytest

from bitactor import Workflow

job = Workflow("job", input={"n": int})


@job.step(timeout=30.0)
async def work(n: int) -> int:
    return n + 1


async def hang():
    await asyncio.Event().wait()

"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run tests in a session of their own, with pytest-asyncio's automatic mode unless told otherwise."""

    def run(tests: str, *options: str, ini: str = "asyncio_mode = auto", apart: bool = False) -> pytest.RunResult:
        scope = "" if "no:asyncio" in options else "asyncio_default_fixture_loop_scope = function\n"
        ini = ini if scope else ""
        pytester.makeini(f"[pytest]\n{scope}{ini}\nfilterwarnings = error\n")
        pytester.makepyfile(test_it=APP + tests)
        options = ("-p", "no:cacheprovider", "-p", "no:schemathesis", *options)
        return pytester.runpytest_subprocess(*options) if apart else pytester.runpytest_inprocess(*options)

    return run


Session = Callable[..., pytest.RunResult]


def test_a_transaction_that_is_left_running_fails_the_test(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.testing.bench.LINGER", 0.1)
    result = session("""
async def test_coroutine(mesh, fake_clock):
    await mesh(job, steps={"work": hang}).stimulate(job, {"n": 1})

def test_function(mesh):
    mesh(job, steps={"work": hang}).submit(job, {"n": 1})

async def test_block(mesh, fake_clock):
    async with mesh(job, steps={"work": hang}) as mine:
        await mine.stimulate(job, {"n": 1})
""")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*Transactions were still running at the end of the test:*",
            "'job' 0*: 'work' (forward, attempt 1) runs on the loop",
            "Wait for each*",
        ]
    )


def test_whoever_closes_a_mesh_may_leave_what_runs(session: Session) -> None:
    session("""
async def test_left(mesh):
    mine = mesh(job, steps={"work": hang})
    await mine.stimulate(job, {"n": 1})
    await mine.close(0)
""").assert_outcomes(passed=1)


def test_what_ends_by_itself_is_waited_for(session: Session) -> None:
    session("""
async def test_not_awaited(mesh, fake_clock):
    def slow():
        threading.Event().wait(0.05)
    await mesh(job, steps={"work": slow}).stimulate(job, {"n": 1})
""").assert_outcomes(passed=1)


def test_tasks_that_are_left_behind_fail_the_test(session: Session) -> None:
    tests = """
kept = []

async def leaves_a_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))

async def test_coroutine(mesh):
    await (await mesh(job, steps={"work": leaves_a_task}).stimulate(job, {"n": 1})).result()

def test_function(mesh):
    mesh(job, steps={"work": leaves_a_task}).run(job, {"n": 1})
"""
    result = session(tests)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["Tasks were left behind*", "'forgotten': Event.wait*"])


def test_a_function_that_was_given_up_and_runs_on_fails_the_test(session: Session) -> None:
    result = session("""
go = threading.Event()

async def test_given_up(mesh, fake_clock):
    started = threading.Event()
    def stuck():
        started.set()
        go.wait(20)
    tx = await mesh(job, steps={"work": stuck}).stimulate(job, {"n": 1})
    while not started.is_set():
        await asyncio.sleep(0.001)
    await fake_clock.pass_time(60, wait=False)
    assert await tx.ended(10) == "compensated"

def test_release():
    go.set()
""")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["Functions that were given up still run:", "'job/work'"])


def test_a_failure_is_not_hidden_by_what_is_left_and_is_shown_with_the_pulses(session: Session) -> None:
    result = session("""
async def test_fails(mesh):
    await mesh(job, steps={"work": hang}).stimulate(job, {"n": 1})
    await asyncio.sleep(0)
    assert 1 + 1 == 3

def test_fails_too(mesh):
    mesh(job).run(job, {"n": 1})
    assert 1 + 1 == 4

def test_passes(mesh):
    mesh(job).run(job, {"n": 1})
""")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(
        [
            "E*assert (1 + 1) == 3",
            "*BitActor pulses*",
            "'job' 0*",
            "    accepted",
            "    spawned work",
            "E*== 4",
            "    finished",
        ]
    )
    result.stdout.no_fnmatch_line("*Transactions were still running*")


@pytest.mark.parametrize("runner", ["strict", "anyio", "none"])
def test_every_runner_of_coroutines_will_do(session: Session, runner: str) -> None:
    tests = {
        "strict": "@pytest.mark.asyncio\nasync def test_it(mesh, pulses, fake_clock):",
        "anyio": "@pytest.mark.anyio\n@pytest.mark.parametrize('anyio_backend', ['asyncio'])\nasync def test_it(mesh, "
        "pulses, fake_clock):",
        "none": "def test_it(mesh, pulses, fake_clock):\n    mesh(job).run(job, {'n': 1}, timeout=10)\n\nasync def "
        "not_a_test(mesh, pulses, fake_clock):",
    }[runner]
    options = {
        "strict": ("-p", "no:anyio"),
        "anyio": ("-p", "no:asyncio"),
        "none": ("-p", "no:asyncio", "-p", "no:anyio"),
    }[runner]
    body = """
    mine = mesh(job)
    tx = await mine.stimulate(job, {"n": 1})
    assert await fake_clock.run_until(tx.result()) == 2
    assert pulses.of("work", "completed")[0].token_out == 2
"""
    result = session(tests + body, *options, ini="asyncio_mode = strict", apart=True)
    result.assert_outcomes(passed=1)


def test_a_fixture_of_the_users_may_build_on_it(session: Session) -> None:
    session("""
@pytest.fixture
async def app(mesh):
    async with mesh(job) as mine:
        yield mine
    assert mine.node.state == "closed"

@pytest.fixture
def lazy(mesh):
    return mesh(job)

async def test_opened_before(app):
    assert await (await app.stimulate(job, {"n": 1})).result(10) == 2

async def test_opened_by_the_test(lazy):
    assert await (await lazy.stimulate(job, {"n": 1})).result(10) == 2

def test_from_a_thread(lazy):
    assert lazy.run(job, {"n": 1}) == 2
""").assert_outcomes(passed=3)


def test_each_example_of_hypothesis_closes_its_own(session: Session) -> None:
    session("""
from hypothesis import HealthCheck, given, settings, strategies

made = []

@settings(max_examples=5, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=strategies.integers(0, 9))
async def test_examples(mesh, n):
    assert all(mine.node.state == "closed" for mine in made)
    made.append(mesh(job))
    assert await (await made[-1].stimulate(job, {"n": n})).result(10) == n + 1
""").assert_outcomes(passed=1)


def test_nothing_of_ours_is_imported_before_a_fixture_is_used() -> None:
    look = "import sys, pytest_bitactor; sys.exit(bool({'bitactor', 'mesh', 'registry', 'asyncio'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", look], check=True, timeout=60)


def test_a_users_own_mesh_module_harms_nobody_who_does_not_use_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mesh="", test_theirs="import mesh\n\ndef test_fine(): pass\n\ndef test_ours(mesh): pass\n")
    result = pytester.run(sys.executable, "-m", "pytest", "-p", "no:schemathesis", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*mesh.py hides BitActor's own package 'mesh'*"])
