"""What fails, how, and what is left of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, field_validator, model_serializer

from bitactor import Backoff, Context, Continue, Fail, Halt, Input, Ok, Retry, Workflow, WorkflowFailed
from bitactor.errors import Cancelled, InvalidInput, InvalidOutcome, RemoteError, StepFailed, UndoFailed
from bitactor.ids import idempotency_key
from bitactor.testing import FakeClock, run_workflow
from mesh import Mesh
from tests.e2e.support import BOUND, PLACES, audit, finish, pass_time, placed, spawned, told, turns, undone, until

EVIL: list[Callable[[], BaseException]] = [
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt(),
    lambda: GeneratorExit(),
    lambda: asyncio.CancelledError(),
    lambda: StopIteration(7),
    lambda: StopAsyncIteration(),
    lambda: RecursionError("deep"),
    lambda: MemoryError(),
    lambda: BaseExceptionGroup("two", [SystemExit(), ValueError("x")]),
    lambda: Unprintable(),
    lambda: ValueError("half a surrogate: \ud800"),
    lambda: ValueError(object()),
    lambda: TimeoutError("my own"),
]


HOMES = pytest.mark.parametrize(
    ("store", "place"), [*(("memory", place) for place in PLACES), ("sqlite", "loop")], indirect=["store"]
)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def _name(make: Callable[[], BaseException]) -> str:
    return type(make()).__name__


# Undo


async def test_undo_is_last_first_by_completion_over_a_diamond(store: str) -> None:
    """a → (b, c) → d; c is declared after b but completes first, and d fails."""
    workflow = Workflow("diamond", ttl=4)
    b_may, taken_back = asyncio.Event(), []

    @workflow.step
    async def a() -> str:
        return "a"

    @workflow.step
    async def b(a: str) -> str:
        await b_may.wait()
        return "b"

    @workflow.step
    async def c(a: str) -> str:
        b_may.set()
        return "c"

    @workflow.step
    async def d(b: str, c: str) -> str:
        raise ValueError("d")

    for step in (a, b, c, d):
        step.undo(lambda result: taken_back.append(result))
    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated"
        completed = [pulse.step for pulse in tx.pulses() if pulse.kind == "completed"]
        assert completed == ["a", "c", "b"]
        assert taken_back == ["b", "c", "a"]
        assert undone(tx) == ["b", "c", "a"]


async def test_undo_is_serial(store: str) -> None:
    workflow = Workflow("serial", ttl=2)
    running, most = 0, 0

    async def take_back(result: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    for number in range(5):

        async def make(number: int = number) -> int:
            return number

        workflow.step(name=f"s{number}")(make).undo(take_back)

    @workflow.step(after=[f"s{number}" for number in range(5)])
    async def breaks() -> None:
        raise ValueError

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert len(undone(tx)) == 5 and most == 1


@pytest.mark.parametrize("place", ["loop", "thread"])
async def test_a_sibling_in_flight_is_stopped_or_awaited_and_then_undone(store: str, place: str) -> None:
    workflow = Workflow("siblings", ttl=1, grace=BOUND)
    begun, may_end = threading.Event(), threading.Event()
    taken_back: list[Any] = []

    if place == "loop":

        async def sibling() -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "done all the same"
            return ""
    else:

        def sibling() -> str:  # type: ignore[misc]
            begun.set()
            may_end.wait(BOUND)
            return "done all the same"

    workflow.step(name="sibling")(sibling).undo(lambda result: taken_back.append(result))

    @workflow.step
    async def breaks() -> None:
        await until(begun.is_set)
        raise ValueError("now")

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "failed breaks" in told(tx))
        assert taken_back == [] or place == "loop"
        may_end.set()
        assert await tx.ended(BOUND) == "compensated"
        assert taken_back == ["done all the same"]
        assert told(tx).index("completed sibling") < told(tx).index("undone ~sibling")
        audit(tx)


@pytest.mark.parametrize("doubt", [True, False])
async def test_a_cancelled_sibling_is_in_doubt(store: str, doubt: bool) -> None:
    workflow = Workflow("doubtful", ttl=2)
    taken_back: list[Any] = []
    begun = asyncio.Event()

    @workflow.step
    async def before() -> str:
        return "before"

    before.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def sibling(before: str) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    @sibling.undo(in_doubt=doubt)
    async def unsibling(result: str | None, before: str, ctx: Context) -> None:
        taken_back.append((result, before, ctx.in_doubt, ctx.forward_key == keys["sibling"]))

    keys: dict[str, str] = {}

    @workflow.step
    async def breaks(before: str) -> None:
        await begun.wait()
        raise ValueError("now")

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        keys["sibling"] = idempotency_key(tx.id, "sibling")
        if doubt:
            assert await tx.ended(BOUND) == "compensated"
            assert taken_back == [(None, "before", True, True), "before"]
        else:
            assert await tx.ended(BOUND) == "stuck"
            assert taken_back == ["before"], "the rollback goes on"
            errors = tx.errors()
            assert isinstance(errors[0], ValueError)
            assert any(isinstance(error, UndoFailed) and "doubtful/sibling" in str(error) for error in errors)
        audit(tx)


async def test_a_step_without_undo_is_passed_over(store: str) -> None:
    workflow = Workflow("no undo", ttl=2)

    @workflow.step
    async def plain() -> int:
        return 1

    @workflow.step
    async def breaks(plain: int) -> None:
        raise ValueError

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated" and undone(tx) == []
        assert tx.results() == {"plain": 1}


async def test_exceptions_in_undo_are_collected_and_the_rollback_goes_on(store: str) -> None:
    workflow = Workflow("bad undo", ttl=4)
    taken_back: list[str] = []

    @workflow.step
    async def a() -> str:
        return "a"

    @workflow.step
    async def b(a: str) -> str:
        return "b"

    @workflow.step
    async def c(b: str) -> str:
        return "c"

    @workflow.step
    async def d(c: str) -> None:
        raise ValueError("first")

    a.undo(lambda result: taken_back.append(result))

    @b.undo
    async def unb(result: str) -> None:
        raise KeyError("second")

    @c.undo
    def unc(result: str) -> None:
        raise OSError("third")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "stuck"
        assert taken_back == ["a"]
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result()
        assert [type(error) for error in caught.value.errors] == [ValueError, OSError, KeyError]
        assert isinstance(caught.value.__cause__, ValueError)
        assert [row.transaction for row in mesh.node.store.list(status="stuck")] == [tx.id]


async def test_a_stuck_transaction_is_resumed_and_undoes_the_rest(store: str) -> None:
    workflow = Workflow("mended", ttl=2)
    broken, taken_back = [True], []

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo
    async def una(result: str) -> None:
        if broken[0]:
            raise ConnectionError("down")
        taken_back.append(result)

    @workflow.step
    async def b(a: str) -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "stuck"
        await tx.resume()
        assert await tx.ended(BOUND) == "stuck"
        broken[0] = False
        await tx.resume()
        assert await tx.ended(BOUND) == "compensated"
        assert taken_back == ["a"]
        with pytest.raises(InvalidInput, match="compensated"):
            await tx.resume()
        audit(tx)


async def test_retry_in_undo_is_bounded(store: str) -> None:
    workflow = Workflow("retrying undo", ttl=2)
    attempts: list[int] = []

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo(retries=2)
    async def una(result: str, attempt: int) -> Retry:
        attempts.append(attempt)
        return Retry(after=0, reason="not yet")

    @workflow.step
    async def b(a: str) -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "stuck" and attempts == [1, 2, 3]
        assert "not yet" in str(tx.errors()[1])


@pytest.mark.parametrize("verdict", [Continue(1), Halt("x"), 17, "done"])
async def test_what_an_undo_may_not_answer(store: str, verdict: Any) -> None:
    workflow = Workflow("odd undo", ttl=2)

    @workflow.step
    async def a() -> str:
        return "a"

    a.undo(lambda result: verdict)

    @workflow.step
    async def b(a: str) -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        if isinstance(verdict, Continue | Halt):
            assert tx.status == "stuck"
            assert isinstance(tx.errors()[1], InvalidOutcome)
        else:
            assert tx.status == "compensated"


async def test_an_undo_whose_result_does_not_fit_its_annotation(store: str) -> None:
    workflow = Workflow("misfit", ttl=2)

    @workflow.step
    async def a() -> dict:
        return {"number": "not a number"}

    @a.undo
    async def una(result: Receipt) -> None:
        raise AssertionError("never called")

    @workflow.step
    async def b(a: dict) -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "stuck"
        assert len(tx.errors()) == 2
        assert (await finish(mesh, workflow)).status == "stuck", "and the mesh goes on"


# Outcomes of compensate


class Ended(NamedTuple):
    status: str
    value: Any
    errors: list[BaseException]
    told: list[str]
    failed: str
    """How the pulse of the failure puts it."""
    seen: list[Any]
    taken_back: list[Any]


async def compensated_with(store: str, answer: Any, *, retries: int = 1, place: str = "loop", raises: bool = False) -> Ended:
    workflow = Workflow("answers", ttl=2)
    seen: list[Any] = []
    taken_back: list[Any] = []

    def step(attempt: int) -> str:
        if attempt > 1:
            return "second try"
        raise ValueError("first try")

    def compensate(error: Exception, attempt: int) -> Any:
        seen.append((type(error), attempt))
        if raises:
            raise answer
        return answer

    made = workflow.step(name="only", retries=retries, spawn=place)(placed(place, step))
    made.compensate(placed(place, compensate))
    made.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def after(only: str) -> str:
        if only == "break":
            raise OSError("after")
        return only

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        failed = next((pulse.error or "" for pulse in tx.pulses() if pulse.kind == "failed"), "")
        value = tx.value() if tx.status == "completed" else None
        return Ended(tx.status, value, tx.errors(), told(tx), failed, seen, taken_back)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("raises", [False, True])
async def test_compensate_says_try_again(store: str, place: str, raises: bool) -> None:
    end = await compensated_with(store, Retry(after=0), place=place, raises=raises)
    assert end.status == "completed" and end.value == "second try"
    assert end.seen == [(ValueError, 1)]


async def test_compensate_says_try_again_but_no_tries_are_left(store: str) -> None:
    end = await compensated_with(store, Retry(after=0), retries=0)
    assert end.status == "compensated" and end.taken_back == []
    assert isinstance(end.errors[0], ValueError)


@pytest.mark.parametrize("place", PLACES)
async def test_compensate_gives_a_value(store: str, place: str) -> None:
    end = await compensated_with(store, Continue("instead"), place=place)
    assert end.status == "completed" and end.value == "instead" and end.taken_back == []
    assert "compensated only" in end.told


async def test_what_compensate_gave_is_undone_like_any_other(store: str) -> None:
    end = await compensated_with(store, Continue("break"))
    assert end.status == "compensated" and end.taken_back == ["break"]


@pytest.mark.parametrize("raises", [False, True])
async def test_compensate_halts(store: str, raises: bool) -> None:
    end = await compensated_with(store, Halt("ask somebody"), raises=raises)
    assert end.status == "halted"


@pytest.mark.parametrize("answer", [None, Fail("for good")])
async def test_compensate_lets_it_fail(store: str, answer: Any) -> None:
    end = await compensated_with(store, answer, retries=5)
    assert end.status == "compensated" and end.taken_back == []
    assert end.told.count("spawned only") == 1, "with a compensate, it decides on retries"


@pytest.mark.parametrize("answer", [17, "retry", True, Ok(1), Retry, object()])
async def test_compensate_answers_nonsense(store: str, answer: Any) -> None:
    end = await compensated_with(store, answer)
    assert end.status == "compensated"
    assert isinstance(end.errors[0], InvalidOutcome) and "compensate" in str(end.errors[0])


@HOMES
@pytest.mark.parametrize("make", EVIL, ids=_name)
async def test_compensate_raises(store: str, place: str, make: Callable[[], BaseException]) -> None:
    end = await compensated_with(store, make(), place=place, raises=True)
    assert end.status == "compensated"
    assert isinstance(end.errors[0], ValueError), "the original error comes first"
    assert "first try" in end.failed and "compensate" in end.failed


async def test_compensate_gives_what_cannot_be_carried(store: str) -> None:
    end = await compensated_with(store, Continue(object()))
    assert end.status == "compensated"
    assert isinstance(end.errors[0], InvalidOutcome)


# What user code may raise


@HOMES
@pytest.mark.parametrize("make", EVIL, ids=_name)
async def test_a_step_raises(store: str, place: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("raising", ttl=2)
    taken_back: list[Any] = []

    def before() -> int:
        return 1

    workflow.step(name="before", spawn="inline")(before).undo(lambda result: taken_back.append(result))

    def breaks(before: int) -> None:
        raise make()

    workflow.step(name="breaks", spawn=place)(placed(place, breaks)).undo(lambda result: taken_back.append("not this"))
    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated", tx.errors()
        assert taken_back == [1], "a step that raised is known not to have happened"
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result()
        kind = type(make())
        if kind is StopIteration and place == "loop":
            kind = RuntimeError
        assert type(caught.value.__cause__) is kind
        assert type(next(pulse for pulse in tx.pulses() if pulse.kind == "failed").error) is str
        assert mesh.node.supervisor.running == 0 and mesh.node.supervisor.healthy
    async with Mesh(workflow, store=store) as mesh:
        if store.startswith("sqlite"):
            again = await mesh.transaction(tx.id)
            assert isinstance(again.errors()[0], BaseException)


@HOMES
@pytest.mark.parametrize("make", EVIL, ids=_name)
async def test_an_undo_raises(store: str, place: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("undo raising", ttl=3)
    taken_back: list[Any] = []

    @workflow.step(spawn="inline")
    def before() -> int:
        return 1

    before.undo(lambda result: taken_back.append(result))

    def made(before: int) -> int:
        return 2

    def unmake(result: int) -> None:
        raise make()

    workflow.step(name="made", spawn=place)(placed(place, made)).undo(placed(place, unmake))

    @workflow.step(spawn="inline")
    def breaks(made: int) -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "stuck" and taken_back == [1]
        assert isinstance(tx.errors()[0], ValueError)
        assert len(tx.errors()) == 2


@pytest.mark.parametrize("make", EVIL, ids=_name)
@pytest.mark.parametrize("where", ["when", "transform", "backoff"])
async def test_what_the_supervisor_calls_raises(store: str, where: str, make: Callable[[], BaseException]) -> None:
    workflow = Workflow("deciding", input={"x": int}, ttl=2)

    def broken(*given: Any) -> Any:
        raise make()

    def failing(x: int) -> None:
        raise OSError("the step")

    async def fine(x: int) -> int:
        return x

    if where == "when":
        workflow.step(name="only", when=lambda x: broken())(fine)
    elif where == "transform":
        workflow.step(name="only", bind={"x": Input("x").map(broken)})(fine)
    else:
        workflow.step(name="only", retries=2, backoff=lambda error, attempt: broken())(failing)
    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow, {"x": 1})
        assert tx.status == "compensated"
        kind = OSError if where == "backoff" else type(make())
        assert type(tx.errors()[0]) is kind
        assert mesh.node.supervisor.running == 0


@pytest.mark.parametrize("answer", [-1, float("nan"), "soon", None, True, object()])
async def test_backoff_answers_nonsense(store: str, answer: Any) -> None:
    workflow = Workflow("odd backoff", ttl=1)

    @workflow.step(retries=2, backoff=lambda error: answer)
    async def breaks() -> None:
        raise ValueError("first")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated"
        failed = next(pulse for pulse in tx.pulses() if pulse.kind == "failed")
        assert "ValueError: first" in (failed.error or "") and "backoff" in (failed.error or "")


@pytest.mark.parametrize("raised", [False, True])
async def test_a_compensation_that_asks_for_another_try_waits_as_the_backoff_function_says(store: str, raised: bool) -> None:
    workflow = Workflow("patient by function", ttl=1)
    asked: list[tuple[str, int]] = []

    def backoff(error: Exception, attempt: int) -> float:
        asked.append((str(error), attempt))
        return 0.02 * attempt

    @workflow.step(retries=2, backoff=backoff)
    async def breaks(attempt: int) -> str:
        if attempt < 3:
            raise ValueError(attempt)
        return "done"

    @breaks.compensate
    def again(error: Exception) -> Retry:
        if raised:
            raise Retry(reason="busy")
        return Retry(reason="busy")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert await tx.result() == "done"
        pulses = tx.pulses()
    assert asked == [("1", 1), ("2", 2)]
    assert [pulse.data["after_ns"] for pulse in pulses if pulse.kind == "retried" and pulse.data] == [20_000_000, 40_000_000]
    journal = run_workflow(workflow).pulses
    assert [pulse.data["after_ns"] for pulse in journal if pulse.kind == "retried" and pulse.data] == [20_000_000, 40_000_000]


@pytest.mark.parametrize("raised", [False, True])
async def test_a_step_that_asks_for_another_try_waits_as_its_backoff_function_says(store: str, raised: bool) -> None:
    workflow = Workflow("patient by itself", ttl=1)
    asked: list[str] = []

    def backoff(error: Exception, attempt: int) -> float:
        asked.append(repr(error))
        return 0.02 * attempt

    @workflow.step(retries=2, backoff=backoff)
    async def busy(attempt: int) -> Retry | str:
        if attempt == 3:
            return "done"
        if raised:
            raise Retry(reason="busy")
        return Retry(reason="busy")

    @busy.compensate
    def never(error: Exception) -> None:
        raise AssertionError("asking for another try is no failure")

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert await tx.result() == "done"
        pulses = tx.pulses()
    assert asked == ["Retry(after=None, reason='busy')"] * 2
    for journal in (pulses, run_workflow(workflow).pulses):
        assert [pulse.data["after_ns"] for pulse in journal if pulse.kind == "retried" and pulse.data] == [20_000_000, 40_000_000]


@pytest.mark.parametrize("after", [float("inf"), 1e200, 1e10])
async def test_a_wait_of_a_thousand_years(store: str, after: float) -> None:
    workflow = Workflow("eternal", ttl=1)

    @workflow.step(retries=2)
    async def waits() -> Retry:
        return Retry(after=after)

    @workflow.step(retries=2, backoff=lambda error: after)
    async def waits_too() -> None:
        raise ValueError("again")

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: {"retried waits", "retried waits_too"} <= set(told(tx)))
        assert await tx.cancel() == "cancelled"
        audit(tx)


# Results


class Receipt(BaseModel):
    number: int


class Stubborn(BaseModel):
    @model_serializer
    def serialise(self) -> Any:
        raise LookupError("not today")


class Picky(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def check(cls, value: int) -> int:
        raise LookupError("a validator may raise anything")


def _cyclic() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100):
        found = [found]
    return found


UNCARRIABLE: dict[str, Callable[[], Any]] = {
    "object": object,
    "lambda": lambda: lambda: 1,
    "exception": lambda: ValueError("returned"),
    "surrogate": lambda: "\ud800",
    "surrogate inside": lambda: {"a": ["\ud800"]},
    "cyclic": _cyclic,
    "deep": _deep,
    "too large": lambda: b"x" * (5 * 1024 * 1024),
    "too large text": lambda: "x" * (5 * 1024 * 1024),
    "lock": threading.Lock,
    "stubborn model": lambda: Stubborn(),
    "class": lambda: ValueError,
    "continue": lambda: Continue(1),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", UNCARRIABLE.values(), ids=UNCARRIABLE.keys())
async def test_results_that_cannot_be_carried(place: str, make: Callable[[], Any]) -> None:
    workflow = Workflow("uncarriable", ttl=1)

    def odd() -> Any:
        return make()

    workflow.step(name="odd", retries=3, spawn=place)(placed(place, odd))
    async with Mesh(workflow) as mesh:
        tx = await finish(mesh, workflow)
        assert tx.status == "compensated"
        assert "uncarriable/odd" in str(tx.errors()[0])
        assert told(tx).count("spawned odd") == 1, "the same function would return the same"


async def test_subclasses_of_outcomes_count(store: str) -> None:
    class Later(Retry):
        pass

    workflow = Workflow("own outcomes", ttl=1)

    @workflow.step(retries=1)
    async def later(attempt: int) -> Any:
        return "done" if attempt > 1 else Later(after=0)

    async with Mesh(workflow, store=store) as mesh:
        assert await (await finish(mesh, workflow)).result() == "done"


async def test_arguments_a_users_model_refuses_in_its_own_way(store: str) -> None:
    workflow = Workflow("picky", ttl=2)

    @workflow.step
    async def gives() -> dict:
        return {"x": 1}

    @workflow.step
    async def takes(gives: Picky) -> None:
        raise AssertionError("never called")

    async with Mesh(workflow, store=store) as mesh:
        transactions = [await mesh.stimulate(workflow) for _ in range(3)]
        for tx in transactions:
            assert await tx.ended(BOUND) == "compensated"
            assert isinstance(tx.errors()[0], LookupError | RemoteError)


async def test_what_a_step_says_of_itself(store: str) -> None:
    workflow = Workflow("says", input={"what": str}, ttl=1)

    @workflow.step(retries=2)
    async def says(what: str, attempt: int) -> Any:
        match what:
            case "fail":
                return Fail("on purpose")
            case "raise fail":
                raise Fail("on purpose")
            case "ok":
                return Ok({"wrapped": 1})
            case "raise retry" if attempt < 3:
                raise Retry(after=0, reason="again")
            case "retry for ever":
                return Retry(after=0, reason="again")
            case "reason":
                return Fail("\ud800")
        return attempt

    async with Mesh(workflow, store=store) as mesh:
        for what in ("fail", "raise fail"):
            tx = await finish(mesh, workflow, {"what": what})
            assert tx.status == "compensated" and "on purpose" in str(tx.errors()[0])
            assert isinstance(tx.errors()[0], StepFailed)
            assert told(tx).count("spawned says") == 1
        assert await (await finish(mesh, workflow, {"what": "ok"})).result() == {"wrapped": 1}
        assert await (await finish(mesh, workflow, {"what": "raise retry"})).result() == 3
        tx = await finish(mesh, workflow, {"what": "retry for ever"})
        assert tx.status == "compensated" and "again" in str(tx.errors()[0])
        assert told(tx).count("spawned says") == 3
        assert (await finish(mesh, workflow, {"what": "reason"})).status == "compensated"


# Halting and resuming


async def test_halt_awaits_what_is_in_flight_and_keeps_it(store: str) -> None:
    workflow = Workflow("halting", ttl=2)
    runs: list[str] = []
    go = asyncio.Event()
    answers = [Halt("look"), "fine"]

    @workflow.step
    async def asks() -> Any:
        runs.append("asks")
        return answers.pop(0)

    @workflow.step
    async def slow() -> str:
        runs.append("slow")
        await go.wait()
        return "slow"

    @workflow.step
    async def joins(asks: str, slow: str) -> list[str]:
        runs.append("joins")
        return [asks, slow]

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "halted asks" in told(tx))
        assert tx.status == "running"
        go.set()
        assert await tx.ended(BOUND) == "halted"
        with pytest.raises(WorkflowFailed, match="look") as caught:
            await tx.result()
        assert caught.value.status == "halted"
        assert "completed slow" in told(tx)
        assert [row.transaction for row in mesh.node.store.list(status="halted")] == [tx.id]
        await tx.resume()
        assert await tx.result(BOUND) == ["fine", "slow"]
        assert runs == ["asks", "slow", "asks", "joins"] or runs == ["slow", "asks", "asks", "joins"]
        assert mesh.node.supervisor.running == 0
        audit(tx)


async def test_resume_by_another_mesh_on_the_same_file(sqlite: str) -> None:
    workflow = Workflow("handed over", ttl=2)
    runs: list[str] = []
    answers = [Halt("look"), "fine"]

    @workflow.step
    async def first() -> str:
        runs.append("first")
        return "first"

    @workflow.step
    async def asks(first: str) -> Any:
        runs.append("asks")
        return answers.pop(0)

    async with Mesh(workflow, store=sqlite) as one:
        tx = await one.stimulate(workflow)
        assert await tx.ended(BOUND) == "halted"
        async with Mesh(workflow, store=sqlite) as other:
            theirs = await other.transaction(tx.id)
            assert theirs.status == "halted"
            await theirs.resume()
            assert await theirs.result(BOUND) == "fine"
            audit(theirs)
        assert runs == ["first", "asks", "asks"]
        with pytest.raises(InvalidInput, match="completed"):
            await tx.resume()
        assert one.node.supervisor.running == 0
    async with Mesh(workflow, store=sqlite) as third:
        assert (await third.transaction(tx.id)).status == "completed"


async def test_halted_then_reopened(sqlite: str) -> None:
    workflow = Workflow("over night", ttl=2)
    answers = [Halt("till tomorrow"), "fine"]

    @workflow.step
    async def asks() -> Any:
        return answers.pop(0)

    async with Mesh(workflow, store=sqlite) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.ended(BOUND) == "halted"
    async with Mesh(workflow, store=sqlite) as mesh:
        again = await mesh.transaction(tx.id)
        assert again.status == "halted", "opening does not resume it"
        await turns()
        await again.resume()
        assert await again.result(BOUND) == "fine"


async def test_resuming_twice_at_once_is_once(store: str) -> None:
    workflow = Workflow("twice", ttl=1)
    runs: list[int] = []

    @workflow.step
    async def asks() -> Any:
        runs.append(1)
        return Halt("look") if len(runs) == 1 else "fine"

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.ended(BOUND) == "halted"
        other = await mesh.transaction(tx.id)
        await tx.resume()
        with pytest.raises(InvalidInput):
            await tx.resume()
        with pytest.raises(InvalidInput):
            await other.resume()
        assert await tx.result(BOUND) == "fine"
        assert len(runs) == 2 and mesh.node.supervisor.running == 0


async def test_a_failure_while_halting_undoes(store: str) -> None:
    workflow = Workflow("halt and fail", ttl=1)
    taken_back: list[Any] = []
    halted = asyncio.Event()

    @workflow.step
    async def done() -> str:
        return "done"

    done.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def halts() -> Halt:
        return Halt("look")

    @workflow.step
    async def breaks() -> None:
        await halted.wait()
        raise ValueError("no")

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "halted halts" in told(tx))
        halted.set()
        assert await tx.ended(BOUND) == "compensated"
        assert taken_back == ["done"]
        audit(tx)


async def test_halting_while_another_waits_for_a_retry(store: str) -> None:
    workflow = Workflow("halt and retry", ttl=1)
    resumed = [False]
    attempts: list[int] = []

    @workflow.step
    async def halts() -> Any:
        await until(lambda: attempts)
        return 1 if resumed[0] else Halt("look")

    @workflow.step(retries=1)
    async def retries(attempt: int) -> Any:
        attempts.append(attempt)
        return 2 if resumed[0] else Retry(after=1000)

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.ended(BOUND) == "halted"
        resumed[0] = True
        await tx.resume()
        assert await tx.result(BOUND) == 2
        assert attempts == [1, 2]
        audit(tx)


# Cancelling


async def test_cancel_before_the_first_hop(store: str) -> None:
    workflow = Workflow("early", ttl=1)
    runs: list[int] = []

    @workflow.step
    async def only() -> None:
        runs.append(1)
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.cancel("changed my mind") == "cancelled"
        with pytest.raises(WorkflowFailed, match="changed my mind") as caught:
            await tx.result()
        assert isinstance(caught.value.__cause__, Cancelled)
        assert mesh.node.supervisor.running == 0
        audit(tx)


async def test_cancel_while_running_undoes(store: str) -> None:
    workflow = Workflow("amid", ttl=2)
    taken_back: list[Any] = []

    @workflow.step
    async def a() -> str:
        return "a"

    a.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def b(a: str) -> None:
        await asyncio.Event().wait()

    b.undo(in_doubt=True)(lambda result, ctx: taken_back.append("b"))
    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await spawned(tx, "b")
        assert await tx.cancel() == "cancelled"
        assert taken_back == ["b", "a"]
        audit(tx)


async def test_cancel_during_a_wait_for_a_retry(store: str) -> None:
    workflow = Workflow("waiting", ttl=2)
    taken_back: list[Any] = []

    @workflow.step
    async def a() -> str:
        return "a"

    a.undo(lambda result: taken_back.append(result))

    @workflow.step(retries=5)
    async def b(a: str) -> Retry:
        return Retry(after=1000)

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "retried b" in told(tx))
        assert await tx.cancel() == "cancelled"
        assert taken_back == ["a"]
        assert len(mesh.node.wheel) == 0
        audit(tx)


async def test_cancel_while_undoing_and_after_the_end(store: str) -> None:
    workflow = Workflow("too late", ttl=2)
    undoing, go = asyncio.Event(), asyncio.Event()

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo
    async def una(result: str) -> None:
        undoing.set()
        await go.wait()

    @workflow.step
    async def b(a: str) -> None:
        raise ValueError

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(undoing.is_set)
        cancelling = asyncio.ensure_future(tx.cancel())
        await turns()
        assert not cancelling.done()
        go.set()
        assert await cancelling == "compensated"
        before = told(tx)
        assert await tx.cancel() == "compensated"
        await turns()
        assert told(tx) == before
        audit(tx)


async def test_cancel_of_a_halted_one(store: str) -> None:
    workflow = Workflow("halted", ttl=2)
    taken_back: list[Any] = []

    @workflow.step
    async def a() -> str:
        return "a"

    a.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def b(a: str) -> Halt:
        return Halt("look")

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.ended(BOUND) == "halted"
        assert await asyncio.gather(tx.cancel(), tx.cancel()) == ["cancelled", "cancelled"]
        assert taken_back == ["a"]
        assert mesh.node.supervisor.running == 0
        audit(tx)


async def test_cancel_while_a_hop_waits_for_a_thread(store: str) -> None:
    blocker, waiting = Workflow("blocker", ttl=1), Workflow("waiting", ttl=1)
    go, begun, runs = threading.Event(), threading.Event(), []

    @blocker.step
    def block() -> None:
        begun.set()
        go.wait(BOUND)

    @waiting.step
    def never() -> None:
        runs.append(1)

    never.undo(lambda result: runs.append("undone"))
    async with Mesh(blocker, waiting, store=store, threads=1) as mesh:
        first = await mesh.stimulate(blocker)
        await until(begun.is_set)
        tx = await mesh.stimulate(waiting)
        await spawned(tx, "never")
        assert await tx.cancel() == "cancelled"
        go.set()
        await first.result(BOUND)
        assert runs == [], "it is known not to have begun"
        audit(tx)


async def test_killing_the_caller_leaves_the_transaction_running(store: str) -> None:
    workflow = Workflow("goes on", ttl=1)
    go = asyncio.Event()

    @workflow.step
    async def waits() -> str:
        await go.wait()
        return "done"

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        caller = asyncio.ensure_future(tx.result())
        await turns()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert tx.status == "running"
        go.set()
        assert await tx.result(BOUND) == "done"


async def test_two_meshes_in_one_process_do_not_mix(tmp_path: Any) -> None:
    workflow = Workflow("same name", ttl=1)

    @workflow.step
    async def who(ctx: Context) -> str:
        return str(ctx.metadata.get("mesh"))

    async with Mesh(workflow, store=f"sqlite:///{tmp_path}/a.db") as a, Mesh(workflow, store=f"sqlite:///{tmp_path}/b.db") as b:
        ta = await a.stimulate(workflow, metadata={"mesh": "a"}, key="same")
        tb = await b.stimulate(workflow, metadata={"mesh": "b"}, key="same")
        assert (await ta.result(BOUND), await tb.result(BOUND)) == ("a", "b")
        assert ta.id != tb.id


# Metadata, odd input


async def test_what_cannot_be_kept_is_refused_at_the_stimulus(store: str) -> None:
    workflow = Workflow("given", input={"x": (Any, None)}, ttl=1)

    @workflow.step
    async def only(x: Any) -> Any:
        return x

    async with Mesh(workflow, store=store) as mesh:
        for metadata in ({"x": object()}, {"x": "\ud800"}, {"deep": _deep()}):
            with pytest.raises(InvalidInput, match="metadata"):
                await mesh.stimulate(workflow, metadata=metadata)
        for value in (object(), "\ud800", _deep(), _cyclic(), lambda: 1):
            with pytest.raises(InvalidInput):
                await mesh.stimulate(workflow, {"x": value})
        assert mesh.node.supervisor.running == 0
        tx = await finish(mesh, workflow, {"x": {"fine": [1, 2]}}, metadata={"also": ["fine"]})
        assert await tx.result() == {"fine": [1, 2]}


async def test_tokens_are_values(store: str) -> None:
    """No two steps share a mutable object, on memory as on sqlite."""
    workflow = Workflow("values", ttl=3)
    kept: list[Any] = []

    @workflow.step
    async def gives() -> dict:
        kept.append({"list": [1]})
        return kept[0]

    @workflow.step
    async def spoils(gives: dict) -> str:
        gives["list"].append("spoilt")
        kept[0]["list"].append("spoilt too")
        return "x"

    @workflow.step(after=["spoils"])
    async def looks(gives: dict) -> dict:
        return gives

    async with Mesh(workflow, store=store) as mesh:
        tx = await finish(mesh, workflow)
        assert await tx.result() == {"list": [1]}


async def test_a_slow_sibling_does_not_delay_a_chain(store: str) -> None:
    """No level barriers: the chain of five is through while its sibling has not ended."""
    workflow = Workflow("no barrier", ttl=6)
    go = asyncio.Event()

    @workflow.step
    async def slow() -> str:
        await go.wait()
        return "slow"

    before = None
    for number in range(5):
        space: dict[str, Any] = {}
        exec(f"async def c{number}({before or ''}): return {number}", space)
        workflow.step(space[f"c{number}"])
        before = f"c{number}"

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "completed c4" in told(tx))
        assert tx.status == "running"
        go.set()
        assert await tx.result(BOUND) == 4


async def test_steps_nobody_uses_still_run(store: str) -> None:
    workflow = Workflow("unused", ttl=1)
    runs: list[str] = []

    @workflow.step
    async def unused() -> None:
        runs.append("unused")

    @workflow.step
    async def used() -> str:
        return "used"

    workflow.returns(used)
    async with Mesh(workflow, store=store) as mesh:
        assert await (await finish(mesh, workflow)).result() == "used"
        assert runs == ["unused"]


async def test_backoff_of_a_policy_is_waited_out(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("patient", ttl=1)
    attempts: list[int] = []

    @workflow.step(retries=3, backoff=Backoff(initial=1, factor=2, cap=3, jitter=0))
    async def breaks(attempt: int) -> str:
        attempts.append(attempt)
        if attempt < 4:
            raise ValueError(attempt)
        return "done"

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        for number, seconds in ((1, 1.0), (2, 2.0), (3, 3.0)):
            await until(lambda number=number: len(attempts) == number)
            await turns()
            await pass_time(clock, seconds - 0.01)
            assert len(attempts) == number
            await pass_time(clock, 0.02)
        assert await tx.result(BOUND) == "done"
        audit(tx)


async def test_a_fan_out_of_a_thousand_and_its_undo(store: str) -> None:
    """A thousand side by side, joined; then the same with a join that fails, and a thousand undos, last first."""
    workflow = Workflow("wide", input={"fail": bool}, ttl=2)
    taken_back: list[int] = []
    for number in range(1_000):

        async def one(number: int = number) -> int:
            return number

        async def unone(result: int) -> None:
            taken_back.append(result)

        workflow.step(name=f"s{number}")(one).undo(unone)

    @workflow.step(after=[f"s{number}" for number in range(1_000)])
    async def joins(fail: bool) -> str:
        if fail:
            raise ValueError
        return "joined"

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow, {"fail": False})
        assert await tx.result(BOUND) == "joined"
        tx = await mesh.stimulate(workflow, {"fail": True})
        assert await tx.ended(BOUND) == "compensated"
        assert taken_back == list(range(999, -1, -1))
