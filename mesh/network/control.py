"""Answers to other processes' questions: begin a transaction, say how it stands, cancel it, list them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import BitActorError, InvalidInput, ProtocolError
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import Answer, Question
from bitactor.messages.wire import encode_message, encode_pulse
from mesh.network.client import STIMULATE_WITH
from mesh.runtime.node import Node
from mesh.transaction import Transaction, transaction_as_plain

Send = Callable[[str, bytes], None]


class Control:
    """Answers the questions that come to a node; one task for each that is being answered."""

    def __init__(self, node: Node, send: Send) -> None:
        self._node = node
        self._send = send
        self._verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "stimulate": self._stimulate,
            STIMULATE_WITH: self._stimulate,
            "status": self._status,
            "result": self._result,
            "pulses": self._pulses,
            "cancel": self._cancel,
            "resume": self._resume,
            "undo": self._undo,
            "list": self._list,
            "node": self._about,
            "patterns": self._patterns,
        }

    def on_question(self, question: Question) -> None:
        """Answer a question in a task of its own."""
        task = self._node.loop.create_task(self._answer(question), name=f"answer {question.verb}")
        self._node.add_task(task)

    async def _answer(self, question: Question) -> None:
        try:
            verb = self._verbs.get(question.verb)
            argument = decode_token(question.argument)
            if verb is None or not isinstance(argument, Mapping):
                raise InvalidInput(f"no such question: {question.verb!r}; known are {', '.join(self._verbs)}")
            answer = Answer(question.id, encode_token(await verb(argument)))
        except asyncio.CancelledError:
            raise
        except (BitActorError, TimeoutError, KeyError, TypeError) as error:
            answer = Answer(question.id, None, str(error), fault_of(error).type)
        try:
            self._send(question.reply_to, encode_message(answer))
        except (BitActorError, ProtocolError):
            return  # who asked is gone

    async def _stimulate(self, argument: Mapping[str, Any]) -> Any:
        options = StimulusOptions.of({name: argument[name] for name in argument if name not in ("workflow", "input")})
        live = await self._node.intake.stimulate(argument["workflow"], argument.get("input"), options)
        transaction = Transaction(self._node, live)
        return {"transaction": transaction.id, "status": transaction.status}

    def _transaction(self, argument: Mapping[str, Any]) -> Transaction:
        return Transaction(self._node, self._node.load(argument["transaction"]))

    async def _status(self, argument: Mapping[str, Any]) -> Any:
        return transaction_as_plain(self._transaction(argument))

    async def _result(self, argument: Mapping[str, Any]) -> Any:
        transaction = self._transaction(argument)
        await transaction.ended(argument.get("timeout"))
        return transaction_as_plain(transaction)

    async def _pulses(self, argument: Mapping[str, Any]) -> Any:
        return [
            encode_pulse(pulse._replace(token_out=encode_token(pulse.token_out)))
            for pulse in self._transaction(argument).pulses()
        ]

    async def _cancel(self, argument: Mapping[str, Any]) -> Any:
        transaction = self._transaction(argument)
        await transaction.cancel(argument.get("reason", ""))
        return transaction_as_plain(transaction)

    async def _undo(self, argument: Mapping[str, Any]) -> Any:
        transaction = self._transaction(argument)
        await transaction.undo(argument.get("reason", ""))
        return transaction_as_plain(transaction)

    async def _resume(self, argument: Mapping[str, Any]) -> Any:
        transaction = self._transaction(argument)
        await transaction.resume()
        return transaction_as_plain(transaction)

    async def _list(self, argument: Mapping[str, Any]) -> Any:
        rows = self._node.store.list(
            status=argument.get("status"),
            workflow=argument.get("workflow"),
            limit=argument.get("limit", 100),
            before=argument.get("before"),
        )
        return [row._asdict() for row in rows]

    async def _about(self, argument: Mapping[str, Any]) -> Any:
        return self._node.about()

    async def _patterns(self, argument: Mapping[str, Any]) -> Any:
        return self._node.policies.about()
