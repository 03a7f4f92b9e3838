"""The HTTP endpoints: stimuli, transactions, and the server itself."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import DamagedJournal, InvalidInput, StoreError, UnknownTransaction
from bitactor.export.display import readable_pulses
from bitactor.export.failure import failure_of_plain
from bitactor.messages.faults import fault_of
from bitactor.messages.pulse import RUNNING, STATUSES
from bitactor.ports import TransactionRow
from bitactor.workflow import Workflow
from mesh.ingress.headers import prefix_of
from mesh.ingress.openapi import describe_api
from mesh.ingress.problems import Problem, invalid_input, logger, problem_of
from mesh.ingress.render import as_json, dead_letter_as_plain, pulses_as_plain, respond, row_as_plain
from mesh.ingress.requests import Preferences, preferences, read_json, read_stimulus_headers
from mesh.ingress.wait import ServerStopping, run_while_connected, wait_for_end
from mesh.mesh import Mesh
from mesh.transaction import (
    Transaction,
    begin_cancel,
    begin_undo,
    pulses_of,
    standing_of,
    transaction_as_plain,
    why_not_here,
)
from registry.support.log_throttle import LogThrottle

MAX_PAGE: Final = 1_000
MAX_DETAIL: Final = 1_000

Query = TypeVar("Query", bound=BaseModel)

_TRANSACTION: Final = re.compile(r"[0-9a-f]{32}")
_LETTER: Final = re.compile(r"[0-9a-f]{32}-[0-9]{1,12}")


class ChangeRequest(BaseModel):
    """Why a transaction is to be cancelled, resumed or undone."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=1_000)


class ListQuery(BaseModel):
    """Which transactions to list."""

    model_config = ConfigDict(extra="forbid")

    status: str | None = Field(None, pattern=f"^({'|'.join(STATUSES)})$")
    workflow: str | None = Field(None, min_length=1, max_length=200)
    limit: int = Field(100, ge=1, le=MAX_PAGE)
    before: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")


class DeadLetterQuery(BaseModel):
    """Which dead letters to list."""

    model_config = ConfigDict(extra="forbid")

    workflow: str | None = Field(None, min_length=1, max_length=200)
    limit: int = Field(100, ge=1, le=MAX_PAGE)
    before: str | None = Field(None, pattern=r"^[0-9a-f]{32}-[0-9]{1,12}$")


