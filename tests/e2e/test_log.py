"""What `bitactor run` logs, as a machine reads it: its own lines, those of steps, those of worker processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_cli import PATIENCE, bitactor, command, environ

SHOP = """
import logging
from bitactor import Context, Workflow

logging.getLogger("shop").warning("imported")
orders = Workflow("orders")

@orders.step
def take(context: Context) -> int:
    context.logger.info("taken")
    return 1

@orders.step(spawn="process")
def ship(take: int, context: Context) -> int:
    context.logger.info("shipped")
    return take
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ba-"))
    (made / "shop.py").write_text(textwrap.dedent(SHOP))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def served(directory: Path, *options: str) -> str:
    """What is on stderr of a node that ran one order."""
    node = subprocess.Popen(
        command("run", "shop:orders", "--http", "0", "--json", *options),
        cwd=directory, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert node.stdout is not None
    http = json.loads(node.stdout.readline())["http"]
    ended = bitactor("stimulate", "orders", "--http", http, cwd=directory)
    assert ended.returncode == 0, ended.stderr
    node.send_signal(signal.SIGTERM)
    _, said = node.communicate(timeout=PATIENCE)
    return said


def test_a_node_logs_an_object_a_line(directory: Path) -> None:
    lines = [json.loads(line) for line in served(directory, "-v", "--log-format", "json").splitlines()]
    by_logger: dict[str, list[str]] = {}
    for line in lines:
        by_logger.setdefault(line["logger"], []).append(line["message"])
    assert by_logger["shop"] == ["imported", "imported"]  # here, and in the worker process
    assert by_logger["bitactor.step.orders.take"] == ["taken"]
    assert by_logger["bitactor.step.orders.ship"] == ["shipped"]
    assert len(by_logger["bitactor.ingress"]) == 2
    (shipped,) = [line for line in lines if line["message"] == "shipped"]
    assert shipped["workflow"] == "orders" and shipped["attempt"] == 1 and len(shipped["transaction"]) == 32
