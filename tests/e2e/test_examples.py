"""The examples of the docs: each command of their pages is run, and prints what the page says."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bitactor.errors import StoreError
from mesh.stores import SqliteReader
from tests import warm

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = sorted(EXAMPLES.glob("*.md"))
WITHIN = 240
NOT_RUN = ("pip install", "make ")
PROGRAM = re.compile(r"python docs/examples/[\w ./-]+")
"""A command that needs no shell; it finds our packages imported."""


def sessions(page: Path) -> Iterator[tuple[str, str]]:
    """Each command of a page's console blocks, with what it prints."""
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


def run(command: str, directory: Path) -> str:
    """What a command prints: its output, then its errors, then its exit code if that is not 0."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    if PROGRAM.fullmatch(command):
        done = warm.run(shlex.split(command)[1:], cwd=directory, env=environment, timeout=WITHIN)
    else:
        done = subprocess.run(
            command, shell=True, cwd=directory, env=environment, capture_output=True, text=True, timeout=WITHIN
        )
    said = done.stdout + ("" if done.returncode == 0 else done.stderr + f"[{done.returncode}]\n")
    return re.sub(r"[ \t]+$", "", said, flags=re.MULTILINE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A fresh directory that sees the docs as the repository's root does."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return tmp_path


def test_there_are_pages() -> None:
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_command_prints_what_the_page_says(page: Path, directory: Path) -> None:
    checker = doctest.OutputChecker()
    ran = 0
    for command, expected in sessions(page):
        if command.startswith(NOT_RUN):
            continue
        said = run(command, directory)
        assert checker.check_output(expected, said, doctest.ELLIPSIS), (
            f"$ {command}\nexpected:\n{expected}\ngot:\n{said}"
        )
        ran += 1
    assert ran, f"{page.name} shows no command"


def rows(database: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT * FROM readings ORDER BY number").fetchall()


def batches(journal: Path) -> int:
    try:
        with SqliteReader(journal) as reader:
            pulses = [pulse for row in reader.list() for pulse in reader.pulses(row.transaction)]
    except StoreError:  # it is not there yet
        return 0
    return sum(pulse.kind == "completed" and pulse.step.startswith("load/batch-") for pulse in pulses)


def test_killed_half_way_and_resumed_it_ends_with_the_same_rows_as_undisturbed(directory: Path) -> None:
    command = [sys.executable, "docs/examples/etl", "readings", "--rows", "200000"]
    whole = subprocess.run(
        [*command, "--directory", "whole"], cwd=directory, capture_output=True, timeout=WITHIN, check=True
    )
    with subprocess.Popen(
        [*command, "--directory", "killed"], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        until = time.monotonic() + WITHIN
        while batches(directory / "killed" / "pulses.db") < 5 and first.poll() is None and time.monotonic() < until:
            time.sleep(0.01)  # its journal is the only thing that can be watched from outside
        first.send_signal(signal.SIGKILL)
        first.communicate()
    done = batches(directory / "killed" / "pulses.db")
    assert 5 <= done < 40, "it was to be killed in the middle"
    again = subprocess.run(
        [*command, "--directory", "killed"], cwd=directory, capture_output=True, timeout=WITHIN, check=True
    )
    assert again.stdout.splitlines()[:2] == whole.stdout.splitlines()[:2]
    assert rows(directory / "killed" / "readings.db") == rows(directory / "whole" / "readings.db")
    with SqliteReader(directory / "killed" / "pulses.db") as reader:
        assert len(reader.list()) == 1
