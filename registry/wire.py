"""The messages between the registry's server and its clients, and their bytes.

A frame is one message: a msgpack array `[version, type, field, …]` whose shape is checked before anything looks at it.
Entries and registrations travel inside as packed rows, encoded once however many receive them; many rows share a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from bitactor.errors import MalformedSignal, UnsupportedVersion
from bitactor.messages.codec import pack, unpack
from registry.entry import APPEARED, CHANGED, DISAPPEARED, Entry
from registry.limits import MAX_NAME_CHARACTERS, MAX_VALUE_BYTES

WIRE_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 512 * 1024
"""Largest frame that is taken, in bytes; senders begin another one at `FULL_FRAME_BYTES`."""
FULL_FRAME_BYTES: Final = 128 * 1024
MAX_ROWS: Final = 2_048
MAX_ROW_BYTES: Final = MAX_VALUE_BYTES + 8 * MAX_NAME_CHARACTERS + 64

# Verdicts on the rows of a `Register`
GRANTED: Final = 0
"""Verdict: granted; the detail is the entry, packed."""
TAKEN: Final = 1
"""Verdict: somebody else holds the name; the detail is their entry, packed."""
SETTLING: Final = 2
"""Verdict: ask again; the detail is in how many nanoseconds, packed."""
INVALID: Final = 3
"""Verdict: the name or value breaks the limits; the detail is the reason, packed."""
FULL: Final = 4
"""Verdict: the registry is full; the detail is the reason, packed."""

# Reasons of a `Refused`
REFUSED_HOLDER_IN_USE: Final = 1
REFUSED_FULL: Final = 2
REFUSED_INVALID: Final = 3


class Hello(NamedTuple):
    """Client to server: asks for a lease, or to go on with the one it has."""

    sequence: int
    holder: str
    instance: bytes
    """Random bytes of this client, by which another process with the same holder id is told apart."""


class Welcome(NamedTuple):
    """Server to client: grants a lease that runs from when the `Hello` of that sequence was sent."""

    sequence: int
    incarnation: bytes
    """Random bytes of this start of the server."""
    lease_ns: int
    heartbeat_ns: int
    fresh: bool
    """True: the lease began just now, and has no names."""


class Refused(NamedTuple):
    """Server to client: refuses a lease."""

    sequence: int
    reason: int
    detail: str


class Heartbeat(NamedTuple):
    """Client to server: renews the lease; all notices up to `revision` were seen."""

    sequence: int
    revision: int


class Acknowledged(NamedTuple):
    """Server to client: the lease runs from when the `Heartbeat` of that sequence was sent; the table is at
    `revision`."""

    sequence: int
    revision: int


class Unknown(NamedTuple):
    """Server to client: there is no lease (any more); the client must send `Hello`."""


class Register(NamedTuple):
    """Client to server: registers names (`encode_row`s); also to change a value, and to claim names
    again."""

    request: int
    registrations: tuple[bytes, ...]


class Registered(NamedTuple):
    """Server to client: a verdict (`GRANTED` …) and a packed detail for each of the registrations from number `first`
    on, in their order."""

    request: int
    first: int
    verdicts: bytes
    details: tuple[bytes, ...]


class Unregister(NamedTuple):
    """Client to server: unregisters names."""

    request: int
    names: tuple[str, ...]


class Leave(NamedTuple):
    """Client to server: ends the lease, with all its names."""

    request: int


class Done(NamedTuple):
    """Server to client: an `Unregister` or `Leave` is done."""

    request: int


class Sync(NamedTuple):
    """Client to server: asks for part `cursor` of the table; with part 0, notices begin."""

    request: int
    cursor: int


class Part(NamedTuple):
    """Server to client: entries of the table (`encode_row`s) as of `revision`.

    `more`: further frames answer the same request.  Else `cursor` is the next part to ask for, 0 when this was the
    last.
    """

    request: int
    cursor: int
    more: bool
    revision: int
    entries: tuple[bytes, ...]


class Notices(NamedTuple):
    """Server to client: changes `revision`, `revision + 1`, …: a kind (index in `KINDS`) and an entry each."""

    revision: int
    kinds: bytes
    entries: tuple[bytes, ...]


class Ping(NamedTuple):
    """To the server, from anybody, with a lease or not: asks for a `Pong`."""

    request: int


class Pong(NamedTuple):
    """Server to client: answers a `Ping`."""

    request: int


class Registration(NamedTuple):
    """A name that a client registers, with its value; `former` is the epoch under which the client holds it (see
    `Table.claim`)."""

    name: str
    value: dict[str, Any]
    unique: bool
    former: int


RegistryMessage = (
    Hello
    | Welcome
    | Refused
    | Heartbeat
    | Acknowledged
    | Unknown
    | Register
    | Registered
    | Unregister
    | Leave
    | Done
    | Sync
    | Part
    | Notices
    | Ping
    | Pong
)

KINDS: Final = (APPEARED, DISAPPEARED, CHANGED)

_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
_Name = Annotated[str, Field(strict=True, max_length=MAX_NAME_CHARACTERS)]
_Text = Annotated[str, Field(strict=True, max_length=2_048)]
_Token = Annotated[bytes, Field(strict=True, min_length=8, max_length=32)]
_Flag = Annotated[bool, Field(strict=True)]
_Small = Annotated[bytes, Field(strict=True, max_length=MAX_ROWS)]
_Rows = Annotated[
    tuple[Annotated[bytes, Field(strict=True, max_length=MAX_ROW_BYTES)], ...], Field(max_length=MAX_ROWS)
]
_Names = Annotated[tuple[_Name, ...], Field(max_length=MAX_ROWS)]
_Value = dict[Annotated[str, Field(strict=True)], Any]

_SHAPES: Final[tuple[tuple[type[RegistryMessage], TypeAdapter[Any]], ...]] = (
    (Hello, TypeAdapter(tuple[_Count, _Name, _Token])),
    (Welcome, TypeAdapter(tuple[_Count, _Token, _Count, _Count, _Flag])),
    (Refused, TypeAdapter(tuple[_Count, _Count, _Text])),
    (Heartbeat, TypeAdapter(tuple[_Count, _Count])),
    (Acknowledged, TypeAdapter(tuple[_Count, _Count])),
    (Unknown, TypeAdapter(tuple[()])),
    (Register, TypeAdapter(tuple[_Count, _Rows])),
    (Registered, TypeAdapter(tuple[_Count, _Count, _Small, _Rows])),
    (Unregister, TypeAdapter(tuple[_Count, _Names])),
    (Leave, TypeAdapter(tuple[_Count])),
    (Done, TypeAdapter(tuple[_Count])),
    (Sync, TypeAdapter(tuple[_Count, _Count])),
    (Part, TypeAdapter(tuple[_Count, _Count, _Flag, _Count, _Rows])),
    (Notices, TypeAdapter(tuple[_Count, _Small, _Rows])),
    (Ping, TypeAdapter(tuple[_Count])),
    (Pong, TypeAdapter(tuple[_Count])),
)
_CODES: Final[dict[type[RegistryMessage], int]] = {kind: code for code, (kind, _) in enumerate(_SHAPES)}

_ENTRY: Final[TypeAdapter[tuple[str, str, dict[str, Any], bool, int]]] = TypeAdapter(
    tuple[_Name, _Name, _Value, _Flag, _Count]
)
_REGISTRATION: Final[TypeAdapter[tuple[str, dict[str, Any], bool, int]]] = TypeAdapter(
    tuple[_Name, _Value, _Flag, _Count]
)


def encode(message: RegistryMessage) -> bytes:
    """A message as a frame."""
    return pack([WIRE_VERSION, _CODES[type(message)], *message], MAX_FRAME_BYTES)


def decode(frame: bytes) -> RegistryMessage:
    """The message in a frame that may come from a stranger.

    Raises:
        UnsupportedVersion, SignalTooLarge, MalformedSignal
    """
    parts = unpack(frame, MAX_FRAME_BYTES)
    if type(parts) is not list or len(parts) < 2:
        raise MalformedSignal("not an array of version, type and fields")
    version, code = parts[0], parts[1]
    if type(version) is not int or version != WIRE_VERSION:
        raise UnsupportedVersion(
            f"version {str(version)[:40]}; this process speaks {WIRE_VERSION}; run one release everywhere"
        )
    if type(code) is not int or not 0 <= code < len(_SHAPES):
        raise MalformedSignal(f"unknown message type {str(code)[:40]}")
    kind, shape = _SHAPES[code]
    return kind(*_checked(shape, parts[2:], kind.__name__))


def encode_row(row: Entry | Registration) -> bytes:
    """An entry or a registration as a row."""
    return pack(row, MAX_ROW_BYTES)


def decode_entry(row: bytes) -> Entry:
    """The entry in a row that may come from a stranger; raises as `decode`."""
    name, holder, value, unique, epoch = _checked(_ENTRY, unpack(row, MAX_ROW_BYTES), "entry")
    return Entry(name, holder, MappingProxyType(value), unique, epoch)


def decode_registration(row: bytes) -> Registration:
    """The registration in a row that may come from a stranger; raises as `decode`."""
    return Registration(*_checked(_REGISTRATION, unpack(row, MAX_ROW_BYTES), "wish"))


def encode_detail(detail: int | str) -> bytes:
    """A verdict's detail that is no entry, packed; a text is cut at 512 characters."""
    return pack(detail[:512] if isinstance(detail, str) else detail, MAX_ROW_BYTES)


def decode_detail(row: bytes) -> int | str:
    """A verdict's detail that is no entry; raises `MalformedSignal`."""
    detail = unpack(row, MAX_ROW_BYTES)
    if type(detail) is int or type(detail) is str:
        return detail
    raise MalformedSignal(f"a verdict's detail is a number or a text, not a {type(detail).__name__}")


def in_frames(rows: Sequence[bytes | str]) -> Iterator[tuple[int, int]]:
    """Ranges (begin, end) of rows that fit a frame each; one empty range when there are no rows."""
    begin = size = 0
    for at, row in enumerate(rows):
        if at > begin and (size > FULL_FRAME_BYTES or at - begin >= MAX_ROWS):
            yield begin, at
            begin, size = at, 0
        size += (len(row) if type(row) is bytes else 4 * len(row)) + 5
    yield begin, len(rows)


def _checked(shape: TypeAdapter[Any], fields: Any, what: str) -> Any:
    if type(fields) is not list:
        raise MalformedSignal(f"a {what} is an array, not a {type(fields).__name__}")
    try:
        return shape.validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MalformedSignal(f"a {what} with a wrong field {where}: {first['msg']}") from None
