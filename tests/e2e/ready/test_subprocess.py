"""Subprocess steps with real processes: what they are given, what comes back, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess as std_subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitactor import DefinitionError, Input, InvalidInput, InvalidOutcome, Result, Value, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh, Transaction
from mesh.ready.steps import subprocess
from tests.e2e.ready.program_child import build
from tests.e2e.support import audit, pulse_lines, undone, until

ROOT = Path(__file__).parents[3]
PYTHON = [sys.executable, "-c"]
READY = "import pathlib, os, sys, time, signal; p = pathlib.Path(sys.argv[1])\n"
WAIT = "(p / f'{os.getpid()}.ready').touch()\nwhile True: time.sleep(0.05)\n"
STUBBORN = "signal.signal(signal.SIGTERM, lambda *_: (p / 'asked').touch())\n"
"""Does not end when it is asked to."""
FORK = "os.fork()\n"
LEAVE = "if os.fork() == 0: os.setsid()\n"
"""A child that leaves the process group."""


def script(text: str, *arguments: str) -> list[str]:
    return [*PYTHON, text.replace("{", "{{").replace("}", "}}"), *arguments]


async def run(workflow: Workflow, given: Any = None, **options: Any) -> Transaction:
    async with Mesh(workflow, **options) as mesh:
        transaction = await mesh.stimulate(workflow, given)
        await transaction.ended(30)
        audit(transaction)
        return transaction


def ready(directory: Path) -> list[int]:
    return [int(path.stem) for path in directory.glob("*.ready")]


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            if "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                found.append(pid)
    return found


# What it is given, and what comes back


async def test_arguments_input_environment_and_directory(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GONE", "here")
    scans = Workflow("scans", input={"name": str, "files": list, "text": str})
    shows = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], sys.stdin.read(), os.environ['GREETING'], 'GONE' in "
        "os.environ, "
        "'PATH' in os.environ, os.getcwd()])); print('careful', file=sys.stderr)"
    )
    command = script(shows, "--name={name}", "{files}", "$HOME; `id` 'x'", "{{}}")
    subprocess.run(
        scans, "scan", command, input=Input("text"), env={"GREETING": "Hello {name}", "GONE": None}, cwd=str(tmp_path)
    )
    given = {"name": "Ada B", "files": ["a b", "-rf", "c"], "text": "é" * 100_000}
    async with Mesh(scans, store=store) as mesh:
        transaction = await mesh.stimulate(scans, given)
        result = await transaction.result(30)
    arguments, text, greeting, gone, path, cwd = json.loads(result["stdout"])
    assert arguments == ["--name=Ada B", "a b", "-rf", "c", "$HOME; `id` 'x'", "{}"]
    assert (text, greeting, gone, path, cwd) == ("é" * 100_000, "Hello Ada B", False, True, str(tmp_path))
    assert (result["returncode"], result["stderr"]) == (0, "careful\n")


async def test_results_flow_on() -> None:
    scans = Workflow("scans", input={"words": str})
    subprocess.run(scans, "upper", ["tr", "a-z", "A-Z"], input="{words}")
    subprocess.run(scans, "count", ["wc", "-c"], input=Result("upper", "stdout"))
    transaction = await run(scans, {"words": "one two"})
    assert transaction.results()["upper"]["stdout"] == "ONE TWO"
    assert transaction.results()["count"]["stdout"].strip() == "7"


async def test_another_code_than_0_is_an_error_with_the_end_of_its_complaint() -> None:
    scans = Workflow("scans", input={"secret": str})
    text = "import os, sys; sys.stderr.write('x' * 5_000_000 + ' cannot open ' + os.environ['KEY']); sys.exit(3)"
    subprocess.run(scans, "scan", script(text, "{secret}"), env={"KEY": "{secret}"})
    transaction = await run(scans, {"secret": "hunter22"})
    error = transaction.errors()[0]
    assert isinstance(error, subprocess.ProcessFailed)
    assert error.returncode == 3
    assert error.stderr.endswith("x cannot open •••") and len(error.stderr) == subprocess.EXCERPT
    assert "{secret}" in str(error) and "hunter22" not in str(error)


async def test_a_code_may_be_a_result() -> None:
    scans = Workflow("scans")
    subprocess.run(scans, "scan", ["false"], check=False)
    subprocess.run(scans, "killed", script("import os; os.kill(os.getpid(), 9)"), check=False)
    results = (await run(scans)).results()
    assert (results["scan"]["returncode"], results["killed"]["returncode"]) == (1, -9)


async def test_a_program_that_is_not_there() -> None:
    scans = Workflow("scans")
    subprocess.run(scans, "scan", ["no-such-program"])
    transaction = await run(scans)
    assert isinstance(transaction.errors()[0], FileNotFoundError)
    assert "no-such-program" in str(transaction.errors()[0])


async def test_too_much_output_ends_it(tmp_path: Path) -> None:
    scans = Workflow("scans")
    text = READY + "(p / f'{os.getpid()}.ready').touch()\nwhile True: sys.stdout.write('x' * 10_000)\n"
    subprocess.run(scans, "scan", script(text, str(tmp_path)), max_output=100_000, retries=2)
    subprocess.run(scans, "fits", script("print('x' * 99_999)"), max_output=100_000)
    transaction = await run(scans)
    error = transaction.errors()[0]
    assert isinstance(error, InvalidOutcome) and "max_output=100,000" in str(error)
    assert len(ready(tmp_path)) == 1 and alive(ready(tmp_path)) == []


async def test_who_does_not_read_its_input_is_no_trouble() -> None:
    scans = Workflow("scans")
    subprocess.run(scans, "scan", ["true"], input=Value("x" * 1_000_000))
    assert (await run(scans)).status == "completed"


# Nothing is left


async def waits_for(directory: Path, count: int) -> list[int]:
    await until(lambda: len(ready(directory)) >= count)
    return ready(directory)


@pytest.mark.parametrize("kind", ["", FORK, LEAVE])
@pytest.mark.parametrize("how", ["timeout", "cancel", "deadline", "close"])
async def test_whatever_ends_the_step_ends_all_its_processes(tmp_path: Path, how: str, kind: str) -> None:
    passing = FakeClock() if how in ("timeout", "deadline") else None  # no time passes before the program is ready
    scans = Workflow("scans", grace=0.1, deadline=5.0 if how == "deadline" else None)
    bound = {"timeout": 5.0} if how == "timeout" else {}
    subprocess.run(scans, "scan", script(READY + kind + WAIT, str(tmp_path)), **bound)
    async with Mesh(scans, drain=0.1, clock=passing) as mesh:
        transaction = await mesh.stimulate(scans)
        pids = await waits_for(tmp_path, 2 if kind else 1)
        assert alive(pids) == pids
        if how == "cancel":
            assert await transaction.cancel() == "cancelled"
        elif passing is not None:
            passing.advance(5.0)
            await until(lambda: passing.advance(0.001) or transaction.status == "compensated")
        if how != "close":
            await until(lambda: not alive(pids))
            assert undone(transaction) == ["scan"]
    await until(lambda: not alive(pids))


async def test_who_does_not_listen_is_killed(tmp_path: Path) -> None:
    scans = Workflow("scans", grace=0.1)
    subprocess.run(scans, "scan", script(READY + STUBBORN + FORK + WAIT, str(tmp_path)), grace=0.2)
    async with Mesh(scans) as mesh:
        transaction = await mesh.stimulate(scans)
        pids = await waits_for(tmp_path, 2)
        assert await transaction.cancel() == "cancelled"
        await until(lambda: not alive(pids))
    assert (tmp_path / "asked").exists(), "it was asked first"


async def test_what_a_program_leaves_in_its_group_is_ended_with_it(tmp_path: Path) -> None:
    scans = Workflow("scans")
    text = READY + "if os.fork() == 0:\n  (p / f'{os.getpid()}.ready').touch()\n  while True: time.sleep(0.05)\n"
    text += "while not list(p.glob('*.ready')): time.sleep(0.01)\nprint('done')\n"
    subprocess.run(scans, "scan", script(text, str(tmp_path)))
    transaction = await run(scans)
    assert transaction.results()["scan"]["stdout"] == "done\n"
    assert alive(ready(tmp_path)) == []


async def test_a_daemon_that_leaves_the_group_stays(tmp_path: Path) -> None:
    scans = Workflow("scans")
    text = (
        READY
        + "if os.fork() == 0:\n  os.setsid(); (p / f'{os.getpid()}.ready').touch()\n  while True: time.sleep(0.05)\n"
    )
    text += "while not list(p.glob('*.ready')): time.sleep(0.01)\n"
    subprocess.run(scans, "scan", script(text, str(tmp_path)))
    try:
        assert (await run(scans)).status == "completed", "though it holds the pipes"
        assert alive(ready(tmp_path)) == ready(tmp_path)
    finally:
        for pid in ready(tmp_path):
            os.kill(pid, signal.SIGKILL)


async def test_two_attempts_never_run_at_once(tmp_path: Path) -> None:
    """The first attempt's program does not listen, and its grace is long; the second waits until it is gone."""
    scans = Workflow("scans")
    text = READY + "others = [int(x.stem) for x in p.glob('*.ready')]\n"
    # What is dead, but not yet reaped, is in /proc without an environment.
    text += "def lives(pid):\n  try: return bool(open(f'/proc/{pid}/environ').read())\n  except OSError: return False\n"
    text += "if others:\n  print(lives(others[0])); sys.exit()\n" + STUBBORN + WAIT
    subprocess.run(scans, "scan", script(text, str(tmp_path)), timeout=5.0, retries=1, grace=0.3)
    clock = FakeClock()
    async with Mesh(scans, clock=clock) as mesh:
        transaction = await mesh.stimulate(scans)
        await waits_for(tmp_path, 1)
        clock.advance(5.0)
        await until(lambda: clock.advance(0.001) or pulse_lines(transaction).count("spawned scan") == 2)
        assert await transaction.ended(30) == "completed"
        assert transaction.results()["scan"]["stdout"] == "False\n"


