"""File steps on real files: what they do, what undoing puts back, and what is left when they are killed in between."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitactor import Continue, DefinitionError, Input, InvalidInput, InvalidOutcome, Result, Workflow
from mesh import Mesh, Transaction
from mesh.ready.steps import file_changes, files
from mesh.ready.steps.file_backups import Backup
from mesh.ready.steps.file_paths import HELD, identity
from tests import warm
from tests.e2e.ready.crashing import tree, visible
from tests.e2e.ready.file_child import build
from tests.e2e.support import audit, pulse_lines, undone, until

ROOT = Path(__file__).parents[3]
SCENARIOS = (
    "write over", "write new", "write through link", "write and keep elsewhere", "copy over", "copy new", "move over",
    "move new", "move across over", "move across new", "move and keep elsewhere", "remove", "remove link",
    "remove and keep elsewhere", "make",
)  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        yield Path(directory)


async def run(workflow: Workflow, given: Any = None, **options: Any) -> Transaction:
    async with Mesh(workflow, **options) as mesh:
        transaction = await mesh.stimulate(workflow, given)
        await transaction.ended(30)
        audit(transaction)
        return transaction


def names_in(directory: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in directory.rglob(pattern))


def failing(workflow: Workflow, after: str) -> None:
    @workflow.step(name="fail", after=[after])
    def fail() -> None:
        raise ValueError("and now take it back")


# What they do


async def test_a_day_in_the_life_of_a_report(tmp_path: Path, store: str) -> None:
    reports = Workflow("reports", input={"place": str, "month": str, "lines": list}, ttl=9)

    @reports.step
    def text(lines: list) -> str:
        return "\n".join(lines)

    files.make(reports, "folder", "{place}/{month}/drafts")
    files.write(reports, "draft", "{folder.path}/{month}.txt", Result(text))
    files.copy(reports, "backup", "{draft.path}", "{place}/{month}/backup.txt")
    files.move(reports, "publish", "{draft.path}", "{place}/{month}/final.txt", after=["backup"])
    files.stat(reports, "draft_is", "{draft.path}", after=["publish"])
    files.remove(reports, "tidy", "{backup.path}", after=["draft_is"])
    files.glob(reports, "all", "**/*.txt", root="{place}", after=["tidy"])
    files.read(reports, "content", "{publish.path}", after=["all"])
    transaction = await run(
        reports, {"place": str(tmp_path / "r"), "month": "may", "lines": ["one", "two"]}, store=store
    )
    assert transaction.status == "completed", transaction.errors()
    results = transaction.results()
    assert results["all"] == [str(tmp_path / "r/may/final.txt")]
    assert results["content"] == "one\ntwo"
    assert results["draft"]["size"] == 7
    assert results["draft_is"] == {"path": str(tmp_path / "r/may/drafts/may.txt"), "exists": False}
    assert results["tidy"]["removed"] is True


async def test_everything_is_put_back_when_a_later_step_fails(tmp_path: Path, store: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "old.txt").write_text("old")
    (home / "old.txt").chmod(0o600)
    (home / "other.txt").write_text("other")
    before = tree(home)
    reports = Workflow("reports", input={"place": str}, ttl=9)
    files.write(reports, "over", "{place}/old.txt", "new")
    files.write(reports, "over_again", "{over.path}", "newer")
    files.make(reports, "folder", "{place}/a/b", after=["over_again"])
    files.copy(reports, "copied", "{over.path}", "{folder.path}/copy.txt")
    files.move(reports, "moved", "{place}/other.txt", "{place}/old.txt", after=["copied"])
    files.remove(reports, "removed", "{moved.path}")
    failing(reports, "removed")
    async with Mesh(reports, store=store) as mesh:
        transaction = await mesh.stimulate(reports, {"place": str(home)})
        assert await transaction.ended(30) == "compensated", transaction.errors()
        assert undone(transaction) == ["removed", "moved", "copied", "folder", "over_again", "over"]
    assert tree(home) == before


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_step_killed_anywhere_can_run_again_and_be_undone(scenario: str, tmp_path: Path, elsewhere: Path) -> None:
    words = ["-m", "tests.e2e.ready.crashing", scenario, str(tmp_path / "home"), str(elsewhere / "other")]
    done = warm.run(words, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6, "that many points, or nothing was tried"


@pytest.mark.parametrize("outcome", ["good", "fail"])
async def test_the_process_dies_between_putting_and_saying_so(tmp_path: Path, sqlite: str, outcome: str) -> None:
    home = tmp_path / outcome
    home.mkdir()
    (home / "report.txt").write_text("old")
    before = tree(home)
    words = ["-m", "tests.e2e.ready.file_child", sqlite, str(home)]
    died = await asyncio.to_thread(warm.run, words, cwd=ROOT, timeout=60)
    assert died.returncode == 9, died.stderr
    assert (home / "report.txt").read_text() == "new"
    reports = build(str(home))
    async with Mesh(reports, store=sqlite) as mesh:
        transaction = await mesh.stimulate(reports, {"text": "new", "fail": outcome == "fail"}, key="the one")
        status = await transaction.ended(30)
        if outcome == "good":
            assert status == "completed"
            assert (home / "report.txt").read_text() == "new"
            assert await transaction.undo() == "compensated"
        assert transaction.status == "compensated"
        assert any(pulse.step == "save" and pulse.kind == "undone" for pulse in transaction.pulses())
    assert tree(home) == before


async def test_what_has_timed_out_does_not_act_after_it_was_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, may = tmp_path / "report.txt", threading.Event()
    target.write_text("old")
    real = file_changes.write_whole

    def slowly(*args: Any) -> Any:
        made = real(*args)
        may.wait(30)
        return made

    monkeypatch.setattr(file_changes, "write_whole", slowly)
    reports = Workflow("reports", grace=0.05)
    files.write(reports, "save", str(target), "new", timeout=0.1)
    async with Mesh(reports) as mesh:
        transaction = await mesh.stimulate(reports)
        assert await transaction.ended(30) == "compensated"
        assert undone(transaction) == ["save"]
        may.set()
        await until(lambda: not mesh.node.executor.zombies)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["report.txt"]


async def test_who_was_cancelled_in_a_thread_does_not_act_after_it_was_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has timed out here: only the undo tells the thread that nobody waits for it any more."""
    target, may, begun = tmp_path / "report.txt", threading.Event(), threading.Event()
    real = file_changes.write_whole

    def slowly(*args: Any) -> Any:
        begun.set()
        may.wait(30)
        return real(*args)

    monkeypatch.setattr(file_changes, "write_whole", slowly)
    reports = Workflow("reports", grace=0.05)
    files.write(reports, "save", str(target), "new")
    async with Mesh(reports) as mesh:
        transaction = await mesh.stimulate(reports)
        await until(begun.is_set)
        assert await transaction.cancel() == "cancelled"
        may.set()
        await until(lambda: not mesh.node.executor.zombies)
    assert names_in(tmp_path) == []


