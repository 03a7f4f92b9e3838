"""A client of the mesh that is no node: asks the nodes of other processes, which it finds by the registry.

    async with Client("ipc:///run/user/1000/bitactor/registry") as client:
        began = await client.stimulate("users.signup", {"name": "Ada", "email": "ada@example.org"})
        await client.result(began["transaction"], timeout=5)

Questions and answers cross as messages of their own (see `mesh.network.control`).  What a node answers with an error is
raised here as the same class of `BitActorError`, or as `RemoteError` if the class is not one of ours.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Final, Self

from bitactor.declare.stimulus import StimulusOptions, encoded
from bitactor.errors import (
    BitActorError,
    ProtocolError,
    UnknownTransaction,
    UnknownWorkflow,
    Unroutable,
    suggest,
)
from bitactor.export.dead_letters import letter_place
from bitactor.export.failure import failure_of_plain
from bitactor.messages.codec import Packed, decode_token, encode_token, pack_tokens, unpack
from bitactor.messages.faults import error_of, fault_of_plain
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Answer, Fault, Question
from bitactor.messages.values import READABLE_BYTES
from bitactor.messages.wire import decode_message, decode_pulse, encode_message
from mesh.network.transports import open_transport
from mesh.runtime.ids import TimeOrderedIds
from mesh.runtime.names import name_of, node_name, workflow_name
from registry import Curve, Entry, RegistryClient

DEFAULT_PATIENCE: Final = 5.0
"""Seconds to wait for a node's answer."""
_RESULT_SLICE: Final = 5.0
"""Seconds after which `result` asks again, so that a node that died meanwhile is noticed."""
STIMULATE_WITH: Final = "stimulate_with"
"""The verb for a stimulus with options that not every node knows.  One of an older version would begin it without them;
this verb it does not know, and says so."""
DEAD_LETTERS: Final = "dead_letters"
SEND_AGAIN: Final = "send_again"
_KNOWN_TO_ALL: Final = {"key", "ttl", "deadline", "metadata", "traceparent"}
"""Options of a stimulus that nodes of every version know."""
_NODES: Final = node_name("*")
_WORKFLOWS: Final = workflow_name("")


class NoAnswer(BitActorError, TimeoutError):
    """Nobody answered in the time allowed: no registry is there, or no node, or the node that was asked was silent."""