async def test_a_worker_that_was_killed_leaves_a_program_that_the_next_one_ends(tmp_path: Path, sqlite: str) -> None:
    command = [sys.executable, "-m", "tests.e2e.ready.program_child", sqlite, str(tmp_path)]
    died = await asyncio.to_thread(
        std_subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert died.returncode == 9, died.stderr
    first = int((tmp_path / "pid").read_text())
    assert alive([first]) == [first], "it outlives its worker"
    scans = build(str(tmp_path))
    async with Mesh(scans, store=sqlite) as mesh:
        transaction = await mesh.stimulate(scans, key="the one")
        assert await transaction.ended(30) == "completed"
    assert alive([first]) == []


# Undo


async def test_undo_runs_its_command_with_the_same_arguments(tmp_path: Path) -> None:
    scans = Workflow("scans", input={"name": str})
    command = ["sh", "-c", 'echo "$BITACTOR_IDEMPOTENCY_KEY" > "$0"', f"{tmp_path}/{{name}}"]
    scan = subprocess.run(scans, "scan", command, undo=["rm", "--", f"{tmp_path}/{{name}}"])
    kept: list[str] = []

    @scans.step(after=[scan])
    def fail(name: str) -> None:
        kept.append((tmp_path / name).read_text().strip())
        raise ValueError("back")

    transaction = await run(scans, {"name": "x"})
    assert (transaction.status, undone(transaction)) == ("compensated", ["scan"])
    assert len(kept[0]) == 32
    assert not (tmp_path / "x").exists()


async def test_an_undo_that_fails_is_tried_again_and_told(tmp_path: Path) -> None:
    scans = Workflow("scans", undo_timeout=30)
    scan = subprocess.run(scans, "scan", ["true"], undo=["sh", "-c", f"echo x >> {tmp_path}/tries; exit 4"])

    @scans.step(after=[scan])
    def fail() -> None:
        raise ValueError("back")

    transaction = await run(scans)
    assert transaction.status == "stuck"
    assert "ended with 4" in str(transaction.errors()[-1])


async def test_in_doubt_it_is_ended_before_it_is_undone(tmp_path: Path) -> None:
    scans = Workflow("scans", grace=0.05)
    look = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); [x] = p.glob('*.ready')\n"
    # What was killed and has not been waited for yet is there, but has no arguments any more.
    look += "try: runs = bool(pathlib.Path('/proc', x.stem, 'cmdline').read_bytes())\nexcept OSError: runs = False\n"
    undo = script(look + "(p / 'seen').write_text(str(runs))", str(tmp_path))
    subprocess.run(scans, "scan", script(READY + STUBBORN + WAIT, str(tmp_path)), timeout=5.0, grace=0.3, undo=undo)
    clock = FakeClock()
    async with Mesh(scans, clock=clock) as mesh:
        transaction = await mesh.stimulate(scans)
        await waits_for(tmp_path, 1)
        clock.advance(5.0)
        await until(lambda: clock.advance(0.001) or "spawned ~scan" in pulse_lines(transaction))
        assert (await transaction.ended(30), undone(transaction)) == ("compensated", ["scan"])
    assert (tmp_path / "seen").read_text() == "False"


