"""`bitactor export`"""

from __future__ import annotations

import csv
import datetime as dt
import errno
import json as jsons
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, Protocol, TextIO

from cyclopts import Parameter

from bitactor.errors import StoreError
from bitactor.messages.pulse import Pulse
from bitactor.ports import StoreQueries, TransactionRow
from mesh.cli import work
from mesh.cli.exits import FAILED, OK, CommandError, UsageError
from mesh.cli.list import NAMES_FROM, Status, asked_text
from mesh.cli.options import Json, Store
from mesh.cli.output import err

Format = Literal["jsonl", "csv", "sqlite"]

COLUMNS: Final = (
    "at", "transaction_id", "workflow", "seq", "kind", "step", "attempt", "ttl", "elapsed_ms", "error", "hop",
)  # fmt: skip
"""Of CSV: those of the view `pulse_log`."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PAGE: Final = 500
"""Transactions whose rows are read at once."""
_SAY_EVERY: Final = 0.5
"""Seconds between words on how far it is, on a terminal."""
_HEADER: Final = slice(68, 72)
"""Where in an SQLite file its application id is."""
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_COMPANION_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83", (3_007_000).to_bytes(4, sys.byteorder))
"""How what SQLite keeps beside a file begins: a log, in either order of bytes, and its index."""


class Copy(Protocol):
    """What transactions are written to."""

    def add(self, row: TransactionRow, pulses: _Pulses) -> None:
        """Write a transaction, with those of its pulses that can be read."""

    def close(self) -> None:
        """There are no more."""


class _Pulses:
    """The pulses of a transaction as they are read; once they have ended, `unreadable` says why the next cannot be."""

    def __init__(self, pulses: Iterable[Pulse]) -> None:
        self._pulses = pulses
        self.number = 0
        self.unreadable = ""

    def __iter__(self) -> Iterator[Pulse]:
        try:
            for pulse in self._pulses:
                self.number += 1
                yield pulse
        except StoreError as error:
            self.unreadable = str(error)


class _Lines:
    """Lines of JSON, one a transaction, written pulse by pulse."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, row: TransactionRow, pulses: _Pulses) -> None:
        write = self._file.write
        write(jsons.dumps(work.plain(row))[:-1] + ', "pulses": [')
        for number, pulse in enumerate(pulses):
            write((", " if number else "") + jsons.dumps(work.plain_pulse(pulse)))
        write("]")
        if pulses.unreadable:
            write(f', "unreadable": {jsons.dumps(pulses.unreadable)}')
        write("}\n")

    def close(self) -> None:
        self._file.flush()


