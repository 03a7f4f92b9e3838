"""The place that a verb asks: a store's file, all nodes of a registry, or one node over HTTP."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from bitactor.errors import StoreError
from bitactor.messages.pulse import ACCEPTED, KINDS, Pulse
from bitactor.ports import StoreQueries, TransactionRow
from mesh.cli import work
from mesh.cli.exits import FAILED, UNREACHABLE, CommandError, UsageError
from mesh.cli.http import Ingress, refusal, summary_of

_FULL_ID: Final = 32
_HEX: Final = frozenset("0123456789abcdef")
_CHANGES: Final = {"cancel": ("running", "halted"), "resume": ("halted", "stuck"), "undo": ("completed",)}
"""Verb → the statuses that it changes."""
_NO_PULSES: Final = "the journal has no pulse of it any more"
_MANY: Final = 10
"""How many transactions an ambiguous beginning of an id is shown with."""


class Place(Protocol):
    """A place that knows transactions."""

    name: str
    """The place as the user named it."""

    async def rows(
        self, *, status: str | None = None, workflow: str | None = None, limit: int, before: str | None = None
    ) -> list[TransactionRow]:
        """Rows of transactions, newest first; `before`: only ids that sort before this text."""

    async def dead_letters(self, *, workflow: str | None, limit: int, before: str | None) -> list[dict[str, Any]]:
        """What ended nowhere, as `plain_dead_letter` has it, of the newest transaction first; `before`: the last id of
        the page before."""

    async def pulses(self, transaction: str) -> list[Pulse]:
        """The pulses of one transaction; none if it is unknown.

        Raises:
            BitActorError: it is unknown.
        """

    def readable(self, transaction: str) -> list[Pulse]:
        """Those pulses of a transaction that is damaged that can be read here; maybe none."""

    async def parked(self, rows: Sequence[TransactionRow]) -> Mapping[str, str]:
        """Those that run, but cannot go on where they are → why."""

    async def status(self, transaction: str) -> str:
        """The status of one transaction.

        Raises:
            CommandError, BitActorError: it is unknown.
        """

    async def change(
        self, verb: str, transaction: str, *, reason: str, wait: bool, timeout: float | None
    ) -> dict[str, Any]:
        """How a transaction stands once it was asked to `cancel`, `resume` or `undo`, and, if `wait`, has ended.

        Raises:
            CommandError: nobody can be asked here.
        """

    async def send_again(self, letter: str) -> dict[str, Any]:
        """How the transaction of a dead letter stands once what is in that was sent again.

        Raises:
            CommandError: nobody can be asked here.
        """


class StorePlace:
    """A journal, which is read while others write it."""

    def __init__(self, name: str, reader: StoreQueries) -> None:
        self.name = name
        self._reader = reader

    async def rows(
        self, *, status: str | None = None, workflow: str | None = None, limit: int, before: str | None = None
    ) -> list[TransactionRow]:
        """Those in the file."""
        return self._reader.list(status=status, workflow=workflow, limit=limit, before=before)

    async def dead_letters(self, *, workflow: str | None, limit: int, before: str | None) -> list[dict[str, Any]]:
        """Those in the file, whose workflows nobody declares here."""

        async def rows(*, workflow: str | None, limit: int, before: str | None) -> list[TransactionRow]:
            return self._reader.list(workflow=workflow, limit=limit, before=before, dead=True)

        found = await work.find_dead_letters(rows, self.pulses, {}, workflow=workflow, limit=limit, before=before)
        return [work.plain_dead_letter(letter) for letter in found]

    async def pulses(self, transaction: str) -> list[Pulse]:
        """Those in the file."""
        return self._reader.pulses(transaction)

    def readable(self, transaction: str) -> list[Pulse]:
        """Those up to the damage, or all of them if it is in the transaction's row."""
        found: list[Pulse] = []
        if isinstance(self._reader, work.SqliteReader):
            with suppress(StoreError):
                found.extend(self._reader.each_pulse(transaction))
        return found

    async def parked(self, rows: Sequence[TransactionRow]) -> Mapping[str, str]:
        """Those that cannot be read; who runs them, and whether he can, the file does not know."""
        found: dict[str, str] = {}
        for row in rows:
            if row.open:
                try:
                    if why := _what_is_wrong(self._reader.pulses(row.transaction)):
                        found[row.transaction] = why
                except StoreError as error:
                    found[row.transaction] = str(error)
        return found

    async def status(self, transaction: str) -> str:
        """As the file has it."""
        return self._row(transaction).status

    def _row(self, transaction: str) -> TransactionRow:
        row = self._reader.get(transaction)
        if row is None:
            raise unknown(transaction, self.name)
        return row

    async def change(
        self, verb: str, transaction: str, *, reason: str, wait: bool, timeout: float | None
    ) -> dict[str, Any]:
        """Always refused: only a process that has the workflow can do it, and a file does not lead to one."""
        row = self._row(transaction)
        allowed = _CHANGES[verb]
        if row.status not in allowed:
            raise CommandError(
                f"transaction {transaction} is {row.status}; only a {' or '.join(allowed)} one can be asked to {verb}",
                FAILED,
            )
        code = f"(await mesh.transaction('{transaction}')).{verb}()"
        raise self._for_others(row, f"transaction {transaction} is {row.status}; to {verb} it", code)

    async def send_again(self, letter: str) -> dict[str, Any]:
        """Always refused, as `change` is."""
        row = self._row(letter.rpartition("-")[0])
        raise self._for_others(row, f"to send {letter} again", f"await mesh.send_again('{letter}')")

    def _for_others(self, row: TransactionRow, what: str, code: str) -> CommandError:
        who = f"a process that declares {row.workflow!r}"
        if row.open and row.owner:
            who = f"node {row.owner} (or, if that is gone, {who}, which takes over)"
        return CommandError(
            f"{what} is for {who} to do, which {self.name} does not lead to",
            UNREACHABLE,
            f"give that process an ingress or a registry (bitactor run MODULE:OBJECT --store {self.name} --http 8000) "
            f"and ask with --http or --registry; or in its code: {code}",
        )


