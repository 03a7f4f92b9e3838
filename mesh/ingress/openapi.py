"""The API of one mesh as OpenAPI 3.1, from what its workflows declare."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bitactor.declare.stimulus import MAX_GIVEN, MAX_KEY
from bitactor.kinds.result_types import JsonSchemas
from bitactor.messages.pulse import STATUSES
from bitactor.messages.signal import MAX_TTL
from bitactor.messages.values import named_text
from bitactor.workflow import Workflow
from mesh.ingress.problems import TITLES
from mesh.ingress.requests import MAX_DEADLINE, MIN_DEADLINE
from mesh.ingress.schemas import SCHEMAS

logger = logging.getLogger("bitactor.ingress")

_REFERENCE: Final = "#/components/schemas/{model}"
_ANY_REQUEST: Final = (400, 421)
"""HTTP statuses that the guard and the server's parser can answer to any request."""


def describe_api(workflows: Iterable[Workflow], max_body_bytes: int, prefix: str = "") -> dict[str, Any]:
    """The OpenAPI document: one path per workflow, and the fixed ones, all under `prefix`."""
    declared = sorted(workflows, key=lambda workflow: workflow.name)
    inputs, schemas = _input_schemas(declared)
    paths: dict[str, Any] = {
        f"/stimuli/{quote(workflow.name, safe='')}": {
            "post": _stimulus(workflow, inputs[workflow.name], max_body_bytes)
        }
        for workflow in declared
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "BitActor",
            "version": "1",
            "description": "Begin transactions, look at them, cancel, resume and undo them.  Every refusal is an RFC "
            "9457 problem.",
        },
        "paths": {prefix + path: methods for path, methods in {**paths, **_TRANSACTIONS, **_SERVER}.items()},
        "components": {"schemas": {**schemas, **SCHEMAS}},
    }


def _input_schemas(workflows: Iterable[Workflow]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Workflow → schema of its input, and the schemas those refer to; a model without a schema takes any object."""
    usable: dict[str, type[BaseModel]] = {}
    schemas: dict[str, Any] = {}
    for workflow in workflows:
        try:
            workflow.input_model.model_json_schema(schema_generator=JsonSchemas)
        except BaseException as error:  # of the model's own hooks, too
            logger.warning("the input of %s cannot be described: %s", workflow.name, named_text(error))
            schemas[workflow.name] = {"type": "object"}
        else:
            usable[workflow.name] = workflow.input_model
    found, definitions = models_json_schema(
        [(model, "validation") for model in set(usable.values())], ref_template=_REFERENCE, schema_generator=JsonSchemas
    )
    for name, model in usable.items():
        schemas[name] = found[model, "validation"]
    return schemas, definitions.get("$defs", {})


def _stimulus(workflow: Workflow, schema: Mapping[str, Any], max_body_bytes: int) -> dict[str, Any]:
    required = any(field.is_required() for field in workflow.input_model.model_fields.values())
    return {
        "operationId": f"stimulate {workflow.name}",
        "tags": ["stimuli"],
        "summary": f"Begin a transaction of {workflow.name} and wait for its end",
        "description": _about(workflow),
        "parameters": _STIMULUS_HEADERS,
        "requestBody": {
            "required": required,
            "description": f"At most {max_body_bytes:,} bytes",
            "content": {"application/json": {"schema": schema}},
        },
        "responses": {
            "200": _response("The transaction completed", "BitActorTransaction", _APPLIED),
            "202": _response(
                "The transaction runs on; look at `Location`", "BitActorTransaction", {**_APPLIED, **_LOCATION}
            ),
            **_problems(403, 404, 408, 409, 413, 415, 422, 500, 503),
        },
    }


def _about(workflow: Workflow) -> str:
    """The description of a workflow: docstring of its input model, and first lines of its steps' docstrings."""
    lines = []
    about = (workflow.input_model.__doc__ or "").strip()
    if about:
        lines += [about, ""]
    lines.append("Steps:")
    for step in workflow.steps.values():
        first = next(iter((step.__doc__ or "").strip().splitlines()), "")
        lines.append(f"- `{step.name}`" + (f": {first}" if first else ""))
    limit = "no deadline" if workflow.deadline is None else f"a deadline of {workflow.deadline:g} s"
    return "\n".join([*lines, "", f"A hop budget of {workflow.ttl} and {limit}, unless the request says otherwise."])


def _response(description: str, schema: str, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model=schema)}}},
    }
    if schema in ("BitActorTransaction", "BitActorPulses"):
        response["headers"] = {**_TRANSACTION_HEADER, **(headers or {})}
    if schema == "BitActorTransaction":
        response["links"] = _LINKS
    return response