class Endpoints:
    """The endpoints of a mesh over HTTP."""

    def __init__(self, mesh: Mesh, max_body_bytes: int) -> None:
        self.mesh = mesh
        self.max_body_bytes = max_body_bytes
        self.draining = False
        """Whether new stimuli are refused, although the mesh itself may be open."""
        self._stopped: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._log_throttle = LogThrottle(logger)
        self._description = self._describe("")  # now, for what cannot be described is said as it begins

    @property
    def stopped(self) -> asyncio.Event:
        """Set when the server stops; who still waits for a transaction's end is then told so.

        One for each loop: the application may be served again on another.
        """
        loop = asyncio.get_running_loop()
        if self._stopped is None or self._stopped[0] is not loop:
            self._stopped = (loop, asyncio.Event())
        return self._stopped[1]

    def routes(self) -> list[Route]:
        """One route per endpoint."""
        return [
            Route("/stimuli/{workflow:path}", self.stimulate, methods=["POST"]),
            Route("/transactions", self.transactions, methods=["GET"]),
            Route("/dead-letters", self.dead_letters, methods=["GET"]),
            Route("/dead-letters/{letter}/send-again", self.send_again, methods=["POST"]),
            Route("/transactions/{transaction}", self.transaction, methods=["GET"]),
            Route("/transactions/{transaction}/pulses", self.pulses, methods=["GET"]),
            Route("/transactions/{transaction}/cancel", self.cancel, methods=["POST"]),
            Route("/transactions/{transaction}/resume", self.resume, methods=["POST"]),
            Route("/transactions/{transaction}/undo", self.undo, methods=["POST"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/livez", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    # Stimuli

    async def stimulate(self, request: Request) -> Response:
        """Begin a transaction; answer with its end, or, if the client prefers, with where to look for it."""
        self._require_open()
        workflow = self.mesh.workflows[request.path_params["workflow"]]
        options, prefer = read_stimulus_headers(request), preferences(request)
        text = await read_json(request, self.max_body_bytes)
        given = self._validate(workflow, text)
        sent = json.loads(text) if options.key is not None and text.strip() else None
        begun: list[Transaction] = []
        try:
            ended = await run_while_connected(
                request.receive, self.stopped, self._begin(workflow.name, given, options, sent, prefer, begun)
            )
        except ServerStopping:
            raise self._stopping_problem(begun) from None
        except StoreError as error:
            raise self._store_problem(error, begun) from None
        return await self._response(ended or begun[0], prefer, ended is not None)

    async def _begin(
        self,
        workflow: str,
        given: Mapping[str, Any],
        options: StimulusOptions,
        sent: Any,
        prefer: Preferences,
        begun: list[Transaction],
    ) -> Transaction | None:
        self._require_open()  # again: the server may have been told to stop while the body was on its way
        transaction = await self.mesh.begin(workflow, given, options, sent)
        begun.append(transaction)
        if prefer.respond_async and prefer.seconds == 0:
            return None
        return await wait_for_end(self.mesh, transaction, prefer.seconds)

    async def _response(self, transaction: Transaction, prefer: Preferences, ended: bool) -> Response:
        about = await transaction_as_plain(transaction)
        headers = {**_transaction_header(transaction), **prefer.applied()}
        if not ended:
            return respond(about, 202, {**headers, "Location": f"/transactions/{transaction.id}"})
        if about["status"] == "completed":
            return respond(about, 200, headers)
        status, errors = about.pop("status"), about.pop("errors", [])
        detail = f"{transaction.workflow!r} ended {status}"
        if told := errors or ([about["halt"]] if "halt" in about else []):
            detail = str(failure_of_plain(transaction.workflow, transaction.id, status, told, ()))[:MAX_DETAIL]
        return Problem("workflow-failed", detail, headers, **about, transaction_status=status, errors=errors).response()

    def _validate(self, workflow: Workflow, text: str) -> dict[str, Any]:
        try:
            return dict(_parse(workflow.input_model, text).__dict__)
        except Problem:
            raise
        except BaseException as error:  # a user's model, whose validators may do anything
            traceback = fault_of(error).traceback
            self._log_throttle.warn(
                time.monotonic_ns(), "a validator of %s broke: %s", workflow.input_model.__name__, traceback
            )
            raise invalid_input([("", "it cannot be validated")]) from None

    def _require_open(self) -> None:
        if self.state == "new":
            raise Problem(
                "stopping",
                "the mesh was not opened: let this application's lifespan run, or open the mesh in the lifespan of the "
                "application that this one is mounted in",
            )
        if self.state != "open":
            raise Problem("stopping", f"the mesh is {self.state}; it takes no work now")

    @property
    def state(self) -> str:
        """The mesh's state, and `draining` also when only this server takes no more."""
        return "draining" if self.draining and self.mesh.state == "open" else self.mesh.state

    def _stopping_problem(self, begun: Sequence[Transaction]) -> Problem:
        if not begun:
            return Problem(
                "stopping", "the server stops before the transaction was accepted; ask again, with an Idempotency-Key"
            )
        transaction = begun[0]
        return Problem(
            "stopping",
            "the server stops before the transaction has ended; look for it later",
            _location_headers(transaction),
            transaction=transaction.id,
        )

    def _store_problem(self, error: StoreError, begun: Sequence[Transaction]) -> Problem:
        if begun and self.mesh.state != "open":
            return self._stopping_problem(begun)
        problem = problem_of(error, self.unready())
        if begun:
            problem.headers.update(_location_headers(begun[0]))
            problem.extensions["transaction"] = begun[0].id
        return problem

    # Transactions

    async def transaction(self, request: Request) -> Response:
        """Answer how a transaction stands, and why it cannot go on, if so."""
        found, why = await self._find(request)
        if isinstance(found, TransactionRow):
            about = {name: getattr(found, name) for name in ("transaction", "root", "workflow", "status")}
        else:
            about = await transaction_as_plain(found)
        if why:
            about["parked"] = why
        return respond(about, headers={"BitActor-Transaction": about["transaction"]})

    async def pulses(self, request: Request) -> Response:
        """Answer with a transaction's pulses so far."""
        found, _ = await self._find(request)
        if isinstance(found, TransactionRow):
            name, status = found.transaction, found.status
            pulses = readable_pulses(None, (await self.mesh.journal(name))[1])
        else:
            name, (status, _), pulses = found.id, await standing_of(found), await pulses_of(found)
        about = {"transaction": name, "root": pulses[0].root, "workflow": found.workflow, "status": status}
        return respond({**about, "pulses": pulses_as_plain(pulses)}, headers={"BitActor-Transaction": name})

    async def cancel(self, request: Request) -> Response:
        """Cancel a transaction; answer when everything is undone, or earlier if the client prefers."""
        found, asked, status = await self._to_change(request)
        if status not in ("running", "halted"):
            return respond(await transaction_as_plain(found), headers=_transaction_header(found))
        self._require_open()
        await begin_cancel(found, asked.reason)
        return await self._changed(request, found)

    async def resume(self, request: Request) -> Response:
        """Let a halted or stuck transaction go on; answer when it has ended, or earlier if the client prefers."""
        found, _, _ = await self._to_change(request)
        self._require_open()
        try:
            await found.resume()
        except InvalidInput as error:
            raise Problem("other-status", str(error)) from None
        return await self._changed(request, found)

    async def undo(self, request: Request) -> Response:
        """Take back a completed transaction; answer when that has ended, or earlier if the client prefers."""
        found, asked, status = await self._to_change(request)
        self._require_open()
        if status == RUNNING:
            raise Problem("other-status", f"transaction {found.id} is running; only a completed one can be undone")
        try:
            await begin_undo(found, asked.reason)
        except InvalidInput as error:
            raise Problem("other-status", str(error)) from None
        return await self._changed(request, found)

    async def _to_change(self, request: Request) -> tuple[Transaction, ChangeRequest, str]:
        """The transaction that a client asks to change, why, and its status.

        Raises:
            Problem: it is for another process to do.
        """
        found, why = await self._find(request)
        asked = _parse(ChangeRequest, await read_json(request, self.max_body_bytes))
        if isinstance(found, TransactionRow):
            elsewhere = f"the workflow {found.workflow!r} is not declared here; ask a server that declares it"
            raise Problem("owned-elsewhere", f"it cannot go on here: {why}" if why else elsewhere)
        found = await self.mesh.transaction(found.id)  # it may have gone on while the body was on its way
        status, is_here = await standing_of(found)
        if status == RUNNING and not is_here:
            why_not = await why_not_here(found)
            if isinstance(why_not, StoreError):
                raise self._store_problem(why_not, [found])
            raise Problem(
                "owned-elsewhere", "another process runs this transaction; ask that one", _transaction_header(found)
            )
        return found, asked, status

    async def _changed(self, request: Request, found: Transaction) -> Response:
        """The answer about a transaction that goes on or back, once it has ended or the client waits no longer."""
        prefer = preferences(request)
        await asyncio.sleep(0)  # the supervisor's turn, in which a halted transaction becomes a running one
        try:
            ended = await run_while_connected(
                request.receive, self.stopped, wait_for_end(self.mesh, found, prefer.seconds)
            )
        except ServerStopping:
            raise self._stopping_problem([found]) from None
        except StoreError as error:
            raise self._store_problem(error, [found]) from None
        where = _location_headers(found) if ended is None else _transaction_header(found)
        return respond(
            await transaction_as_plain(ended or found), 202 if ended is None else 200, {**where, **prefer.applied()}
        )

    async def transactions(self, request: Request) -> Response:
        """Answer with rows of transactions, newest first."""
        query = _parse_query(ListQuery, request)
        self._require_readable()
        rows = await self.mesh.transactions(**dict(query))
        more = len(rows) == query.limit
        parked = self.mesh.about()["parked"]
        content = {"transactions": [row_as_plain(row, parked) for row in rows]}
        return respond({**content, "before": rows[-1].transaction if more else None})

    async def dead_letters(self, request: Request) -> Response:
        """Answer with what ended nowhere, of the newest transaction first."""
        query = _parse_query(DeadLetterQuery, request)
        self._require_readable()
        letters = await self.mesh.dead_letters(**dict(query))
        more = len(letters) == query.limit
        content = {"dead_letters": [dead_letter_as_plain(letter) for letter in letters]}
        return respond({**content, "before": letters[-1].id if more else None})

    async def send_again(self, request: Request) -> Response:
        """Bring what is in a dead letter to its receiver once more; answer how its transaction stands, once that is
        kept."""
        letter = request.path_params["letter"]
        if not _LETTER.fullmatch(letter):
            raise invalid_input([("letter", "a dead letter's id is its transaction's, `-`, and a number")])
        _parse(ChangeRequest, await read_json(request, self.max_body_bytes))
        self._require_open()
        try:
            found = await self.mesh.send_again(letter)
        except InvalidInput as error:
            raise Problem("other-status", str(error)) from None
        return respond(await transaction_as_plain(found), headers=_transaction_header(found))

    async def _find(self, request: Request) -> tuple[Transaction | TransactionRow, str]:
        """The transaction, or what the store knows of it if its workflow is not declared here or is another release's,
        or if its journal is damaged; and why it cannot go on here, empty: it can."""
        name = request.path_params["transaction"]
        if not _TRANSACTION.fullmatch(name):
            raise invalid_input([("transaction", "a transaction id is 32 lower-case hex digits")])
        self._require_readable()
        parked = self.mesh.about()["parked"].get(name, "")
        try:
            return await self.mesh.transaction(name), parked
        except DamagedJournal as error:
            if request.method != "GET":
                raise
            parked = parked or str(error)
        except (UnknownTransaction, StoreError, LookupError):
            pass
        rows = await self.mesh.transactions(limit=1, before=f"{name}g")  # which sorts behind the id itself
        if not rows or rows[0].transaction != name:
            raise UnknownTransaction(f"no transaction {name!r}")
        return rows[0], parked

    def _require_readable(self) -> None:
        if self.state not in ("open", "draining"):
            raise Problem("stopping", f"the mesh is {self.state}")

    # About the server

    def unready(self) -> str:
        """What keeps the node from taking work, as `/readyz` says it but without directories; empty: nothing does."""
        if self.mesh.state not in ("open", "draining"):
            return ""
        why = "; ".join(self.mesh.about()["unready"].values())
        path = Path(self.mesh.settings.store.partition("://")[2].removeprefix("/"))
        for directory in (path.absolute().parent, path.resolve().parent):
            why = why.replace(f"{directory}/", "")
        return why

    async def openapi(self, request: Request) -> Response:
        """Answer with the description of this API, with paths as the client sees them."""
        prefix = prefix_of(request.scope)
        if prefix != self._description[0]:
            self._description = self._describe(prefix)
        return Response(self._description[1], media_type="application/json")

    def _describe(self, prefix: str) -> tuple[str, bytes]:
        return prefix, as_json(describe_api(self.mesh.workflows.values(), self.max_body_bytes, prefix))

    async def alive(self, request: Request) -> Response:
        """Answer 200: the process is up, whatever else may be wrong."""
        return respond({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Answer whether a stimulus would be taken now."""
        reasons = []
        if self.state != "open":
            reasons.append(f"the mesh is {self.state}")
        else:
            about = self.mesh.about()
            if about["unready"]:
                reasons += about["unready"].values()
            elif not about["healthy"]:
                reasons.append(about["fenced"]["now"] or "the journal cannot be written")
            elif about["running"] >= about["max_in_flight"]:
                reasons.append("too many transactions are running")
        if reasons:
            return Problem("not-ready", "; ".join(reasons), reasons=reasons).response()
        return respond({"status": "ready"})


def _parse(model: type[BaseModel], text: str) -> Any:
    """A model parsed from JSON, by the rules for JSON: strict models take dates as strings.  `null` and nothing are no
    input."""
    try:
        return model.model_validate_json(text if text.strip() not in ("", "null") else "{}")
    except ValidationError as error:
        raise _invalid(error) from None


def _parse_query(model: type[Query], request: Request) -> Query:
    given = request.query_params
    repeated = [(name, "given more than once") for name in dict(given) if len(given.getlist(name)) > 1]
    if repeated:
        raise invalid_input(repeated)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> Problem:
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return invalid_input([(".".join(str(part) for part in item["loc"]), item["msg"]) for item in items])


def _transaction_header(transaction: Transaction) -> dict[str, str]:
    return {"BitActor-Transaction": transaction.id}


def _location_headers(transaction: Transaction) -> dict[str, str]:
    return {**_transaction_header(transaction), "Location": f"/transactions/{transaction.id}"}
