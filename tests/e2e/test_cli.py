"""The command line as its users have it: real processes, real files, real sockets.

Commands find our packages imported (`tests/warm.py`), unless their start is the question.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests import warm

HOME = Path(__file__).resolve().parents[2]
PATIENCE = 60.0

SHOP = """
    import asyncio
    from bitactor import Context, Fail, Halt, Workflow
    from bitactor.patterns import CircuitBreaker, RateLimit

    order = Workflow("shop.order", input={"item": str, "count": int})

    @order.step
    async def reserve(item: str, count: int) -> dict:
        return {"item": item, "count": count}

    @reserve.undo
    async def release(result: dict) -> None:
        pass

    @order.step
    async def pay(reserve: dict) -> str:
        if reserve["count"] > 10:
            raise ValueError("too many")
        return f"{reserve['count']} x {reserve['item']}"

    patient = Workflow("shop.patient", input={})

    @patient.step
    async def begin() -> str:
        return "begun"

    @begin.undo
    async def forget(result: str) -> None:
        pass

    @patient.step(after=["begin"])
    async def wait() -> None:
        await asyncio.sleep(3600)

    halting = Workflow("shop.halting", input={})
    asked = []

    @halting.step
    async def ask() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise Halt("ask somebody")
        return "yes"

    slow = Workflow("shop.slow", input={})
    calls = []

    @slow.step
    async def halts_then_waits() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise Halt("look")
        await asyncio.sleep(3600)

    rusty = Workflow("shop.rusty", input={"patient": bool})

    @rusty.step
    def open_door() -> None:
        pass

    @open_door.undo
    def close_door() -> None:
        raise OSError("it will not close")

    @rusty.step(after=["open_door"])
    async def stand(patient: bool) -> None:
        if patient:
            await asyncio.sleep(3600)

    guarded = Workflow("shop.guarded")
    guarded.step(name="asks", policies=[RateLimit("shop", per_second=100), CircuitBreaker("shop")])(lambda: "answered")

    everything = [order, patient, halting, guarded, slow, rusty]
