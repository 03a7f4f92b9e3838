"""A transaction's state, and the questions it answers; it is changed by pulses and by nothing else (see `evolve`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from bitactor.errors import StoreError
from bitactor.messages.codec import pack, unpack_tokens
from bitactor.messages.faults import shortened
from bitactor.messages.ids import TRANSACTION_CODE, HopId, hop_salt, join_hop_id
from bitactor.messages.pulse import HALTED, RUNNING, SKIPPED, Pulse
from bitactor.messages.signal import FORWARD, UNDO, Fault
from bitactor.messages.values import MAX_TOKEN_BYTES
from bitactor.plan.container import Progress
from bitactor.plan.plan import Container, Plan, PlanStep, Scope
from bitactor.saga.commands import Emission
from bitactor.saga.events import Lost
from bitactor.saga.phases import (
    BACKING_OFF,
    ENDED,
    FAILING,
    HAS_RESULT,
    IN_DOUBT,
    IN_FLIGHT,
    NEW,
    UNDOING,
    WAITING,
)

EMPTY: Final[dict[Any, Any]] = cast("dict[Any, Any]", MappingProxyType({}))
"""A read-only empty mapping, in place of each mapping that most transactions never need; fresh ones would take half a
kilobyte of each parked transaction."""

NO_STEPS: Final[set[int]] = set()


class Place(NamedTuple):
    """The place of a hop in its transaction."""

    address: str
    """Of its step, the same for all elements of a map."""
    path: str
    """Of its step in this transaction: `orders/17/charge`."""
    direction: str
    attempt: int
    """From 1."""


class Failure(NamedTuple):
    """An error that a transaction ends with, and where it happened."""

    hop: str
    fault: Fault
    step: str
    """The path of the step; empty if no step is to blame."""
    direction: str
    attempt: int


class SagaState:
    """The state of one transaction; lists are indexed by step."""

    __slots__ = (
        "accepted_at_ns", "attempts", "awaited_runs", "awaiting_redelivery", "being_evaluated", "by_name",
        "cancelling", "causes", "compensating", "completion_order", "dead", "deadline_ns", "deliveries", "digest",
        "due_ns", "emissions", "epoch", "errors", "evaluated", "failures", "free_scopes", "given_back", "hops",
        "hops_spent", "in_flight", "lost_step", "metadata", "own_result_slots", "parent", "payload_limit",
        "pending_containers", "phase", "plan", "plan_size", "progress", "ready_candidates", "replacements", "root",
        "runs_in_doubt", "salt", "seq", "span", "spawned_at_ns", "states", "status", "steps", "steps_in_doubt",
        "stopping_since_ns", "tokens", "trail", "transaction", "ttl", "ttls", "unanswered_runs", "undelivered",
        "undo_attempts", "undo_failed", "undoing", "unmet_dependencies", "unsettled_count",
    )  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        transaction: str,
        *,
        root: str = "",
        parent: str = "",
        trail: tuple[str, ...] = (),
    ) -> None:
        self.plan = plan
        self.steps: Sequence[PlanStep] = plan.steps
        """The plan's steps, followed by those planned since; a list once there are such."""
        self.by_name: Mapping[str, int] = plan.by_name
        self.plan_size = len(plan.steps)
        """Number of steps of the plan itself; those from this index on were planned since."""
        self.transaction = transaction
        self.root = root or transaction
        self.parent = parent
        self.trail = trail
        self.epoch = 0
        self.digest = plan.digest
        self.salt = hop_salt(self.transaction)
        self.span: HopId | None = None
        self.phase = NEW
        self.status = RUNNING
        self.seq = 0
        self.ttl = 0
        self.deadline_ns: int | None = None
        """Wall time; None: no deadline."""
        self.accepted_at_ns = 0
        self.metadata: Mapping[str, Any] | None = None
        self._make_places()
        self.due_ns: dict[int, int] = EMPTY
        self.compensating: dict[int, Fault] = EMPTY
        self.steps_in_doubt: frozenset[int] = frozenset()
        """Steps with an attempt of which nobody knows whether it happened."""
        self.runs_in_doubt: dict[tuple[str, int], int] = EMPTY
        """(hop, delivery) of runs of a step's own function whose outcome nobody knows → step."""
        self.awaited_runs: dict[tuple[str, int], int] = EMPTY
        """(hop, delivery) of timed-out runs that may still be running → step; undo waits the grace period for their
        replies."""
        self.completion_order: list[int] = []
        """Steps that happened or may have, in order of completion."""
        self.in_flight = 0
        self.unanswered_runs: dict[tuple[str, int], int] = EMPTY
        """(hop, delivery) of runs that may still send a late reply → step."""
        self.errors: list[Failure] = []
        self.cancelling = False
        self.stopping_since_ns = 0
        """Wall time at which stopping began; the time for undo counts from then."""
        self.undo_failed = False
        self.undoing = -1
        """The step whose undo is under way, one at a time; -1: none."""
        self.emissions: dict[str, Emission] = EMPTY
        self.undelivered: dict[str, Emission] = EMPTY  # of those, what nobody took
        self.lost_step = self.dead = False
        """Whether a step ended as unroutable or poison; and whether that is so, or there is an undelivered signal."""
        self.hops_spent = 0
        self.given_back: dict[str, int] = EMPTY
        """Hop → how many of its deliveries were lost to an orderly stop, which spends no redelivery."""

    # Questions

    @property
    def stopping(self) -> bool:
        """Whether something has failed, or the transaction has ended, so that nothing new begins."""
        return self.phase in (FAILING, UNDOING, ENDED)

    def own_result(self, index: int) -> Any:
        """The token that a step itself returned, even if it was replaced since."""
        return self.tokens[self.own_result_slots.get(index, index)]

    @property
    def open(self) -> bool:
        """Whether the transaction has something to do by itself: it is not settled, or emitted signals are not yet
        taken."""
        return bool(self.emissions) or self.phase not in (HALTED, ENDED)

    @property
    def span_id(self) -> HopId:
        """The transaction's own span id."""
        if self.span is None:
            self.span = join_hop_id(self.salt, TRANSACTION_CODE)
        return self.span

    def losses(self, index: int, direction: str) -> int:
        """How many deliveries of a step's latest hop are lost if the one under way is, without those given back."""
        hop = self.undo_hop(index) if direction is UNDO else self.hops[index]
        return self.deliveries[index] - self.given_back.get(hop, 0)

    def undo_hop(self, index: int) -> HopId:
        """The id of the latest undo attempt of a step."""
        return join_hop_id(self.salt, self.steps[index].code(UNDO, max(1, self.undo_attempts[index])))

    def place_of(self, hop: str) -> Place | None:
        """The place of a hop among those of the steps that are planned now; None for one of none of them."""
        for step in self.steps:
            if step is None:
                continue
            if self.hops[step.index] == hop:
                return Place(step.address, step.name, FORWARD, self.attempts[step.index])
            if self.undo_hop(step.index) == hop:
                return Place(step.address, step.name, UNDO, self.undo_attempts[step.index])
        return None

    def at_work_longest(self) -> Place | None:
        """The place of the hop that has been in flight, or is tried again and again, for the longest time."""
        if self.undoing >= 0:
            index, direction, attempt = self.undoing, UNDO, self.undo_attempts[self.undoing]
        else:
            busy = [at for at, now in enumerate(self.states) if now in IN_FLIGHT or now == BACKING_OFF]
            if not busy:
                return None
            index = min(busy, key=lambda at: (self.spawned_at_ns[at], at))
            direction, attempt = FORWARD, self.attempts[index]
        return Place(self.steps[index].address, self.steps[index].name, direction, attempt)

    def out_of_hops(self, index: int, path: list[str]) -> Fault:
        """The fault of a step for which no hops are left, at the end of `path`."""
        before = f" after {' → '.join(shortened(path[:-1]))}" if len(path) > 1 else ""
        message = f"no hops left for {self.steps[index].address!r}{before}; this transaction began with {self.ttl}"
        return Fault("bitactor.errors:TtlExpired", message, "", pack([message, path]))

    def ttl_of_causes(self, step: PlanStep) -> int:
        """The least hop budget that any cause of `step` carries; for the first steps, what the stimulus carried."""
        dependencies = step.dependencies
        if not dependencies:
            if step.scope is None:
                return self.ttl
            container = step.scope.container
            return self.ttls[container] if step.around_container is not None else self.progress[container].ttl
        if len(dependencies) == 1:
            return self.ttls[dependencies[0]]
        ttls = self.ttls
        return min([ttls[index] for index in dependencies])

    def causes_of(self, step: PlanStep) -> tuple[str, ...]:
        """Ids of the hops that made `step` ready; a skipped step passes its own causes through."""
        dependencies = step.dependencies
        if not dependencies:
            return () if step.scope is None else (self.hops[step.scope.container],)
        if self.replacements:
            dependencies = tuple(self.replacements.get(index, index) for index in dependencies)
        if len(dependencies) == 1:
            hop = self.hops[dependencies[0]]
            return (hop,) if hop else self.causes[dependencies[0]]
        found: dict[str, None] = {}
        for index in dependencies:
            hop = self.hops[index]
            for cause in (hop,) if hop else self.causes[index]:
                found[cause] = None
        return tuple(found)

    def chain_to(self, index: int) -> list[str]:
        """Addresses along the chain of causes that leads to a step, through the cause with the least TTL."""
        chain = []
        at: int | None = index
        while at is not None:
            if at >= self.plan_size and self.steps[at] is None:
                at = next(head for head, kept in self.own_result_slots.items() if kept == at)
            step = self.steps[at]
            if at == index or self.states[at] != SKIPPED:
                chain.append(step.address if step.scope is None else f"{self.plan.workflow}/{step.name}")
            above = None if step.scope is None else step.scope.container
            at = min(step.dependencies, key=lambda other: self.ttls[other], default=above)
        return chain[::-1]

    def result(self) -> Any:
        """The token of the workflow's result."""
        return self.tokens[self.plan.returns]

    def results(self) -> dict[str, Any]:
        """Step → token of its result, for each step that happened; None for a skipped step."""
        return {
            step.name: self.tokens[step.index]
            for step in self.steps
            if step is not None
            and step.scope is None
            and self.states[step.index] in HAS_RESULT
            and step.index not in self.steps_in_doubt
        }

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain data, for comparing."""
        left_out = {
            "plan",
            "salt",
            "epoch",
            "digest",
            "span",
            "steps",
            "free_scopes",
            "progress",
            "ready_candidates",
            "pending_containers",
            "awaiting_redelivery",
            "being_evaluated",
        }
        values = {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
        values["progress"] = {
            index: [_copied(getattr(progress, name)) for name in Progress.__slots__]
            for index, progress in self.progress.items()
        }
        return {name: _copied(value) for name, value in values.items()}

    def goes_forward(self, index: int) -> bool:
        """Whether a step still goes forward: neither the transaction nor a scope around the step has failed."""
        return not self.stopping and (index < self.plan_size or self.failed_scope(index) is None)

    def container_of(self, index: int) -> Container:
        """The container that a step is."""
        container = self.steps[index].container
        assert container is not None
        return container

    def unless_in_doubt(self, index: int, known: str) -> str:
        """The state of a step that is not in flight any more: in doubt if an attempt of it is, else `known`."""
        return IN_DOUBT if index in self.steps_in_doubt else known

    def catching_scope(self, index: int) -> Scope | None:
        """The innermost scope around a step whose failure its container handles, if that container is open; else
        None."""
        scope = self.steps[index].scope
        while scope is not None:
            container = self.steps[scope.container].container
            catches = container is not None and container.catches and scope.body is not container.bodies[0]
            if catches and scope.container in self.progress:
                return scope
            scope = self.steps[scope.container].scope
        return None

    def steps_within(self, scope: Scope) -> list[int]:
        """The steps of a scope, and of those scopes within it that have not settled."""
        found = [*scope.indices, *scope.planned]
        for child in scope.children.values():
            found += self.steps_within(child)
        return found

    def failed_scope(self, index: int) -> Scope | None:
        """The scope around a step that has failed and whose failure is caught; else None."""
        scope = self.catching_scope(index)
        return scope if scope is not None and scope.base in self.progress[scope.container].failed_scopes else None

    def awaits_proceed(self, index: int) -> bool:
        """Whether a step is nested in a function that has not (yet, or again) called `proceed()`."""
        scope = self.steps[index].scope
        while scope is not None:
            container = self.steps[scope.container].container
            if container is not None and container.surrounds and scope.body is not container.bodies[0]:
                progress = self.progress.get(scope.container)
                if progress is not None and not progress.proceeding:
                    return True
            scope = self.steps[scope.container].scope
        return False

    # The places of steps: all lists that are indexed by step are made, grow and are cleared here

    def _make_places(self) -> None:
        self.payload_limit = MAX_TOKEN_BYTES
        """Of the node on which it began, so that what was decided by it is decided so again when it is folded."""
        """Make what grows when steps are planned."""
        count = self.plan_size
        zeros = [0] * count
        self.tokens: list[Any] = [None] * count
        """Results by step, followed by the input fields."""
        self.states = [WAITING] * count
        self.unmet_dependencies = list(self.plan.dependency_counts)
        self.attempts = zeros[:]
        self.deliveries = zeros[:]
        self.failures = zeros[:]
        self.undo_attempts = zeros[:]
        self.ttls = zeros[:]
        self.hops: list[str] = [""] * count
        self.causes: list[tuple[str, ...]] = [()] * count
        self.spawned_at_ns = zeros[:]
        self.unsettled_count = count
        self.evaluated: dict[int, Mapping[str, Any]] = EMPTY
        """Step → tokens of its transformed arguments, once they are evaluated."""
        self.ready_candidates: list[int] = []
        """Steps planned in this turn that may be ready."""
        self.pending_containers: list[int] = []
        """Containers whose next action is to be taken in this turn."""
        self.being_evaluated: set[int] = NO_STEPS
        """Steps whose evaluation was ordered and is not answered; not in the journal."""
        self.awaiting_redelivery: dict[int, Lost] = EMPTY
        """Hops that were lost, and are delivered again only once the function around them proceeds; not in the
        journal."""
        self.progress: dict[int, Progress] = EMPTY
        """Container that is open → its progress."""
        self.free_scopes: dict[int, list[Scope]] = EMPTY
        """`id` of a body → its settled scopes that can be opened again."""
        self.replacements: dict[int, int] = EMPTY
        """Step that was replaced → its latest replacement."""
        self.own_result_slots: dict[int, int] = EMPTY
        """Step that was replaced → the place of its own result; its own place is for the latest replacement's
        result."""

    def clear_place(self, at: int) -> None:
        self.tokens[at] = None
        self.states[at] = SKIPPED
        self.attempts[at] = self.deliveries[at] = self.failures[at] = self.undo_attempts[at] = self.ttls[at] = 0
        self.hops[at] = ""
        self.causes[at] = ()
        if self.evaluated:
            self.evaluated.pop(at, None)

    def copy_plan_steps(self) -> None:
        if self.steps is not self.plan.steps:
            return
        self.steps = list(self.plan.steps)
        self.by_name = dict(self.plan.by_name)
        self.append_places([None] * (len(self.tokens) - len(self.plan.steps)))

    def append_steps(self, steps: Sequence[PlanStep], inputs: int) -> None:
        self.tokens.extend([None] * (len(steps) + inputs))
        self.append_places([*steps, *[None] * inputs])

    def append_places(self, steps: Sequence[PlanStep | None]) -> None:
        """Append places of steps; None for one that has no step, such as that of an input token."""
        cast("list[PlanStep | None]", self.steps).extend(steps)
        count = len(steps)
        zeros = [0] * count
        self.states.extend([SKIPPED] * count)
        for numbers in (
            self.unmet_dependencies, self.attempts, self.deliveries, self.failures, self.undo_attempts, self.ttls,
            self.spawned_at_ns,
        ):  # fmt: skip
            numbers.extend(zeros)
        self.hops.extend([""] * count)
        self.causes.extend([()] * count)

    def add_dependent(self, dependency: int, dependent: int) -> None:
        steps = cast("list[PlanStep]", self.steps)
        if dependency < self.plan_size and steps[dependency] is self.plan.steps[dependency]:
            steps[dependency] = copy(steps[dependency])
        steps[dependency].dependents += (dependent,)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.copy() if isinstance(value, list | set) else value


def damaged(state: SagaState, pulse: Pulse, why: str) -> StoreError:
    """The error of a pulse that does not follow from the state."""
    of = f" of {pulse.step!r}" if pulse.step else ""
    return StoreError(
        f"transaction {state.transaction}: pulse {pulse.seq} says {pulse.kind!r} ({pulse.direction}){of}, {why}; "
        "the journal is damaged or of another workflow"
    )


def writable(state: SagaState, name: str) -> dict[Any, Any]:
    """The mapping of that name in the state; a fresh one in place of `EMPTY`."""
    mapping: dict[Any, Any] = getattr(state, name)
    if mapping is EMPTY:
        mapping = {}
        setattr(state, name, mapping)
    return mapping


def input_tokens(plan: Plan, token: Any) -> list[Any]:
    """The tokens of a plan's input fields, from the token of the whole input."""
    if not plan.inputs:
        return []
    tokens = unpack_tokens(token)
    return [tokens.get(name) for name in plan.inputs]
