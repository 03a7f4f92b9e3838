"""JSON Schemas of the answers, for the API's description."""

from __future__ import annotations

from typing import Any, Final

from bitactor.messages.pulse import KINDS, STATUSES
from mesh.ingress.problems import TITLES

_ID: Final = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_MOMENT: Final = {"type": "string", "format": "date-time", "description": "UTC, with nanoseconds"}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        **more,
    }


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_CAME_WITH: Final = {"$ref": "#/components/schemas/BitActorError"}

_ERROR: Final = _object(
    {
        "type": {"type": "string"},
        "message": {"type": "string"},
        "step": {"type": "string", "description": "The path of the step that it came from"},
        "direction": {"enum": ["forward", "undo"]},
        "attempt": {"type": "integer", "description": "Which try of the step that was, from 1"},
        "notes": _list_of({"type": "string"}),
        "cause": {**_CAME_WITH, "description": "What it was raised from"},
        "context": {**_CAME_WITH, "description": "What was being handled when it was raised"},
        "members": {**_list_of(_CAME_WITH), "description": "The exceptions of a group"},
        "left_out": {"type": "integer", "description": "How many members more there were"},
    },
    optional=("step", "direction", "attempt", "notes", "cause", "context", "members", "left_out"),
)

_HALT: Final = _object(
    {name: _ERROR["properties"][name] for name in ("message", "step", "direction", "attempt")},
    optional=("step", "direction", "attempt"),
    description="The reason that a step gave for halting, and which step; only when it is halted",
)

_TRANSACTION: Final = _object(
    {
        "transaction": {**_ID, "description": "For a root transaction the trace id as well"},
        "root": _ID,
        "workflow": {"type": "string"},
        "status": {"enum": list(STATUSES)},
        "result": {"description": "The value of the workflow's returning step; only when it is completed"},
        "errors": {**_list_of(_ERROR), "description": "The original error first, then those of compensation and undo"},
        "halt": _HALT,
        "parked": {"type": "string", "description": "Why it cannot be read, or go on, at this node; only if so"},
    },
    optional=("result", "errors", "halt", "parked"),
)

_ROW: Final = _object(
    {
        "transaction": _ID,
        "root": _ID,
        "parent": {"type": ["string", "null"]},
        "workflow": {"type": "string"},
        "status": {"enum": list(STATUSES)},
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
        "parked": {
            "type": ["string", "null"],
            "description": "Why it cannot go on at this node, if so",
        },
    }
)

_DEAD_LETTER: Final = _object(
    {
        "id": {"type": "string", "pattern": "^[0-9a-f]{32}-[0-9]{1,12}$"},
        "transaction": _ID,
        "workflow": {"type": "string"},
        "kind": {"enum": ["signal", "step", "undo", "transaction"]},
        "name": {"type": "string", "description": "For whom it was meant: the name of the signal, or of the step"},
        "reason": {"enum": ["unroutable", "poison", "stuck", "unreadable"]},
        "why": {"type": "string"},
        "step": {"type": "string", "description": "The path of the step, or of the one that emitted the signal"},
        "hop": {"type": "string", "description": "The span id of that step's hop"},
        "attempt": {"type": ["integer", "null"], "description": "null for a signal"},
        "deliveries": {"type": ["integer", "null"], "description": "How often a worker was given it"},
        "at": _MOMENT,
        "payload": {"description": "The value of the signal, or the arguments of the step; secrets are masked"},
    }
)

_PULSE: Final = _object(
    {
        "seq": {"type": "integer", "minimum": 0},
        "hop": {"type": "string", "pattern": "^[0-9a-f]{16}$", "description": "The span id"},
        "causes": _list_of({"type": "string"}),
        "kind": {"enum": list(KINDS)},
        "step": {"type": "string"},
        "spawn": {"type": "string"},
        "direction": {"enum": ["forward", "undo"]},
        "attempt": {"type": "integer"},
        "ttl": {"type": "integer", "description": "The hop budget this hop carries"},
        "at": _MOMENT,
        "elapsed_ns": {"type": ["integer", "null"]},
        "token_in": {"description": "The arguments"},
        "token_out": {"description": "The output"},
        "error": {"type": ["string", "null"]},
        "data": {"type": ["object", "null"]},
    }
)

_PROBLEM: Final = _object(
    {
        "type": {"enum": [f"urn:bitactor:problem:{name}" for name in TITLES]},
        "title": {"type": "string"},
        "status": {"type": "integer", "description": "The HTTP status"},
        "detail": {"type": "string"},
        "errors": {
            **_list_of({"type": "object", "properties": {"field": {"type": "string"}, **_ERROR["properties"]}}),
            "description": "`invalid-input`: field and message of each; `workflow-failed`: type and message of each "
            "as well as where it happened and what came with it",
        },
        "transaction": _ID,
        "root": _ID,
        "workflow": {"type": "string"},
        "transaction_status": {"enum": list(STATUSES)},
        "halt": _HALT,
        "reasons": _list_of({"type": "string"}),
    },
    optional=("errors", "transaction", "root", "workflow", "transaction_status", "halt", "reasons"),
    description="RFC 9457 problem details",
)

SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "BitActorError": _ERROR,
    "BitActorTransaction": _TRANSACTION,
    "BitActorTransactions": _object(
        {
            "transactions": _list_of({"$ref": "#/components/schemas/BitActorTransactionRow"}),
            "before": {"type": ["string", "null"], "description": "For the next page; null when there is none"},
        }
    ),
    "BitActorTransactionRow": _ROW,
    "BitActorDeadLetters": _object(
        {
            "dead_letters": _list_of({"$ref": "#/components/schemas/BitActorDeadLetter"}),
            "before": {"type": ["string", "null"], "description": "For the next page; null when there is none"},
        }
    ),
    "BitActorDeadLetter": _DEAD_LETTER,
    "BitActorPulses": _object(
        {
            "transaction": _ID,
            "root": _ID,
            "workflow": {"type": "string"},
            "status": {"enum": list(STATUSES)},
            "pulses": _list_of({"$ref": "#/components/schemas/BitActorPulse"}),
        }
    ),
    "BitActorPulse": _PULSE,
    "BitActorProblem": _PROBLEM,
    "BitActorHealth": _object({"status": {"type": "string"}}),
    "BitActorCancel": _object(
        {"reason": {"type": "string", "maxLength": 1_000}}, optional=("reason",), additionalProperties=False
    ),
}
