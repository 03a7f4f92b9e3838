"""The words of a journal: what many pulses have in common, spelled out once in the file and named by a number."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from typing import Final

import msgpack

from mesh.stores.journal.frames import Word, word_of

MOST_WORDS: Final = 16_384
"""Numbers that a file gives; what comes after, as the paths of very many batches, is spelled out each time."""
_WORDS: Final = "SELECT word, CAST(body AS BLOB) FROM words WHERE word > ? ORDER BY word"
LONGEST_WORD: Final = 1_024
"""Bytes; a word that takes more is spelled out each time."""


class Words:
    """The words of one file as far as this process knows them.

    Numbers are given in the commit that first uses them, so that one that is seen is one that is kept.
    """

    def __init__(self) -> None:
        self.numbers: dict[Word, int] = {}
        self.words: dict[int, Word] = {}
        self._last = 0

    def load(self, connection: sqlite3.Connection) -> None:
        """Learn the words that were added since the last look; one that is damaged stays unknown."""
        for number, body in connection.execute(_WORDS, (self._last,)):
            word = read_word(number, body)
            if word is not None:
                self._learn(number, word)
            self._last = max(self._last, number)

    def add(self, connection: sqlite3.Connection, wanted: Iterable[Word]) -> list[tuple[int, Word]]:
        """Give numbers to words, inside a database transaction that has the file's lock; what it returns is to be given
        to `learn` once that is committed."""
        self.load(connection)
        added: list[tuple[int, Word]] = []
        number = self._last
        for word in wanted:
            if word in self.numbers or number >= MOST_WORDS:
                continue
            body = _body(number + 1, word)
            if len(body) <= LONGEST_WORD:
                number += 1
                connection.execute("INSERT INTO words VALUES (?, ?)", (number, body))
                added.append((number, word))
        return added

    def learn(self, added: Iterable[tuple[int, Word]]) -> None:
        """Use these words from now on."""
        for number, word in added:
            self._learn(number, word)
            self._last = max(self._last, number)

    def _learn(self, number: int, word: Word) -> None:
        self.words[number] = word
        self.numbers[word] = number


def read_word(number: int, body: bytes) -> Word | None:
    """The word of a row; None if it is damaged."""
    try:
        packed = body[4:]
        if int.from_bytes(body[:4], "little") != zlib.crc32(packed, number):
            return None
        return word_of(msgpack.unpackb(packed, unicode_errors="surrogatepass"))
    except (ValueError, TypeError):
        return None


def _body(number: int, word: Word) -> bytes:
    packed: bytes = msgpack.packb(word, unicode_errors="surrogatepass")
    return zlib.crc32(packed, number).to_bytes(4, "little") + packed
