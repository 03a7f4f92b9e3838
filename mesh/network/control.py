"""Answers to other processes' questions: begin a transaction, say how it stands, cancel it, list them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import BitActorError, InvalidInput, ProtocolError
from bitactor.messages.codec import MAX_TOKEN_BYTES, decode_token, encode_token, pack, unpack_tokens
from bitactor.messages.faults import fault_of, utf8_safe
from bitactor.messages.objects import Classes
from bitactor.messages.signal import Answer, Question
from bitactor.messages.values import READABLE_BYTES, message_of
from bitactor.messages.wire import encode_message, encode_pulse
from mesh.network.client import DEAD_LETTERS, SEND_AGAIN, STIMULATE_WITH
from mesh.runtime.intake import Intake
from mesh.runtime.settled import Transactions
from mesh.sinks.plain import plain_dead_letter
from mesh.transaction import Transaction, pulses_of, transaction_as_plain
from mesh.transaction.again import send_again

Send = Callable[[str, bytes], None]
Act = Callable[[Transaction, Mapping[str, Any]], Awaitable[Any]]


class Control:
    """Answers the questions that come to a node; one task for each that is being answered."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Send,
        intake: Intake,
        transactions: Transactions,
        about: Callable[[], dict[str, Any]],
        patterns: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._loop = loop
        self._send = send
        self._intake = intake
        self._transactions = transactions
        self._about_node = about
        self._about_patterns = patterns
        self._tasks: set[asyncio.Task[None]] = set()
        self._verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "stimulate": self._stimulate,
            STIMULATE_WITH: self._stimulate,
            "status": partial(self._after, None),
            "result": partial(self._after, lambda found, argument: found.ended(argument.get("timeout"))),
            "pulses": self._pulses,
            "cancel": partial(self._after, lambda found, argument: found.cancel(argument.get("reason", ""))),
            "resume": partial(self._after, lambda found, argument: found.resume()),
            "undo": partial(self._after, lambda found, argument: found.undo(argument.get("reason", ""))),
            "list": self._list,
            DEAD_LETTERS: self._dead_letters,
            SEND_AGAIN: self._send_again,
            "node": self._about,
            "patterns": self._patterns,
        }

    def on_question(self, question: Question) -> None:
        """Answer a question in a task of its own."""
        task = self._loop.create_task(self._answer(question), name=f"answer {question.verb}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop answering; what has been asked and not answered is dropped."""
        for task in list(self._tasks):
            task.cancel()

    async def _answer(self, question: Question) -> None:
        try:
            verb = self._verbs.get(question.verb)
            argument = decode_token(question.argument, self._input_classes(question))
            if verb is None or not isinstance(argument, Mapping):
                raise InvalidInput(f"no such question: {question.verb!r}; known are {', '.join(self._verbs)}")
            answer = Answer(question.id, encode_token(await verb(argument), READABLE_BYTES))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # of a user's model, too
            answer = Answer(question.id, None, utf8_safe(message_of(error)), fault_of(error).type)
        try:
            self._send(question.reply_to, encode_message(answer))
        except (BitActorError, ProtocolError):
            return  # who asked is gone

    def _input_classes(self, question: Question) -> Classes | None:
        """The classes of objects in the input of a stimulus."""
        if question.verb not in ("stimulate", STIMULATE_WITH):
            return None
        return self._intake.input_classes(decode_token(unpack_tokens(question.argument).get("workflow")))

    async def _stimulate(self, argument: Mapping[str, Any]) -> Any:
        options = StimulusOptions.of({name: argument[name] for name in argument if name not in ("workflow", "input")})
        live = await self._intake.stimulate(argument["workflow"], argument.get("input"), options)
        transaction = Transaction(self._transactions, live)
        return {"transaction": transaction.id, "status": transaction.status}

    async def _transaction(self, argument: Mapping[str, Any]) -> Transaction:
        return Transaction(self._transactions, await self._transactions.load(argument["transaction"]))

    async def _after(self, act: Act | None, argument: Mapping[str, Any]) -> Any:
        """How a transaction stands, once `act` has been done to it."""
        transaction = await self._transaction(argument)
        if act is not None:
            await act(transaction, argument)
        return await transaction_as_plain(transaction)

    async def _pulses(self, argument: Mapping[str, Any]) -> Any:
        return [
            encode_pulse(pulse._replace(token_out=encode_token(pulse.token_out, READABLE_BYTES)))
            for pulse in await pulses_of(await self._transaction(argument))
        ]

    async def _list(self, argument: Mapping[str, Any]) -> Any:
        rows = await self._transactions.queries.list(
            status=argument.get("status"),
            workflow=argument.get("workflow"),
            limit=argument.get("limit", 100),
            before=argument.get("before"),
        )
        return [row._asdict() for row in rows]

    async def _dead_letters(self, argument: Mapping[str, Any]) -> Any:
        """Dead letters as plain data, each payload packed by itself; those that would make the answer too large are
        left out, which is said in their place."""
        found = await self._transactions.dead_letters(
            workflow=argument.get("workflow"), limit=argument.get("limit", 100), before=argument.get("before")
        )
        rows, left = [], MAX_TOKEN_BYTES // 2
        for row in map(plain_dead_letter, found):
            try:
                data = pack(row["payload"], READABLE_BYTES)
            except BitActorError as error:
                data = pack({"left_out": message_of(error)})
            if len(data) > left:
                data = pack({"left_out": f"{len(data):,} bytes; ask for fewer dead letters, or the node's ingress"})
            left -= len(data)
            rows.append({**row, "payload": data})
        return rows

    async def _send_again(self, argument: Mapping[str, Any]) -> Any:
        live = await send_again(self._transactions, argument["letter"])
        return await transaction_as_plain(Transaction(self._transactions, live))

    async def _about(self, argument: Mapping[str, Any]) -> Any:
        return self._about_node()

    async def _patterns(self, argument: Mapping[str, Any]) -> Any:
        return self._about_patterns()
