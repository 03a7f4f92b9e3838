"""The command line, in this process: what is typed, what is said, which code."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitactor import Workflow
from bitactor.export.mermaid import mermaid
from bitactor.launcher import HOME, complaint, namesake, stranger
from mesh import Mesh
from mesh.cli import main
from mesh.cli.app import VERBS
from mesh.demo.walkthrough import FIELDS, SHIPPED, read_rows
from mesh.runtime.ids import TimeOrderedIds


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of the test's own, whose modules are forgotten afterwards."""
    for name in ("BITACTOR_STORE", "BITACTOR_REGISTRY", "BITACTOR_OTLP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_verb_and_every_exit_code(
    capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    code, out, _ = run(capsys, *asked)
    assert code == 0
    told = " ".join(out.replace("│", " ").split())
    assert all(f" {name} {verb.about} " in told for name, verb in VERBS.items())
    assert all(f"{number} " in out for number in (0, 1, 2, 3, 130))


def test_the_overview_says_of_a_verb_what_its_docstring_does() -> None:
    for verb in VERBS.values():
        module, _, name = verb.place.partition(":")
        found = getattr(importlib.import_module(module), name)
        assert inspect.getdoc(getattr(found, "default_command", found)).partition("\n")[0] == verb.about


WITHOUT_WORK = """
import sys
from bitactor.launcher import main
for typed in ("", "--help", "--version", "lst", "list --help", "trace --help", "run --help", "stimulate --help",
              "graph --help", "undo --help", "registry --help", "registry serve --help", "list --limt 1"):
    sys.argv = ["bitactor", *typed.split()]
    code = main()
    heavy = {"msgpack", "opentelemetry", "pydantic", "sqlite3", "uvicorn", "zmq"} & sys.modules.keys()
    print(typed, code, *heavy, file=sys.stderr)
"""


def test_who_asks_for_help_or_has_mistyped_loads_nothing_that_works() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_WORK], capture_output=True, text=True, check=True, cwd=HOME)
    found = [line for line in ran.stderr.splitlines() if not line.startswith(("error:", "  →"))]
    assert [line for line in found if not line.endswith((" 0", " 2"))] == []
    assert len(found) == 13


@pytest.mark.parametrize("verb", [*VERBS, "registry serve"])
def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = run(capsys, *verb.split(), "--help")
    assert code == 0
    assert f"Example: bitactor {verb}" in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["lsit"], "lsit"),
        (["list", "--limit", "many"], "many"),
        (["list"], "--store"),
        (["trace", "nonsense", "--store", "sqlite:///x.db"], "32 hex digits"),
        (["stimulate", "w", "--input", "{", "--http", "http://127.0.0.1:1"], "not JSON"),
        (["stimulate", "w", "-i", "novalue", "--http", "http://127.0.0.1:1"], "NAME=VALUE"),
        (["stimulate", "w", "--http", "ftp://somewhere"], "no address"),
        (["run", "nocolon"], "MODULE:OBJECT"),
        (["run", "shop/orders.py:w"], "file name"),
        (["run", "no_such_module:w"], "no_such_module"),
        (["run", "json:dumps"], "Workflow"),
        (["demo", "--rows", "0"], "at least one"),
        (["demo", "--csv", "none.csv"], "none.csv"),
        (["registry", "serve", "carrier-pigeon://roof"], "carrier-pigeon"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], typed: list[str], said: str) -> None:
    code, out, err = run(capsys, *typed)
    assert (code, out) == (2, "")
    first, *rest = err.splitlines()
    assert first.startswith("error: ") and said in err
    assert all(line.startswith("  → ") for line in rest)


