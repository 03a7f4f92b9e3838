"""The saga's tables, and the rules of DESIGN.md that deserve a case of their own."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bitactor import Backoff, Context, StoreError, Workflow
from bitactor.messages.ids import hop_id
from bitactor.messages.pulse import KINDS, Pulse
from bitactor.messages.signal import Fault, Reply
from bitactor.plan.plan import Plan
from bitactor.saga import (
    EVENTS,
    HANDLERS,
    PHASES,
    STEP_RULES,
    STEP_STATES,
    TRANSACTION_RULES,
    TRANSITIONS,
    Accept,
    ArmDeadline,
    CancelRequested,
    DeadlineExpired,
    Dispatch,
    GraceExpired,
    HopExpired,
    Lost,
    Recovered,
    Replied,
    ResumeRequested,
    RetryDue,
    Saga,
    Settle,
    Unrouted,
)
from bitactor.testing import Crash, run_workflow

TRANSACTION = "0190" * 8
BOOM = Fault("builtins:ValueError", "boom")
SLOW = Fault("bitactor.errors:StepTimeout", "slow")


def plan(*, undo: str | None = "in_doubt", compensate: bool = False, redeliveries: int = 1, **options: Any) -> Plan:
    """`a` and `b` side by side, then `c`."""
    workflow = Workflow("w", redeliveries=redeliveries, grace=2.0, undo_timeout=60.0)
    for name in ("a", "b", "c"):
        step = workflow.step(name=name, after=["a", "b"] if name == "c" else [], spawn="inline", **options)(lambda: 1)
        if undo:
            step.undo(in_doubt=undo == "in_doubt")(lambda ctx: None)
        if compensate:
            step.compensate(lambda error: None)
    return workflow.check()


class Driven:
    """A saga with its journal, and short words for stimuli."""

    def __init__(self, made: Plan, deadline_ns: int | None = None) -> None:
        self.plan = made
        self.saga = Saga(made, TRANSACTION)
        self.journal: list[Pulse] = []
        self.now = 1_000
        self.commands: list[Any] = []
        self.feed(Accept(None, (), 8, deadline_ns))

    def feed(self, event: Any) -> list[str]:
        """The kinds of pulses that follow, as `kind step`."""
        pulses, self.commands = self.saga.react(event, self.now)
        self.journal += pulses
        assert Saga.fold(self.plan, self.journal).snapshot() == self.saga.snapshot()
        return [f"{pulse.kind} {pulse.step}".strip() for pulse in pulses]

    def reply(
        self, step: str, outcome: str, *, hop: str = "", delivery: int = 0, epoch: int | None = None, undo: bool = False
    ) -> list[str]:
        index = self.plan.by_name[step]
        saga = self.saga
        hop = hop or (saga.state.undo_hop(index) if undo else saga.state.hops[index])
        fault = BOOM if outcome == "fail" else None
        made = Reply(
            TRANSACTION,
            hop,
            delivery or saga.state.deliveries[index],
            saga.state.epoch if epoch is None else epoch,
            outcome,
            1,
            fault,
        )
        return self.feed(Replied(index, made))

    def dispatched(self) -> list[tuple[str, str]]:
        return [
            (self.plan.steps[command.step].name, command.direction)
            for command in self.commands
            if isinstance(command, Dispatch)
        ]


def test_the_tables_are_complete() -> None:
    assert set(HANDLERS) == {(phase, event) for phase in PHASES for event in EVENTS}
    listed = [(phase, row.event) for row in TRANSITIONS for phase in row.phases]
    assert len(set(listed)) == len(listed), "two rows for one case"
    assert {row.event for row in TRANSITIONS} == set(EVENTS)
    assert all(row.meaning and phase in PHASES for row in TRANSITIONS for phase in row.phases)
    assert all(HANDLERS[phase, row.event] is row.handler for row in TRANSITIONS for phase in row.phases)
    cases = [(state, row.kind, row.direction) for row in STEP_RULES for state in row.states]
    assert len(set(cases)) == len(cases), "two rows for one case"
    assert set(STEP_STATES) == {state for state, _, _ in cases}
    for row in (*STEP_RULES, *TRANSACTION_RULES):
        assert row.kind in KINDS and set(row.leads_to) <= set(row.phases) <= set(PHASES)


def _printed(*arguments: str) -> str:
    command = [sys.executable, "-m", "bitactor.saga", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_tables_can_be_printed_and_say_where_each_function_is() -> None:
    printed = _printed()
    rows = [*((row.handler, row.meaning) for row in TRANSITIONS), *((row.rule, row.kind) for row in STEP_RULES)]
    for function, text in (*rows, *((row.rule, row.kind) for row in TRANSACTION_RULES)):
        place = f"{Path(function.__code__.co_filename).name}:{function.__code__.co_firstlineno}"
        assert any(text in line and place in line for line in printed.splitlines()), text
    assert all(state in printed for state in STEP_STATES)


def test_the_picture_of_the_phases_is_the_one_in_the_docs() -> None:
    page = Path(__file__).parents[3] / "docs" / "architecture.md"
    assert f"```mermaid\n{_printed('--picture')}```" in page.read_text()


def test_what_means_nothing_gives_nothing() -> None:
    driven = Driven(plan())
    assert driven.feed(Accept(None, (), 8, None)) == []
    assert driven.feed(GraceExpired()) == []
    assert driven.feed(ResumeRequested(None)) == []
    assert driven.feed(RetryDue(0)) == []
    assert driven.commands == []


def test_a_reply_is_taken_from_the_current_delivery_of_the_current_epoch_only() -> None:
    driven = Driven(plan())
    assert driven.reply("a", "ok", epoch=1) == []
    assert driven.reply("a", "ok", delivery=2) == []
    assert driven.reply("a", "ok", hop="f" * 16) == []
    assert driven.reply("a", "ok") == ["completed a"]
    assert driven.reply("a", "ok") == []


def test_recovery_undoes_each_step_once_although_another_is_buried_meanwhile() -> None:
    driven = Driven(plan(redeliveries=0))
    driven.reply("b", "ok")
    assert driven.feed(Recovered("n2", 1)) == ["resumed", "tombstone a", "failed a", "spawned a"]
    assert driven.dispatched() == [("a", "undo")]
    driven = Driven(plan(redeliveries=0, undo=None))
    driven.plan.steps[1].undo = plan().steps[1].undo
    driven.reply("b", "ok")
    assert driven.feed(Recovered("n2", 1)) == ["resumed", "tombstone a", "failed a", "spawned b"]
    assert driven.dispatched() == [("b", "undo")]


def test_an_orderly_stop_spends_no_redelivery_and_the_death_of_a_process_still_does() -> None:
    driven = Driven(plan(redeliveries=1))
    driven.reply("b", "ok")
    for epoch in range(1, 6):
        assert driven.feed(Recovered("n", epoch, given_back=True)) == ["resumed", "spawned a"]
        assert driven.journal[-1].data == {
            "delivery": epoch + 1, "lost": "its process was stopped", "given_back": True,
        }  # fmt: skip
    assert driven.feed(Recovered("n", 6)) == ["resumed", "spawned a"]
    assert driven.journal[-1].data == {"delivery": 7, "lost": "its process ended"}
    assert driven.feed(Lost(0, 7, "n7", given_back=True)) == ["spawned a"]
    assert driven.feed(Lost(0, 8, "n8")) == ["tombstone a", "failed a", "spawned a"]
    assert driven.saga.state.errors[0].fault.message == "'w/a' lost its worker (n8) on delivery 2 of 2"
    assert driven.saga.state.steps_in_doubt == {0}, "it may have happened each time"


def test_an_undo_that_is_stopped_in_order_is_delivered_again_at_no_cost() -> None:
    driven = Driven(plan(redeliveries=0))
    driven.reply("b", "ok")
    assert driven.reply("a", "fail") == ["failed a", "spawned b"]
    for epoch in range(1, 5):
        assert driven.feed(Recovered("n", epoch, given_back=True)) == ["resumed", "spawned b"]
        assert driven.dispatched() == [("b", "undo")]
    assert driven.feed(Lost(1, 5, "n", given_back=True)) == ["spawned b"]
    assert driven.feed(Lost(1, 6, "n")) == ["tombstone b", "undo_failed b", "finished"]
    assert driven.saga.state.status == "stuck"


def test_a_compensation_that_is_stopped_in_order_is_asked_again_and_the_next_attempt_counts_afresh() -> None:
    driven = Driven(plan(redeliveries=0, compensate=True, retries=1))
    driven.reply("b", "ok")
    assert driven.feed(HopExpired(0, 1, SLOW)) == ["timed_out a", "spawned a"]
    for epoch in range(1, 4):
        assert driven.feed(Recovered("n", epoch, given_back=True)) == ["resumed", "spawned a"]
        assert driven.commands[-1].fault == SLOW
    assert driven.reply("a", "retry") == ["retried a"]
    assert driven.feed(RetryDue(0)) == ["spawned a"]
    assert driven.feed(Lost(0, 1, "n")) == ["tombstone a", "spawned a"], "none of it was given back"


def test_a_timeout_before_a_halt_is_undone_when_the_halted_transaction_is_cancelled() -> None:
    driven = Driven(plan(retries=1, backoff=Backoff(0.0)))
    driven.reply("b", "ok")
    driven.feed(HopExpired(0, 1, SLOW))
    driven.feed(RetryDue(0))
    assert driven.reply("a", "halt") == ["halted a", "halted"]
    assert driven.feed(CancelRequested(BOOM)) == ["failed"]
    assert driven.feed(GraceExpired()) == ["spawned a"]
    assert driven.saga.state.steps_in_doubt == {0}


def test_the_late_word_of_a_compensation_is_not_the_word_of_the_step() -> None:
    driven = Driven(plan(compensate=True))
    driven.reply("b", "ok")
    assert driven.feed(HopExpired(0, 1, SLOW)) == ["timed_out a", "spawned a"]
    driven.feed(CancelRequested(BOOM))
    driven.feed(GraceExpired())
    assert driven.dispatched() == [("a", "undo")]
    driven = Driven(plan(compensate=True))
    driven.feed(HopExpired(0, 1, SLOW))
    driven.feed(CancelRequested(BOOM))
    driven.reply("b", "ok")
    assert driven.reply("a", "fail") == ["failed a"]
    assert driven.feed(GraceExpired()) == ["spawned b"]
    assert driven.saga.state.steps_in_doubt == {0}, "its run is still in doubt"


def test_one_attempt_that_failed_does_not_settle_the_doubt_about_another() -> None:
    driven = Driven(plan(retries=1, backoff=Backoff(0.0), redeliveries=0))
    first = driven.saga.state.hops[0]
    driven.feed(HopExpired(0, 1, SLOW))
    driven.feed(RetryDue(0))
    second = driven.saga.state.hops[0]
    assert driven.feed(HopExpired(0, 1, SLOW)) == ["timed_out a", "failed a"]
    assert driven.reply("a", "fail", hop=second, delivery=1) == ["late a"]
    assert driven.saga.state.steps_in_doubt == {0}
    assert driven.reply("a", "fail", hop=second, delivery=1) == []
    assert driven.reply("a", "fail", hop=first, delivery=1) == ["late a"]
    assert driven.saga.state.steps_in_doubt == set()
    assert driven.reply("b", "ok") == ["completed b", "spawned b"]
    assert driven.reply("b", "ok", undo=True) == ["undone b", "finished"]


def test_a_late_word_can_free_a_stuck_transaction() -> None:
    driven = Driven(plan(undo="known"))
    driven.reply("b", "ok")
    driven.feed(HopExpired(0, 1, SLOW))
    assert driven.feed(GraceExpired()) == ["undo_failed a", "spawned b"]
    driven.reply("b", "ok", undo=True)
    assert driven.saga.state.status == "stuck"
    assert driven.reply("a", "fail") == ["late a"]
    assert driven.feed(ResumeRequested(None)) == ["resumed", "finished"]
    assert driven.saga.state.status == "compensated"


def test_an_undo_that_never_ran_is_another_hop_when_it_fails_again() -> None:
    driven = Driven(plan(undo="known"))
    driven.reply("b", "fail")
    assert driven.feed(GraceExpired()) == ["timed_out a", "undo_failed a", "finished"]
    assert driven.feed(ResumeRequested(None)) == ["resumed", "undo_failed a", "finished"]
    failed = [pulse for pulse in driven.journal if pulse.kind == "undo_failed"]
    assert [(pulse.attempt, pulse.hop) for pulse in failed] == [
        (attempt, hop_id(TRANSACTION, "a", "undo", attempt)) for attempt in (1, 2)
    ]


def stuck_before_its_undo_ran() -> Driven:
    """`b` was being undone when the time for undo was over; `a` was to be next."""
    driven = Driven(plan())
    driven.reply("a", "ok")
    driven.reply("b", "ok")
    assert driven.reply("c", "fail") == ["failed c", "spawned b"]
    driven.now += 62_000_000_000
    assert driven.feed(DeadlineExpired(BOOM)) == ["tombstone", "undo_failed b", "undo_failed a", "finished"]
    return driven


def test_an_undo_that_time_was_over_for_runs_as_another_hop_when_it_is_resumed() -> None:
    driven = stuck_before_its_undo_ran()
    assert driven.feed(ResumeRequested(None)) == ["resumed", "spawned b"]
    driven.reply("b", "ok", undo=True)
    assert driven.reply("a", "ok", undo=True) == ["undone a", "finished"]
    ends = Counter(pulse.hop for pulse in driven.journal if pulse.kind in ("undone", "undo_failed"))
    assert ends == {hop_id(TRANSACTION, step, "undo", attempt): 1 for step in "ab" for attempt in (1, 2)}


def test_a_journal_in_which_an_undo_that_never_ran_had_spent_no_attempt_goes_on() -> None:
    """Releases before wrote such."""
    driven = stuck_before_its_undo_ran()
    driven.feed(ResumeRequested(None))
    driven.reply("b", "ok", undo=True)
    before = driven.journal[-1]
    assert (before.kind, before.step, before.attempt) == ("spawned", "a", 2)
    old = before._replace(attempt=1, hop=hop_id(TRANSACTION, "a", "undo", 1))
    saga = Saga.fold(driven.plan, [*driven.journal[:-1], old])
    assert saga.state.undo_hop(0) == old.hop
    with pytest.raises(StoreError, match="attempt 3, delivery 1, which is not the next one"):
        Saga.fold(driven.plan, [*driven.journal[:-1], old._replace(attempt=3)])


def test_a_late_success_gives_undo_its_result() -> None:
    driven = Driven(plan(undo="known"))
    driven.feed(HopExpired(0, 1, SLOW))
    assert driven.reply("a", "ok") == ["late a"]
    assert driven.saga.state.steps_in_doubt == set()
    assert driven.reply("b", "ok") == ["completed b", "spawned b"]
    assert driven.reply("b", "ok", undo=True) == ["undone b", "spawned a"]
    assert driven.saga.state.tokens[0] == 1


def test_undo_waits_for_what_timed_out_and_no_longer_than_it_must() -> None:
    driven = Driven(plan(undo="known"))
    driven.reply("b", "ok")
    assert driven.feed(HopExpired(0, 1, SLOW)) == ["timed_out a", "failed a"]
    assert driven.reply("a", "ok") == ["late a", "spawned a"]
    assert driven.saga.state.tokens[0] == 1
    driven = Driven(plan())
    driven.reply("b", "ok")
    driven.feed(HopExpired(0, 1, SLOW))
    assert driven.reply("a", "cancelled") == ["late a", "spawned a"]
    assert driven.saga.state.steps_in_doubt == {0}
    driven = Driven(plan())
    driven.reply("b", "ok")
    driven.feed(HopExpired(0, 1, SLOW))
    assert driven.feed(Lost(0, 1, "killed")) == ["late a", "spawned a"]
    driven = Driven(plan())
    driven.reply("b", "ok")
    driven.feed(HopExpired(0, 1, SLOW))
    assert driven.feed(Recovered("n2", 1)) == ["resumed", "spawned a"]
    driven = Driven(plan(undo=None))
    driven.reply("b", "ok")
    assert driven.feed(HopExpired(0, 1, SLOW)) == ["timed_out a", "failed a", "finished"]


def test_a_worker_lost_before_a_failure_leaves_a_doubt() -> None:
    driven = Driven(plan())
    driven.reply("b", "ok")
    driven.feed(Lost(0, 1, "w"))
    assert driven.reply("a", "fail") == ["failed a", "spawned a"]
    assert driven.saga.state.steps_in_doubt == {0}
    driven = Driven(plan())
    driven.feed(Lost(0, 1, "w"))
    driven.reply("a", "ok")
    assert driven.saga.state.steps_in_doubt == set()


def test_a_deadline_in_the_turn_of_a_failure_does_not_end_undo() -> None:
    driven = Driven(plan(), deadline_ns=5_000)
    driven.reply("a", "ok")
    driven.now = 5_000
    assert driven.reply("b", "fail") == ["failed b", "spawned a"]
    assert driven.feed(DeadlineExpired(BOOM)) == []
    assert [command for command in driven.commands if isinstance(command, ArmDeadline)] == [
        ArmDeadline(5_000 + 60_000_000_000)
    ]
    driven.now += 62_000_000_000
    assert driven.feed(DeadlineExpired(BOOM)) == ["tombstone", "undo_failed a", "finished"]
    assert driven.saga.state.status == "stuck"


@pytest.mark.parametrize("kind", [HopExpired, Lost, Unrouted])
def test_what_becomes_of_a_run_left_in_doubt_is_not_taken_for_the_end_of_its_undo(kind: Any) -> None:
    """Both are delivery 1 of the same step."""
    driven = Driven(plan(redeliveries=0))
    run = driven.saga.state.hops[0]
    driven.reply("b", "fail")
    assert driven.feed(GraceExpired()) == ["timed_out a", "spawned a"]
    about = "holder" if kind is Lost else SLOW
    assert driven.feed(kind(0, 1, about, hop=run)) == []
    undo = driven.saga.state.undo_hop(0)
    assert driven.feed(kind(0, 1, about, hop=undo))[-2:] == ["undo_failed a", "finished"]


def test_a_compensation_is_asked_while_halting_too() -> None:
    driven = Driven(plan(compensate=True))
    driven.reply("b", "halt")
    assert driven.feed(HopExpired(0, 1, SLOW)) == ["timed_out a", "spawned a"]
    assert driven.reply("a", "continue") == ["compensated a", "halted"]
    assert driven.feed(ResumeRequested(None)) == ["resumed", "spawned b"]


def test_an_unheard_of_answer_is_a_failure_of_that_hop_only() -> None:
    driven = Driven(plan())
    driven.reply("a", "ok")
    assert driven.reply("b", "no such thing") == ["failed b", "spawned a"]
    assert "InvalidOutcome" in (driven.journal[-2].error or "")


def test_siblings_that_were_stopped_are_no_errors() -> None:
    driven = Driven(plan())
    driven.reply("a", "fail")
    driven.reply("b", "cancelled")
    assert [failed.fault for failed in driven.saga.state.errors] == [BOOM]


def test_undo_runs_last_first_in_order_of_completion() -> None:
    driven = Driven(plan())
    driven.reply("b", "ok")
    driven.reply("a", "ok")
    assert driven.reply("c", "fail") == ["failed c", "spawned a"]
    assert driven.reply("a", "ok", undo=True) == ["undone a", "spawned b"]
    assert driven.reply("b", "ok", undo=True) == ["undone b", "finished"]
    assert [command for command in driven.commands if isinstance(command, Settle)] == [Settle("compensated")]


# Damaged journals


def journal() -> tuple[Plan, list[Pulse]]:
    """A journal with most kinds of pulses in it."""
    workflow = Workflow("w", input={"n": int}, grace=1.0)

    @workflow.step(spawn="inline", retries=2, backoff=Backoff(0.0))
    def a(n: int, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError("again")
        ctx.emit_later("x", n)
        return n

    @a.undo
    def undo_a(result: int) -> None: ...

    @workflow.step(spawn="inline", when=lambda n: n > 5)
    def b(n: int, a: int) -> int:
        return n

    @workflow.step(spawn="inline", after=["b"])
    def c(a: int) -> int:
        return a

    @c.undo(in_doubt=True)
    def undo_c(ctx: Context) -> None: ...

    @workflow.step(spawn="inline")
    def d(c: int) -> int:
        raise ValueError("no")

    trace = run_workflow(workflow, {"n": 1}, faults={"c": Crash()})
    assert trace.status == "compensated"
    return workflow.check(), list(trace.pulses)


def test_a_journal_with_a_gap_is_refused() -> None:
    made, pulses = journal()
    for at in range(len(pulses) - 1):
        with pytest.raises(StoreError):
            Saga.fold(made, [*pulses[:at], *pulses[at + 1 :]])
    with pytest.raises(StoreError, match="begins with an accepted"):
        Saga.fold(made, [])


def test_a_journal_out_of_order_is_refused() -> None:
    made, pulses = journal()
    for at in range(len(pulses) - 1):
        swapped = [*pulses[:at], pulses[at + 1], pulses[at], *pulses[at + 2 :]]
        with pytest.raises(StoreError):
            Saga.fold(made, swapped)


def test_a_pulse_said_twice_is_refused() -> None:
    made, pulses = journal()
    for at in range(len(pulses)):
        with pytest.raises(StoreError, match="gap"):
            Saga.fold(made, [*pulses[: at + 1], *pulses[at:]])


def test_impossible_transitions_are_refused_even_with_the_right_numbers() -> None:
    made, pulses = journal()

    def renumbered(changed: list[Pulse]) -> list[Pulse]:
        return [pulse._replace(seq=seq) for seq, pulse in enumerate(changed)]

    def refused(changed: list[Pulse]) -> bool:
        try:
            Saga.fold(made, renumbered(changed))
        except StoreError:
            return True
        return False

    names = [f"{pulse.kind} {pulse.step}".strip() for pulse in pulses]
    harmless = {"emitted", "resumed"}
    for at, pulse in enumerate(pulses[:-1]):
        redelivered = "delivery" in (pulse.data or {})  # without it, its first delivery may have answered
        if pulse.kind not in harmless and not redelivered:
            assert refused([*pulses[:at], *pulses[at + 1 :]]), f"without {names[at]}"
        if pulse.kind not in harmless | {"late"}:
            assert refused([*pulses[: at + 1], *pulses[at:]]), f"twice {names[at]}"
    for at, (one, two) in enumerate(pairwise(pulses)):
        if one.step and two.step and one.kind != "emitted":
            assert refused([*pulses[:at], two, one, *pulses[at + 2 :]]), f"{names[at + 1]} before {names[at]}"
    assert refused([*pulses, pulses[-1]])
    assert refused([pulses[0], *pulses])


def test_an_altered_kind_is_refused_or_at_least_never_a_crash() -> None:
    made, pulses = journal()
    folded = 0
    for at, pulse in enumerate(pulses):
        for kind in (*KINDS, "nonsense"):
            changed = [*pulses[:at], pulse._replace(kind=kind), *pulses[at + 1 :]]
            try:
                Saga.fold(made, changed)
            except StoreError:
                continue
            folded += kind != pulse.kind
    assert folded <= len(pulses)


def test_a_journal_of_another_workflow_is_refused() -> None:
    made, pulses = journal()
    other = Workflow("w", input={"n": int})
    other.step(name="z")(lambda: 1)
    with pytest.raises(StoreError, match="does not have"):
        Saga.fold(other.check(), pulses)
    for at, pulse in enumerate(pulses):
        if pulse.data:
            with pytest.raises(StoreError):
                Saga.fold(
                    made,
                    [
                        *pulses[:at],
                        pulse._replace(data={"fault": 5, "due_ns": "x"} if pulse.kind == "failed" else None, seq=-1),
                        *pulses[at + 1 :],
                    ],
                )