def _problems(*statuses: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="BitActorProblem")}}}
    response: dict[str, Any] = {}
    for status in sorted({*statuses, *_ANY_REQUEST}):
        names = [f"`{name}`: {title}" for name, (code, title) in TITLES.items() if code == status]
        response[str(status)] = {"description": "; ".join(names), "content": content}
        if status == 503:
            response["503"]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds"}}
    return response


def _header(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": dict(schema)}


_TRANSACTION_HEADER: Final = {
    "BitActor-Transaction": {"schema": {"type": "string"}, "description": "The transaction's id"}
}
_APPLIED: Final = {"Preference-Applied": {"schema": {"type": "string"}, "description": "What of `Prefer` was obeyed"}}
_LOCATION: Final = {"Location": {"schema": {"type": "string"}, "description": "Where the transaction can be looked at"}}

_LINKS: Final = {
    name: {"operationId": operation, "parameters": {"transaction": "$response.body#/transaction"}}
    for name, operation in (("look", "transaction"), ("pulses", "pulses"), ("cancel", "cancel"))
}

_PREFER: Final = _header(
    "Prefer",
    "RFC 7240: `respond-async` answers 202 at once, `wait=N` after at most N seconds.  Anything else is ignored.",
    {"type": "string"},
)
_STIMULUS_HEADERS: Final = [
    _PREFER,
    _header(
        "Idempotency-Key",
        "The same key with the same input gives the transaction that began first; with another input it is refused.",
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    ),
    _header(
        "BitActor-TTL",
        "The hop budget, instead of the workflow's",
        {"type": "integer", "minimum": 0, "maximum": MAX_TTL},
    ),
    _header(
        "BitActor-Deadline",
        "Seconds the transaction may take, instead of the workflow's",
        {"type": "number", "minimum": MIN_DEADLINE, "maximum": MAX_DEADLINE},
    ),
    _header(
        "BitActor-Max-Concurrency",
        "How many hops of the transaction may run at once, instead of the workflow's",
        {"type": "integer", "minimum": 1, "maximum": MAX_GIVEN},
    ),
    _header(
        "BitActor-Priority",
        "Added to the priority of each step, for whatever its hops wait for; the highest goes first",
        {"type": "integer", "minimum": -MAX_GIVEN, "maximum": MAX_GIVEN, "default": 0},
    ),
    {
        "name": "BitActor-Metadata",
        "in": "header",
        "description": "A JSON object in ASCII, which every step sees as `ctx.metadata`",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    _header(
        "traceparent",
        "W3C trace context; the transaction's span links to it.  A malformed one is ignored.",
        {"type": "string"},
    ),
]

_TRANSACTION_PARAMETER: Final = {
    "name": "transaction",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
}


def _query(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": dict(schema)}


_LIST_QUERY: Final = [
    _query("status", "Only transactions with this status", {"enum": list(STATUSES)}),
    _query("workflow", "Only transactions of this workflow", {"type": "string", "minLength": 1, "maxLength": 200}),
    _query("limit", "At most this many", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}),
    _query("before", "The `before` of the page before", {"type": "string", "pattern": "^[0-9a-f]{32}$"}),
]
_DEAD_LETTERS_QUERY: Final = [
    *_LIST_QUERY[1:3],
    _query("before", "The `before` of the page before", {"type": "string", "pattern": "^[0-9a-f]{32}-[0-9]{1,12}$"}),
]


_LETTER_PARAMETER: Final = {
    "name": "letter",
    "in": "path",
    "required": True,
    "description": "The dead letter's `id`",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}-[0-9]{1,12}$"},
}
_REASON: Final = {
    "required": False,
    "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="BitActorCancel")}}},
}


def _change(verb: str, summary: str, accepted: str) -> dict[str, Any]:
    """The description of a path at which something is done to a transaction."""
    return {
        "post": {
            "operationId": verb,
            "tags": ["transactions"],
            "summary": summary,
            "parameters": [_TRANSACTION_PARAMETER, _PREFER],
            "requestBody": _REASON,
            "responses": {
                "200": _response("It has ended", "BitActorTransaction", _APPLIED),
                "202": _response(f"{accepted}; look at `Location`", "BitActorTransaction", {**_APPLIED, **_LOCATION}),
                **_problems(403, 404, 408, 409, 413, 415, 422, 500, 503),
            },
        }
    }


_TRANSACTIONS: Final[dict[str, Any]] = {
    "/transactions": {
        "get": {
            "operationId": "transactions",
            "tags": ["transactions"],
            "summary": "Transactions, newest first",
            "parameters": _LIST_QUERY,
            "responses": {"200": _response("A page of transactions", "BitActorTransactions"), **_problems(422, 503)},
        }
    },
    "/dead-letters": {
        "get": {
            "operationId": "dead letters",
            "tags": ["transactions"],
            "summary": "What ended nowhere, of the newest transaction first",
            "description": "Signals and steps that nobody took, steps of which workers died again and again, and undos "
            "that failed, as long as their transactions are stuck.",
            "parameters": _DEAD_LETTERS_QUERY,
            "responses": {"200": _response("A page of dead letters", "BitActorDeadLetters"), **_problems(422, 503)},
        }
    },
    "/dead-letters/{letter}/send-again": {
        "post": {
            "operationId": "send again",
            "tags": ["transactions"],
            "summary": "Bring what is in a dead letter to its receiver once more",
            "description": "A signal goes to its consumers, once however often it is asked for; an undo is tried "
            "again, with all that failed beside it. What cannot be sent again is refused.",
            "parameters": [_LETTER_PARAMETER],
            "requestBody": _REASON,
            "responses": {
                "200": _response("It is sent again: how its transaction stands", "BitActorTransaction"),
                **_problems(403, 404, 408, 409, 413, 415, 422, 500, 503),
            },
        }
    },
    "/transactions/{transaction}": {
        "get": {
            "operationId": "transaction",
            "tags": ["transactions"],
            "summary": "How a transaction stands",
            "parameters": [_TRANSACTION_PARAMETER],
            "responses": {"200": _response("The transaction", "BitActorTransaction"), **_problems(404, 422, 503)},
        }
    },
    "/transactions/{transaction}/pulses": {
        "get": {
            "operationId": "pulses",
            "tags": ["transactions"],
            "summary": "What a transaction left behind so far",
            "parameters": [_TRANSACTION_PARAMETER],
            "responses": {"200": _response("The pulses in order", "BitActorPulses"), **_problems(404, 422, 500, 503)},
        }
    },
    "/transactions/{transaction}/cancel": _change(
        "cancel",
        "Cancel a transaction and undo what it did; without effect on one that has ended",
        "It is being undone",
    ),
    "/transactions/{transaction}/resume": _change("resume", "Let a halted or stuck transaction go on", "It goes on"),
    "/transactions/{transaction}/undo": _change(
        "undo", "Take back what a completed transaction did, once", "It is being undone"
    ),
}

_SERVER: Final[dict[str, Any]] = {
    "/openapi.json": {
        "get": {
            "operationId": "description",
            "tags": ["server"],
            "summary": "This description",
            "responses": {
                "200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}},
                **_problems(),
            },
        }
    },
    "/livez": {
        "get": {
            "operationId": "alive",
            "tags": ["server"],
            "summary": "Whether the process is up",
            "responses": {"200": _response("It is", "BitActorHealth"), **_problems()},
        }
    },
    "/readyz": {
        "get": {
            "operationId": "ready",
            "tags": ["server"],
            "summary": "Whether a stimulus would be taken now",
            "responses": {"200": _response("It would", "BitActorHealth"), **_problems(503)},
        }
    },
}