def _what_is_wrong(pulses: Sequence[Pulse]) -> str:
    """What is wrong with a journal, as far as that can be seen without its workflow; empty if nothing is."""
    if not pulses:
        return _NO_PULSES
    for at, pulse in enumerate(pulses):
        if pulse.seq != at:
            return f"pulse {at} is missing: the journal is damaged"
        if pulse.kind not in KINDS or (pulse.kind == ACCEPTED) != (at == 0):
            return f"pulse {at} says {pulse.kind!r}: the journal is damaged"
    return ""


class RegistryPlace:
    """All nodes that a registry knows."""

    def __init__(self, name: str, client: work.Client) -> None:
        self.name = name
        self._client = client

    async def rows(
        self, *, status: str | None = None, workflow: str | None = None, limit: int, before: str | None = None
    ) -> list[TransactionRow]:
        """Those of all nodes."""
        found = await self._client.transactions(status=status, workflow=workflow, limit=limit, before=before)
        # Fields of a later version are left out.
        return [TransactionRow(**{name: fields[name] for name in TransactionRow._fields}) for fields in found]

    async def dead_letters(self, *, workflow: str | None, limit: int, before: str | None) -> list[dict[str, Any]]:
        """Those of all nodes."""
        return await self._client.dead_letters(workflow=workflow, limit=limit, before=before)

    async def pulses(self, transaction: str) -> list[Pulse]:
        """Those of the node that owns it, or can read it."""
        return await self._client.pulses(transaction)

    def readable(self, transaction: str) -> list[Pulse]:
        """None: the journal is not here."""
        return []

    async def parked(self, rows: Sequence[TransactionRow]) -> Mapping[str, str]:
        """What the nodes say of those they have."""
        nodes = await self._client.nodes()
        return {transaction: why for node in nodes for transaction, why in node.get("parked", {}).items()}

    async def status(self, transaction: str) -> str:
        """As the node that owns it says."""
        return str((await self._client.status(transaction))["status"])

    async def send_again(self, letter: str) -> dict[str, Any]:
        """Asked of the node that owns its transaction."""
        return await self._client.send_again(letter)

    async def change(
        self, verb: str, transaction: str, *, reason: str, wait: bool, timeout: float | None
    ) -> dict[str, Any]:
        """Asked of the node that owns it; `cancel` and `undo` always wait."""
        if verb == "cancel":
            return await self._client.cancel(transaction, reason)
        if verb == "undo":
            return await self._client.undo(transaction, reason)
        summary = await self._client.resume(transaction)
        return await self._client.ended(transaction, timeout) if wait else summary


