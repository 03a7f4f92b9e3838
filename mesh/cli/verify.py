"""`bitactor verify [ID…]`"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from rich.text import Text

from bitactor.errors import StoreError
from mesh.cli import work
from mesh.cli.exits import FAILED, OK, UsageError
from mesh.cli.options import Json, Store
from mesh.cli.output import err, out, print_document, print_error, printable
from mesh.cli.places import StorePlace, id_beginning, transaction_id, unknown

_TODO: Final = (
    "nodes leave those alone and carry on with the others; to have them back: stop the nodes, put a sound copy there "
    "(without -wal and -shm), start them"
)
_TODO_IF_ALL_CAN_BE_READ: Final = (
    "nothing that can be read is wrong, and nodes go on; but something wrote over it: look at the disk, and, once the "
    "nodes are stopped, put a sound copy there (without -wal and -shm)"
)
_TODO_FILE: Final = (
    "stop the nodes that use it, copy it aside, and put a sound copy there (without -wal and -shm), or try "
    "`sqlite3 FILE .recover`"
)
_DAMAGED: Final = "the file is damaged: "
_SHOW_AFTER: Final = 0.5
_SHOW_EVERY: Final = 0.2


async def verify(*transactions: str, store: Store = "", json: Json = False) -> int:
    """Walk through a journal: is all that it keeps what was written, and can each pulse be read?

    Reads only, also while nodes write. Checksums, and the chain in which each write names the one before, show what was
    altered, is missing or out of order. Without ids it also has SQLite check the file itself, and looks whether all
    tables and indexes are there. Exit code 1 if something is not as it was written.

    Example: bitactor verify --store sqlite:///pulses.db

    Parameters
    ----------
    transactions
        Only these: ids, as list shows them, or the beginnings of them. By default all.
    """
    if not store:
        raise UsageError("where is the journal? --store was not given", "give it, or set BITACTOR_STORE")
    beginnings = [id_beginning(transaction) for transaction in transactions]
    with work.open_reader(store) as reader:
        if not isinstance(reader, work.SqliteReader):
            raise UsageError(f"{store} has no form that could be verified", "name a file, as in sqlite:///pulses.db")
        place = StorePlace(store, reader)
        wanted = [await transaction_id(place, beginning) for beginning in beginnings]
        for transaction in wanted:
            if reader.get(transaction) is None:
                raise unknown(transaction, store)
        looks = [reader.verify(transaction) for transaction in dict.fromkeys(wanted)] or [reader.verify()]
        damage = [] if wanted else [work.Fault("", -1, f"{_DAMAGED}{line}", False) for line in reader.damage()]
        faults, seen, pulses = await _look(looks, damage)
    if json:
        print_document(
            {
                "ok": not faults,
                "store": store,
                "transactions": seen,
                "pulses": pulses,
                "faults": [_as_plain(fault) for fault in faults],
            }
        )
    elif faults:
        for fault in faults:
            out().print(Text(printable(_line(store, fault))), soft_wrap=True)
        hurt = sum(1 for fault in faults if fault.transaction)
        if hurt:
            print_error(f"{store}: {hurt} of {seen} transactions cannot be read", _TODO_FILE if damage else _TODO)
        else:
            text = f"{store}: not as it was written in {len(faults)} places, which none of {seen} transactions needs"
            print_error(text, _TODO_FILE if damage else _TODO_IF_ALL_CAN_BE_READ)
    else:
        print(f"{seen} transactions, {pulses} pulses: sound")
    return FAILED if faults else OK


async def _look(
    looks: Iterable[Iterable[work.Fault | work.Progress]], damage: Sequence[work.Fault]
) -> tuple[list[work.Fault], int, int]:
    """The faults that these looks find, behind what is wrong with the file itself, and of how many transactions and
    pulses; on a terminal it shows how far it is."""
    faults = list(damage)
    seen, pulses = 0, 0
    with ExitStack() as shown:
        if damage:  # which may end a look
            shown.push(partial(_note, faults))
        status = None
        due = time.monotonic() + _SHOW_AFTER
        for look in looks:
            done = (seen, pulses)
            for found in look:
                if isinstance(found, work.Fault):
                    faults.append(found)
                    continue
                seen, pulses = done[0] + found.transactions, done[1] + found.pulses
                if time.monotonic() < due:
                    continue
                await asyncio.sleep(0)  # for Ctrl-C
                due = time.monotonic() + _SHOW_EVERY
                if status is None and sys.stderr.isatty():
                    status = shown.enter_context(err().status(""))
                if status is not None:
                    status.update(f"{seen} transactions, {pulses} pulses")
    return faults, seen, pulses


def _note(faults: list[work.Fault], _: object, error: BaseException | None, *rest: object) -> bool:
    """Take what ended a look for one more fault."""
    if not isinstance(error, StoreError):
        return False
    faults.append(work.Fault("", -1, f"the look ended there: {error}", False))
    return True


def _line(store: str, fault: work.Fault) -> str:
    """A fault for people: the file, the transaction, the pulse, what is wrong."""
    where = f"{fault.transaction}, pulse {fault.pulse}" if fault.transaction else "the journal"
    return f"{store}: {where}: {fault.why}"


def _as_plain(fault: work.Fault) -> dict[str, Any]:
    """A fault for machines."""
    named = fault.transaction or None
    return {"transaction": named, "pulse": fault.pulse if named else None, "why": fault.why, "wanted": fault.wanted}
