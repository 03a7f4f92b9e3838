"""A saga driven by hand: decisions are made at once, hops wait until a test answers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitactor import Workflow
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import FORWARD, UNDO, Fault, Reply, Signal
from bitactor.plan.arguments import RawArguments, argument_values
from bitactor.saga import (
    Accept,
    Command,
    Dispatch,
    Evaluate,
    Evaluated,
    GraceExpired,
    HopExpired,
    Lost,
    Recovered,
    Replied,
    ResumeRequested,
    Saga,
)
from bitactor.saga.evaluate import decide
from bitactor.saga.events import CancelRequested, UndoRequested
from bitactor.saga.phases import IN_FLIGHT, UNDO_RUNNING
from bitactor.testing.hops import Hop

TRANSACTION = "0190" * 4 + "a" * 16
FAULT = Fault("builtins:ValueError", "boom")


class Driver:
    """One transaction; hops are named by their path."""

    def __init__(
        self,
        workflow: Workflow,
        input: Mapping[str, Any] | None = None,
        *,
        ttl: int | None = None,
        transaction: str = TRANSACTION,
    ) -> None:
        self.plan = workflow.check()
        self.transaction = transaction
        self.saga = Saga(self.plan, transaction)
        self.journal: list[Pulse] = []
        self.commands: list[Command] = []
        self.evaluated: list[Evaluated] = []
        self.now_ns = 0
        values = workflow.validate_input(input)
        tokens = tuple(encode_token(values[name]) for name in self.plan.inputs)
        self.feed(Accept(encode_token(values), tokens, self.plan.ttl if ttl is None else ttl, None))

    def feed(self, event: Any) -> list[Pulse]:
        """One stimulus, and every decision that follows from it."""
        pulses, commands = self.saga.react(event, self.now_ns)
        self.now_ns += 1_000
        self.journal += pulses
        self.commands += commands
        for command in commands:
            if isinstance(command, Evaluate):
                pulses = [*pulses, *self.feed(self.decision(command.step))]
        return pulses

    def decision(self, index: int) -> Evaluated:
        """What a supervisor would say."""
        made, _ = decide(self.saga.state, index)
        self.evaluated.append(made)
        return made

    @property
    def flying(self) -> list[str]:
        """Paths of the hops that are in flight, oldest first."""
        in_flight = [
            command
            for command in self.commands
            if isinstance(command, Dispatch)
            and self.saga.state.states[command.step] in (IN_FLIGHT if command.direction == FORWARD else (UNDO_RUNNING,))
        ]
        return list(dict.fromkeys(self.saga.state.steps[command.step].name for command in in_flight))

    @property
    def status(self) -> str:
        """The transaction's."""
        return self.saga.state.status

    def reply(self, path: str, outcome: str = "ok", value: Any = None, **fields: Any) -> Reply:
        """An answer of the hop that is in flight on this path."""
        index = self.saga.state.by_name[path]
        undoing = self.saga.state.states[index] == UNDO_RUNNING
        hop = self.saga.state.undo_hop(index) if undoing else self.saga.state.hops[index]
        token = encode_token(value) if outcome in ("ok", "continue") else None
        return Reply(
            self.transaction, hop, self.saga.state.deliveries[index], self.saga.state.epoch, outcome, token, **fields
        )

    def answer(self, path: str, value: Any = None, outcome: str = "ok", **fields: Any) -> list[Pulse]:
        """The hop on this path answers."""
        if outcome == "fail":
            fields.setdefault("fault", FAULT)
        return self.feed(Replied(self.saga.state.by_name[path], self.reply(path, outcome, value, **fields)))

    def run(self, path: str) -> list[Pulse]:
        """The hop on this path is run for real."""
        index = self.saga.state.by_name[path]
        step, undoing = self.saga.state.steps[index], self.saga.state.states[index] == UNDO_RUNNING
        bound = (step.arguments, self.saga.state.tokens, step.address, self.saga.state.evaluated.get(index))
        values = RawArguments(*bound)() if step.takes_raw_arguments else argument_values(*bound)
        known = self.reply(path)
        signal = Signal(
            name=step.address, transaction=self.transaction, root=self.transaction, hop=known.hop, causes=(),
            direction=UNDO if undoing else FORWARD, attempt=1, delivery=known.delivery, epoch=known.epoch,
            ttl=self.saga.state.ttls[index], budget_ns=None, token=None, path=path,
        )  # fmt: skip
        return self.feed(
            Replied(index, Hop(self.plan, step, signal, values, self.saga.state.own_result(index), lambda: 0).run())
        )

    def run_all(self) -> None:
        """Every hop, oldest first, until there is none."""
        while self.flying:
            for path in self.flying:
                self.run(path)
            self.forget_commands()

    def forget_commands(self) -> None:
        """Those that are obeyed; or looking for what is in flight would take longer and longer."""
        in_flight = (*IN_FLIGHT, UNDO_RUNNING)
        self.commands = [
            command
            for command in self.commands
            if isinstance(command, Dispatch) and self.saga.state.states[command.step] in in_flight
        ]

    def feed_grace(self) -> None:
        """The grace period is over."""
        self.feed(GraceExpired())

    def expire(self, path: str) -> list[Pulse]:
        """The hop's time is over."""
        index = self.saga.state.by_name[path]
        return self.feed(
            HopExpired(index, self.saga.state.deliveries[index], Fault("bitactor.errors:StepTimeout", "slow"))
        )

    def lose(self, path: str) -> list[Pulse]:
        """The hop's worker is gone."""
        index = self.saga.state.by_name[path]
        return self.feed(Lost(index, self.saga.state.deliveries[index], "worker"))

    def crash(self) -> None:
        """Another process folds the journal."""
        before = self.saga.snapshot()
        self.saga = Saga.fold(self.plan, self.journal)
        assert self.saga.snapshot() == before
        self.commands.clear()
        for step in self.plan.containers:
            assert step.container is not None
            step.container.release(self.transaction)
        self.feed(Recovered("another", self.saga.state.epoch + 1))

    def resume(self) -> None:
        """Somebody resumes."""
        self.feed(ResumeRequested(None))

    def cancel(self) -> None:
        """Somebody cancels."""
        self.feed(CancelRequested(Fault("bitactor.errors:Cancelled", "please")))

    def undo(self) -> None:
        """Somebody wants it taken back."""
        self.feed(UndoRequested(Fault("bitactor.errors:Cancelled", "after all")))

    def kinds(self, *only: str) -> list[str]:
        """`kind path` of the pulses so far."""
        return [f"{pulse.kind} {pulse.step}".strip() for pulse in self.journal if not only or pulse.kind in only]

    def ttl(self, path: str) -> int:
        """The hop budget that the latest hop of this path carries."""
        return next(pulse.ttl for pulse in reversed(self.journal) if pulse.step == path and pulse.kind == "spawned")

    def result(self) -> Any:
        """The workflow's."""
        return decode_token(self.saga.state.result())