class _Csv:
    """A line of CSV a pulse."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._write = csv.writer(file, lineterminator="\n").writerow
        self._write(COLUMNS)

    def add(self, row: TransactionRow, pulses: _Pulses) -> None:
        for pulse in pulses:
            elapsed_ms = "" if pulse.elapsed_ns is None else pulse.elapsed_ns / 1e6
            self._write((
                _moment(pulse.at_ns), pulse.transaction, pulse.workflow, pulse.seq, pulse.kind, pulse.step,
                pulse.attempt, pulse.ttl, elapsed_ms, pulse.error, pulse.hop,
            ))  # fmt: skip

    def close(self) -> None:
        self._file.flush()


class Asked(NamedTuple):
    """The transactions that are wanted."""

    status: str | None
    workflow: str | None
    limit: int | None


def export(
    *,
    store: Store = "",
    format: Annotated[
        Format, Parameter(help="jsonl: a transaction a line, with its pulses; csv: a pulse a line; sqlite: tables.")
    ] = "jsonl",
    output: Annotated[
        Path | None, Parameter(("-o", "--output"), help="The file to write; without one, standard output.")
    ] = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Write also where there is a file.")
    ] = False,
    status: Annotated[Status | None, Parameter(help="Only those that stand so.")] = None,
    workflow: Annotated[str | None, Parameter(help="Only those of this workflow, or consumer.")] = None,
    limit: Annotated[int | None, Parameter(help="At most so many, the newest.")] = None,
    json: Json = False,
) -> int:
    """Copy transactions and their pulses out of a journal, the newest first, while nodes write it or not.

    As JSON lines with values as `trace --json` shows them, as CSV, or as an SQLite file with the tables transactions
    and pulses and the view pulse_log, to be asked by SQL. Secrets are masked. The file is for this user alone, and is
    there once all of it is written. Exit code 1 if a transaction cannot be read; the others are written. --json is
    --format jsonl.

    Example: bitactor export --store sqlite:///pulses.db --format sqlite -o asked.db
    """
    if not store:
        raise UsageError("which journal? --store was not given", "give it, or set BITACTOR_STORE")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} exports nothing", "give 1 or more, or leave it out")
    if json and format != "jsonl":
        raise UsageError(f"--json and --format {format} are two formats", "leave one of them out")
    asked = Asked(status, workflow, limit)
    with work.open_reader(store) as reader:
        if output is not None:
            with _private(output, overwrite) as path:
                copied = _to_file(reader, asked, format, path)
        elif format == "sqlite":
            raise UsageError("an SQLite file is not written to standard output", "name a file with -o")
        else:
            copied = _copy(reader, asked, _text(format, sys.stdout), sys.stdout.isatty())
        if not copied.transactions:
            names = {row.workflow for row in reader.list(limit=NAMES_FROM)} if workflow else set[str]()
            err().print(f"no transactions{asked_text(status, workflow, names)}", soft_wrap=True)
    for why in copied.unreadable:
        err().print(why)
    err().print(f"{copied.text()} copied to {output or 'standard output'}", soft_wrap=True)
    return FAILED if copied.unreadable else OK


class _Copied(NamedTuple):
    """What was copied."""

    transactions: int
    pulses: int
    unreadable: Sequence[str]
    """Why some of the transactions were not copied whole."""

    def text(self) -> str:
        """How much that is, in words."""
        return f"{self.transactions:,} transactions, {self.pulses:,} pulses"


def _to_file(reader: StoreQueries, asked: Asked, format: Format, path: Path) -> _Copied:
    if format == "sqlite":
        return _copy(reader, asked, work.Tables(path, work.masked_pulse), False)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        return _copy(reader, asked, _text(format, file), False)


def _text(format: Format, file: TextIO) -> Copy:
    return _Csv(file) if format == "csv" else _Lines(file)


def _copy(reader: StoreQueries, asked: Asked, copy: Copy, terminal: bool) -> _Copied:
    """Write what is asked for.  `terminal`: what is written is shown there already."""
    copied = _Copied(0, 0, unreadable := list[str]())
    with _progress(not terminal) as say:
        for row in _rows(reader, asked):
            read = _Pulses(_pulses_of(reader, row.transaction))
            copy.add(row, read)
            copied = _Copied(copied.transactions + 1, copied.pulses + read.number, unreadable)
            if read.unreadable:
                unreadable.append(read.unreadable)
            say(copied.text())
        copy.close()
    return copied


def _rows(reader: StoreQueries, asked: Asked) -> Iterator[TransactionRow]:
    left, before = asked.limit, None
    while left is None or left > 0:
        page = PAGE if left is None else min(PAGE, left)
        rows = reader.list(status=asked.status, workflow=asked.workflow, limit=page, before=before)
        yield from rows
        if len(rows) < page:
            return
        before = rows[-1].transaction
        left = None if left is None else left - len(rows)


def _pulses_of(reader: StoreQueries, transaction: str) -> Iterable[Pulse]:
    if isinstance(reader, work.SqliteReader):
        yield from reader.each_pulse(transaction)
    else:
        yield from reader.pulses(transaction)


@contextmanager
def _private(path: Path, overwrite: bool) -> Iterator[Path]:
    """A new file for this user alone, that takes its name once all of it is written.

    Raises:
        UsageError: there is a file of that name, or no directory for it.
        CommandError: the disk is full.
    """
    if _is_journal(path):
        raise UsageError(f"{path} is a journal, or belongs to one", "name another file")
    if path.exists():
        if not path.is_file():
            raise UsageError(f"{path} is no file", "name another file")
        if not overwrite:
            raise UsageError(f"{path} is there already", "name another file, or give --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory", f"create it (mkdir -p {path.parent}) or name another file")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        yield part
        part.replace(path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        hint = "free some space, or name a file on another disk"
        raise CommandError(f"{path}: {error.strerror}; nothing was written", hint=hint) from error
    finally:
        part.unlink(missing_ok=True)


def _is_journal(path: Path) -> bool:
    """Whether it is a journal, or what SQLite keeps beside one, by whatever name; also where it is not there just
    now."""
    real = Path(os.path.realpath(path))
    owners = [real.name[: -len(end)] for end in _COMPANIONS if real.name.endswith(end)]
    files = [_beginning(real), *(_beginning(real.with_name(name)) for name in owners if name)]
    header = work.APPLICATION_ID.to_bytes(4, "big")
    return files[0][:4] in _COMPANION_MAGIC or any(beginning[_HEADER] == header for beginning in files)


def _beginning(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEADER.stop)


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[str], None]]:
    """A function that says how far it is, on a terminal."""
    console = err()
    if not (wanted and console.is_terminal):
        yield lambda text: None
        return
    said = time.monotonic()

    def say(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= _SAY_EVERY:
            said = time.monotonic()
            status.update(text)

    with console.status("0 transactions") as status:
        yield say


def _moment(at_ns: int) -> str:
    seconds, milliseconds = divmod((at_ns + 500_000) // 1_000_000, 1_000)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03}"