"""


def bitactor(*arguments: str, cwd: Path, input: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    words = command(*arguments)[1:]
    return warm.run(words, cwd=cwd, env=environ(**environment), input=input, timeout=PATIENCE)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "bitactor", *arguments]


def environ(**more: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("BITACTOR_", "COLUMNS"))}
    return {**ours, "PYTHONPATH": str(HOME), **more}


def documents(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


class Running:
    """A command that goes on until it is stopped."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when it has ended
        words = command(*arguments, "--json")[1:]
        self.process = warm.start(words, cwd=cwd, env=environ(), stderr=self._said, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self._stdout = self.process.stdin, self.process.stdout
        line = self._stdout.readline()
        assert line, self.end()
        self.ready = json.loads(line)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Its exit code and what it has said, once it has ended."""
        code = self.process.wait(PATIENCE)
        self._said.seek(0)
        said = self._said.read()
        for stream in (self.stdin, self._stdout, self._said):
            stream.close()
        return code, said


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ba-"))
    (made / "shop.py").write_text(textwrap.dedent(SHOP))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def mesh(directory: Path) -> Iterator[tuple[str, str]]:
    """A registry and a node with an ingress: (registry, http)."""
    registry = f"ipc://{directory}/registry"
    serving = Running("registry", "serve", registry, cwd=directory)
    node = Running(
        "run",
        "shop:everything",
        "--registry",
        registry,
        "--http",
        "0",
        "--store",
        "sqlite:///pulses.db",
        "--drain",
        "0",
        cwd=directory,
    )
    yield registry, node.ready["http"]
    for running in (node, serving):
        code, said = running.stop()
        assert code == 0, said


def test_a_transaction_from_the_outside(directory: Path, mesh: tuple[str, str]) -> None:
    registry, http = mesh
    asked = {"BITACTOR_REGISTRY": registry}

    by_registry = bitactor(
        "stimulate", "shop.order", "-i", "item=tea", "-i", "count=2", "--json", cwd=directory, **asked
    )
    assert by_registry.returncode == 0, by_registry.stderr
    began = json.loads(by_registry.stdout)
    assert (began["status"], began["result"]) == ("completed", "2 x tea")

    by_http = bitactor(
        "stimulate", "shop.order", "--input", '{"item": "tea", "count": 3}', "--http", http, cwd=directory
    )
    assert (by_http.returncode, by_http.stdout.strip()) == (0, '"3 x tea"')
    assert "completed" in by_http.stderr

    listed = documents(bitactor("list", "--json", cwd=directory, **asked).stdout)
    assert [row["status"] for row in listed] == ["completed", "completed"]
    from_file = documents(bitactor("list", "--json", "--store", "sqlite:///pulses.db", cwd=directory).stdout)
    assert [row["transaction"] for row in from_file] == [row["transaction"] for row in listed]

    for place in (["--store", "sqlite:///pulses.db"], ["--registry", registry]):
        shown = bitactor("trace", began["transaction"], *place, cwd=directory)
        assert shown.returncode == 0, shown.stderr
        assert "reserve" in shown.stdout and "pay" in shown.stdout and "\x1b" not in shown.stdout
        told = json.loads(bitactor("trace", began["transaction"], *place, "--json", cwd=directory).stdout)
        assert [pulse["kind"] for pulse in told["pulses"]][-1] == "finished"


def test_patterns_of_all_nodes(directory: Path, mesh: tuple[str, str]) -> None:
    registry, _ = mesh
    asked = {"BITACTOR_REGISTRY": registry}
    assert bitactor("stimulate", "shop.guarded", cwd=directory, **asked).returncode == 0

    [breaker, limit] = documents(bitactor("list", "--patterns", "--json", cwd=directory, **asked).stdout)
    assert (breaker["pattern"], breaker["name"], breaker["state"], breaker["calls"]) == (
        "circuit breaker",
        "shop",
        "closed",
        1,
    )
    assert (limit["pattern"], limit["name"], limit["started"]) == ("rate limit", "shop", 1)
    assert breaker["node"] == limit["node"]

    head, *rows = bitactor("list", "--patterns", cwd=directory, **asked).stdout.splitlines()
    assert head.split() == ["pattern", "name", "node", "state", "counters"] and len(rows) == 2
    assert breaker["node"] in rows[0] and "closed" in rows[0] and "calls 1, failed 0" in rows[0]

    for wrong, why in ((["--patterns", "--status", "stuck"], "--status"), (["--patterns", "--limit", "3"], "--limit")):
        refused = bitactor("list", *wrong, cwd=directory, **asked)
        assert refused.returncode == 2 and why in refused.stderr
    nowhere = bitactor("list", "--patterns", "--store", "sqlite:///pulses.db", cwd=directory)
    assert nowhere.returncode == 2 and "--registry" in nowhere.stderr


def test_failures_have_codes_and_one_clear_line(directory: Path, mesh: tuple[str, str]) -> None:
    registry, http = mesh
    for place in (["--registry", registry], ["--http", http]):
        failed = bitactor(
            "stimulate", "shop.order", "-i", "item=tea", "-i", "count=11", *place, "--json", cwd=directory
        )
        assert failed.returncode == 1, failed.stderr
        described = json.loads(failed.stdout)
        assert described["status"] == "compensated"
        assert "too many" in described["errors"][0]["message"]

        invalid = bitactor("stimulate", "shop.order", "-i", "count=none", *place, cwd=directory)
        assert (invalid.returncode, invalid.stdout) == (2, "")
        assert invalid.stderr.startswith("error: ") and "item" in invalid.stderr

        unknown = bitactor("stimulate", "shop.ordre", *place, cwd=directory)
        assert unknown.returncode == 1
        assert "shop.order" in unknown.stderr  # what was probably meant

    missing = bitactor("trace", "0" * 32, "--registry", registry, cwd=directory)
    assert missing.returncode == 1 and "knows" in missing.stderr
    late = bitactor("stimulate", "shop.patient", "--timeout", "0.2", "--registry", registry, cwd=directory)
    assert late.returncode == 3 and "still running" in late.stderr


def begun(workflow: str, *more: str, cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bitactor("stimulate", workflow, "--json", *more, cwd=cwd).stdout)
    return found


@pytest.mark.parametrize("way", ["registry", "http"])
def test_what_can_be_done_to_a_transaction_from_the_outside(directory: Path, mesh: tuple[str, str], way: str) -> None:
    registry, http = mesh
    to = ["--registry", registry] if way == "registry" else ["--http", http]
    waiting = begun("shop.patient", "--async", *to, cwd=directory)["transaction"]
    cancelled = bitactor("cancel", waiting[:31], *to, "--reason", "changed my mind", "--json", cwd=directory)
    assert cancelled.returncode == 0, cancelled.stderr
    assert json.loads(cancelled.stdout)["status"] == "cancelled"

    halted = begun("shop.halting", *to, cwd=directory)
    assert halted["status"] == "halted"
    resumed = bitactor("resume", halted["transaction"][:31].upper(), *to, cwd=directory)
    assert (resumed.returncode, resumed.stdout) == (0, f'{halted["transaction"]} completed\n"yes"\n'), resumed.stderr
    for wrong in (halted["transaction"], waiting):
        refused = bitactor("resume", wrong, *to, cwd=directory)
        assert refused.returncode == 2 and "only a halted or stuck one" in refused.stderr

    done = begun("shop.order", "-i", "item=tea", "-i", "count=2", *to, cwd=directory)["transaction"]
    undone = bitactor("undo", done, *to, cwd=directory)
    assert (undone.returncode, undone.stdout.split()) == (0, [done, "compensated"]), undone.stderr
    again = bitactor("undo", done, *to, cwd=directory)
    assert again.returncode == 2 and "only once" in again.stderr

    several = bitactor("cancel", "0", *to, cwd=directory)
    assert several.returncode == 2 and "0 is the beginning of 3 transactions" in several.stderr
    assert all(f"{each}  " in several.stderr for each in (waiting, halted["transaction"], done))
    none = bitactor("undo", "f" * 31, *to, cwd=directory)
    assert none.returncode == 1 and "begins with" in none.stderr
    assert [row["transaction"] for row in documents(bitactor("list", *to, "--json", cwd=directory).stdout)] == [
        done, halted["transaction"], waiting,
    ]  # fmt: skip

    goes_on = begun("shop.rusty", "-i", "patient=true", "--async", *to, cwd=directory)["transaction"]
    while "open_door" not in bitactor("trace", goes_on, "--registry", registry, cwd=directory).stdout:
        pass
    ended = begun("shop.rusty", "-i", "patient=false", *to, cwd=directory)["transaction"]
    for verb, which, why in (("cancel", goes_on, "cancelled on request"), ("undo", ended, "undone on request")):
        stuck = bitactor(verb, which, *to, cwd=directory)
        assert (stuck.returncode, stuck.stdout) == (1, f"{which} stuck\n")
        assert stuck.stderr.splitlines() == [
            f'  Cancelled: "{why}"', '  OSError: "it will not close" (at open_door, attempt 1)',
        ]  # fmt: skip


@pytest.mark.parametrize("way", ["registry", "http"])
def test_why_a_transaction_halted_is_said(directory: Path, mesh: tuple[str, str], way: str) -> None:
    registry, http = mesh
    to = ["--registry", registry] if way == "registry" else ["--http", http]
    halted = bitactor("stimulate", "shop.halting", *to, cwd=directory)
    transaction, _, said = halted.stderr.partition(" ")
    assert (halted.returncode, halted.stdout) == (1, "")
    assert said == 'halted\n  Halt: "ask somebody" (at ask, attempt 1)\n'
    resumed = bitactor("resume", transaction, "--json", *to, cwd=directory)
    assert resumed.returncode == 0 and "halt" not in json.loads(resumed.stdout)


def test_resume_waits_or_not_and_is_left_by_ctrl_c(directory: Path, mesh: tuple[str, str]) -> None:
    registry, http = mesh
    store = ["--store", "sqlite:///pulses.db"]
    waits = begun("shop.slow", "--http", http, cwd=directory)["transaction"]
    resuming = subprocess.Popen(
        command("resume", waits, "--http", http),
        cwd=directory, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while bitactor("list", *store, "--status", "running", "--json", cwd=directory).stdout == "":
        assert resuming.poll() is None
    resuming.send_signal(signal.SIGINT)
    out, said = resuming.communicate(timeout=PATIENCE)
    assert (resuming.returncode, out) == (130, "") and f"{waits} goes on" in said and "Traceback" not in said

    for number in range(2):  # those who look agree on how long it has run
        told = [
            json.loads(bitactor(*verb, *store, "--json", cwd=directory).stdout)
            for verb in (["list", "--status", "running"], ["trace", waits[:20]], ["list", "--status", "running"])
        ]
        assert told[0]["took_ns"] <= told[1]["total_ns"] <= told[2]["took_ns"], number

    assert bitactor("cancel", waits, "--http", http, cwd=directory).returncode == 0
    ended = documents(bitactor("list", *store, "--json", cwd=directory).stdout)[0]
    assert json.loads(bitactor("trace", waits, *store, "--json", cwd=directory).stdout)["total_ns"] == ended["took_ns"]

    halted = begun("shop.halting", "--registry", registry, cwd=directory)["transaction"]
    left = bitactor("resume", halted, "--no-wait", "--http", http, "--json", cwd=directory)
    assert left.returncode == 0 and json.loads(left.stdout)["status"] in ("running", "completed"), left.stderr


def test_a_store_alone_says_who_would_have_to_be_asked(directory: Path) -> None:
    """A mesh in somebody's program, with neither registry nor ingress."""
    program = """
        import asyncio
        from mesh import Mesh
        from shop import patient

        async def main():
            async with Mesh(patient, store="sqlite:///pulses.db") as mesh:
                print((await mesh.stimulate(patient)).id, flush=True)
                await asyncio.sleep(3600)

        asyncio.run(main())
    """
    (directory / "program.py").write_text(textwrap.dedent(program))
    child = warm.start(["program.py"], cwd=directory, env=environ(), text=True)
    assert child.stdout is not None and child.stdin is not None
    transaction = child.stdout.readline().strip()
    try:
        for verb in ("cancel", "undo", "resume"):
            refused = bitactor(verb, transaction[:24], cwd=directory, BITACTOR_STORE="sqlite:///pulses.db")
            assert refused.returncode == (3 if verb == "cancel" else 1)
            assert f"transaction {transaction} is running" in refused.stderr
            told = "--http" in refused.stderr and f"mesh.transaction('{transaction}')).cancel()" in refused.stderr
            assert told == (verb == "cancel")
        nowhere = bitactor("cancel", transaction, cwd=directory)
        assert nowhere.returncode == 2 and "none of --http, --registry and --store" in nowhere.stderr
        unknown = bitactor("cancel", "0" * 32, "--store", "sqlite:///pulses.db", cwd=directory)
        assert unknown.returncode == 1 and "no transaction" in unknown.stderr
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stdin.close()


def test_registry_and_doctor_look_at_the_mesh(directory: Path, mesh: tuple[str, str]) -> None:
    registry, _ = mesh
    entries = documents(bitactor("registry", "workflow:*", "--registry", registry, "--json", cwd=directory).stdout)
    assert [entry["name"] for entry in entries] == [
        "workflow:shop.guarded",
        "workflow:shop.halting",
        "workflow:shop.order",
        "workflow:shop.patient",
        "workflow:shop.rusty",
        "workflow:shop.slow",
    ]
    assert all(entry["value"]["endpoint"].startswith("ipc://") for entry in entries)

    looked = bitactor("doctor", "--registry", registry, "--store", "sqlite:///pulses.db", "--json", cwd=directory)
    assert looked.returncode == 0, looked.stdout
    verdicts = {check["name"]: check["verdict"] for check in json.loads(looked.stdout)["checks"]}
    assert verdicts["registry"] == verdicts["nodes"] == verdicts["store"] == verdicts["imports"] == "ok"


def test_a_signal_drains_and_a_second_one_means_now(directory: Path) -> None:
    store = f"sqlite:///{directory}/pulses.db"
    node = Running("run", "shop:everything", "--http", "0", "--store", store, "--drain", "3600", cwd=directory)
    began = bitactor("stimulate", "shop.patient", "--async", "--http", node.ready["http"], "--json", cwd=directory)
    assert began.returncode == 0, began.stderr
    node.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        node.process.wait(0.5)  # it drains
    code, _ = node.stop()
    assert code == 128 + signal.SIGTERM
    # What was running is still in the journal, for the next one.
    assert documents(bitactor("list", "--store", store, "--json", cwd=directory).stdout)[0]["status"] == "running"


def test_a_node_goes_with_the_one_who_started_it(directory: Path) -> None:
    node = Running("run", "shop:order", "--until-stdin-closes", cwd=directory)
    node.stdin.close()
    assert node.end() == (0, "")


def test_nobody_there(directory: Path) -> None:
    nowhere = bitactor("list", "--registry", f"ipc://{directory}/nobody", cwd=directory)
    assert nowhere.returncode == 3
    assert nowhere.stderr.startswith("error: ") and "Traceback" not in nowhere.stderr
    unserved = bitactor("stimulate", "shop.order", "--http", "http://127.0.0.1:9", cwd=directory)
    assert unserved.returncode == 3 and "nobody answers" in unserved.stderr
    no_file = bitactor("list", "--store", "sqlite:///nothing.db", cwd=directory)
    assert no_file.returncode == 1 and "nothing.db" in no_file.stderr
    assert not (directory / "nothing.db").exists()


def test_a_reader_that_goes_away_is_no_error(directory: Path) -> None:
    writing = subprocess.Popen(
        command("graph", "shop:everything"),
        cwd=directory,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writing.stdout is not None and writing.stderr is not None
    writing.stdout.close()
    said = writing.stderr.read()
    writing.stderr.close()
    assert (writing.wait(PATIENCE), said) == (141, b"")


@pytest.mark.parametrize("name", ["mesh", "registry"])
def test_a_users_file_that_hides_ours_is_named(directory: Path, name: str) -> None:
    (directory / f"{name}.py").write_text("raise SystemExit('the wrong one was imported')\n")
    hidden = subprocess.run(
        [sys.executable, "-m", "bitactor", "doctor"],
        cwd=directory,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert hidden.returncode == 2
    assert (
        str(directory / f"{name}.py") in hidden.stderr
        and "rename" in hidden.stderr
        and "Traceback" not in hidden.stderr
    )
    refused = subprocess.run(
        command("run", "shop:order"), cwd=directory, env=environ(), capture_output=True, text=True, timeout=PATIENCE
    )  # the installed command does not look here for itself, but the user's module would
    assert refused.returncode == 2 and f"{name}.py" in refused.stderr


def test_importing_mesh_says_which_file_hides_registry(directory: Path) -> None:
    (directory / "registry.py").write_text("")
    (directory / "program.py").write_text("from mesh import Mesh\n")
    failed = subprocess.run(
        [sys.executable, "program.py"], cwd=directory, env=environ(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(
        f"bitactor.launcher.HiddenPackage: {directory / 'registry.py'} hides"
    )


def test_any_encoding_and_a_closed_stream_will_do(directory: Path) -> None:
    """What stdout's encoding lacks is escaped; a stream that is closed loses what is printed, and no more."""
    (directory / "cafe.py").write_text(
        "from bitactor import Workflow\ncafe = Workflow('cafe')\ncafe.step(name='b')(lambda: 'café')\n"
    )
    node = Running("run", "cafe:cafe", "--http", "0", cwd=directory)
    asked = ("stimulate", "cafe", "--http", node.ready["http"])
    plain = bitactor(*asked, cwd=directory, PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stdout.strip()) == (0, '"caf\\u00e9"'), plain.stderr
    document = bitactor(*asked, "--json", cwd=directory, PYTHONIOENCODING="ascii")
    assert json.loads(document.stdout)["result"] == "café"
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command(*asked)], cwd=directory, env=environ(), stderr=subprocess.PIPE
    )
    assert (closed.returncode, b"Traceback" in closed.stderr) == (0, False)
    assert node.stop()[0] == 0


def test_help_whose_reader_goes_away(directory: Path) -> None:
    piped = ["sh", "-c", '"$@" --help | true', "sh", *command()]
    ended = subprocess.run(["bash", "-o", "pipefail", *piped[1:]], cwd=directory, env=environ(), capture_output=True)
    assert ended.returncode in (0, 141) and not ended.stderr


def test_an_ingress_behind_a_proxy_that_takes_a_path_off(directory: Path) -> None:
    node = Running("run", "shop:order", "--http", "0", "--root-path", "/shop/", cwd=directory)
    with urlopen(f"{node.ready['http']}/openapi.json", timeout=PATIENCE) as answer:
        assert all(path.startswith("/shop/") for path in json.load(answer)["paths"])
    assert node.stop()[0] == 0
    for wrong in (("--root-path", "/shop"), ("--http", "0", "--root-path", "shop")):
        refused = bitactor("run", "shop:order", *wrong, cwd=directory)
        assert refused.returncode == 2 and "--root-path" in refused.stderr


def test_a_node_that_dies_while_it_is_waited_for(directory: Path) -> None:
    """It is not said that nobody was asked; nor is a field that is given twice taken once."""
    node = Running("run", "shop:everything", "--http", "0", "--store", "sqlite:///pulses.db", cwd=directory)
    asked = command("stimulate", "shop.patient", "--http", node.ready["http"])
    waiting = subprocess.Popen(asked, cwd=directory, env=environ(), stderr=subprocess.PIPE, text=True)
    for _ in range(int(PATIENCE * 10)):
        if bitactor("list", "--store", "sqlite:///pulses.db", "--json", cwd=directory).stdout:
            break
    node.stop(signal.SIGKILL)
    _, said = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 3 and "went away before it answered" in said and "may have been taken" in said
    twice = bitactor("stimulate", "shop.order", "-i", "a=1", "-i", "a=2", "--http", "http://127.0.0.1:1", cwd=directory)
    assert twice.returncode == 2 and "-i gives 'a' twice" in twice.stderr
