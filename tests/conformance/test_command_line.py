"""What is typed at a mesh that lives in somebody's program: over its ingress, and over its registry."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitactor import Context, Element, Halt, Input, Signal, Workflow, consumer
from mesh import Mesh
from mesh.cli import main
from mesh.ingress.server import HttpServer
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.e2e.support import BOUND, until

SECTION = "The command line"
ROOT = Path(__file__).parents[2]

Typed = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a command beside the loop; answers with its exit code, standard output and standard error."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


class Embedded(NamedTuple):
    """A mesh that this program has opened, and how a command finds it."""

    mesh: Mesh
    ways: tuple[list[str], list[str]]
    """By its ingress, and by its registry."""
    store: list[str]


@asynccontextmanager
async def embedded(*workflows: Workflow) -> AsyncIterator[Embedded]:
    with tempfile.TemporaryDirectory(prefix="ba-") as directory:
        registry, store = f"ipc://{directory}/registry", f"sqlite:///{directory}/pulses.db"
        with RegistryServer(registry):
            async with Mesh(*workflows, store=store, registry=registry, drain=0) as mesh:
                server = HttpServer(mesh, port=0)
                serving = asyncio.ensure_future(server.run())
                await server.started.wait()
                try:
                    yield Embedded(mesh, (["--http", server.url], ["--registry", registry]), ["--store", store])
                finally:
                    server.stop()
                    await serving


def asking() -> Workflow:
    """Halts the first time in each transaction, then waits if it is told to."""
    workflow, asked = Workflow("asking", input={"waits": bool}), set[str]()

    @workflow.step
    async def ask(ctx: Context, waits: bool) -> str:
        if ctx.transaction not in asked:
            asked.add(ctx.transaction)
            raise Halt("ask somebody")
        if waits:
            await asyncio.Event().wait()
        return "answered"

    ask.undo(lambda result: None)
    return workflow


def waiting() -> Workflow:
    workflow = Workflow("waiting")

    @workflow.step
    async def wait() -> None:
        await asyncio.Event().wait()

    return workflow


@claim(
    SECTION,
    "`cancel`, `resume` and `undo` take `--http`, `--registry` and `--store` as `list` does, and reach a mesh that "
    "lives in somebody's program by the first two; a store alone says who would have to be asked, and how.",
)
async def test_changes_from_the_command_line(typed: Typed) -> None:
    async with embedded(asking(), waiting()) as found:
        for way in found.ways:
            halted = await found.mesh.stimulate("asking", {"waits": False})
            assert await halted.ended() == "halted"
            runs = await found.mesh.stimulate("waiting")
            for verb, which, ended in (
                ("resume", halted, "completed"),
                ("undo", halted, "compensated"),
                ("cancel", runs, "cancelled"),
            ):
                code, _, said = await typed(verb, which.id, *found.store)
                assert code == 3 and "--http or --registry" in said and f"mesh.transaction('{which.id}')" in said
                code, out, _ = await typed(verb, which.id, "--json", *way)
                assert (code, json.loads(out)["status"]) == (0, ended)
                assert (await found.mesh.transaction(which.id)).status == ended
            code, out, _ = await typed("list", "--json", *way)
            assert code == 0 and runs.id in out


@claim(
    SECTION,
    "The beginning of a transaction's id is enough where only one begins so; where several do, they are listed and "
    "nothing is done.",
)
async def test_the_beginning_of_an_id(typed: Typed) -> None:
    async with embedded(waiting()) as found:
        first, second = [await found.mesh.stimulate("waiting") for _ in range(2)]
        common = next(first.id[:size] for size in range(32, 0, -1) if second.id.startswith(first.id[:size]))
        for way in (*found.ways, found.store):
            code, _, said = await typed("cancel", common, *way)
            assert code == 2 and "is the beginning of 2 transactions" in said
            assert f"{first.id}  running" in said and f"{second.id}  running" in said
        beginnings = [each.id[: len(common) + 1] for each in (first, second)]
        for transaction, beginning, way in zip((first, second), beginnings, found.ways, strict=True):
            assert (await typed("cancel", beginning, *way))[1].split() == [transaction.id, "cancelled"]
        assert (await typed("trace", beginnings[0], *found.store))[0] == 0
        for impossible in ("", "xyz", "0" * 33):
            assert (await typed("cancel", impossible, *found.ways[0]))[0] == 2


@claim(
    SECTION,
    "`resume` waits and says how it ended, by its exit code too; not with `--no-wait`, nor longer than `--timeout`.",
)
async def test_resume_waits(typed: Typed) -> None:
    async with embedded(asking()) as found:
        for way in found.ways:
            for waits, more, code, told in (
                (False, (), 0, ["completed", '"answered"']),
                (True, ("--no-wait",), 0, ["running"]),
                (True, ("--timeout", "0"), 3, []),
            ):
                halted = await found.mesh.stimulate("asking", {"waits": waits})
                assert await halted.ended() == "halted"
                answer = await typed("resume", halted.id, *more, *way)
                assert answer[0] == code and answer[1].split() == ([halted.id, *told] if code == 0 else []), answer
                now = await found.mesh.transaction(halted.id)
                while now.status == "halted" and not told:  # what was asked is not waited for
                    await asyncio.sleep(0)
                    now = await found.mesh.transaction(halted.id)
                assert now.status == (told or ["running"])[0]
                await now.cancel()


SIGNS = """
import asyncio, os, sys
from pydantic import SecretStr
from bitactor import Context, Workflow
from mesh import Mesh

