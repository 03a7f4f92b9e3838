"""Frames: the pulses that one write added to one transaction, as bytes.

A frame is a header (its length, the transaction, the number of its first pulse, how many pulses, when the first
happened, the digest of the transaction's frame before) and the pulses in lean form, as msgpack.  Each frame names the
one before it by digest, so the frames of a transaction are a chain: one that is altered, missing or out of order is
found by whoever walks it.  The same bytes are in the log and in the archive.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgpack

from bitactor.errors import StoreError
from bitactor.messages.codec import Packed, pack, token_bytes, token_from_bytes, unpack
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import READABLE_BYTES, named_text

Word = tuple[str, str, str, str, str, tuple[str, ...] | None]
"""What is the same in all pulses of one kind about one step: kind, step, spawn, direction, digest, and `token_in` if it
is references."""

_REPEATED: Final = re.compile(r"/(?:batch-)?[0-9]+(?:/|$)", re.ASCII)
"""In the step of an element of a map, a batch of them, or a round: each transaction has as many as its input says."""
_SHARED: Final = 2
"""Length of what stands for the word of an element."""

Digest = bytes
DIGEST_BYTES: Final = 8
GENESIS: Final = bytes(DIGEST_BYTES)
"""What the first frame of a transaction has for the digest of the one before."""

_HEADER: Final = struct.Struct("<I16sIIq8s")
HEADER_BYTES: Final = _HEADER.size
ID_AT: Final = 4
"""Where in a frame its transaction's 16 bytes are."""

BLOB_BYTES: Final = 64 * 1024
"""A token of more bytes is kept as a blob, and named by its hash."""

# MessagePack extension code of a `Packed` inside `data`: a token, which must not come back as plain bytes
_EXT_PACKED: Final = 16
_EXT_VALUE: Final = 17  # MessagePack extension code of a value only the codec knows how to carry, as the codec packs it
_EXT_BLOB: Final = 18  # MessagePack extension code of a token that is kept as a blob, by its hash
_HASH_BYTES: Final = 16

_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the tuples of which a journal has millions."""

Blobs = dict[bytes, bytes]
"""Tokens that are too long for a frame, by their hash."""


class Frame(NamedTuple):
    """A frame's header, and where it stands in what it was read from."""

    start: int
    end: int
    transaction: bytes
    seq: int
    """The number of its first pulse."""
    pulses: int
    """How many pulses it has."""
    at_ns: int
    before: Digest
    """The digest of the transaction's frame before."""


class LeanPacker:
    """Packs pulses as the bodies of frames.  Used by one thread.

    Args:
        words: words that have numbers.
    """

    def __init__(self, words: Mapping[Word, int]) -> None:
        self._words = words
        self.wanted: dict[Word, None] = {}
        """Words that were spelled out, for they have no number."""
        self.blobs: Blobs = {}
        """Tokens that were too long for a frame; to be taken away after each one."""
        self._pack = msgpack.Packer(
            default=self._extra, strict_types=True, autoreset=True, unicode_errors="surrogatepass"
        ).pack

    def pack(self, pulses: Sequence[Pulse]) -> bytes:
        """Pulses of one transaction as the body of a frame; what is mutable in them has been copied.

        Raises:
            InvalidOutcome, SignalTooLarge, ValueError, TypeError: something in a pulse cannot be carried.
        """
        began_ns = pulses[0].at_ns
        words = self._words
        lean: list[list[Any]] = []
        for (
            _, _, _, _, hop, causes, kind, step, spawn, direction,
            attempt, ttl, at_ns, elapsed_ns, token_in, token_out, error, data, digest,
        ) in pulses:  # fmt: skip
            if type(token_in) is tuple:
                word: Word = (kind, step, spawn, direction, digest, token_in)
                token_in = None
            else:
                word = (kind, step, spawn, direction, digest, None)
                if type(token_in) is Packed:
                    token_in = bytes(token_in) if len(token_in) <= BLOB_BYTES else self._blob(token_in)
                elif type(token_in) is str and len(token_in) > BLOB_BYTES:
                    token_in = self._blob(token_bytes(token_in))
            if type(token_out) is Packed:
                token_out = bytes(token_out) if len(token_out) <= BLOB_BYTES else self._blob(token_out)
            elif type(token_out) is str and len(token_out) > BLOB_BYTES:
                token_out = self._blob(token_bytes(token_out))
            number: Any = words.get(word)
            if number is None:
                number = self._number_of(word)
            after_ns = at_ns - began_ns
            lean.append([number, hop, [*causes], attempt, ttl, after_ns, elapsed_ns, token_in, token_out, error, data])
        body: bytes = self._pack(lean)
        return body

    def _number_of(self, word: Word) -> Any:
        """What stands for a word that has no number.  One of an element or a round has the word of them all, and its
        step: else those of a long map would be all the words there are."""
        kind, step, spawn, direction, digest, references = word
        shared = word
        if _REPEATED.search(step):
            shared = (kind, "", spawn, direction, digest, references)
            number = self._words.get(shared)
            if number is not None:
                return [number, step]
        self.wanted[shared] = None
        return list(word)

    def _extra(self, value: Any) -> Any:
        if type(value) is Packed:
            return msgpack.ExtType(_EXT_PACKED, bytes(value)) if len(value) <= BLOB_BYTES else self._blob(value)
        if isinstance(value, tuple | list):
            return list(value)
        if isinstance(value, Mapping):
            return dict(value)
        return msgpack.ExtType(_EXT_VALUE, pack(value, READABLE_BYTES))

    def _blob(self, token: bytes) -> msgpack.ExtType:
        name = blob_hash(token)
        self.blobs[name] = bytes(token)
        return msgpack.ExtType(_EXT_BLOB, name)


