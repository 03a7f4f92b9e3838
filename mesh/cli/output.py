"""Output of commands: results on stdout, everything else on stderr; in colour only on a terminal."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from mesh.cli import work

PIPED_WIDTH: Final = 200
"""Columns where the output is no terminal: a script wants whole values."""
WATERFALL_WIDTH: Final = 110
"""Columns of a waterfall where the output is no terminal; a waterfall is never cropped."""

STYLES: Final = {
    "completed": "green",
    "compensated": "yellow",
    "failed": "red",
    "retried": "yellow",
    "timed_out": "magenta",
    "undone": "cyan",
    "undo_failed": "bold red",
    "tombstone": "bold red",
    "cancelled": "magenta",
    "stuck": "bold red",
    "poison": "bold red",
    "unroutable": "bold red",
    "unreadable": "bold red",
    "parked": "bold red",
    "halted": "blue",
    "resumed": "blue",
    "running": "blue",
}
"""Status of a transaction, or what became of a hop → how it is shown."""


class PipedConsole(Console):
    """A console whose reader may go away, which ends the command."""

    @override
    def on_broken_pipe(self) -> NoReturn:
        """Raises `BrokenPipeError`, for `main` to handle."""
        raise BrokenPipeError


def out(piped_width: int = PIPED_WIDTH) -> Console:
    """The console for results; `piped_width` is its width, where no terminal and no COLUMNS says so."""
    given = sys.stdout.isatty() or "COLUMNS" in os.environ
    return PipedConsole(
        file=sys.stdout, highlight=False, markup=False, emoji=False, width=None if given else piped_width
    )


def err() -> Console:
    """The console for everything but results."""
    return PipedConsole(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_document(value: Any) -> None:
    """Print one value as a JSON document."""
    print(_as_json(value, indent=2))


def print_lines(values: Iterable[Any]) -> None:
    """Print values as JSON lines."""
    for value in values:
        print(_as_json(value), flush=True)


def _as_json(value: Any, indent: int | None = None) -> str:
    """The value as JSON that stdout can carry: what its encoding lacks is escaped as JSON does."""
    text = json.dumps(work.plain(value), ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(work.plain(value), indent=indent)
    return text


def prepare_streams() -> None:
    """Let what is printed fail for nobody's encoding (it is escaped), nor for a stream that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str, hint: str = "", details: str = "") -> None:
    """Print `error: …` on stderr, in one line, with what to do below it."""
    console = err()
    if details:
        console.print(Text(details.rstrip()))
    console.print(Text.assemble(("error: ", "bold red"), _line(message)))
    if hint:
        console.print(Text.assemble(("  → ", "dim"), _line(hint)))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, fold: str = "", right: Sequence[str] = ()
) -> None:
    """Print a plain table; the column `fold` gives way when the terminal is narrow."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(
            column,
            no_wrap=column != fold,
            overflow="fold" if column == fold else "ellipsis",
            justify="right" if column in right else "left",
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    out().print(table)


def status_text(status: str) -> Text:
    """A transaction's status in its colour."""
    return Text(status, style=STYLES.get(status, ""))


def moment(at_ns: int) -> str:
    """`at_ns` in local time to the second; with the date, if that is not today's, to the minute."""
    at = dt.datetime.fromtimestamp(at_ns / 1e9).astimezone()
    today = dt.datetime.now().astimezone().date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M")


def short_ids(ids: Sequence[str]) -> list[str | Text]:
    """The beginnings of transactions' ids: as much as tells these apart, and at least as much as says when each
    began."""
    whole = len(set(ids))
    size = next(size for size in range(12, 33) if len({name[:size] for name in ids}) == whole)
    return [name[:size] for name in ids]


def short(value: Any, width: int = 200) -> str:
    """A value as JSON in one line, cropped."""
    text = _as_json(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def print_errors(summary: Mapping[str, Any]) -> None:
    """Print what a transaction failed of, or why it halted, on stderr; `summary` as `transaction_as_plain` has it."""
    for error in summary.get("errors") or ():
        print_fault(error)
    if isinstance(halt := summary.get("halt"), Mapping):
        print_fault({"type": "Halt", **halt})


def print_fault(error: Any) -> None:
    """Print an error of a transaction, as plain data has it, on stderr: where it was, and what came with it."""
    if not isinstance(error, Mapping):
        err().print(f"  {error}")
        return
    where = f" (at {printable(error['step'])}, attempt {error['attempt']})" if error.get("step") else ""
    err().print(f"  {error['type']}: {short(error['message'])}{where}")
    for line in work.chain_lines(work.fault_of_plain(error), depth=2):
        err().print(printable(line))


def printable(text: str) -> str:
    """`text` without control characters, which may come from anybody's error message."""
    return "".join(character if character.isprintable() else " " for character in text)


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
