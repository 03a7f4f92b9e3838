"""The log of the command line: its two forms, and the page that says what is logged."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bitactor
from registry.support.log import JsonFormatter, TextFormatter, log_set_up, log_to_stderr, prepare_log, set_up_log

ROOT = Path(bitactor.__file__).parents[1]
LEVELS = ("info", "warning", "error", "critical")
EXTRA = {"workflow": "w", "step": "a", "transaction": "01a2", "attempt": 2}


@contextmanager
def a_root() -> Iterator[logging.Logger]:
    """The root logger as a program finds it that is just starting."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers, root.level = [], logging.WARNING
    try:
        yield root
    finally:
        root.handlers, root.level = handlers, level


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("shop").makeRecord("shop", logging.WARNING, "f", 1, message, arguments, None, extra=extra)


class Awkward:
    def __repr__(self) -> str:
        raise SystemExit("never shown")


def test_a_line_of_json_is_json_whatever_a_record_has() -> None:
    odd = record("%s\n\ud800", "ö", nan=float("nan"), odd=Awkward(), keys={(1, 2): 3}, message_="x", **EXTRA)
    text = JsonFormatter().format(odd)
    assert "\n" not in text
    line = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert line["message"] == "ö\n\ud800" and line["level"] == "warning" and line["logger"] == "shop"
    assert {name: line[name] for name in EXTRA} == EXTRA
    assert (
        line["nan"] == "nan"
        and line["odd"].startswith("<a Awkward whose repr raises")
        and line["keys"] == "{(1, 2): 3}"
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])


def test_an_exception_comes_with_its_stack() -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        made = record("it failed")
        made.exc_info = (ValueError, error, error.__traceback__)
    assert json.loads(JsonFormatter().format(made))["error"].endswith("ValueError: bad")
    assert TextFormatter().format(made).endswith("ValueError: bad")


def test_a_steps_own_line_says_which_transaction() -> None:
    assert TextFormatter().format(record("charged", **EXTRA)).endswith("shop: charged (transaction 01a2, attempt 2)")
    assert TextFormatter().format(record("plain")).endswith("shop: plain")


def test_a_program_that_sets_its_log_up_keeps_it() -> None:
    with a_root() as root:
        root.addHandler(logging.NullHandler())
        prepare_log(logging.INFO, None)
        logging.basicConfig(level=logging.ERROR)
        (own,) = root.handlers
        log_to_stderr(logging.INFO, None)
        assert root.handlers == [own] and root.level == logging.INFO and not log_set_up()
        log_to_stderr(logging.WARNING, "json")
        assert isinstance(root.handlers[0].formatter, JsonFormatter) and root.level == logging.WARNING


def test_a_message_that_cannot_be_made_is_a_line_like_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with a_root() as root:
        log_to_stderr(logging.INFO, "json")
        root.warning("%d of %d", "many")
        root.warning("%s", AwkwardError())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all("whose message cannot be made" in line["message"] for line in lines) and len(lines) == 2


class AwkwardError:
    def __str__(self) -> str:
        raise ValueError("never shown")


def test_a_worker_process_logs_as_its_parent_does() -> None:
    for log_format in ("text", "json"):
        with a_root():
            log_to_stderr(logging.INFO, log_format)  # type: ignore[arg-type]
            how = log_set_up()
        with a_root() as root:
            set_up_log(how)
            assert root.level == logging.INFO and log_set_up() == how
    with a_root() as root:
        set_up_log("")
        assert not root.handlers


def test_the_page_has_each_logger_with_its_levels() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().partition("## Log\n")[2].partition("\n## ")[0]
    told: dict[str, set[str]] = {}
    names: list[str] = []
    for loggers, levels in re.findall(r"^\| ([^|]*)\| ([^|]*)\|", page, re.MULTILINE)[1:]:
        names = re.findall(r"`(bitactor\.\w+)", loggers) or names
        for name in names:
            told.setdefault(name, set()).update(re.findall(r"\w+", levels))
    assert told == logged()


def logged() -> dict[str, set[str]]:
    """Logger → the levels at which the packages log with it, by their source, `debug` aside."""
    found: dict[str, set[str]] = {}
    for package in ("bitactor", "mesh", "registry"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            name = re.search(r'^_?log\w* = logging\.getLogger\("([\w.]+)"\)', text, re.MULTILINE)
            if name is None:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    found.setdefault(name[1], set()).update(levels_of(node, node.func))
    found["bitactor.step"] = set()
    return {name: levels for name, levels in found.items() if levels or name == "bitactor.step"}


def levels_of(call: ast.Call, function: ast.Attribute) -> set[str]:
    """The levels of a call of a logger, or of its throttle."""
    of = ast.unparse(function.value)
    if of in ("logger", "_log"):
        if function.attr == "log":
            return {"info", "warning"}
        return {{"exception": "error"}.get(function.attr, function.attr)} & set(LEVELS)
    if function.attr == "log" and call.args and (level := ast.unparse(call.args[0])).startswith("logging."):
        return {level.removeprefix("logging.").lower()}
    return {"warning"} if function.attr == "warn" and of.startswith("self.") else set()