# Declaring


def test_wrong_declarations_are_refused() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("ls -l", {}, "no shell"),
        ([], {}, "empty"),
        (["{program}"], {}, "which program runs"),
        (["ls", 1], {}, "give a list of texts"),
        (["ls", "{"], {}, "cannot be read"),
        (["ls"], {"undo": ["{x}"]}, "which program runs"),
        (["ls"], {"grace": -1}, "grace=-1"),
        (["ls"], {"max_output": 0}, "max_output=0"),
        (["ls"], {"shell": True}, "unknown option 'shell'"),
        (["ls"], {"spawn": "thread"}, "unknown option 'spawn'"),
    ]
    for command, options, message in wrong:
        with pytest.raises(DefinitionError, match=message):
            subprocess.run(Workflow("scans"), "scan", command, **options)


async def test_an_argument_that_none_can_be_made_of() -> None:
    for bad in ("a\0b", None, {"a": 1}):
        scans = Workflow("scans", input={"x": Any})
        subprocess.run(scans, "scan", ["echo", "{x}"])
        assert isinstance((await run(scans, {"x": bad})).errors()[0], InvalidInput)


async def test_it_can_be_written_down_and_read_again() -> None:
    scans = Workflow("scans", input={"x": str})
    subprocess.run(scans, "scan", ["echo", "{x}"], undo=["true"], timeout=30.0)
    again = Workflow.from_dict(json.loads(json.dumps(scans.to_dict())))
    assert (await run(again, {"x": "hello"})).results()["scan"]["stdout"] == "hello\n"
