"""The walkthrough from start to end, with real processes; and what is left of it, which is nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.stores import open_reader
from tests.otlp_receiver import OtlpReceiver
from tests.trace_picture import check_paths

HOME = Path(__file__).resolve().parents[2]
PATIENCE = 120.0


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ba-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def start(keep: Path, *arguments: str) -> subprocess.Popen[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("BITACTOR_")}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bitactor", "demo", "--keep", str(keep), *arguments],
        env={**ours, "PYTHONPATH": str(HOME)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes_of(keep: Path) -> list[str]:
    """The processes that know this demo's users table, workers of workers included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not ended and f"DEMO_USERS={keep}/".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def none_within(keep: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while processes_of(keep):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_everything_happens_and_adds_up(directory: Path) -> None:
    keep = directory / "kept"
    with OtlpReceiver() as collector:
        out, err = (demo := start(keep, "--json", "--otlp", collector.endpoint)).communicate(timeout=PATIENCE)
        spans = collector.spans
    assert demo.returncode == 0, (out, err)
    assert err == ""
    told = json.loads(out)
    endings = told["endings"]
    assert told["ok"] and told["problems"] == []
    assert sum(endings.values()) == told["signups"] == 321
    assert endings["malformed, refused"] == 14
    assert endings["hop timed out, killed"] >= 1
    assert endings["duplicate, rejected"] >= 15 and endings["mail failed, undone"] >= 10 and endings["completed"] >= 200
    assert told["redelivered"]["hops"] >= 1
    assert len(told["ttl_expired"]) == 1 and told["ttl_expired"][0]["chain"].count("→") == 8
    assert processes_of(keep) == []

    table = sqlite3.connect(keep / "users.db")
    assert table.execute("SELECT count(*), count(DISTINCT email) FROM users").fetchone() == (endings["completed"],) * 2
    table.close()
    with open_reader(told["store"]) as reader:
        pulses = reader.pulses(told["compensated"])
        assert [pulse.step for pulse in pulses if pulse.kind == "undone"] == ["create_user"]
        hung = [pulse for pulse in reader.pulses(told["timed_out"]) if pulse.kind == "timed_out"]
        assert [pulse.step for pulse in hung] == ["screen"]
        pulses = [pulse for row in reader.list(limit=1_000) for pulse in reader.pulses(row.transaction)]
    assert check_paths(pulses, spans) > 300
    assert len({span.span_id for span in spans}) == len(spans)


def test_people_get_a_report_and_scripts_no_colours(directory: Path) -> None:
    own = directory / "own.csv"
    own.write_text("name,email,country\nAda,ada@example.org,GB\nAda,ADA@example.org,GB\n,x,y\n", encoding="utf-8-sig")
    out, err = (demo := start(directory / "kept", "--csv", str(own))).communicate(timeout=PATIENCE)
    assert demo.returncode == 0, (out, err)
    assert err == "" and "\x1b" not in out
    for said in (
        "how it ended",
        "duplicate, rejected",
        "Throughput",
        "It adds up: 1 sign-ups",
        "bitactor list",
        "nothing is left running",
    ):
        assert said in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped_half_way(directory: Path, number: signal.Signals) -> None:
    keep = directory / "kept"
    demo = start(keep)
    until = time.monotonic() + PATIENCE
    while len(processes_of(keep)) < 4 and time.monotonic() < until and demo.poll() is None:
        time.sleep(0.02)
    demo.send_signal(number)
    out, err = demo.communicate(timeout=PATIENCE)
    assert (demo.returncode, out, err) == (-signal.SIGKILL if number == signal.SIGKILL else 130, "", "")
    assert none_within(keep, 60.0 if number == signal.SIGKILL else 0.0), processes_of(keep)


def test_a_journal_of_before_is_not_touched(directory: Path) -> None:
    (directory / "pulses.db").write_bytes(b"precious")
    out, err = (demo := start(directory)).communicate(timeout=PATIENCE)
    assert (demo.returncode, out) == (2, "")
    assert "exists already" in err and (directory / "pulses.db").read_bytes() == b"precious"
