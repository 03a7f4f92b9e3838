"""File steps that are killed between any two things they do to the disk.

`python -m tests.e2e.ready.crashing SCENARIO DIRECTORY OTHER`: OTHER is a directory on another file system.  Each run is
a forked process that dies before its nth change of the disk; then the step runs again, as after a redelivery, and is
undone; or it is undone at once, as a hop in doubt.  Prints how many points it died at; what went wrong is an assertion.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitactor import Context, Workflow
from bitactor.messages.ids import hop_id
from bitactor.messages.signal import Signal
from mesh.ready.steps import files

TRANSACTION = "01a1fbe88bc7704398967569ddfab694"
CHANGES = ("replace", "link", "unlink", "mkdir", "rmdir", "open", "utime", "chmod", "symlink")
DEAD = 9
Tree = dict[str, tuple[str, bytes | str, int]]


def context(direction: str = "forward", delivery: int = 1, in_doubt: bool = False) -> Context:
    hop = hop_id(TRANSACTION, "step", direction)
    signal = Signal(
        "files/step", TRANSACTION, TRANSACTION, hop, (), direction, 1, delivery, 1, 7, None, None, in_doubt=in_doubt
    )  # fmt: skip
    return Context(signal, "files", "thread", None, lambda: 0)


def tree(*roots: Path) -> Tree:
    """All there is, by path."""
    found: Tree = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            status = path.lstat()
            kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "file"
            content: bytes | str = (
                str(path.readlink()) if kind == "link" else path.read_bytes() if kind == "file" else b""
            )
            found[str(path)] = (kind, content, stat.S_IMODE(status.st_mode))
    return found


def visible(found: Tree) -> Tree:
    """Without what is kept for the undo."""
    return {path: what for path, what in found.items() if not path.endswith(".bitactor")}


def dying(function: Callable[[], Any], at: int) -> bool:
    """Run it in a process that dies before its change number `at`; whether it did."""
    child = os.fork()
    if child == 0:
        left = at

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def change(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(DEAD)
                return real(*args, **kwargs)

            return change

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        try:
            function()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DEAD), f"it failed by itself at {at}: {code}"
    return code == DEAD


class Scenario:
    """A place with files, and a step that changes some."""

    def __init__(self, name: str, home: Path, other: Path) -> None:
        self.roots = (home, other)
        for root in self.roots:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
        (home / "old.txt").write_text("old")
        (home / "old.txt").chmod(0o640)
        (home / "source.txt").write_text("source")
        (other / "source.txt").write_text("other source")
        (home / "link.txt").symlink_to("old.txt")
        workflow = Workflow("files")
        old, new, source, elsewhere = f"{home}/old.txt", f"{home}/new.txt", f"{home}/source.txt", f"{other}/source.txt"
        self.step: Any = {
            "write over": lambda: files.write(workflow, "step", old, "new"),
            "write new": lambda: files.write(workflow, "step", new, "new"),
            "write through link": lambda: files.write(workflow, "step", f"{home}/link.txt", "new"),
            "write and keep elsewhere": lambda: files.write(workflow, "step", old, "new", keep=other / "kept"),
            "copy over": lambda: files.copy(workflow, "step", source, old),
            "copy new": lambda: files.copy(workflow, "step", elsewhere, new),
            "move over": lambda: files.move(workflow, "step", source, old),
            "move new": lambda: files.move(workflow, "step", source, new),
            "move across over": lambda: files.move(workflow, "step", elsewhere, old),
            "move across new": lambda: files.move(workflow, "step", elsewhere, new),
            "move and keep elsewhere": lambda: files.move(workflow, "step", source, old, keep=other / "kept"),
            "remove": lambda: files.remove(workflow, "step", old),
            "remove link": lambda: files.remove(workflow, "step", f"{home}/link.txt"),
            "remove and keep elsewhere": lambda: files.remove(workflow, "step", old, keep=other / "kept"),
            "make": lambda: files.make(workflow, "step", f"{home}/a/b/c"),
        }[name]().function
        if "keep elsewhere" in name:
            (other / "kept").mkdir()
        self.before = tree(*self.roots)

    def run(self, delivery: int = 1) -> None:
        self.step(ctx=context(delivery=delivery))

    def undo(self, *, in_doubt: bool = False, delivery: int = 1) -> None:
        self.step.take_back(ctx=context("undo", delivery=delivery, in_doubt=in_doubt))

    def tree(self) -> Tree:
        return tree(*self.roots)


def forked(function: Callable[[], Any]) -> None:
    """Undo in doubt has the process remember that its hop is given up; so each goes into a process of its own."""
    assert not dying(function, 1_000_000)


def main(name: str, home: Path, other: Path) -> int:
    def fresh() -> Scenario:
        return Scenario(name, home, other)

    scenario = fresh()
    scenario.run()
    done = visible(scenario.tree())
    assert done != scenario.before
    points = 0
    while dying((scenario := fresh()).run, points):
        forked(lambda scenario=scenario: scenario.run(delivery=2))
        assert visible(scenario.tree()) == done, f"run again after dying at {points}"
        kept = set(scenario.tree()) - set(visible(scenario.tree()))
        assert all(path.endswith((".note.bitactor", ".kept.bitactor")) for path in kept), kept
        forked(scenario.undo)
        assert scenario.tree() == scenario.before, f"run again after dying at {points}, and undone"

        dying((scenario := fresh()).run, points)
        forked(lambda scenario=scenario: scenario.undo(in_doubt=True))
        assert scenario.tree() == scenario.before, f"undone in doubt after dying at {points}"
        points += 1

    undo_points = 0
    while True:
        (scenario := fresh()).run()
        died = dying(scenario.undo, undo_points)
        forked(lambda scenario=scenario: scenario.undo(delivery=2))
        assert scenario.tree() == scenario.before, f"undone again after dying at {undo_points} of the undo"
        if not died:
            return points + undo_points
        undo_points += 1


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