signs = Workflow("signs", ttl=4, deadline=0.2)

@signs.step
async def signup(ctx: Context) -> None:
    for number in range(3):
        await ctx.emit("user.created", {"id": number, "key": SecretStr("s3cret")})

async def main() -> None:
    async with Mesh(signs, store=sys.argv[1]) as mesh:
        await mesh.stimulate(signs)
        while len(await mesh.dead_letters()) < 3:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    asyncio.run(main())
"""


@claim(
    SECTION,
    "`dead-letters` lists what ended nowhere, with name and payload, over an ingress, over a registry, and from the "
    "file of a node that was killed; in pages, with secrets masked.",
)
async def test_dead_letters_from_the_command_line(typed: Typed) -> None:
    async with embedded(asking()) as found:
        code, out, said = await typed("dead-letters", *found.store)
        assert (code, out, said) == (0, "", "no dead letters\n")
        url = found.store[1]
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", SIGNS, url, cwd=ROOT)
        assert await child.wait() == -9
        told = []
        for way in (*found.ways, found.store):
            code, out, _ = await typed("dead-letters", "--json", *way)
            letters = [json.loads(line) for line in out.splitlines()]
            assert code == 0 and sorted(letter["payload"]["id"] for letter in letters) == [0, 1, 2]
            assert {(letter["name"], letter["reason"], letter["step"]) for letter in letters} == {
                ("user.created", "unroutable", "signup")
            }
            told.append(letters)
            code, out, said = await typed("dead-letters", "--limit", "2", *way)
            assert code == 0 and sum("user.created" in line for line in out.splitlines()) == 2 and "s3cret" not in out
            assert '"key": "**********"' in out and f"--before {letters[1]['id']}" in said
            _, out, _ = await typed("dead-letters", "--json", "--before", letters[1]["id"], *way)
            assert [json.loads(line) for line in out.splitlines()] == letters[2:]
            code, out, said = await typed("dead-letters", "--before", "x", *way)
            assert code != 0 and not out and "before" in said
        assert told[0] == told[1] == told[2]


@claim(
    SECTION,
    "`send-again` brings what is in a dead letter to its receiver, once however many ask, over an ingress and over a "
    "registry; a file alone is refused, saying who can.",
)
async def test_a_dead_letter_is_sent_again_from_the_command_line(typed: Typed) -> None:
    signs, heard = Workflow("signs", ttl=2, deadline=0.1), list[int]()

    @signs.step
    async def signup(ctx: Context) -> None:
        for number in range(2):
            await ctx.emit("user.created", number)

    @consumer("user.created")
    async def hear(signal: Signal) -> None:
        heard.append(signal.token)

    async with embedded(signs) as found:
        transaction = await found.mesh.stimulate(signs)
        await transaction.ended(BOUND)
        await until(lambda: [pulse.kind for pulse in transaction.pulses()].count("tombstone") == 2)
        _, out, _ = await typed("dead-letters", "--json", *found.store)
        letters = [json.loads(line)["id"] for line in out.splitlines()]
        for letter, way, other in zip(letters, found.ways, reversed(found.ways), strict=True):
            code, out, said = await typed("send-again", letter, *found.store)
            assert code == 3 and not out and f"mesh.send_again('{letter}')" in said
            code, out, _ = await typed("send-again", letter, *way)
            assert (code, out) == (0, f"{letter} is sent again; its transaction is completed\n")
            code, out, said = await typed("send-again", letter, *other)
            assert code != 0 and not out and "it was sent again, and is on its way" in said.replace("\n", " ")
            code, out, said = await typed("send-again", f"{transaction.id}-0", *way)
            assert code != 0 and f"there is no dead letter {transaction.id}-0" in said.replace("\n", " ")
            code, out, said = await typed("send-again", transaction.id, *way)
            assert code == 2 and "no dead letter's id" in said
        assert (await typed("dead-letters", *found.store))[1] == ""
        async with Mesh(hear, registry=found.ways[1][1]):
            await until(lambda: sorted(heard) == [0, 1])


@claim(SECTION, "`list` and `trace` agree on how long a transaction took, also while it runs.")
async def test_durations_agree(typed: Typed) -> None:
    async with embedded(waiting()) as found:
        runs = await found.mesh.stimulate("waiting")

        async def told(verb: str, *arguments: str) -> int:
            document = json.loads((await typed(verb, *arguments, "--json", *found.store))[1])
            return int(document["took_ns" if verb == "list" else "total_ns"])

        looks = [await told("list"), await told("trace", runs.id), await told("list")]
        assert 0 < looks[0] <= looks[1] <= looks[2]
        await runs.cancel()
        assert await told("list") == await told("trace", runs.id)


@claim(
    SECTION,
    "A long trace has one line for many alike (elements, batches, rounds, tries) and a row for all that went wrong; "
    "`--all` and `--json` have each.",
)
async def test_a_long_trace(typed: Typed) -> None:
    workflow = Workflow("long", input={"numbers": list})

    def refuse_77(number: int) -> int:
        if number == 77:
            raise ValueError("not this one")
        return number

    workflow.map(refuse_77, over=Input("numbers"), name="each", batch=1, bind={"number": Element()})
    async with embedded(workflow) as found:
        ended = await found.mesh.stimulate("long", {"numbers": list(range(90))})
        assert await ended.ended() == "compensated"
        folded = (await typed("trace", ended.id, *found.store))[1].splitlines()
        each = (await typed("trace", ended.id, "--all", *found.store))[1].splitlines()
        assert len(folded) < 40 < 70 < len(each)
        assert any("ValueError: not this one" in line for line in folded[4:])
        assert "--all shows each" in folded[-1]
        rows = json.loads((await typed("trace", ended.id, "--json", *found.store))[1])["rows"]
        assert folded[-1].startswith(f"{len(rows)} rows")


@claim(SECTION, "Asking for help, or mistyping, loads nothing that only work needs.")
def test_help_loads_nothing_that_works() -> None:
    code = (
        "import sys; from bitactor.launcher import main; main(); "
        "sys.exit(str(sorted({'pydantic', 'zmq', 'sqlite3', 'msgpack'} & sys.modules.keys())))"
    )
    for words in (["resume", "--help"], ["list", "--limt", "2"]):
        ran = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert ran.stderr.splitlines()[-1] == "[]"
