"""Pulses as rows of a table: what people ask for as columns, the rest packed into one `body`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgpack

from bitactor.messages.codec import Packed, pack, token_bytes, token_from_bytes, unpack
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import READABLE_BYTES, is_text
from bitactor.ports import TransactionRow

PulseRow = tuple[str, int, str, str, str, int, int, int, int | None, str | bytes | None, bytes]

PULSE_COLUMNS: Final = "transaction_id, seq, kind, step, hop, attempt, ttl, at_ns, elapsed_ns, error, body"
TRANSACTION_COLUMNS: Final = (
    "transaction_id, root, parent, workflow, key, status, open, owner, epoch, created_ns, updated_ns"
)

SEQ: Final = 1
BODY: Final = 10

# MessagePack extension code of a `Packed` inside `data`: a token, which must not come back as plain bytes
_EXT_PACKED: Final = 16
_EXT_VALUE: Final = 17  # MessagePack extension code of a value only the codec knows how to carry, as the codec packs it


def pulse_rows(pulses: Iterable[Pulse]) -> list[PulseRow]:
    """The rows of `pulses`; what is mutable in them has been copied.

    Raises:
        InvalidOutcome, SignalTooLarge, ValueError, TypeError: something in a pulse cannot be carried.
    """
    rows: list[PulseRow] = []
    for (
        transaction, _, _, seq, hop, causes, kind, step, spawn, direction,
        attempt, ttl, at_ns, elapsed_ns, token_in, token_out, error, data, digest,
    ) in pulses:  # fmt: skip
        if type(token_in) is tuple:
            token_in = list(token_in)
        elif token_in is not None:
            token_in = bytes(token_bytes(token_in))
        if token_out is not None:
            token_out = bytes(token_bytes(token_out))
        body: bytes = _pack([list(causes), spawn, direction, token_in, token_out, data, digest])
        if error is not None and not error.isascii():
            error = _storable(error)  # type: ignore[assignment]
        rows.append((transaction, seq, kind, step, hop, attempt, ttl, at_ns, elapsed_ns, error, body))
    return rows


def pulse_from_row(root: str, workflow: str, row: PulseRow) -> Pulse:
    """The pulse of a row.  Tuples inside `data` come back as lists; all else as it was.

    Raises:
        Exception: the row is not one that `pulse_rows` made; anything, according to what it has.
    """
    transaction, seq, kind, step, hop, attempt, ttl, at_ns, elapsed_ns, error, body = row
    if not (
        type(seq) is type(attempt) is type(ttl) is type(at_ns) is int
        and type(kind) is type(step) is type(hop) is str
        and (elapsed_ns is None or type(elapsed_ns) is int)
    ):
        raise TypeError("its columns have other types")
    for text in (kind, step, hop, error):
        if type(text) is str and not text.isascii() and not is_text(text):  # as it was read, with surrogates
            raise ValueError("one of its texts is no UTF-8")
    causes, spawn, direction, token_in, token_out, data, digest = msgpack.unpackb(
        body, ext_hook=_decode_extra, strict_map_key=False, unicode_errors="surrogatepass"
    )
    if type(token_in) is list:
        token_in = tuple(token_in)
    elif token_in is not None:
        token_in = token_from_bytes(token_in)
    if token_out is not None:
        token_out = token_from_bytes(token_out)
    if isinstance(error, bytes):
        error = error.decode("utf-8", "surrogatepass")
    return Pulse(
        transaction, root, workflow, seq, hop, tuple(causes), kind, step, spawn, direction,
        attempt, ttl, at_ns, elapsed_ns, token_in, token_out, error, data, digest,
    )  # fmt: skip


def require_sound(root: Any, workflow: Any, is_open: Any) -> None:
    """Raise `ValueError` if the row of a transaction is not one that was written, so that it cannot go on."""
    if not (is_text(root) and is_text(workflow)):
        raise ValueError("its root or its workflow is no text")
    if type(is_open) is not int or is_open not in (0, 1):
        raise ValueError("open is neither 0 nor 1")


def require_shape(pulse: Pulse, digest: Any) -> None:
    """Raise `ValueError` if a transaction's first pulse says another shape of its workflow than its row does."""
    if pulse.seq == 0 and pulse.digest != digest:
        raise ValueError("its row says another shape of the workflow than it does")


def transaction_from_row(row: tuple[Any, ...]) -> TransactionRow:
    """The `TransactionRow` of a row of `TRANSACTION_COLUMNS`; of one that is damaged, times and epoch are 0 and texts
    what can be read of them."""
    transaction, root, parent, workflow, key, status, is_open, owner, epoch, created_ns, updated_ns = row
    texts: tuple[Any, ...] = (transaction, root, parent, workflow, key, status)
    numbers: tuple[Any, ...] = (epoch, created_ns, updated_ns)
    if not (type(epoch) is type(created_ns) is type(updated_ns) is int and all(type(text) is str for text in texts)):
        texts = tuple(text if type(text) is str else str(text) for text in texts)
        numbers = tuple(number if type(number) is int else 0 for number in numbers)
    return TransactionRow._make((*texts, bool(is_open), str(owner), *numbers))


def _storable(error: str) -> str | bytes:
    """`error` as SQLite takes it: as bytes if it has lone surrogates (from undecodable file names, say), which are no
    UTF-8."""
    try:
        error.encode()
    except UnicodeEncodeError:
        return error.encode("utf-8", "surrogatepass")
    return error


def _encode_extra(value: Any) -> Any:
    if type(value) is Packed:
        return msgpack.ExtType(_EXT_PACKED, bytes(value))
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return msgpack.ExtType(_EXT_VALUE, pack(value, READABLE_BYTES))


def _decode_extra(code: int, data: bytes) -> Any:
    return Packed(data) if code == _EXT_PACKED else unpack(data)


_pack = msgpack.Packer(default=_encode_extra, strict_types=True, autoreset=True, unicode_errors="surrogatepass").pack
