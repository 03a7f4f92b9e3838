"""Rows of frames as they are kept: those of the log, and the parts of the archive."""

from __future__ import annotations

import zlib
from typing import Final

from bitactor.errors import StoreError

COMMIT_BITS: Final = 40
"""Bits of a log row's id that count an owner's commits; those above are the owner's number."""

_RAW: Final = b"\x00"
_DEFLATED: Final = b"\x01"
_UNREADABLE: Final = b"\x02"
_SMALL: Final = 1_024
"""Bytes that are not worth the tens of microseconds it takes to begin to compress."""
_CHECK_BYTES: Final = 4
_ID_BITS: Final = 64
_ID_MASK: Final = (1 << _ID_BITS) - 1


def log_id(owner_number: int, commit: int) -> int:
    """The id of an owner's row in the log."""
    return owner_number << COMMIT_BITS | commit


def end_of_log(row: int) -> int:
    """The id that no row of the owner of this row reaches."""
    return ((row >> COMMIT_BITS) + 1) << COMMIT_BITS


def log_body(row: int, frames: bytes) -> bytes:
    """What a row of the log keeps."""
    return frames + _check(frames, zlib.crc32(b"%d" % row))


def frames_of_log(row: int, body: bytes) -> bytes:
    """The frames of a row of the log.

    Raises:
        StoreError: it is damaged.
    """
    frames, check = body[:-_CHECK_BYTES], body[-_CHECK_BYTES:]
    if check != _check(frames, zlib.crc32(b"%d" % row)):
        raise StoreError(f"log row {row} is damaged")
    return frames


def mark_of_log(row: int, body: bytes) -> bytes:
    """The checksum of a row of the log; empty if it is damaged."""
    return body[-_CHECK_BYTES:] if is_sound(row, body) else b""


def is_sound(row: int, body: bytes) -> bool:
    """Whether this is what a row of the log keeps that was written under the id `row`."""
    try:
        frames_of_log(row, body)
    except StoreError:
        return False
    return True


def home_of_log(row: int, body: bytes) -> int | None:
    """The id under which a row of the log was written, if that is another by one bit; None: it is not so."""
    return next((home for home in ids_beside(row) if is_sound(home, body)), None)


def ids_beside(row: int) -> list[int]:
    """The ids that an id becomes with one bit changed."""
    unsigned = [(row & _ID_MASK) ^ (1 << bit) for bit in range(_ID_BITS)]
    return [other - (1 << _ID_BITS) if other >> (_ID_BITS - 1) else other for other in unsigned]


def part_body(transaction: bytes, seq: int, next_seq: int, row: int, frames: bytes) -> bytes:
    """What a part of the archive keeps: the frames of one transaction from pulse `seq` on, written by the commit
    `row`."""
    content = _RAW + frames
    if len(frames) > _SMALL:
        deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = deflate.compress(frames) + deflate.flush()
        if len(packed) < len(frames):
            content = _DEFLATED + packed
    return _check(b"%b%d,%d,%d" % (transaction, seq, next_seq, row), zlib.crc32(content)) + content


def unreadable_part(transaction: bytes, seq: int, why: str) -> bytes:
    """What a part of the archive keeps in the place of pulses that could not be read when they were to become one."""
    content = _UNREADABLE + why.encode("utf-8", "backslashreplace")
    return _check(b"%b%d,%d,%d" % (transaction, seq, seq, 0), zlib.crc32(content)) + content


def frames_of_part(transaction: bytes, seq: int, next_seq: int, row: int, body: bytes) -> bytes:
    """The frames of a part of the archive.

    Raises:
        StoreError: it is damaged, or what it was to keep could not be read.
    """
    content = body[_CHECK_BYTES:]
    if not mark_of_part(transaction, seq, next_seq, row, body):
        raise StoreError(f"its part of the archive from pulse {seq} to {next_seq} is damaged")
    if content[:1] == _RAW:
        return content[1:]
    if content[:1] == _UNREADABLE:
        raise StoreError(content[1:].decode())
    return zlib.decompress(content[1:], -15)


def mark_of_part(transaction: bytes, seq: int, next_seq: int, row: int, body: bytes) -> bytes:
    """The checksum of a part of the archive; empty if it is damaged."""
    check, content = body[:_CHECK_BYTES], body[_CHECK_BYTES:]
    return check if check == _check(b"%b%d,%d,%d" % (transaction, seq, next_seq, row), zlib.crc32(content)) else b""


def _check(content: bytes, seed: int) -> bytes:
    return zlib.crc32(content, seed).to_bytes(_CHECK_BYTES, "little")
