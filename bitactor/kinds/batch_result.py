"""What the hop of a batch of a map answers with, as the journal keeps it, and as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from bitactor.errors import ProtocolError
from bitactor.messages.codec import unpack
from bitactor.messages.pulse import COMPLETED, LATE, Pulse
from bitactor.messages.signal import FORWARD
from bitactor.messages.wire import MAX_FRAME_BYTES

BATCH: Final = "batch-"
"""How the key of each batch's scope begins."""


class BatchResult(NamedTuple):
    """The result of one batch of a map, as the reply of its hop carries it."""

    taken: int
    """Number of elements taken from the source."""
    more: bool
    """True: the source has more elements, or raised when it was asked for one.  In a journal of an older version it may
    have none, too: then an empty batch follows."""
    results: bytes
    """Packed list of results; over a workflow, of `[index, inputs]` for each element."""
    errors: bytes
    """Packed list of mappings with `index`, `element` and `error`; empty bytes if no element failed."""
    accumulated: bytes
    """The value that `reduce` has returned so far, as token bytes."""
    elements: bytes
    """Packed list of the elements, where an undo or a report of errors will ask for them; else empty bytes."""


def readable_batch(pulse: Pulse, value: Any) -> Any:
    """The decoded `token_out` of a pulse; of a batch that is done, a mapping of the fields of its `BatchResult`, with
    values in the place of packed bytes."""
    if pulse.kind not in (COMPLETED, LATE) or pulse.direction != FORWARD or not _is_record(value):
        return value
    if not pulse.step.rpartition("/")[2].startswith(BATCH):
        return value
    batch = BatchResult(*value)
    try:
        return {
            "taken": batch.taken,
            "more": batch.more,
            "results": [_inputs_as_values(result) for result in _values(batch.results)],
            "errors": _values(batch.errors),
            "accumulated": _value(batch.accumulated),
            "elements": _values(batch.elements),
        }
    except ProtocolError:  # bytes of somebody else
        return value


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, list)
        and [type(part) for part in value[:2]] == [int, bool]
        and [type(part) for part in value[2:]] == [bytes] * 4
    )


def _values(packed: bytes) -> Sequence[Any]:
    found = unpack(packed, MAX_FRAME_BYTES) if packed else []
    return found if isinstance(found, list) else [found]


def _value(token: bytes) -> Any:
    return unpack(token, MAX_FRAME_BYTES)


def _inputs_as_values(result: Any) -> Any:
    """The inputs of an element's workflow, which are tokens; any other result as it is."""
    match result:
        case [int(index), [*tokens]] if tokens and all(type(token) is bytes for token in tokens):
            try:
                return [index, [_value(token) for token in tokens]]
            except ProtocolError:
                return result
    return result
