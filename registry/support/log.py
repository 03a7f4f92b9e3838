"""The log of a program of ours on stderr: lines for people, or an object of JSON a line for machines."""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from typing_extensions import override

from bitactor.messages.values import named_text, shown

LogFormat = Literal["text", "json"]

_OF_EVERY_RECORD: Final = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
_PLAIN: Final = (str, int, bool, type(None))


def log_to_stderr(level: int, log_format: LogFormat | None) -> None:
    """Let the log of `level` and above go to stderr.  A program that has set its log up by itself keeps it, and only
    has its level lowered, unless a format is asked for."""
    root = logging.getLogger()
    _unmute(root)
    if log_format is not None or not root.handlers:
        handler = _Handler(sys.stderr)
        handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
        root.handlers = [handler]
        root.setLevel(level)
    elif level < root.level:
        root.setLevel(level)


def prepare_log(level: int, log_format: LogFormat | None) -> None:
    """Before modules are imported that may set the log up: it goes to stderr in the format that is asked for; without
    one, the root logger has no handler, so that what they set up holds, and what they warn of is seen."""
    if log_format is None:
        _unmute(logging.getLogger())
    else:
        log_to_stderr(level, log_format)


def _unmute(root: logging.Logger) -> None:
    """Take handlers that drop everything off the root logger."""
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, logging.NullHandler)]


def log_set_up() -> str:
    """How this process logs by `log_to_stderr`, for `set_up_log` in one that it starts; empty if it does not."""
    root = logging.getLogger()
    ours = [each.formatter for each in root.handlers if isinstance(each.formatter, JsonFormatter | TextFormatter)]
    return f"{root.level} {'json' if isinstance(ours[0], JsonFormatter) else 'text'}" if ours else ""


def set_up_log(how: str) -> None:
    """Log as the process does whose `log_set_up` is `how`."""
    if how:
        level, _, log_format = how.partition(" ")
        log_to_stderr(int(level), "json" if log_format == "json" else "text")


class _Handler(logging.StreamHandler[TextIO]):
    """To stderr; a record whose message cannot be made says so in a line like the others."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            record.getMessage()
        except Exception as error:  # of the user's objects
            record.msg, record.args = f"{shown(record.msg)}, whose message cannot be made: {named_text(error)}", None
        super().emit(record)


class TextFormatter(logging.Formatter):
    """A line for people; of what a step logs, it says which transaction and attempt that is."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        of_a_step = record.__dict__.keys() >= {"transaction", "attempt"}
        return f"{line} (transaction {record.transaction}, attempt {record.attempt})" if of_a_step else line  # type: ignore[attr-defined]


class JsonFormatter(logging.Formatter):
    """An object of JSON in one line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `error` (the exception with
    its stack) and what the record has beside, such as the `workflow`, `step`, `transaction` and `attempt` of a step's
    own."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        for name, value in record.__dict__.items():
            if name not in _OF_EVERY_RECORD:
                line.setdefault(name, _plain(value))
        return json.dumps(line)


def _plain(value: Any) -> Any:
    """The value, if JSON has it, or its text."""
    if type(value) in _PLAIN or (type(value) is float and math.isfinite(value)):
        return value
    return shown(value)