def test_an_import_that_fails_shows_only_the_users_frames(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    (workshop / "orders.py").write_text("import prices\n")
    (workshop / "prices.py").write_text("def load():\n    return 1 / 0\n\nload()\n")
    code, _, err = run(capsys, "graph", "orders:workflow")
    assert code == 2
    assert "prices.py" in err and "error: importing 'orders' failed: ZeroDivisionError: division by zero" in err
    assert "importlib" not in err and "mesh/cli" not in err


def test_a_module_that_exits_is_contained(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    (workshop / "quitter.py").write_text("import sys\nsys.exit(0)\n")
    code, _, err = run(capsys, "graph", "quitter:workflow")
    assert code == 2 and "SystemExit" in err


def test_a_name_that_was_probably_meant_is_suggested(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    (workshop / "orders.py").write_text("from bitactor import Workflow\norder = Workflow('order')\n")
    assert "orders:order" in run(capsys, "graph", "orders:ordr")[2]
    assert "'orders'" in run(capsys, "graph", "order:order")[2]
    code, _, err = run(capsys, "graph", "orders:order")  # a workflow without steps
    assert code == 2 and "has no steps" in err


def test_graph(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "graph", "mesh.demo.signup:signup")
    assert (code, err) == (0, "")
    assert out.startswith("flowchart TD\n") and "↩ undo" in out and 's1 -.->|"after"| s2' in out
    code, out, _ = run(capsys, "graph", "mesh.demo.signup:service", "--json")
    assert [json.loads(line)["workflow"] for line in out.splitlines()][:2] == ["users.signup", "demo.echo"]


def test_mermaid_shows_names_as_they_are() -> None:
    workflow = Workflow('a "b" <c>', input={"x": int})

    @workflow.step(name="one | [two]")
    def one(x: int) -> int:
        return x

    @workflow.step(bind={}, after=["one | [two]"], when=lambda x: x > 1)
    def three(x: int) -> int:
        return x

    drawn = mermaid(workflow.check())
    assert 'input(["a #34;b#34; #60;c#62;"])' in drawn
    assert 's0["one #124; #91;two#93;"]' in drawn
    assert 's1{{"three<br/>? when"}}' in drawn
    assert 's0 -.->|"after"| s1' in drawn and 'input -->|"x"| s1' in drawn


def test_doctor(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["ok"] and {"python", "packages", "imports", "files", "sockets"} <= {
        check["name"] for check in found["checks"]
    }
    (workshop / "mesh.py").touch()
    code, out, _ = run(capsys, "doctor", "--store", "sqlite:///none.db")
    assert code == 1
    assert "! imports" in out and "✗ store" in out and "the first makes it" in out


def test_doctor_refuses_the_directories_that_nodes_and_registries_refuse(
    capsys: pytest.CaptureFixture[str], workshop: Path
) -> None:
    place = workshop / "run"
    place.mkdir()
    for mode, verdict in ((0o755, "ok"), (0o1777, "ok"), (0o775, "fail")):
        place.chmod(mode)
        checks = json.loads(run(capsys, "doctor", "--registry", f"ipc://{place}/r", "--json")[1])["checks"]
        (check,) = (check for check in checks if check["name"] == "sockets" and str(place) in check["found"])
        assert check["verdict"] == verdict
    assert "can be written by others (mode 775)" in check["found"] and f"chmod 700 {place}" in check["todo"]


def test_strangers_are_told_from_ours(workshop: Path) -> None:
    assert [stranger(name) for name in ("bitactor", "registry", "mesh")] == [None, None, None]
    assert namesake(HOME) is None and namesake(workshop) is None
    (workshop / "registry.py").touch()
    assert namesake(workshop) == workshop / "registry.py"
    assert "missing" in complaint("mesh", "")


def test_the_shipped_rows_are_a_few_hundred_with_everything_in_them() -> None:
    rows = read_rows(SHIPPED)
    assert len(rows) == 320
    assert any("," in (row["name"] or "") for row in rows)
    assert any(not (row["name"] or "").isascii() for row in rows)
    assert any(row["country"] is None for row in rows)
    addresses = [(row["email"] or "").strip().lower() for row in rows]
    assert len(addresses) - len(set(addresses)) >= 15
    assert read_rows(SHIPPED, 3) == rows[:3] and set(rows[0]) == set(FIELDS)


def test_a_csv_of_the_users_own_is_refused_with_reasons(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    (workshop / "own.csv").write_text("name,mail\nAda,ada@example.org\n")
    code, _, err = run(capsys, "demo", "--csv", "own.csv")
    assert code == 2 and "email, country" in err
    (workshop / "latin.csv").write_bytes("name,email,country\nZoé,z@example.org,FR\n".encode("latin-1"))
    assert "UTF-8" in run(capsys, "demo", "--csv", "latin.csv")[2]
    (workshop / "empty.csv").write_text("name,email,country\n")
    assert "no rows" in run(capsys, "demo", "--csv", "empty.csv")[2]


def test_a_workflow_without_transactions_is_said_to_have_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, workflow = f"sqlite:///{tmp_path}/pulses.db", Workflow("mail.sent")
    workflow.step(lambda: 1, name="one")
    with Mesh(workflow, store=store) as mesh:
        mesh.run(workflow)
    listed = ("list", "--store", store)
    assert run(capsys, *listed, "--workflow", "mail.send") == (
        0, "", "no transactions of workflow 'mail.send'. Did you mean 'mail.sent'?\n",
    )  # fmt: skip
    assert "Known: 'mail.sent'." in run(capsys, *listed, "--workflow", "nonsense")[2]
    known = (*listed, "--workflow", workflow.name)
    assert run(capsys, *known, "--status", "stuck") == (
        0, "", f"no transactions that are stuck of workflow {workflow.name!r}\n",
    )  # fmt: skip
    assert run(capsys, *listed, "--status", "stuck") == (0, "", "no transactions that are stuck\n")
    assert run(capsys, *listed, "--workflow", "nonsense", "--json") == (0, "", "")
    assert "completed" in run(capsys, *known)[1]


class FarApart(TimeOrderedIds):
    """Ids whose beginnings differ, as of transactions that did not begin in the same millisecond."""

    def __init__(self) -> None:
        self._count = 0

    def transaction(self) -> str:
        self._count += 1
        return f"{self._count}{super().transaction()[1:]}"


@pytest.mark.parametrize(
    ("width", "columns", "whole"),
    [
        (40, ["transaction", "status", "workflow"], False),
        (60, ["transaction", "status", "took", "began", "workflow"], False),
        (100, ["transaction", "status", "took", "began", "workflow"], True),
    ],
)
def test_a_narrow_list_drops_columns_and_crops_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    width: int, columns: list[str], whole: bool,
) -> None:  # fmt: skip
    store, workflow = f"sqlite:///{tmp_path}/pulses.db", Workflow("mail.sent.with.a.long.name")
    workflow.step(lambda: 1, name="one")
    with Mesh(workflow, store=store, ids=FarApart()) as mesh:
        ids = [mesh.submit(workflow).id for _ in range(3)]
        mesh.run(workflow)
    monkeypatch.setenv("COLUMNS", str(width))
    _, said, _ = run(capsys, "list", "--store", store)
    head, *lines = said.splitlines()
    assert head.split() == columns
    assert all(len(line.rstrip()) <= width for line in lines) and "…" not in said
    told = [line.split()[0] for line in lines if "completed" in line]
    assert len(told) == len(set(told)) == 4
    assert all((each in told) is whole for each in ids)
    assert all(any(each.startswith(beginning) for beginning in told) for each in ids)
    assert "".join(line.split()[-1] for line in lines) == workflow.name * 4
    _, document, _ = run(capsys, "list", "--store", store, "--json")
    assert json.loads(document.splitlines()[-1])["transaction"] == ids[0]
