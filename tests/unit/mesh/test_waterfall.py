"""The waterfall: rows from pulses, and how they look at different widths."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from bitactor import Element, Retry, Value, Workflow
from bitactor.messages import pulse as kinds
from bitactor.messages.codec import encode_token
from bitactor.messages.faults import fault_of
from bitactor.testing import run_workflow
from mesh.cli.waterfall.render import duration, render, show, to_json
from mesh.cli.waterfall.rows import timelines
from tests.amounts import examples
from tests.pulse_log import MS, PulseLog, chain, eventful


def lines(pulses: list, width: int = 100, **look: bool) -> list[str]:
    return [line.plain for line in render(pulses, width, **look)]


def test_each_attempt_is_one_row_in_order_of_start() -> None:
    (timeline,) = timelines(eventful().pulses)
    assert [(row.name, row.outcome, row.attempt) for row in timeline.rows] == [
        ("normalise", "completed", 1),
        ("welcome_back", "skipped", 1),
        ("create_user", "retried", 1),
        ("create_user", "completed", 2),
        ("charge", "timed_out", 1),
        ("deep", "tombstone", 1),
        ("undo create_user", "undone", 1),
    ]
    assert all(before.start_ns <= after.start_ns for before, after in pairwise(timeline.rows))
    assert (timeline.status, timeline.ttl, timeline.ttl_left) == ("compensated", 8, 5)


def test_a_container_that_goes_on_is_not_delivered_again() -> None:
    workflow = Workflow("rounds")
    workflow.iterate(lambda state: state + 1, name="grow", start=Value(1), at_most=3)
    (timeline,) = timelines(run_workflow(workflow).pulses)
    assert [row.notes for row in timeline.rows if row.name == "grow"] == [()]


def test_rows_tell_what_happened_on_the_way() -> None:
    (timeline,) = timelines(eventful().pulses)
    notes = {(row.name, row.attempt): row.notes for row in timeline.rows}
    assert notes["create_user", 1] == ("Busy: try later", "tried again after 0.05 s")
    assert notes["create_user", 2] == ("redelivered (2)", "emitted user.created")
    assert notes["charge", 1] == ("StepTimeout: after 0.1 s", "late reply")
    assert notes["deep", 1] == ("tombstone: ttl_expired (normalise > charge)",)


def test_a_redelivered_attempt_shows_the_delivery_that_counts() -> None:
    log = PulseLog()
    hop = log.spawn("charge", spawn="process")
    log.spawn("charge", after=500, spawn="process", data={"delivery": 2, "lost": "worker"})
    log.spawned_at[hop] = log.pulses[-1]
    log.complete(hop, after=20)
    (timeline,) = timelines(log.finish())
    (row,) = timeline.rows
    assert (row.end_ns - row.start_ns, row.took_ns) == (20 * MS, 20 * MS)
    assert row.notes == ("redelivered (2): worker",)


def test_what_came_with_an_error_is_told_once() -> None:
    error = ValueError("no")
    error.__cause__ = OSError("gone")
    fault = list(fault_of(error))
    log = PulseLog()
    hop = log.spawn("charge")
    log.outcome(kinds.TIMED_OUT, hop, error="StepTimeout: after 0.1 s")
    log.add(kinds.LATE, "charge", hop=hop, error="ValueError: no", data={"fault": fault})
    log.outcome(kinds.FAILED, hop, error="ValueError: no", data={"fault": fault})
    (timeline,) = timelines(log.finish("compensated"))
    notes = timeline.rows[0].notes
    assert [note.strip() for note in notes].count("caused by OSError: gone") == 1, notes
    assert "late reply: ValueError: no" in notes and "ValueError: no" in notes


@pytest.mark.parametrize("width", [40, 59, 80, 120, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_line_is_wider_than_asked(width: int, ascii_only: bool) -> None:
    log = eventful()
    wide = PulseLog(8, "日本語のワークフロー", root=log.root)
    wide.complete(wide.spawn("とても長いステップの名前はどうなりますか" * 3))
    for line in lines(log.pulses + wide.finish(), width, ascii_only=ascii_only):
        assert cell_len(line) <= width
        assert line.isascii() or not ascii_only


def test_the_picture_at_80_columns() -> None:
    picture = lines(eventful().pulses, 80)
    assert picture[0] == "users.signup  ↩ compensated in 307 ms"
    assert picture[2] == "StepTimeout: after 0.1 s"
    assert picture[5] == "✓ normalise        ▍                                    3.00 ms   1    7 loop"
    assert picture[-1] == "↩ undo create_user                                 ▒▒   20.0 ms   1    6 process"


def test_the_picture_in_ascii() -> None:
    picture = lines(eventful().pulses, 80, ascii_only=True)
    assert picture[5] == "+ normalise        =                                    3.00 ms   1    7 loop"
    assert picture[-1] == "< undo create_user                                 <<   20.0 ms   1    6 process"


def test_wide_terminals_also_show_the_outcome_in_words() -> None:
    assert "outcome" not in "\n".join(lines(chain(), 80))
    assert sum(line.endswith("completed") for line in lines(chain(), 120)) == 3


def test_a_console_decides_on_colour_and_encoding() -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(eventful().pulses, Console(file=plain, width=80))
    plain.flush()
    text = plain.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"+ normalise" in text
    assert b"\x1b" not in text
    coloured = io.StringIO()
    show(
        eventful().pulses,
        Console(file=coloured, width=80, force_terminal=True, color_system="standard", no_color=False),
    )
    assert "\x1b[" in coloured.getvalue()


def test_escape_sequences_in_errors_do_not_reach_the_terminal() -> None:
    log = PulseLog()
    log.fail(log.spawn("bad\x1b]0;title\x07"), "Evil: \x1b[2J\x9b31m\ngone")
    text = "\n".join(lines(log.finish("compensated", "Evil: \x1b[2J")))
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in text.replace("\n", ""))


def test_what_still_runs_reaches_to_the_last_pulse() -> None:
    log = PulseLog()
    log.complete(log.spawn("quick"))
    log.spawn("slow")
    log.spawn("other", after=50)
    (timeline,) = timelines(log.pulses)
    slow = next(row for row in timeline.rows if row.name == "slow")
    assert (timeline.status, slow.outcome, slow.took_ns) == ("running", "running", 50 * MS)
    assert "running after" in lines(log.pulses)[0]


def test_a_hop_left_without_an_outcome_is_unknown_or_dead() -> None:
    log = PulseLog()
    log.spawn("lost")
    dead = log.spawn("dead")
    log.add(kinds.TOMBSTONE, "dead", hop=dead, error="poison")
    (timeline,) = timelines(log.finish("stuck", "WorkerLost: gone"))
    assert [row.outcome for row in timeline.rows] == ["unknown", "tombstone"]


def test_halted_is_shown_with_its_reason_and_ends_with_resumed() -> None:
    log = PulseLog()
    log.complete(log.spawn("ask"))
    log.add(kinds.HALTED, error="waiting for a person")
    assert timelines(log.pulses)[0].status == "halted"
    assert any("waiting for a person" in line for line in lines(log.pulses))
    log.add(kinds.RESUMED)
    assert timelines(log.pulses)[0].status == "running"


def test_what_never_ran_is_a_mark() -> None:
    log = PulseLog()
    log.complete(log.spawn("a"))
    log.add(kinds.TOMBSTONE, "b", hop="ab" * 8, ttl=0, error="ttl_expired")
    log.add(kinds.FAILED, "b", hop="ab" * 8, ttl=0, error="TtlExpired: no hops left")
    log.add(kinds.FAILED, error="Cancelled: on request")
    log.add(kinds.UNDO_FAILED, "a", hop="cd" * 8, direction="undo", error="UndoFailed: in doubt")
    (timeline,) = timelines(log.finish("stuck", "TtlExpired: no hops left"))
    assert [(row.kind, row.name, row.outcome, row.notes) for row in timeline.rows[1:]] == [
        ("mark", "b", "tombstone", ("tombstone: ttl_expired", "TtlExpired: no hops left")),
        ("mark", "failed", "failed", ("Cancelled: on request",)),
        ("mark", "undo a", "undo_failed", ("UndoFailed: in doubt",)),
    ]


def test_a_step_that_halts_ends_its_row_with_the_reason() -> None:
    log = PulseLog()
    log.outcome(kinds.HALTED, log.spawn("ask"), data={"reason": "a person must look"})
    log.add(kinds.HALTED, data={"status": "halted"})
    log.add(kinds.RESUMED, data={"owner": "b", "epoch": 2})
    (timeline,) = timelines(log.pulses)
    assert (timeline.status, timeline.rows[0].outcome, timeline.rows[0].notes) == (
        "halted",
        "halted",
        ("a person must look",),
    )


def test_child_transactions_follow_on_the_same_axis() -> None:
    parent = PulseLog(1)
    hop = parent.spawn("welcome")
    parent.complete(hop)
    child = chain(2, 2, workflow="greet", root=parent.id, start_ms=20, parent=parent.id, parent_hop=hop)
    picture = lines(child + parent.finish())
    assert picture[0].startswith("users.signup")
    assert [line.split("  ")[0].strip() for line in picture[4:]][:2] == ["✓ welcome", "✓ greet"]
    assert "✓   step0" in picture[6]


def test_an_outcome_without_its_start_is_placed_by_its_elapsed_time() -> None:
    pulses = chain(steps=1)
    (timeline,) = timelines(pulses[2:])
    assert timeline.ttl is None
    assert timeline.rows[0].took_ns == 10 * MS
    assert timeline.rows[0].start_ns == pulses[1].at_ns
    assert any("ttl unknown" in line for line in lines(pulses[2:]))


def test_json_has_rows_and_decoded_pulses() -> None:
    log = PulseLog()
    log.complete(log.spawn("make"), token_out=encode_token({"name": "Ada"}))
    document = json.loads(to_json(log.finish()))
    assert document["transaction"] == log.id
    assert document["status"] == "completed"
    assert document["total_ns"] == 12 * MS
    assert [row["name"] for row in document["rows"]] == ["make"]
    assert [pulse["token_out"] for pulse in document["pulses"]] == [None, None, {"name": "Ada"}, None]


def test_nothing_to_show() -> None:
    assert lines([]) == ["no pulses"]
    assert to_json([]) == "null"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"), (999, "999 ns"), (1_000, "1.00 µs"), (12_340, "12.3 µs"), (999_400, "999 µs"),
        (999_600, "1.00 ms"), (1_240_000_000, "1.24 s"), (59_960_000_000, "1m00s"), (123_000_000_000, "2m03s"),
        (3_900_000_000_000, "1h05m"),
    ],
)  # fmt: skip
def test_durations_have_three_digits(ns: int, text: str) -> None:
    assert duration(ns) == text


@examples(quick=100, long=1_000)
@given(st.lists(st.sampled_from(eventful().pulses), min_size=1), st.integers(10, 150), st.booleans())
def test_any_part_of_a_log_can_be_drawn(pulses: list, width: int, ascii_only: bool) -> None:
    for line in lines(pulses, width, ascii_only=ascii_only):
        assert cell_len(line) <= max(40, width)


# Folding


def long_map(failing: int = -1) -> list:
    def work(element: int) -> int:
        if element == failing:
            raise ValueError("boom")
        return element

    workflow = Workflow("long", ttl=100)
    workflow.map(name="each", over=Value([*range(100)]), batch=1, spawn="inline", retries=1)(work)
    return run_workflow(workflow).pulses


def test_of_many_that_are_alike_some_are_shown_and_the_others_are_one_line() -> None:
    assert len(lines(long_map())) > 100
    shown = lines(long_map(), fold=True)
    named = [line.split()[1] for line in shown[4:-1] if line.split()[0] != "└"]
    assert [name for name in named if name.startswith("each/")] == [f"each/batch-{number}" for number in (0, 1, 2, 99)]
    assert any("96 more: each/batch-*" in line and line.startswith("⋮") for line in shown)
    assert shown[-1] == "101 rows; --all shows each"


def test_what_went_wrong_is_never_folded() -> None:
    shown = lines(long_map(failing=60), fold=True)
    assert any(line.startswith("✗ each/batch-60") for line in shown) and any(
        "ValueError: boom" in line for line in shown
    )


def test_rounds_elements_and_tries_fold_too_but_nothing_short() -> None:
    nested = Workflow("nested", input={"x": int})
    nested.step(name="work", spawn="inline")(lambda x: x)
    workflow = Workflow("w", ttl=200)
    workflow.map(name="each", over=Value([*range(30)]), workflow=nested, bind={"x": Element()}, batch=10)
    workflow.iterate(lambda state: state + 1, name="grow", start=Value(0), at_most=30, after=["each"])
    tries = workflow.step(name="tries", retries=30, after=["grow"], spawn="inline", backoff=lambda attempt: 0)
    tries(lambda attempt: attempt if attempt > 20 else Retry(after=0))
    shown = "\n".join(lines(run_workflow(workflow).pulses, fold=True))
    assert "26 more: each/*/work" in shown and "26 more: grow/*" in shown and "more: tries" in shown
    assert lines(eventful().pulses, fold=True) == lines(eventful().pulses)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_folded_waterfall_is_no_wider(width: int, ascii_only: bool) -> None:
    for line in lines(long_map(60), width, ascii_only=ascii_only, fold=True):
        assert cell_len(line) <= width and (line.isascii() or not ascii_only)


def test_json_has_every_row() -> None:
    assert len(json.loads(to_json(long_map()))["rows"]) == 101


def test_what_runs_has_run_until_now_and_what_has_ended_has_not() -> None:
    log = PulseLog()
    log.spawn("slow")
    now = log.pulses[-1].at_ns + 5_000 * MS
    (timeline,) = timelines(log.pulses, now)
    assert timeline.end_ns == now and timeline.rows[0].took_ns == 5_000 * MS
    (ended,) = timelines(log.finish(), now)
    assert ended.end_ns == log.pulses[-1].at_ns
    (behind,) = timelines(log.pulses[:-1], 0)  # a clock that is behind
    assert behind.end_ns == log.pulses[-2].at_ns
