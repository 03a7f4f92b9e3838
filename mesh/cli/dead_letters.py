"""`bitactor dead-letters`, `bitactor send-again LETTER`"""

from __future__ import annotations

from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.cells import cell_len
from rich.text import Text

from bitactor.errors import InvalidInput
from mesh.cli.exits import USAGE, CommandError, UsageError
from mesh.cli.options import Curve, Http, Json, Registry, Store
from mesh.cli.output import (
    err,
    moment,
    out,
    print_document,
    print_lines,
    print_table,
    printable,
    short,
    short_ids,
    status_text,
)
from mesh.cli.places import id_beginning, open_place, transaction_id

DEFAULT_LIMIT: Final = 20
_LEAST_PAYLOAD: Final = 30
"""Cells that payloads are folded into at least, where there is more of them."""
_WHY: Final = 60
"""Characters of the reason that the table shows at most, where there is room."""
_PAYLOAD: Final = 120
"""Characters of a payload that the table shows; `--json` has all of it."""


async def dead_letters(
    *,
    store: Store = "",
    registry: Registry = "",
    http: Http = "",
    workflow: Annotated[
        str | None, Parameter(help="Only those of this workflow's, or consumer's, transactions.")
    ] = None,
    limit: Annotated[int, Parameter(help="At most so many, of the newest transactions.")] = DEFAULT_LIMIT,
    before: Annotated[
        str | None, Parameter(help="The id of the last one of the page before, as --json has it.")
    ] = None,
    curve: Curve = None,
    json: Json = False,
) -> None:
    """List what ended nowhere: for whom it was meant, why, what was in it.

    Signals and steps that nobody took (unroutable), steps of which workers died again and again (poison), and undos
    that failed, as long as their transactions are stuck.
    From --store (read only, also while no node is there), from all nodes of --registry, or from the node at --http.

    Example: bitactor dead-letters --store sqlite:///pulses.db --limit 5
    """
    if limit < 1:
        raise UsageError(f"--limit {limit} lists nothing", "give 1 or more")
    async with open_place(store, registry, curve, http) as place:
        letters = await place.dead_letters(workflow=workflow, limit=limit, before=before)
    if json:
        print_lines(letters)
    elif not letters:
        err().print(f"no dead letters{'' if workflow is None else f' of workflow {workflow!r}'}")
    else:
        _show(letters)
        if len(letters) == limit:
            err().print(f"there may be more: --before {letters[-1]['id']}")


async def send_again(
    letter: str,
    /,
    *,
    http: Http = "",
    registry: Registry = "",
    store: Store = "",
    curve: Curve = None,
    json: Json = False,
) -> None:
    """Bring what is in a dead letter to its receiver once more.

    A signal goes to its consumers, once however often it is asked for: those who have taken it begin nothing. An undo
    is tried again, with all that failed beside it. What cannot be sent again is refused, with the reason.
    Asked of a node, by --http or --registry; --store alone says which process it would be for.

    Example: bitactor send-again 01993a0e7c5b-9 --http http://127.0.0.1:8000

    Parameters
    ----------
    letter
        Its id, as 'bitactor dead-letters' shows it; of the part before the '-' the beginning is enough.
    """
    given, dash, seq = letter.strip().rpartition("-")
    if not dash or not (seq.isascii() and seq.isdigit()):
        raise UsageError(f"{letter!r} is no dead letter's id", "'bitactor dead-letters' shows them")
    beginning = id_beginning(given)
    async with open_place(store, registry, curve, http, changes=True) as place:
        wanted = f"{await transaction_id(place, beginning)}-{seq}"
        try:
            summary = await place.send_again(wanted)
        except (CommandError, InvalidInput) as error:
            if isinstance(error, CommandError) and error.code != USAGE:
                raise
            transaction = wanted.rpartition("-")[0]
            hint = f"'bitactor dead-letters' shows those there are, 'bitactor trace {transaction}' what became of it"
            raise UsageError(str(error), hint) from None
    if json:
        print_document(summary)
    else:
        out().print(Text.assemble(f"{wanted} is sent again; its transaction is ", status_text(summary["status"])))
        if summary["status"] == "running":
            err().print(f"'bitactor trace {wanted.rpartition('-')[0]}' shows how it ends", soft_wrap=True)


def _show(letters: list[dict[str, Any]]) -> None:
    columns: dict[str, list[str | Text]] = {
        "letter": [letter["id"] for letter in letters],
        "reason": [status_text(letter["reason"]) for letter in letters],
        "died": [moment(letter["at_ns"]) for letter in letters],
        "for": [printable(_receiver(letter)) for letter in letters],
        "why": [printable(_why(letter)) for letter in letters],
        "payload": [printable(_content(letter)) for letter in letters],
    }
    if _width(columns) > out().width:
        names = short_ids([letter["transaction"] for letter in letters])
        numbers = [letter["id"].rpartition("-")[2] for letter in letters]
        columns["letter"] = [f"{name}-{number}" for name, number in zip(names, numbers, strict=True)]
    for name in ("why", "died"):
        if _width(columns) > out().width:
            del columns[name]
    print_table([*columns], zip(*columns.values(), strict=True), fold="payload")


def _receiver(letter: dict[str, Any]) -> str:
    return f"undo of {letter['name']}" if letter["kind"] == "undo" else str(letter["name"])


def _why(letter: dict[str, Any]) -> str:
    """Why it is one, shortened; of a transaction that cannot be read its content says so."""
    why = "" if letter["kind"] == "transaction" else " ".join(str(letter["why"]).split())
    return why if len(why) <= _WHY else f"{why[: _WHY - 1]}…"


def _content(letter: dict[str, Any]) -> str:
    return str(letter["why"]) if letter["kind"] == "transaction" else short(letter["payload"], _PAYLOAD)


def _width(columns: dict[str, list[str | Text]]) -> int:
    """Cells that the table takes at least."""
    widths = {name: max(cell_len(str(cell)) for cell in (name, *cells)) + 2 for name, cells in columns.items()}
    return sum(widths.values()) - max(0, widths["payload"] - _LEAST_PAYLOAD)