class HttpPlace:
    """A node's ingress."""

    def __init__(self, name: str, ingress: Ingress) -> None:
        self.name = name
        self._ingress = ingress
        self._parked: dict[str, str] = {}

    async def rows(
        self, *, status: str | None = None, workflow: str | None = None, limit: int, before: str | None = None
    ) -> list[TransactionRow]:
        """Those in the node's store."""
        answer = await self._page("transactions", status=status, workflow=workflow, limit=limit, before=before)
        self._parked |= {row["transaction"]: row["parked"] for row in answer["transactions"] if row.get("parked")}
        return [_row_of(row) for row in answer["transactions"]]

    async def dead_letters(self, *, workflow: str | None, limit: int, before: str | None) -> list[dict[str, Any]]:
        """Those in the node's store."""
        answer = await self._page("dead-letters", workflow=workflow, limit=limit, before=before)
        return [
            {"at_ns" if name == "at" else name: _nanoseconds(value) if name == "at" else value for name, value in each}
            for each in (letter.items() for letter in answer["dead_letters"])
        ]

    async def _page(self, what: str, **asked: Any) -> dict[str, Any]:
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        code, answer = await self._ingress.ask("GET", f"/{what}?{query}")
        if code != 200 or not isinstance(answer, dict):
            raise refusal(code, answer)
        return answer

    def readable(self, transaction: str) -> list[Pulse]:
        """None: the journal is not here."""
        return []

    async def parked(self, rows: Sequence[TransactionRow]) -> Mapping[str, str]:
        """What the node said with their rows."""
        return self._parked

    async def pulses(self, transaction: str) -> list[Pulse]:
        """Never asked: what HTTP shows of pulses is not all that is in them."""
        raise UsageError(f"pulses are not read from {self.name}", "give --store or --registry")

    async def status(self, transaction: str) -> str:
        """As the node says."""
        return str(summary_of(*await self._ingress.ask("GET", f"/transactions/{transaction}"))["status"])

    async def send_again(self, letter: str) -> dict[str, Any]:
        """Asked of the node."""
        return summary_of(*await self._ingress.ask("POST", f"/dead-letters/{letter}/send-again", {}))

    async def change(
        self, verb: str, transaction: str, *, reason: str, wait: bool, timeout: float | None
    ) -> dict[str, Any]:
        """Asked of the node."""
        content = {} if verb == "resume" else {"reason": reason}
        path = f"/transactions/{transaction}/{verb}"
        return await self._ingress.change(path, content, {}, wait=wait, timeout=timeout)


@asynccontextmanager
async def open_place(
    store: str,
    registry: str,
    curve: Path | None,
    http: str = "",
    *,
    changes: bool = False,
) -> AsyncIterator[Place]:
    """The place that the options name: the ingress if one is given; else the store, or, where something is to be
    changed, the registry if there is one.

    Raises:
        UsageError: none is named.
    """
    if http:
        yield HttpPlace(http, Ingress(http))
    elif registry and (changes or not store):
        async with work.Client(registry, curve=curve) as client:
            yield RegistryPlace(registry, client)
    elif store:
        with work.open_reader(store) as reader:
            yield StorePlace(store, reader)
    else:
        ways = "none of --http, --registry and --store" if changes else "neither --store nor --registry"
        raise UsageError(
            f"where is the mesh? {ways} was given",
            "give one of them, or set BITACTOR_STORE or BITACTOR_REGISTRY",
        )


def id_beginning(given: str) -> str:
    """What the user typed of a transaction's id: all of it, or its beginning.

    Raises:
        UsageError: it cannot be that.
    """
    wanted = given.strip().lower()
    if not wanted or len(wanted) > _FULL_ID or not _HEX.issuperset(wanted):
        raise UsageError(
            f"{given!r} is no transaction id: 32 hex digits, or the first of them", "'bitactor list' shows them"
        )
    return wanted


async def transaction_id(place: Place, wanted: str) -> str:
    """The id of the transaction that has this id, or is the only one whose id begins so.

    Raises:
        UsageError: it is the beginning of several.
        CommandError: no id begins so.
    """
    if len(wanted) == _FULL_ID:
        return wanted
    after = f"{int(wanted, 16) + 1:0{len(wanted)}x}"  # ids sort as texts
    before = after.ljust(_FULL_ID, "0") if len(after) == len(wanted) else None
    rows = await place.rows(limit=_MANY + 1, before=before)
    found = [row for row in rows if row.transaction.startswith(wanted)]
    if not found:
        raise CommandError(
            f"no transaction in {place.name} begins with {wanted}", FAILED, "'bitactor list' shows those that are there"
        )
    if len(found) == 1:
        return found[0].transaction
    number = f"more than {_MANY}" if len(found) > _MANY else str(len(found))
    raise UsageError(
        f"{wanted} is the beginning of {number} transactions",
        "type more of it",
        "\n".join(f"{row.transaction}  {row.status}  {row.workflow}" for row in found[:_MANY]),
    )


def unknown(transaction: str, name: str) -> CommandError:
    """The error of an id that nobody knows."""
    return CommandError(f"no transaction {transaction} in {name}", FAILED, "'bitactor list' shows those that are there")


def _row_of(row: dict[str, Any]) -> TransactionRow:
    """A row as the ingress shows it."""
    return TransactionRow(
        row["transaction"], row["root"], row["parent"] or "", row["workflow"], "", row["status"],
        row["status"] == "running", "", 0, _nanoseconds(row["created_at"]), _nanoseconds(row["updated_at"]),
    )  # fmt: skip


def _nanoseconds(moment: str) -> int:
    seconds, _, fraction = moment.removesuffix("Z").partition(".")
    return int(dt.datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 1_000_000_000 + int(fraction or 0)