def blob_hash(body: bytes) -> bytes:
    """The name of a blob."""
    return blake2b(body, digest_size=_HASH_BYTES).digest()


def pulses_of(
    frame: Frame,
    body: bytes,
    root: str,
    workflow: str,
    words: Mapping[int, Word],
    blob: Callable[[bytes], bytes],
) -> list[Pulse]:
    """The pulses of a frame in `body`; `blob` gives the blob of a name.  Tuples inside `data` come back as lists; all
    else as it was.

    Raises:
        Exception: these are not bytes that `LeanPacker` made; anything, according to what they are.
    """
    transaction = frame.transaction.hex()

    def decode(code: int, data: bytes) -> Any:
        if code == _EXT_BLOB:
            return token_from_bytes(blob(data))
        return Packed(data) if code == _EXT_PACKED else unpack(data)

    pulses: list[Pulse] = []
    lean = msgpack.unpackb(
        memoryview(body)[frame.start + HEADER_BYTES : frame.end],
        ext_hook=decode,
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )
    for seq, item in enumerate(lean, frame.seq):
        number, hop, causes, attempt, ttl, after_ns, elapsed_ns, token_in, token_out, error, data = item
        if not (type(hop) is str and type(attempt) is type(ttl) is int):
            raise TypeError("its fields have other types")
        word = words[number] if type(number) is int else _word_at(number, words)
        kind, step, spawn, direction, digest, references = word
        if references is not None:
            token_in = references
        elif type(token_in) is bytes:
            token_in = Packed(token_in)
        if type(token_out) is bytes:
            token_out = Packed(token_out)
        fields = (
            transaction, root, workflow, seq, hop, tuple(causes), kind, step, spawn, direction,
            attempt, ttl, frame.at_ns + after_ns, elapsed_ns, token_in, token_out, error, data, digest,
        )  # fmt: skip
        pulses.append(_new(Pulse, fields))
    if len(pulses) != frame.pulses:
        raise StoreError(f"a frame has {len(pulses)} pulses and says {frame.pulses}")
    return pulses


def why_of(error: Exception) -> str:
    """Why a frame cannot be read, from what reading it raised."""
    if type(error) is KeyError:
        return f"it uses word {error.args[0]!r}, which is damaged or missing"
    return str(error) if isinstance(error, StoreError) else named_text(error)


def make_frame(transaction: bytes, seq: int, pulses: int, at_ns: int, before: Digest, body: bytes) -> bytes:
    """A frame of that many pulses, `body` being what `LeanPacker` made of them."""
    return _HEADER.pack(HEADER_BYTES + len(body), transaction, seq, pulses, at_ns, before) + body


def digest_of(frame: bytes | memoryview) -> Digest:
    """The digest of a frame, which the next one of its transaction carries."""
    return blake2b(frame, digest_size=DIGEST_BYTES).digest()


def frames_in(data: bytes, of: bytes | None = None) -> Iterator[Frame]:
    """The frames that stand one after the other in `data`; with `of`, only those of that transaction.

    Raises:
        StoreError: what is there is no frame.
    """
    position, size = 0, len(data)
    if of is not None and data.find(of) < 0:
        return
    unpack_from, header = _HEADER.unpack_from, HEADER_BYTES
    while position < size:
        if position + header > size:
            raise StoreError(f"no frame at byte {position} of {size}")
        length, transaction, seq, pulses, at_ns, before = unpack_from(data, position)
        end = position + length
        if length <= header or end > size:
            raise StoreError(f"no frame at byte {position} of {size}")
        if of is None or transaction == of:
            yield _new(Frame, (position, end, transaction, seq, pulses, at_ns, before))
        position = end


def last_frame_at(data: bytes) -> int:
    """Where the last of the frames that stand in `data` begins; 0 if there is none.

    Raises:
        StoreError: what is there is no frame.
    """
    begin, position, size = 0, 0, len(data)
    while position < size:
        begin = position
        position += int.from_bytes(data[begin : begin + ID_AT], "little")
        if not begin + HEADER_BYTES < position <= size:
            raise StoreError(f"no frame at byte {begin} of {size}")
    return begin


def _word_at(place: Sequence[Any], words: Mapping[int, Word]) -> Word:
    """The word that a frame spells out, or that of an element: the number of the word of all, and a step."""
    if len(place) != _SHARED:
        return word_of(place)
    number, step = place
    kind, _, spawn, direction, digest, references = words[number]
    return kind, step, spawn, direction, digest, references


def word_of(data: Sequence[Any]) -> Word:
    """The word of plain data."""
    kind, step, spawn, direction, digest, references = data
    return kind, step, spawn, direction, digest, None if references is None else tuple(references)
