"""Hand-made pulse logs for tests: the journal a saga would leave, written down step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitactor.messages import pulse as kinds
from bitactor.messages.ids import TransactionId, hop_id, transaction_span_id
from bitactor.messages.pulse import Pulse

BORN_NS = 1_790_000_000_000 * 1_000_000
MS = 1_000_000


def transaction_id(number: int) -> TransactionId:
    """A uuid7 made at `BORN_NS`, different for each number."""
    return TransactionId(f"{BORN_NS // MS:012x}7abc8{number:015x}")


class PulseLog:
    """The log of one transaction; each call appends a pulse and moves the clock on by `after` milliseconds first."""

    def __init__(
        self,
        number: int = 1,
        workflow: str = "users.signup",
        *,
        ttl: int = 8,
        root: str = "",
        start_ms: float = 0,
        **data: Any,
    ) -> None:
        self.id = transaction_id(number)
        self.span = transaction_span_id(self.id)
        self.root = root or self.id
        self.workflow = workflow
        self.now = BORN_NS + int(start_ms * MS)
        self.pulses: list[Pulse] = []
        self.spawned_at: dict[str, Pulse] = {}
        self.add(kinds.ACCEPTED, ttl=ttl, data={"ttl": ttl, "key": "", "parent": "", "parent_hop": "", **data})

    def add(
        self,
        kind: str,
        step: str = "",
        *,
        hop: str = "",
        causes: tuple[str, ...] = (),
        spawn: str = "",
        direction: str = "forward",
        attempt: int = 1,
        ttl: int = 7,
        elapsed_ns: int | None = None,
        token_out: Any = None,
        error: str | None = None,
        data: Mapping[str, Any] | None = None,
        after: float = 1,
    ) -> Pulse:
        if self.pulses:
            self.now += int(after * MS)
        pulse = Pulse(
            self.id, self.root, self.workflow, len(self.pulses), hop or self.span, causes, kind, step, spawn, direction,
            attempt, ttl, self.now, elapsed_ns, (), token_out, error, data, "digest",
        )  # fmt: skip
        self.pulses.append(pulse)
        return pulse

    def spawn(
        self, step: str, *causes: str, direction: str = "forward", attempt: int = 1, ttl: int = 7, **more: Any
    ) -> str:
        hop = hop_id(self.id, step, direction, attempt)
        pulse = self.add(
            kinds.SPAWNED, step, hop=hop, causes=causes, spawn=more.pop("spawn", "loop"), direction=direction,
            attempt=attempt, ttl=ttl, **more,
        )  # fmt: skip
        self.spawned_at.setdefault(hop, pulse)
        return hop

    def outcome(self, kind: str, hop: str, **more: Any) -> Pulse:
        start = self.spawned_at[hop]
        after = more.setdefault("after", 10)
        return self.add(
            kind, start.step, hop=hop, spawn=start.spawn, direction=start.direction, attempt=start.attempt,
            ttl=start.ttl, elapsed_ns=more.pop("elapsed_ns", int(after * MS)), **more,
        )  # fmt: skip

    def complete(self, hop: str, **more: Any) -> Pulse:
        return self.outcome(kinds.COMPLETED, hop, **more)

    def fail(self, hop: str, error: str = "ValueError: no", kind: str = kinds.FAILED, **more: Any) -> Pulse:
        name, _, message = error.partition(": ")
        fault = [f"app.errors:{name}", message, f"Traceback …\n{error}"]
        return self.outcome(kind, hop, error=error, data={"fault": fault, **more.pop("data", {})}, **more)

    def finish(self, status: str = "completed", error: str | None = None, after: float = 1) -> list[Pulse]:
        self.add(kinds.FINISHED, error=error, data={"status": status}, after=after)
        return self.pulses


def chain(number: int = 1, steps: int = 3, **more: Any) -> list[Pulse]:
    """A transaction of `steps` steps in a row, all completed: 2 + 2 × steps pulses, 1 + steps spans."""
    log = PulseLog(number, **more)
    causes: tuple[str, ...] = ()
    for index in range(steps):
        hop = log.spawn(f"step{index}", *causes, ttl=7 - index)
        log.complete(hop)
        causes = (hop,)
    return log.finish()


def eventful() -> PulseLog:
    """A signup where nearly everything happens, and that undoes."""
    log = PulseLog(7)
    normalise = log.spawn("normalise", ttl=7)
    log.complete(normalise, after=3)
    log.add(kinds.SKIPPED, "welcome_back", hop=hop_id(log.id, "welcome_back"), ttl=6)
    first = log.spawn("create_user", normalise, ttl=6, spawn="process")
    log.fail(first, "Busy: try later", kinds.RETRIED, after=40, data={"due_ns": log.now, "after_ns": 50 * MS})
    second = log.spawn("create_user", normalise, attempt=2, ttl=6, spawn="process", after=50)
    log.add(kinds.SPAWNED, "create_user", hop=second, attempt=2, ttl=6, data={"delivery": 2, "holder": "node-b"})
    log.complete(second, after=80, data={"emits": [["user.created", 1]]})
    log.add(kinds.EMITTED, "create_user", hop=second, data={"name": "user.created"})
    charge = log.spawn("charge", second, ttl=5, spawn="thread")
    log.outcome(kinds.TIMED_OUT, charge, error="StepTimeout: after 0.1 s", after=100)
    log.add(kinds.LATE, "charge", hop=charge, attempt=1, ttl=5, after=5)
    deep = hop_id(log.id, "deep")
    log.add(kinds.TOMBSTONE, "deep", hop=deep, ttl=0, error="ttl_expired", data={"chain": ["normalise", "charge"]})
    undo = log.spawn("create_user", second, direction="undo", ttl=6, spawn="process")
    log.outcome(kinds.UNDONE, undo, after=20)
    log.finish("compensated", "StepTimeout: after 0.1 s")
    return log