class Client:
    """Asks the nodes of a mesh.  Lives on one event loop, with a socket of its own for the answers.

    Args:
        registry: endpoint of the registry server.
        curve: file with the mesh's key pair, for a registry and nodes on tcp.
        endpoint: where answers reach us; by default an ipc socket in a directory of our own.
        patience: seconds to wait for each answer.
    """

    def __init__(
        self, registry: str, *, curve: Path | None = None, endpoint: str = "", patience: float = DEFAULT_PATIENCE
    ) -> None:
        self._curve = Curve.load(curve) if curve is not None else None
        self._ids = TimeOrderedIds()
        self._holder = f"client-{os.getpid()}-{self._ids.transaction()[-8:]}"
        self._registry = RegistryClient(registry, self._holder, curve=self._curve)
        self._endpoint = endpoint
        self._patience = patience
        self._started = ExitStack()
        self._pending: dict[str, asyncio.Future[Answer]] = {}
        self._nodes: dict[str, Entry] = {}  # transaction → the node that began it for this client
        self.refused = 0
        """How many messages came that were no answers."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect to the registry.

        Raises:
            NoAnswer: the registry is not there.
        """
        endpoint, started = self._endpoint, self._started
        if not endpoint:
            directory = tempfile.mkdtemp(prefix="bitactor-")
            started.callback(rmtree, directory, ignore_errors=True)
            endpoint = f"ipc://{directory}/client"
        try:
            self._transport = open_transport(endpoint, loop=asyncio.get_running_loop(), curve=self._curve)
            started.callback(self._transport.close)
            self._transport.open(self._receive)
            await asyncio.to_thread(self._registry.start, self._patience)
        except TimeoutError as error:
            await self.close()
            raise NoAnswer(f"no registry answers at {self._registry.endpoint}: {error}") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Release sockets and thread.  Twice is once."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()
        await asyncio.to_thread(self._registry.close)
        self._started.close()

    # Questions

    async def stimulate(
        self,
        workflow: str,
        input: Any = None,
        *,
        key: str | None = None,
        ttl: int | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        max_concurrency: int | None = None,
        priority: int = 0,
    ) -> dict[str, Any]:
        """Begin a transaction at a node that takes this workflow; see `Mesh.stimulate`.  Returns `transaction` and
        `status`.

        One key goes to the same node as long as the same nodes are there; without a store in common, others do not know
        it.

        Raises:
            UnknownWorkflow: no node takes the workflow.
            InvalidInput: the input or an option is wrong, or the node does not know that option.
            NoAnswer: the node that was asked did not answer; whether it began is not known, ask again with the same
                `key`.
        """
        options = StimulusOptions(key, ttl, deadline, metadata, traceparent, max_concurrency, priority).given()
        workflow = name_of(workflow)
        token = encoded(f"input of {workflow!r}", input)
        entries = sorted(self._registry.lookup(workflow_name(workflow)), key=lambda entry: entry.holder)
        if not entries:
            known = [entry.name.removeprefix(_WORKFLOWS) for entry in self._registry.match(f"{_WORKFLOWS}*")]
            raise UnknownWorkflow(f"no node takes workflow {workflow!r}.{suggest(workflow, known)}")
        verb = "stimulate" if options.keys() <= _KNOWN_TO_ALL else STIMULATE_WITH
        entry = entries[_hashed(key or self._ids.transaction(), len(entries))]
        given = {option: encode_token(value) for option, value in options.items()}
        began: dict[str, Any] = await self._ask(
            entry, verb, pack_tokens({"workflow": workflow, "input": token, **given})
        )
        self._nodes[began["transaction"]] = entry
        return began

    async def status(self, transaction: str) -> dict[str, Any]:
        """How a transaction stands: `transaction`, `root`, `workflow`, `status`, and its `result`, `errors` or `halt`.

        Raises:
            UnknownTransaction, NoAnswer
        """
        return await self._ask_about(transaction, "status")

    async def ended(self, transaction: str, timeout: float | None = None) -> dict[str, Any]:
        """How a transaction stands, as `status` says, once it has ended.

        Raises:
            TimeoutError: the transaction has not ended within `timeout` seconds; it goes on.
            UnknownTransaction, NoAnswer
        """
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            left = _RESULT_SLICE if until is None else min(_RESULT_SLICE, max(0.0, until - loop.time()))
            try:
                summary = await self._ask_about(transaction, "result", timeout=left, patience=left + self._patience)
            except TimeoutError:
                if until is not None and loop.time() >= until:
                    raise TimeoutError(f"transaction {transaction} was still running after {timeout:g} s") from None
            else:
                if summary["status"] != "running":
                    return summary
            self._nodes.pop(transaction, None)

    async def result(self, transaction: str, timeout: float | None = None) -> Any:
        """The value a transaction ended with; raises as `Transaction.result` does, with `RemoteError`s as its
        errors."""
        summary = await self.ended(transaction, timeout)
        if summary["status"] == "completed":
            return summary.get("result")
        given = summary.get("errors", ())
        errors = [error_of(fault_of_plain(error), {}) for error in given]
        told = given or [summary.get("halt", {})]
        raise failure_of_plain(summary["workflow"], transaction, summary["status"], told, errors) from (
            errors[0] if errors else None
        )

    async def pulses(self, transaction: str) -> list[Pulse]:
        """The pulses of a transaction so far, with tokens as values.

        Raises:
            UnknownTransaction, NoAnswer
        """
        answer: Any = await self._ask_about(transaction, "pulses")
        pulses = map(decode_pulse, answer)
        return [pulse._replace(token_out=decode_token(pulse.token_out)) for pulse in pulses]

    async def cancel(self, transaction: str, reason: str = "", timeout: float = 60.0) -> dict[str, Any]:
        """Stop a transaction, undo what was done, and return how it ended; `timeout` seconds for all that."""
        return await self._ask_about(transaction, "cancel", reason=reason, patience=timeout)

    async def undo(self, transaction: str, reason: str = "", timeout: float = 60.0) -> dict[str, Any]:
        """Take back what a completed transaction did, and return how that ended; `timeout` seconds for all that.

        Raises:
            InvalidInput: the transaction did not complete, or was undone already.
        """
        return await self._ask_about(transaction, "undo", reason=reason, patience=timeout)

    async def resume(self, transaction: str) -> dict[str, Any]:
        """Let a halted or stuck transaction go on.

        Raises:
            InvalidInput: the transaction is neither halted nor stuck.
        """
        return await self._ask_about(transaction, "resume")

    async def transactions(
        self, *, status: str | None = None, workflow: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest transactions of all nodes as rows (see `bitactor.ports.TransactionRow`), at most `limit`.

        Nodes that do not answer are left out, unless none does: NoAnswer.
        """
        argument = {"status": status, "workflow": workflow, "limit": limit, "before": before}
        found: dict[str, dict[str, Any]] = {}
        for _, rows in await self._ask_all("list", argument):
            found |= {row["transaction"]: row for row in rows}
        return [found[transaction] for transaction in sorted(found, reverse=True)[:limit]]

    async def dead_letters(
        self, *, workflow: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[dict[str, Any]]:
        """What ended nowhere at all nodes, as `Mesh.dead_letters` lists it, each as plain data with its `payload`.

        Nodes that do not answer, and those of a version that does not know the question, are left out.

        Raises:
            NoAnswer: none answers.
            InvalidInput: `before` is no id of a dead letter, or no node knows the question.
        """
        found: dict[str, dict[str, Any]] = {}
        argument = {"workflow": workflow, "limit": limit, "before": before}
        for _, letters in await self._ask_all(DEAD_LETTERS, argument):
            found |= {letter["id"]: {**letter, "payload": unpack(letter["payload"])} for letter in letters}
        newest = sorted(found.values(), key=lambda letter: letter_place(letter["id"]), reverse=True)
        return newest[:limit]

    async def send_again(self, letter: str) -> dict[str, Any]:
        """Bring what is in the dead letter of this id to its receiver once more, as `Mesh.send_again` does, and return
        how its transaction stands, once that is kept.

        Raises:
            InvalidInput: there is no such dead letter, it was sent again before, or that cannot be done.
            UnknownTransaction, NoAnswer
        """
        transaction, _ = letter_place(letter)
        return await self._ask_about(transaction, SEND_AGAIN, letter=letter)

    async def nodes(self) -> list[dict[str, Any]]:
        """What each node says of itself; one that does not answer as `{"node": …, "state": "silent", "endpoint":
        …}`."""
        entries = self._registry.match(_NODES)
        answers = await asyncio.gather(*(self._ask(entry, "node", {}) for entry in entries), return_exceptions=True)
        return [
            {"node": entry.holder, "state": "silent", "endpoint": entry.value.get("endpoint", "")}
            if isinstance(answer, BaseException)
            else answer
            for entry, answer in zip(entries, answers, strict=True)
        ]

    async def patterns(self) -> list[dict[str, Any]]:
        """How the resilience patterns of each node stand: `node`, `pattern`, `name`, and what the pattern counts.

        Nodes that do not answer are left out, unless none does: NoAnswer.
        """
        answers = await self._ask_all("patterns", {})
        found = [{"node": entry.holder, **pattern} for entry, patterns in answers for pattern in patterns]
        return sorted(found, key=lambda pattern: (pattern["pattern"], pattern["name"], pattern["node"]))

    def entries(self, pattern: str = "*") -> Sequence[Entry]:
        """The registry's entries whose names match a glob."""
        return sorted(self._registry.match(pattern), key=lambda entry: (entry.name, entry.holder))

    async def ping(self) -> float:
        """Seconds to the registry and back."""
        return await asyncio.to_thread(self._registry.ping, self._patience)

    # Asking

    async def _node_of(self, transaction: str) -> Entry:
        """The node to ask about a transaction: the one that owns it, or one that can read it.

        Raises:
            UnknownTransaction: no node knows it.
            NoAnswer: no node answered.
        """
        known = self._nodes.get(transaction)
        if known is not None and self._registry.lookup(known.name):
            return known
        # Ids sort by time, so the newest before the id's successor is the transaction itself, if it is there.
        answers = await self._ask_all("list", {"limit": 1, "before": f"{transaction}0"})
        found = [(entry, row) for entry, rows in answers for row in rows if row["transaction"] == transaction]
        if not found:
            raise UnknownTransaction(
                f"none of the {len(answers)} nodes that answered knows transaction {transaction!r}"
            )
        owned = next((entry for entry, row in found if row["owner"] == entry.holder), found[0][0])
        self._nodes[transaction] = owned
        return owned

    async def _ask_about(
        self, transaction: str, verb: str, *, patience: float | None = None, **argument: Any
    ) -> dict[str, Any]:
        entry = await self._node_of(transaction)
        answer: dict[str, Any] = await self._ask(
            entry, verb, {"transaction": transaction, **argument}, patience=patience
        )
        return answer

    async def _ask_all(self, verb: str, argument: Mapping[str, Any]) -> Sequence[tuple[Entry, Any]]:
        entries = self._registry.match(_NODES)
        if not entries:
            raise NoAnswer(f"no node is registered at {self._registry.endpoint}")
        answers = await asyncio.gather(*(self._ask(entry, verb, argument) for entry in entries), return_exceptions=True)
        good = [
            (entry, answer)
            for entry, answer in zip(entries, answers, strict=True)
            if not isinstance(answer, BaseException)
        ]
        if not good:
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        return good

    async def _ask(self, entry: Entry, verb: str, argument: Any, *, patience: float | None = None) -> Any:
        """Ask one node one question, whose argument is a mapping or the token of one; returns its answer, or raises it
        if it is an error."""
        token = argument if type(argument) is Packed else encode_token(dict(argument), READABLE_BYTES)
        question = Question(self._ids.transaction(), verb, token, self._transport.endpoint)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[question.id] = future
        patience = self._patience if patience is None else patience
        try:
            self._transport.send(entry.value["endpoint"], encode_message(question))
            async with asyncio.timeout(patience):
                answer = await future
        except TimeoutError:
            raise NoAnswer(
                f"node {entry.holder} at {entry.value['endpoint']} did not answer within {patience:g} s"
            ) from None
        except (KeyError, Unroutable) as error:
            raise NoAnswer(f"node {entry.holder} cannot be reached: {error}") from None
        finally:
            self._pending.pop(question.id, None)
        if answer.error_type:
            raise _error_of(answer)
        return decode_token(answer.value)

    def _receive(self, messages: Sequence[bytes]) -> None:
        for data in messages:
            try:
                message = decode_message(data)
            except ProtocolError:
                self.refused += 1
                continue
            future = self._pending.get(message.id) if isinstance(message, Answer) else None
            if future is None or future.done():
                self.refused += 1
            elif isinstance(message, Answer):
                future.set_result(message)


def _error_of(answer: Answer) -> BaseException:
    if answer.error_type.rpartition(":")[2] == "TimeoutError":
        return TimeoutError(answer.error)
    return error_of(Fault(answer.error_type, answer.error), {})


def _hashed(text: str, width: int) -> int:
    return sum(text.encode()) % width
