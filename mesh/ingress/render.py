"""Values, transactions and pulses as JSON.

Values follow pydantic's JSON: dates and times in ISO 8601, `bytes` in base64url (RFC 4648 §5), `Decimal` and `UUID` as
strings, sets as lists.  What JSON has no number for is a string: `"NaN"`, `"Infinity"`, `"-Infinity"`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json
from starlette.responses import Response

from bitactor.export.dead_letters import DeadLetter
from bitactor.export.display import readable_opening
from bitactor.messages.codec import decode_token, token_from_bytes
from bitactor.messages.faults import fault_as_plain
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault
from bitactor.ports import TransactionRow
from mesh.sinks.plain import masked, plain_dead_letter

_LEFT_OUT: Final = frozenset(("decided", "input_digest"))
"""Parts of a pulse's `data` that say in another way what `token_in` says, or nothing to people."""


def respond(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = "application/json"
) -> Response:
    """A response with `content` as JSON."""
    return Response(as_json(content), status, headers, media_type)


def as_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON; a lone surrogate, which UTF-8 cannot carry, becomes U+FFFD."""
    try:
        return _to_json(value)
    except PydanticSerializationError:
        return _to_json(_without_surrogates(value))


def _to_json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="strings", bytes_mode="base64", timedelta_mode="iso8601", fallback=str) + b"\n"


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_surrogates(item) for item in value]
    return value


def row_as_plain(row: TransactionRow, parked: Mapping[str, str]) -> dict[str, Any]:
    """A store's row of a transaction, without what only its pulses say; `parked`: why those cannot go on that are."""
    return {
        "transaction": row.transaction,
        "root": row.root,
        "parent": row.parent or None,
        "workflow": row.workflow,
        "status": row.status,
        "created_at": _moment(row.created_ns),
        "updated_at": _moment(row.updated_ns),
        "parked": parked.get(row.transaction),
    }


def dead_letter_as_plain(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter with its payload as a value."""
    found = {**plain_dead_letter(letter), "at_ns": _moment(letter.at_ns)}
    return {"at" if name == "at_ns" else name: value for name, value in found.items()}


def pulses_as_plain(pulses: Sequence[Pulse]) -> list[dict[str, Any]]:
    """Pulses with tokens as values (`bitactor.export.display.readable_pulses`), without tracebacks."""
    return [
        {
            "seq": pulse.seq,
            "hop": pulse.hop,
            "causes": pulse.causes,
            "kind": pulse.kind,
            "step": pulse.step,
            "spawn": pulse.spawn,
            "direction": pulse.direction,
            "attempt": pulse.attempt,
            "ttl": pulse.ttl,
            "at": _moment(pulse.at_ns),
            "elapsed_ns": pulse.elapsed_ns,
            "token_in": masked(pulse.token_in),
            "token_out": masked(pulse.token_out),
            "error": pulse.error,
            "data": None if pulse.data is None else _data(pulse.data),
        }
        for pulse in pulses
    ]


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in data.items() if name not in _LEFT_OUT}
    for name in ("fault", "assess"):
        if name in shown:
            shown[name] = fault_as_plain(Fault(*shown[name]))
    if "opening" in shown:
        shown["opening"] = readable_opening(shown["opening"])
    if "emits" in shown:
        shown["emits"] = [
            {"name": name, "value": decode_token(token_from_bytes(token))} for name, token in shown["emits"]
        ]
    return {name: masked(value) for name, value in shown.items()}


def _moment(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
