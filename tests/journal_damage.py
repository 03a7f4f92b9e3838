"""Damage to a journal's file, of the kinds that disks and defects do: bits that are others, and pulses that cannot be
what was written though all checksums are right."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from mesh.stores.journal.frames import GENESIS, HEADER_BYTES, digest_of, frames_in, make_frame
from mesh.stores.journal.parts import part_body
from mesh.stores.journal.tail import id_bytes, read_frames
from mesh.stores.journal.takeover import INSERT_PART
from mesh.stores.journal.words import Words

Damage = Callable[[sqlite3.Connection, str], object]
Lean = list[Any]
"""A pulse as a frame has it: word, hop, causes, attempt, ttl, …, data."""
WORD, HOP, CAUSES, ATTEMPT, TTL, AFTER, DATA = 0, 1, 2, 3, 4, 5, 10
STEP = 1  # in a word


def lean_pulses_of(file: sqlite3.Connection, transaction: str) -> list[Lean]:
    """The pulses of a transaction, their words spelled out."""
    log_from, head = file.execute(
        "SELECT log_from, head FROM transactions WHERE transaction_id = ?", (transaction,)
    ).fetchone()
    data = read_frames(file, transaction, log_from, head)
    words = Words()
    words.load(file)
    found: list[Lean] = []
    for frame in frames_in(data):
        found += msgpack.unpackb(
            data[frame.start + HEADER_BYTES : frame.end], ext_hook=msgpack.ExtType, strict_map_key=False
        )
    for pulse in found:
        if type(pulse[WORD]) is int:
            pulse[WORD] = list(words.words[pulse[WORD]])
        elif len(pulse[WORD]) == 2:  # of an element
            number, step = pulse[WORD]
            pulse[WORD] = [*words.words[number][:STEP], step, *words.words[number][STEP + 1 :]]
    return found


def rewrite(file: sqlite3.Connection, transaction: str, frames: Sequence[tuple[int, int, bytes]]) -> None:
    """Let the journal have these frames of a transaction (number of the first pulse, how many, body), and no other,
    with the right checksums."""
    name, head = id_bytes(transaction), GENESIS
    file.execute("DELETE FROM archive WHERE transaction_id = ?", (transaction,))
    made = b""
    for seq, pulses, body in frames:
        frame = make_frame(name, seq, pulses, 1_000, head, body)
        head = digest_of(frame)
        made += frame
    if frames:
        end = frames[-1][0] + frames[-1][1]
        file.execute(INSERT_PART, (transaction, frames[0][0], end, 0, part_body(name, frames[0][0], end, 0, made)))
    file.execute(
        "UPDATE transactions SET log_from = NULL, head = ? WHERE transaction_id = ?",
        (head if frames else None, transaction),
    )


def bodies(body: bytes) -> Damage:
    """Each pulse in a frame of its own, with this for its body."""
    return lambda file, id: rewrite(
        file, id, [(seq, 1, body) for seq in range(len(lean_pulses_of(file, id)))]
    )  # fmt: skip


def fields(change: Callable[[list[Lean]], object], *, replace: tuple[bytes, bytes] = (b"", b"")) -> Damage:
    """Its pulses changed by this, and some of their bytes by others."""

    def damage(file: sqlite3.Connection, transaction: str) -> None:
        pulses = lean_pulses_of(file, transaction)
        change(pulses)
        body = msgpack.packb(pulses)
        rewrite(file, transaction, [(0, len(pulses), body.replace(*replace) if replace[0] else body)])

    return damage


def numbers(*seqs: int) -> Damage:
    """Only its last pulses, in frames of their own with these numbers."""

    def damage(file: sqlite3.Connection, transaction: str) -> None:
        pulses = lean_pulses_of(file, transaction)[-len(seqs) :] if seqs else []
        rewrite(file, transaction, [(seq, 1, msgpack.packb([one])) for seq, one in zip(seqs, pulses, strict=True)])

    return damage


def flip(value: Any, bit: int) -> Any:
    """A value of a column with one bit changed, as a damaged file would have it."""
    if isinstance(value, int):
        changed = (value & (1 << 64) - 1) ^ 1 << bit % 64
        return changed - (1 << 64) if changed >> 63 else changed
    text = isinstance(value, str)
    data = bytearray(value.encode() if text else value)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return data.decode("utf-8", "replace") if text else bytes(data)
