"""The documentation does what it says: every page is followed as a reader would, and what it shows is compared with
what comes.

How a page is read:

- A Python block that begins with `# name.py` is put into that file (`# name.py, continued`: added to it).  Any other is
  a script, and is run; a `text` block right behind it is what it prints.
- In a `console` block, `$ ` begins a command, and what follows is its output, if any is shown; `...` stands for
  anything. Commands that run until they are stopped are left running to the end of their section, as in a terminal of
  their own; what a section exports ends with it too.
- Of the pages that a newcomer reads first, the first program that is typed, and those that are left running, are
  started afresh, as a reader does; the others, and all of other pages, find our packages imported (`tests/warm.py`),
  unless they need more of a shell than its words.
- Ids, times, bars of a waterfall, ports and directories differ from run to run and are not compared.  An id that a page
  showed earlier means, in a command, the one that came there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from mesh.runtime.settings import Settings
from tests import warm

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLLOWED: Final = [page for page in PAGES if page.parent.name != "examples"]
"""The examples are programs of the repository; `test_examples.py` runs their pages where those are."""
READ_FIRST: Final = frozenset(("README.md", "getting-started.md"))
"""What shows that programs run as they are installed; other pages are of what they do."""
PATIENCE: Final = 60.0
"""Seconds for a command that takes one on an idle machine."""

_FENCE: Final = re.compile(r"^```(\w*)")
_FILE: Final = re.compile(r"# ([\w/]+\.py)(, continued)?\s*$")
_NOT_RUN: Final = re.compile(r"(make|pip|git|docker|ulimit|systemctl|uvicorn|python -m benchmarks|bitactor demo)\b")
"""Set-up of a machine, other programs, and what has tests of its own."""
_PROGRAM: Final = re.compile(r"(python (?=\w)|bitactor )[^][|&;<>$*?(){}`~#]*")
"""A command that needs no shell; `python -m` and the like are other programs'."""
_LASTING: Final = re.compile(r"bitactor (run|registry serve)\b")
_ID: Final = re.compile(r"\b[0-9a-f]{32}\b")
_PORT: Final = re.compile(r"(?<![\w.])(8000|8001|7400|7401)\b")
_VARYING: Final = (
    (_ID, "<id>"),
    (re.compile(r"\bn[0-9a-f]{12}\b"), "<node>"),
    (re.compile(r"\b((\d{4}-)?\d\d-\d\d[T ])?\d\d:\d\d:\d\d(\.\d+)?(Z|\b)"), "<moment>"),
    (re.compile(r"(?<![\w.])[\d.,]+ ?(ns|µs|ms|s|min)\b"), "<time>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    (re.compile(r"[█▏▎▍▌▋▊▉▒░╎]+|={5,}"), " "),
    (re.compile(r"\s+"), " "),
)


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    lines: Sequence[str]


class Command(NamedTuple):
    """A command of a console block, and the output that the page shows."""

    line: int
    text: str
    shown: Sequence[str]


def parts(page: Path) -> Iterator[Block | None]:
    """The blocks of a page in order, and None where a section begins."""
    fence: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        opening = _FENCE.match(line)
        if fence is not None and line.startswith("```"):
            yield Block(*fence, tuple(lines))
            fence = None
        elif fence is not None:
            lines.append(line)
        elif opening is not None:
            fence, lines = (number, opening[1]), []
        elif line.startswith("## "):
            yield None
    assert fence is None, f"{page.name}:{fence}: a block without an end"


def commands(block: Block) -> list[Command]:
    """What is typed in a console block."""
    found: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(block.lines, block.line + 1):
        if line.startswith("$ "):
            found.append((number, line[2:], []))
        elif line.startswith("> ") and not found[-1][2]:
            found[-1] = (found[-1][0], f"{found[-1][1].removesuffix(chr(92))} {line[2:]}", [])
        else:
            found[-1][2].append(line)
    return [Command(*command) for command in found]


def alike(shown: Sequence[str], came: Sequence[str]) -> bool:
    """Whether `came` is what a page shows, but for what differs from run to run."""
    pattern = "\n".join("<...>" if line.strip() == "..." else _steady(line) for line in shown).strip()
    wanted = re.escape(pattern).replace(re.escape("<...>"), "[\\s\\S]*").replace(re.escape("..."), ".*")
    return re.fullmatch(wanted, "\n".join(map(_steady, came)).strip()) is not None


def _steady(line: str) -> str:
    for varying, steady in _VARYING:
        line = varying.sub(steady, line)
    return line.strip()


class Lasting:
    """A command that runs until it is stopped."""

    def __init__(self, text: str, directory: Path, environment: dict[str, str], words: list[str] | None) -> None:
        """`words`, what follows `python`, if it may be forked."""
        self._child: warm.Child | subprocess.Popen[bytes]
        reading, writing = os.pipe()
        self._stdout = os.fdopen(reading)
        if words is None:
            self._child = subprocess.Popen(
                ["bash", "-c", f"exec {text}"], cwd=directory, env=environment, stdout=writing, stderr=writing
            )
        else:
            with Path(os.devnull).open() as nothing:
                self._child = warm.start(
                    words, cwd=directory, env=environment, stdin=nothing, stdout=writing, stderr=writing
                )
        os.close(writing)
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stdout:
            self._lines.append(line.rstrip("\n"))
            if " ready" in line:
                self._ready.set()
        self._ready.set()

    def said(self) -> list[str]:
        """What it had said when it was ready."""
        assert self._ready.wait(PATIENCE) and self._child.poll() is None, self._lines
        return list(self._lines)

    def stop(self) -> list[str]:
        """End it in order; everything it has said."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            code = self._child.wait(PATIENCE)
        finally:
            if self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            self._reader.join(PATIENCE)
            self._stdout.close()
        assert code == 0, self._lines
        return self._lines


class Reader:
    """Somebody who types what a page says, in a directory of their own."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._home = Path(tempfile.mkdtemp(prefix="ba-"))
        self._ports = {shown: str(_free_port()) for shown in ("8000", "8001", "7400", "7401")}
        self._ids: dict[str, str] = {}
        self._last_id = ""
        self._lasting: list[Lasting] = []
        self._files: dict[str, int] = {}
        self._used: list[str] = []
        self._exported: dict[str, str] = {}
        self._begun = page.name not in READ_FIRST
        not_theirs = ("BITACTOR_", "OTEL_", "PYTEST_", "COLUMNS")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(not_theirs)}
        self._environment |= {
            "PATH": f"{self._programs()}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "error::ResourceWarning",
            "PYTHONUTF8": "1",
            "NO_COLOR": "1",
            "PYTEST_ADDOPTS": "-p no:schemathesis -p no:anyio",  # plugins of ours, which take long to load
        }

    def _programs(self) -> Path:
        """`python` and `bitactor` are this interpreter's, installed or not."""
        place = self._home / ".bin"
        place.mkdir()
        for name, what in (("python", ""), ("bitactor", "-m bitactor ")):
            (place / name).write_text(f'#!/bin/sh\nexec {sys.executable} {what}"$@"\n')
            (place / name).chmod(0o755)
        return place

    def follow(self) -> None:
        """The whole page, top down."""
        script: Block | None = None
        printed: list[str] = []
        for part in parts(self._page):
            if part is None:
                self._end_section()
            elif part.language == "python":
                script, printed = part, self._python(part)
                continue
            elif part.language == "console":
                self._console(part)
            elif part.language == "text" and script is not None:
                self._compare(part.line, part.lines, printed)
            script = None
        self._end_section()
        for name, line in self._files.items():
            stem = Path(name).stem
            assert any(re.search(rf"\b{stem}\b", text) for text in self._used), (
                f"{self._page.name}:{line}: {name} is never used"
            )

    def close(self) -> None:
        """Leave nothing behind."""
        try:
            self._end_section()
        finally:
            shutil.rmtree(self._home, ignore_errors=True)

    def _end_section(self) -> None:
        while self._lasting:
            self._lasting.pop().stop()
        self._exported = {}

    def _python(self, block: Block) -> list[str]:
        text = self._typed("\n".join(block.lines)) + "\n"
        titled = _FILE.match(block.lines[0]) if block.lines else None
        if titled is None:
            path = self._home / f"example_{block.line}.py"
            path.write_text(text, encoding="utf-8")
            self._used.append(text)
            return self._run(block.line, f"python {path.name}")
        compile(text, f"{self._page.name}:{block.line}", "exec")
        path = self._home / titled[1]
        before = path.read_text(encoding="utf-8") if titled[2] else ""
        path.write_text(before + text, encoding="utf-8")
        self._files.setdefault(titled[1], block.line)
        self._used.append(re.sub(r"^# .*", "", text))
        return []

    def _console(self, block: Block) -> None:
        for line, text, shown in commands(block):
            if _NOT_RUN.match(text) or (text.startswith("curl ") and shutil.which("curl") is None):
                continue
            text = self._typed(text)
            self._used.append(text)
            if text.startswith("export "):
                name, _, value = text.removeprefix("export ").partition("=")
                self._exported[name] = self._run(line, f'printf "%s" {value}')[0]
            elif _LASTING.match(text) and "--help" not in text:
                words = None if self._page.name in READ_FIRST else _words(text)
                self._lasting.append(Lasting(text, self._home, self._environment | self._exported, words))
                came = self._lasting[-1].said()
                self._compare(line, shown, came[: len(shown)])
            else:
                self._compare(
                    line, shown, self._run(line, text, fails=any(said.startswith("error:") for said in shown))
                )

    def _run(self, line: int, text: str, *, fails: bool = False) -> list[str]:
        done = self._done(text, self._environment | self._exported)
        where = f"{self._page.name}:{line}: {text}"
        assert (done.returncode != 0) == fails, f"{where}: exit code {done.returncode}\n{done.stdout}"
        seen = _ID.findall(done.stdout)
        self._last_id = seen[-1] if seen else self._last_id
        return done.stdout.splitlines()

    def _done(self, text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        words = _words(text)
        if words is not None and self._begun:
            return warm.run(words, cwd=self._home, env=environment, together=True, timeout=PATIENCE)
        self._begun = self._begun or words is not None
        return subprocess.run(
            ["bash", "-c", text],
            cwd=self._home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def _compare(self, line: int, shown: Sequence[str], came: Sequence[str]) -> None:
        if not any(text.strip() for text in shown):
            return
        assert alike(shown, came), "\n".join((f"{self._page.name}:{line} shows", *shown, "but there came", *came))
        self._ids |= dict(zip(_ID.findall("\n".join(shown)), _ID.findall("\n".join(came)), strict=False))

    def _typed(self, text: str) -> str:
        """A page's text with the ids and ports of this run."""
        text = _ID.sub(lambda found: self._ids.get(found[0], self._last_id), text)
        return _PORT.sub(lambda found: self._ports[found[0]], text)


def _words(text: str) -> list[str] | None:
    """What follows `python` in a command that needs no shell; None for another."""
    program = _PROGRAM.fullmatch(text)
    if program is None:
        return None
    return ["-m", "bitactor"] * (program[1] == "bitactor ") + shlex.split(text)[1:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path) -> None:
    reader = Reader(page)
    try:
        reader.follow()
    finally:
        reader.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_setting_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `BITACTOR_([A-Z_]+)` ", manual, flags=re.MULTILINE))
    assert told == {name.upper() for name in Settings.model_fields}


def test_what_differs_from_run_to_run_is_not_compared() -> None:
    shown = ["users.signup  ✓ completed in 7.10 ms", "...", f"{'a' * 32}  ███▍  168 µs  1"]
    assert alike(shown, ["users.signup ✓ completed in 12 ms", "x", "y", f"{'b' * 32} ▏ 1.5 s   1"])
    assert not alike(shown, ["users.signup ✗ stuck in 12 ms", f"{'b' * 32} ▏ 1.5 s   1"])
    assert alike(["registry ready at ipc://.../run"], ["registry ready at ipc:///home/ada/run"])