# Who else is there


async def test_what_somebody_else_has_changed_is_not_overwritten_but_told(tmp_path: Path) -> None:
    target = tmp_path / "report.txt"
    target.write_text("old")
    reports = Workflow("reports")
    files.write(reports, "save", str(target), "new")

    @reports.step(after=["save"])
    def somebody() -> None:
        (tmp_path / "theirs").write_text("theirs")
        (tmp_path / "theirs").replace(target)

    failing(reports, "somebody")
    async with Mesh(reports) as mesh:
        transaction = await mesh.stimulate(reports)
        assert await transaction.ended(30) == "stuck"
        assert "was changed by somebody else since; what was there before is kept in" in str(transaction.errors()[-1])
        assert target.read_text() == "theirs"
        [kept] = names_in(tmp_path, ".*.kept.bitactor")
        assert (tmp_path / kept).read_text() == "old"
        [note] = names_in(tmp_path, ".*.note.bitactor")
        (tmp_path / note).unlink()
        await transaction.resume()
        assert await transaction.ended(30) == "compensated"
    assert target.read_text() == "theirs"


async def test_a_file_that_grew_in_its_place_is_still_ours(tmp_path: Path) -> None:
    target = tmp_path / "report.txt"
    target.write_text("old")
    reports = Workflow("reports")
    files.write(reports, "save", str(target), "new")

    @reports.step(after=["save"])
    def append() -> None:
        with target.open("a") as file:
            file.write("er")

    failing(reports, "append")
    assert (await run(reports)).status == "compensated"
    assert target.read_text() == "old"


