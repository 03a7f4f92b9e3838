"""Ids, policies, errors, contexts, and the fakes of `bitactor.testing`."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitactor
import bitactor.errors
import bitactor.testing
from bitactor import Backoff, BitActorError, Context, Halt, Retry
from bitactor.errors import InvalidInput, RemoteError, WorkflowFailed, suggest
from bitactor.messages.ids import hop_id, hop_salt, idempotency_key, join_hop_id, path_code, transaction_span_id
from bitactor.messages.signal import Fault, Signal
from bitactor.testing import FakeClock, RecordingSink, SequentialIds
from tests.amounts import examples

MANY = examples(quick=100, long=2_000)
TRANSACTION = "0190" * 8


# Ids


def test_hop_ids_are_derived_and_differ_by_everything_they_name() -> None:
    ids = [
        hop_id(transaction, path, direction, attempt)
        for transaction in (TRANSACTION, "0190" * 7 + "0191")
        for path in ("a", "b", "a\x00forward")
        for direction in ("forward", "undo")
        for attempt in (1, 2)
    ]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{16}", hop) for hop in ids)
    assert (
        hop_id(TRANSACTION, "a")
        == hop_id(TRANSACTION, "a")
        == join_hop_id(hop_salt(TRANSACTION), path_code("a", "forward", 1))
    )
    assert transaction_span_id(TRANSACTION) not in ids


def test_an_id_is_never_all_zero() -> None:
    code = path_code("a", "forward", 1)
    assert join_hop_id(code, code) == "0" * 15 + "1"


@MANY
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hop_ids_have_sixteen_digits(salt: int, code: int) -> None:
    assert re.fullmatch("[0-9a-f]{16}", join_hop_id(salt, code))
    assert int(join_hop_id(salt, code), 16) != 0


def test_idempotency_keys() -> None:
    keys = {
        idempotency_key(transaction, path, way)
        for transaction in (TRANSACTION, "f" * 32)
        for path in ("a", "b")
        for way in ("forward", "undo")
    }
    assert len(keys) == 8


# Policies and outcomes


@MANY
@given(st.integers(1, 2_000), st.floats(0, 1), st.floats(0, 1))
def test_backoff_grows_to_its_cap(failures: int, fraction: float, jitter: float) -> None:
    backoff = Backoff(0.1, 2.0, 5.0, jitter)
    full = min(5.0, 0.1 * 2.0 ** min(failures - 1, 60)) * 1e9
    delay = backoff.delay_ns(failures, fraction)
    assert full * (1 - jitter) - 1 <= delay <= full
    assert backoff.delay_ns(failures, 0.0) == pytest.approx(full, abs=1)


@pytest.mark.parametrize(
    "wrong", [{"initial": -1}, {"cap": -1}, {"factor": 0.5}, {"jitter": 1.1}, {"initial": float("nan")}]
)
def test_wrong_backoffs_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Backoff"):
        Backoff(**wrong)


def test_retries_wait_a_number_of_seconds() -> None:
    with pytest.raises(ValueError, match="zero or more"):
        Retry(after=-1)
    with pytest.raises(ValueError, match="zero or more"):
        Retry(after=float("nan"))
    assert repr(Retry(1, "x")) == "Retry(after=1, reason='x')"
    assert repr(Halt("x")) == "Halt('x')"


# Errors


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (bitactor.errors.__doc__ or "").splitlines():
        found = re.match(r"^([│ ]*)(├── |└── )?([A-Z]\w+)(\s|$)", line)
        if found is None or line.startswith("Every"):
            continue
        depth = len(found[1]) // 4 + (1 if found[2] else 0)
        path[depth:] = [found[3]]
        drawn[found[3]] = path[depth - 1] if depth else "Exception"
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(bitactor.errors).items()
        if inspect.isclass(kind) and issubclass(kind, BitActorError)
    }
    missing = real.keys() - drawn.keys()
    assert missing <= {"Cancelled"}
    assert drawn == {name: base for name, base in real.items() if name not in missing}
    assert all(getattr(bitactor.errors, name).__doc__ for name in real)


def test_every_error_is_exported() -> None:
    errors = {
        name
        for name, kind in vars(bitactor.errors).items()
        if inspect.isclass(kind) and issubclass(kind, BitActorError)
    }
    assert errors <= set(bitactor.__all__)


def test_exported_names_exist_and_are_sorted() -> None:
    for module in (bitactor, bitactor.testing):
        assert sorted(module.__all__) == list(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_errors_carry_what_they_say() -> None:
    assert InvalidInput("x", [("a", "b")]).fields == (("a", "b"),)
    failed = WorkflowFailed("x", "t", "stuck", [ValueError("1")])
    assert (failed.transaction, failed.status, [str(error) for error in failed.errors]) == ("t", "stuck", ["1"])
    remote = RemoteError("ValueError", "no", "tb")
    assert (str(remote), str(RemoteError("ValueError", "")), remote.remote_traceback) == (
        "ValueError: no",
        "ValueError",
        "tb",
    )
    assert Fault("a.b:C.D", "no").summary() == "D: no"
    assert Fault("a.b:C", "").summary() == "C"


def test_suggestions() -> None:
    assert suggest("nmae", ["name", "age"]) == " Did you mean 'name'?"
    assert suggest("x", ["b", "a"]) == " Known: 'a', 'b'."
    assert suggest("x", []) == ""
    assert suggest("zz", (f"name{index}" for index in range(20))).endswith(", ….")


# Context


def context(
    direction: str = "forward", attempt: int = 1, budget: int | None = None, clock: FakeClock | None = None
) -> Context:
    signal = Signal(
        "w.x/step",
        TRANSACTION,
        TRANSACTION,
        "c" * 16,
        (),
        direction,
        attempt,
        attempt,
        0,
        5,
        budget,
        None,
        retries_left=2,
    )
    clock = clock or FakeClock()
    return Context(signal, "w.x", "loop", None if budget is None else clock.monotonic_ns() + budget, clock.monotonic_ns)


def test_keys_are_equal_across_attempts_and_differ_by_direction() -> None:
    first, second, undo = context(), context(attempt=3), context("undo")
    assert first.idempotency_key == second.idempotency_key == first.forward_key
    assert undo.idempotency_key != first.idempotency_key
    assert undo.forward_key == first.idempotency_key


def test_a_context_tells_about_its_hop() -> None:
    clock = FakeClock()
    ctx = context(budget=2_000_000_000, clock=clock)
    assert (ctx.step, ctx.workflow, ctx.attempt, ctx.retries_left, ctx.ttl) == ("step", "w.x", 1, 2, 5)
    assert ctx.deadline_left == 2.0
    clock.advance(1.5)
    assert ctx.deadline_left == 0.5
    clock.advance(9)
    assert ctx.deadline_left == 0.0
    assert context().deadline_left is None
    assert (ctx.metadata, ctx.in_doubt, ctx.causes) == ({}, False, ())
    assert ctx.logger.extra == {"workflow": "w.x", "step": "step", "transaction": TRANSACTION, "attempt": 1}


def test_emits_are_buffered_as_tokens() -> None:
    ctx = context()
    assert ctx.emitted() == ()
    value = [1]
    ctx.emit_later("a", value)
    value.append(2)
    ctx.emit_later("b")
    assert [(name, token) for name, token in ctx.emitted()] == [("a", b"\x91\x01"), ("b", None)]
    for wrong in ("", None, 5):
        with pytest.raises(BitActorError, match="a signal's name"):
            ctx.emit_later(wrong)  # type: ignore[arg-type]
    with pytest.raises(BitActorError, match="cannot be carried"):
        ctx.emit_later("c", object())
    assert len(ctx.emitted()) == 2


# The fakes


def test_the_fake_clock_fires_in_order_each_at_its_time() -> None:
    clock = FakeClock()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> Any:
        return lambda: seen.append((name, clock.monotonic_ns() / 1e9))

    def again() -> None:
        note("first")()
        clock.call_at(clock.monotonic_ns() + 500_000_000, note("armed meanwhile"))

    clock.call_at(2_000_000_000, note("second"))
    clock.call_at(1_000_000_000, again)
    clock.call_at(2_000_000_000, note("third"))
    cancelled = clock.call_at(1_000_000_000, note("never"))
    cancelled.cancel()
    cancelled.cancel()
    before = clock.wall_ns()
    clock.advance(0.5)
    assert not seen
    clock.advance(5)
    assert seen == [("first", 1.0), ("armed meanwhile", 1.5), ("second", 2.0), ("third", 2.0)]
    assert clock.wall_ns() - before == clock.monotonic_ns() == 5_500_000_000
    assert clock.next_timer_ns() is None


def test_a_timer_that_is_due_already_waits_for_the_next_advance() -> None:
    clock = FakeClock()
    seen: list[int] = []
    clock.call_at(-5, lambda: seen.append(clock.monotonic_ns()))
    assert not seen
    clock.advance(0)
    assert seen == [0]


def test_a_raising_callback_does_not_lose_the_others() -> None:
    clock = FakeClock()
    seen: list[int] = []
    clock.call_at(1, lambda: 1 // 0)
    clock.call_at(2, lambda: seen.append(2))
    with pytest.raises(ZeroDivisionError):
        clock.advance(1)
    clock.advance(1)
    assert seen == [2]
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(float("nan"))


def test_sequential_ids_are_ids() -> None:
    ids = SequentialIds()
    made = [ids.transaction() for _ in range(100)]
    assert made == sorted(set(made))
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert made == [SequentialIds(index).transaction() for index in range(1, 101)]


def test_the_recording_sink_records() -> None:
    sink = RecordingSink()
    trace = bitactor.testing.run_workflow(_one())
    sink.receive(trace.pulses)
    assert sink.kinds() == sink.kinds(trace.transaction) == ["accepted", "spawned", "completed", "finished"]
    assert sink.kinds("other") == []
    sink.close(1.0)
    assert sink.closed
    with pytest.raises(ValueError, match="broken"):
        RecordingSink(raises=ValueError("broken")).receive(trace.pulses)


def _one() -> bitactor.Workflow:
    workflow = bitactor.Workflow("w")
    workflow.step(name="one", spawn="inline")(lambda: 1)
    return workflow