async def test_a_made_directory_with_something_of_others_in_it_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports = Workflow("reports")
    files.make(reports, "folder", f"{tmp_path}/a/b")

    @reports.step(after=["folder"])
    def somebody() -> None:
        (tmp_path / "a/theirs").write_text("theirs")

    failing(reports, "somebody")
    assert (await run(reports)).status == "compensated"
    assert sorted(visible(tree(tmp_path))) == [str(tmp_path / "a"), str(tmp_path / "a/theirs")]
    assert "stays, for something is in it" in caplog.text


async def test_a_moved_file_that_somebody_took_is_told(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    reports = Workflow("reports")
    files.move(reports, "moved", f"{tmp_path}/source", f"{tmp_path}/target")

    @reports.step(after=["moved"])
    def somebody() -> None:
        (tmp_path / "target").unlink()

    failing(reports, "somebody")
    transaction = await run(reports)
    assert transaction.status == "stuck"
    assert "was changed by somebody else" in str(transaction.errors()[-1])


async def test_a_file_that_got_the_number_of_the_old_one_is_not_taken_for_it(tmp_path: Path, elsewhere: Path) -> None:
    """Where the old file is kept as a copy, nothing holds its inode, and the next file may get it."""
    target = tmp_path / "report.txt"
    target.write_text("old")
    backup = Backup(target, "0" * 32, elsewhere)
    backup.save((identity(target) or [])[:HELD])
    target.write_text("new")
    backup.restore()
    assert target.read_text() == "old"


# What is kept


async def test_what_is_kept_is_forgotten_on_request(tmp_path: Path, elsewhere: Path, store: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/old.txt").write_text("old")
    reports = Workflow("reports", input={"place": str}, ttl=9)
    files.write(reports, "over", "{place}/old.txt", "new", keep=elsewhere / "kept")
    files.write(reports, "new", "{place}/new.txt", "new")
    files.make(reports, "folder", "{place}/a/b")
    files.remove(reports, "removed", "{over.path}")
    files.remove(reports, "nothing", "{place}/nothing", missing_ok=True)
    async with Mesh(reports, store=store) as mesh:
        transaction = await mesh.stimulate(reports, {"place": str(tmp_path / "d")})
        assert await transaction.ended(30) == "completed"
        assert transaction.results()["nothing"] == {"path": str(tmp_path / "d/nothing"), "removed": False, "kept": None}
        assert len(list((elsewhere / "kept").iterdir())) == 2
        assert files.forget(transaction) == 4
        assert files.forget(transaction) == 0
    assert list((elsewhere / "kept").iterdir()) == []
    found = tree(tmp_path / "d")
    assert found == visible(found)


async def test_what_is_not_undoable_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    reports = Workflow("reports", input={"place": str}, ttl=9)
    files.write(reports, "over", "{place}/old.txt", "new", undoable=False, durable=True)
    files.make(reports, "folder", "{place}/a", undoable=False)
    files.move(reports, "moved", "{over.path}", "{folder.path}/moved.txt", undoable=False)
    files.copy(reports, "copied", "{moved.path}", "{place}/copy.txt", undoable=False)
    files.remove(reports, "removed", "{moved.path}", undoable=False, after=["copied"])
    failing(reports, "removed")
    transaction = await run(reports, {"place": str(tmp_path)})
    assert (transaction.status, undone(transaction)) == ("compensated", [])
    assert names_in(tmp_path) == ["a", "copy.txt"]


async def test_what_is_old_is_swept(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/old.txt").write_text("old")
    (tmp_path / "d/.mine.bitactor").write_text("mine")
    reports = Workflow("reports")
    files.write(reports, "over", f"{tmp_path}/d/old.txt", "new")
    await run(reports)
    assert files.sweep(tmp_path, older_than=3600) == 0
    assert files.sweep(tmp_path, older_than=-1) == 2
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [".mine.bitactor", "old.txt"]


# What is refused


@pytest.mark.parametrize("bad", ["../secret", "/etc/passwd", "link/secret", "a/../../secret", "", "a\0b"])
async def test_a_path_does_not_lead_out_of_its_directory(tmp_path: Path, bad: str) -> None:
    (tmp_path / "secret").write_text("secret")
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    (home / "in.txt").write_text("x")
    for declare in (
        lambda workflow: files.read(workflow, "step", "{name}", within=home),
        lambda workflow: files.write(workflow, "step", "{name}", "evil", within=home),
        lambda workflow: files.move(workflow, "step", "in.txt", "{name}", within=home),
        lambda workflow: files.remove(workflow, "step", "{name}", within=home),
        lambda workflow: files.make(workflow, "step", "{name}/x", within=home),
        lambda workflow: files.stat(workflow, "step", "{name}", within=home),
    ):
        reports = Workflow("reports", input={"name": str})
        declare(reports)
        transaction = await run(reports, {"name": bad})
        assert transaction.status == "compensated"
        assert isinstance(transaction.errors()[0], InvalidInput), transaction.errors()
    assert (tmp_path / "secret").read_text() == "secret"
    assert (home / "in.txt").read_text() == "x"


async def test_errors_name_the_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_text("x" * 11)
    (tmp_path / "folder").mkdir()
    wrong: list[tuple[Any, type[BaseException], str]] = [
        (lambda w: files.read(w, "step", f"{tmp_path}/none"), FileNotFoundError, "none"),
        (lambda w: files.read(w, "step", f"{tmp_path}/pipe"), OSError, "no regular file"),
        (lambda w: files.read(w, "step", f"{tmp_path}/big", max_bytes=10), InvalidOutcome, "max_bytes=10"),
        (lambda w: files.write(w, "step", f"{tmp_path}/none/x", "x"), FileNotFoundError, "files.make makes it"),
        (lambda w: files.write(w, "step", f"{tmp_path}/folder", "x"), IsADirectoryError, "folder"),
        (lambda w: files.write(w, "step", f"{tmp_path}/x", Input("n")), InvalidInput, "not a int"),
        (lambda w: files.copy(w, "step", f"{tmp_path}/pipe", f"{tmp_path}/x"), OSError, "no regular file"),
        (lambda w: files.copy(w, "step", f"{tmp_path}/big", f"{tmp_path}/./big"), InvalidInput, "the same file"),
        (lambda w: files.move(w, "step", f"{tmp_path}/none", f"{tmp_path}/x"), FileNotFoundError, "none"),
        (lambda w: files.move(w, "step", f"{tmp_path}/folder", f"{tmp_path}/x"), IsADirectoryError, "folder"),
        (lambda w: files.remove(w, "step", f"{tmp_path}/none"), FileNotFoundError, "none"),
        (lambda w: files.remove(w, "step", f"{tmp_path}/folder"), IsADirectoryError, "folder"),
        (lambda w: files.make(w, "step", f"{tmp_path}/big"), FileExistsError, "big"),
        (lambda w: files.make(w, "step", f"{tmp_path}/folder", exist_ok=False), FileExistsError, "folder"),
        (lambda w: files.make(w, "step", f"{tmp_path}/x/y", parents=False), FileNotFoundError, "parents=False"),
        (lambda w: files.glob(w, "step", "../*", root=str(tmp_path)), InvalidInput, "leads out"),
        (lambda w: files.glob(w, "step", "*", root=str(tmp_path / "none")), FileNotFoundError, "no directory"),
        (lambda w: files.glob(w, "step", "*", root=str(tmp_path), max_paths=2), InvalidOutcome, "max_paths=2"),
    ]
    before = tree(tmp_path / "folder")
    for declare, kind, message in wrong:
        reports = Workflow("reports", input={"n": int})
        declare(reports)
        transaction = await run(reports, {"n": 1})
        [error] = transaction.errors()
        assert isinstance(error, kind) and message in str(error), f"{message}: {error!r}"
    assert tree(tmp_path / "folder") == before
    assert names_in(tmp_path) == ["big", "folder", "pipe"]


def test_wrong_declarations_are_refused() -> None:
    for declare, message in (
        (lambda w: files.read(w, "step", "x", max_bytes=0), "max_bytes=0"),
        (lambda w: files.read(w, "step", "{"), "cannot be read"),
        (lambda w: files.write(w, "step", "x", object()), "made of texts"),
        (lambda w: files.write(w, "step", "x", "y", keep="k", undoable=False), "undoable=False"),
        (lambda w: files.write(w, "step", "x", "y", retires=1), "Did you mean 'retries'"),
        (lambda w: files.glob(w, "step", "*", max_paths=0), "max_paths=0"),
    ):
        with pytest.raises(DefinitionError, match=message):
            declare(Workflow("reports"))
    reports = Workflow("reports")
    files.read(reports, "step", "{nobody}")
    with pytest.raises(DefinitionError, match="'nobody' is neither"):
        reports.check()


# How they fit in


async def test_a_compensation_may_stand_in(tmp_path: Path) -> None:
    reports = Workflow("reports")
    load = files.read(reports, "load", f"{tmp_path}/none", retries=1)

    @load.compensate
    def default(error: Exception) -> Any:
        return Continue("nothing")

    transaction = await run(reports)
    assert transaction.results()["load"] == "nothing"


async def test_what_a_pattern_is_given_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]/x.csv").write_text("")
    (tmp_path / "a1").mkdir()
    (tmp_path / "a1/x.csv").write_text("")
    reports = Workflow("reports", input={"folder": str})
    files.glob(reports, "all", "{folder}/*.csv", root=str(tmp_path))
    assert (await run(reports, {"folder": "a[1]"})).results()["all"] == [str(tmp_path / "a[1]/x.csv")]


async def test_names_as_long_as_they_may_be_and_in_any_script(tmp_path: Path) -> None:
    name = "é" * 127  # 254 bytes
    (tmp_path / name).write_text("old")
    before = tree(tmp_path)
    reports = Workflow("reports", input={"name": str})
    files.write(reports, "over", f"{tmp_path}/{{name}}", "new")
    failing(reports, "over")
    transaction = await run(reports, {"name": name})
    assert (transaction.status, undone(transaction)) == ("compensated", ["over"])
    assert tree(tmp_path) == before


async def test_bytes_rights_and_times(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"\x00\xff")
    (tmp_path / "source").chmod(0o751)
    os.utime(tmp_path / "source", (1_000_000_000, 1_000_000_000))
    (tmp_path / "target").write_text("old")
    (tmp_path / "target").chmod(0o604)
    reports = Workflow("reports", ttl=9)
    files.read(reports, "load", f"{tmp_path}/source", encoding=None)
    files.write(reports, "save", f"{tmp_path}/target", Result("load"))
    files.copy(reports, "copied", f"{tmp_path}/source", f"{tmp_path}/copy")
    files.stat(reports, "about", "{copied.path}")
    files.stat(reports, "saved", "{save.path}")
    results = (await run(reports)).results()
    assert (tmp_path / "target").read_bytes() == b"\x00\xff"
    about = results["about"]
    assert (about["kind"], about["size"], about["mode"]) == ("file", 2, 0o751)
    assert about["modified"] == dt.datetime.fromtimestamp(1_000_000_000, dt.UTC)
    assert results["saved"]["mode"] == 0o604


async def test_it_can_be_written_down_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    reports = Workflow("reports", input={"place": str})
    files.write(reports, "over", "{place}/old.txt", Input("place"))
    files.make(reports, "folder", "{place}/a", after=["over"])
    again = Workflow.from_dict(json.loads(json.dumps(reports.to_dict())))
    failing(again, "folder")
    before = tree(tmp_path)
    transaction = await run(again, {"place": str(tmp_path)})
    assert (transaction.status, undone(transaction)) == ("compensated", ["folder", "over"])
    assert "spawned over" in pulse_lines(transaction)
    assert tree(tmp_path) == before
