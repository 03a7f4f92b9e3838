"""A transaction's state, which changes by pulses and by nothing else.

`evolve` sees only the pulse and the state before it, so that the live state and the fold of the journal are the same by
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Self

from typing_extensions import override

from bitactor.errors import StoreError
from bitactor.messages.codec import decode_token, encode_token, token_from_bytes
from bitactor.messages.ids import TRANSACTION_CODE, HopId, hop_salt, join_hop_id
from bitactor.messages.pulse import (
    ACCEPTED,
    COMPENSATED,
    COMPLETED,
    EMITTED,
    FAILED,
    FINISHED,
    HALTED,
    LATE,
    POISON,
    RESUMED,
    RETRIED,
    RUNNING,
    SKIPPED,
    SPAWNED,
    TIMED_OUT,
    TOMBSTONE,
    UNDO_FAILED,
    UNDONE,
    Pulse,
)
from bitactor.messages.signal import FORWARD, UNDO, Fault
from bitactor.plan.container import Progress
from bitactor.plan.plan import Plan, PlanStep, Scope
from bitactor.saga.commands import Emission
from bitactor.saga.phases import (
    BACKING_OFF,
    COMPENSATING,
    ENDED,
    FAILING,
    HALTING,
    HAS_RESULT,
    IN_DOUBT,
    IN_FLIGHT,
    NEW,
    OPEN,
    STEP_STATES,
    UNDO_BACKING_OFF,
    UNDO_RUNNING,
    UNDOING,
    WAITING,
)
from bitactor.saga.scopes import EMPTY, Scopes, writable


class SagaState(Scopes):
    """The state of one transaction; lists are indexed by step."""

    __slots__ = (
        "accepted_at_ns", "attempts", "awaited_runs", "cancelling", "causes", "compensating", "completion_order",
        "deadline_ns", "deliveries", "digest", "due_ns", "emissions", "epoch", "errors", "evaluated", "failures",
        "hops", "metadata", "parent", "pending_containers", "phase", "plan", "plan_size", "ready_candidates", "root",
        "runs_in_doubt", "salt", "seq", "span", "spawned_at_ns", "states", "status", "steps_in_doubt",
        "stopping_since_ns", "tokens", "trail", "transaction", "ttl", "ttls", "unanswered_runs", "undo_attempts",
        "undo_failed", "undoing", "unmet_dependencies",
    )  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        transaction: str,
        *,
        root: str = "",
        parent: str = "",
        epoch: int = 0,
        trail: tuple[str, ...] = (),
    ) -> None:
        count = len(plan.steps)
        zeros = [0] * count
        self.plan = plan
        self.steps: Sequence[PlanStep] = plan.steps
        """The plan's steps, followed by those planned since; a list once there are such."""
        self.by_name: Mapping[str, int] = plan.by_name
        self.plan_size = count
        """Number of steps of the plan itself; those from this index on were planned since."""
        self.transaction = transaction
        self.root = root or transaction
        self.parent = parent
        self.trail = trail
        self.epoch = epoch
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
        self.tokens: list[Any] = [None] * count
        """Results by step, followed by the input fields."""
        self.states = [WAITING] * count
        self.unmet_dependencies = list(plan.dependency_counts)
        self.unsettled_count = count
        self.attempts = zeros[:]
        self.deliveries = zeros[:]
        self.failures = zeros[:]
        self.undo_attempts = zeros[:]
        self.ttls = zeros[:]
        self.hops: list[str] = [""] * count
        self.causes: list[tuple[str, ...]] = [()] * count
        self.spawned_at_ns = zeros[:]
        self.due_ns: dict[int, int] = EMPTY
        self.evaluated: dict[int, Mapping[str, Any]] = EMPTY
        """Step → tokens of its transformed arguments, once they are evaluated."""
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
        self.errors: list[tuple[str, Fault]] = []
        self.cancelling = False
        self.stopping_since_ns = 0
        """Wall time at which stopping began; the time for undo counts from then."""
        self.undo_failed = False
        self.undoing = -1
        """The step whose undo is under way, one at a time; -1: none."""
        self.emissions: dict[str, Emission] = EMPTY
        self.hops_spent = 0
        self.progress: dict[int, Progress] = EMPTY
        """Container that is open → its progress."""
        self.free_scopes: dict[int, list[Scope]] = EMPTY
        """`id` of a body → its settled scopes that can be opened again."""
        self.replacements: dict[int, int] = EMPTY
        """Step that was replaced → its latest replacement."""
        self.own_result_slots: dict[int, int] = EMPTY
        """Step that was replaced → the place of its own result; its own place is for the latest replacement's
        result."""
        self.ready_candidates: list[int] = []
        """Steps planned in this turn that may be ready."""
        self.pending_containers: list[int] = []
        """Containers whose next action is to be taken in this turn."""

    @classmethod
    def fold(cls, plan: Plan, pulses: Sequence[Pulse]) -> Self:
        """The state that follows from a journal; equal to the live state after its last pulse.

        Raises:
            StoreError: the journal is empty, has a gap, or does not fit the plan.
        """
        if not pulses or pulses[0].kind != ACCEPTED:
            raise StoreError("a journal begins with an accepted pulse; this one is empty or has lost its beginning")
        first = pulses[0]
        data = first.data or {}
        state = cls(
            plan,
            first.transaction,
            root=first.root,
            parent=data.get("parent", ""),
            trail=tuple(data.get("trail") or ()),
        )
        for pulse in pulses:
            try:
                state.evolve(pulse)
            except StoreError:
                raise
            except Exception as error:
                raise state._damaged(
                    pulse, f"lacks what a pulse of its kind has ({type(error).__name__}: {error})"
                ) from error
        state.ready_candidates.clear()
        state.pending_containers.clear()
        return state

    # Looking

    @property
    @override
    def stopping(self) -> bool:
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

    def undo_hop(self, index: int) -> HopId:
        """The id of the latest undo attempt of a step."""
        return join_hop_id(self.salt, self.steps[index].code(UNDO, max(1, self.undo_attempts[index])))

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
        own = [name for kind in reversed(type(self).__mro__) for name in getattr(kind, "__slots__", ())]
        left_out = {
            "plan",
            "salt",
            "epoch",
            "digest",
            "span",
            "pulses",
            "commands",
            "steps",
            "free_scopes",
            "progress",
            "ready_candidates",
            "pending_containers",
            "awaiting_redelivery",
            "being_evaluated",
        }
        values = {name: getattr(self, name) for name in own if name not in left_out}
        values["progress"] = {
            index: [getattr(progress, name) for name in Progress.__slots__] for index, progress in self.progress.items()
        }
        return {name: value.copy() if isinstance(value, dict | list | set) else value for name, value in values.items()}

    # Evolving

    def evolve(self, pulse: Pulse) -> None:
        """Take one pulse into the state.

        Raises:
            StoreError: the pulse does not follow from the state; the journal is damaged or of another workflow.
        """
        if pulse.seq != self.seq:
            raise StoreError(
                f"transaction {self.transaction}: pulse {pulse.seq} where {self.seq} was expected; the journal has a "
                "gap"
            )
        if pulse.step:
            index = self._index_of(pulse)
            state = self.states[index]
            rule = STEP_EVOLUTION.get((state, pulse.kind, pulse.direction))
            if rule is None:
                raise self._damaged(pulse, f"of a step that is {state}")
            if self.phase not in PHASES_OF_STEP_PULSES[pulse.kind, pulse.direction]:
                raise self._damaged(pulse, f"in a transaction that is {self.phase}")
            if state == WAITING and pulse.kind != LATE:
                self._check_beginning(pulse, index)
            if pulse.kind == SPAWNED and state != OPEN:
                self._check_spawn(pulse, index)
            rule(self, pulse, index)
        else:
            whole = TRANSACTION_EVOLUTION.get(pulse.kind)
            if whole is None or self.phase not in PHASES_OF_TRANSACTION_PULSES[pulse.kind]:
                raise self._damaged(pulse, f"in a transaction that is {self.phase}")
            whole(self, pulse)
        self.seq += 1

    def _check_beginning(self, pulse: Pulse, index: int) -> None:
        step = self.steps[index]
        if self.unmet_dependencies[index]:
            raise self._damaged(pulse, "before what the step waits for")
        expired = self.ttl_of_causes(step) <= 0 or (
            self.plan.max_hops is not None and self.hops_spent >= self.plan.max_hops
        )
        unspawned = {
            FAILED: step.needs_evaluation or expired,
            SKIPPED: step.needs_evaluation,
            COMPLETED: step.needs_evaluation,
            TOMBSTONE: expired,
        }
        if not unspawned.get(pulse.kind, True):
            raise self._damaged(pulse, "although it was never spawned")

    def _check_spawn(self, pulse: Pulse, index: int) -> None:
        delivery = (pulse.data or {}).get("delivery")
        before = self.undo_attempts if pulse.direction == UNDO else self.attempts
        running = self.states[index] in (
            RUNNING,
            COMPENSATING,
            IN_DOUBT if pulse.direction == FORWARD else UNDO_RUNNING,
        )
        if running != (delivery is not None):
            raise self._damaged(pulse, "which is neither its next attempt nor its next delivery")
        if pulse.direction == UNDO and self.undoing not in (-1, index):
            raise self._damaged(pulse, "while another undo runs")
        if pulse.attempt != before[index] + (not running) or (running and delivery != self.deliveries[index] + 1):
            raise self._damaged(pulse, f"attempt {pulse.attempt}, delivery {delivery or 1}, which is not the next one")

    def _damaged(self, pulse: Pulse, why: str) -> StoreError:
        of = f" of {pulse.step!r}" if pulse.step else ""
        return StoreError(
            f"transaction {self.transaction}: pulse {pulse.seq} says {pulse.kind!r} ({pulse.direction}){of}, {why}; "
            "the journal is damaged or of another workflow"
        )

    def _index_of(self, pulse: Pulse) -> int:
        try:
            return self.by_name[pulse.step]
        except KeyError:
            raise StoreError(
                f"transaction {self.transaction}: its journal has a step {pulse.step!r} that workflow "
                f"{self.plan.workflow!r} does not "
                "have (any more); finish it with the release that started it"
            ) from None

    def _spawned(self, pulse: Pulse, index: int) -> None:
        self.states[index] = RUNNING
        self.in_flight += 1
        self.hops_spent += 1
        self.attempts[index] = pulse.attempt
        self.deliveries[index] = 1
        self.ttls[index] = pulse.ttl
        self.hops[index] = pulse.hop
        self.causes[index] = pulse.causes
        self.spawned_at_ns[index] = pulse.at_ns
        if pulse.data is not None:
            arguments = pulse.data.get("decided") or {}
            self.evaluated = writable(self.evaluated)
            self.evaluated[index] = {name: token_from_bytes(token) for name, token in arguments.items()}
            if "opening" in pulse.data:
                self._opened_container(index, pulse.data["opening"])

    def _spawned_again(self, pulse: Pulse, index: int) -> None:
        """Take in a redelivery, or the dispatch that asks a compensation."""
        data = pulse.data or {}
        if self.steps[index].around_container is not None:
            self._interrupt_proceed(index)
        self._expect_late(pulse.hop, index)
        if "lost" in data:
            self._record_doubt(pulse.hop, index)
        self.deliveries[index] = data["delivery"]
        self.spawned_at_ns[index] = pulse.at_ns
        if self.states[index] not in IN_FLIGHT:
            self.in_flight += 1
        if "assess" in data:
            self.compensating = writable(self.compensating)
            self.compensating[index] = Fault(*data["assess"])
            self.states[index] = COMPENSATING

    def _completed(self, pulse: Pulse, index: int) -> None:
        self.states[index] = COMPLETED
        self.in_flight -= 1
        self.unsettled_count -= 1
        self.tokens[index] = pulse.token_out
        if index in self.steps_in_doubt:
            self._clear_doubt(index)
        step = self.steps[index]
        if index < self.plan_size or step.undo is not None:
            self.completion_order.append(index)
        if pulse.data is not None:
            self._record_emissions(pulse, pulse.data)
            if (
                "planned" in pulse.data
                and self.goes_forward(index)
                and self._add_planned_steps(index, pulse.data["planned"])
            ):
                return
        unmet_dependencies = self.unmet_dependencies
        for dependent in step.dependents:
            unmet_dependencies[dependent] -= 1
        if index >= self.plan_size:
            self._planned_step_settled(index)

    def _completed_without_run(self, pulse: Pulse, index: int) -> None:
        """Complete a step whose guard has answered, or whose container closed before it opened anything: no hop was
        spent."""
        step = self.steps[index]
        self.states[index] = COMPLETED
        self.unsettled_count -= 1
        self.tokens[index] = pulse.token_out
        self.ttls[index] = self.ttl_of_causes(step)
        self.causes[index] = pulse.causes
        self._release_dependents(index)

    def _record_emissions(self, pulse: Pulse, data: Mapping[str, Any]) -> None:
        for position, (name, token) in enumerate(data.get("emits") or ()):
            emission = Emission(f"{pulse.hop}:{position}", name, token_from_bytes(token), pulse.ttl, pulse.hop)
            self.emissions = writable(self.emissions)
            self.emissions[emission.id] = emission

    def _skipped(self, pulse: Pulse, index: int) -> None:
        step = self.steps[index]
        self.states[index] = SKIPPED
        self.unsettled_count -= 1
        self.ttls[index] = self.ttl_of_causes(step)
        self.causes[index] = pulse.causes
        self._release_dependents(index)

    def _failed(self, pulse: Pulse, index: int) -> None:
        data = pulse.data or {}
        if self.states[index] in IN_FLIGHT:
            self.in_flight -= 1
        if "tolerated" in data:
            self._tolerated(pulse, index, data)
            return
        fault = Fault(*data["fault"])
        if "caught" in data:
            if data.get("in_doubt"):
                self._put_in_doubt(pulse, index)
            else:
                self.states[index] = IN_DOUBT if index in self.steps_in_doubt else FAILED
            self._fail_scope(index, fault)
            return
        if self.phase != FAILING or fault.type != "bitactor.errors:Cancelled":
            self.errors.append((pulse.hop, fault))
        if data.get("in_doubt"):
            self._put_in_doubt(pulse, index)
        else:
            self.states[index] = IN_DOUBT if index in self.steps_in_doubt else FAILED
        self._begin_failing(pulse)

    def _tolerated(self, pulse: Pulse, index: int, data: Mapping[str, Any]) -> None:
        """Settle a step that failed and is not required: its result is None.  If it is in doubt, undo asks it like any
        other."""
        if data.get("in_doubt"):
            self._put_in_doubt(pulse, index)
        self.states[index] = IN_DOUBT if index in self.steps_in_doubt else SKIPPED
        self.unsettled_count -= 1
        self.tokens[index] = None
        if not self.hops[index]:
            self.ttls[index] = self.ttl_of_causes(self.steps[index])
            self.causes[index] = pulse.causes
        self._release_dependents(index)

    def _retried(self, pulse: Pulse, index: int) -> None:
        if self.steps[index].around_container is not None:
            self._interrupt_proceed(index)
        if self.states[index] in IN_FLIGHT:
            self.in_flight -= 1
        self.states[index] = BACKING_OFF
        self.failures[index] += 1
        self.due_ns = writable(self.due_ns)
        self.due_ns[index] = (pulse.data or {})["due_ns"]

    def _timed_out(self, pulse: Pulse, index: int) -> None:
        self.in_flight -= 1
        if self.states[index] == RUNNING:
            self.awaited_runs = writable(self.awaited_runs)
            self.awaited_runs[pulse.hop, self.deliveries[index]] = index
        self._put_in_doubt(pulse, index)

    def _expect_late(self, hop: str, index: int) -> None:
        """Expect a late reply to the step's delivery, which is not waited for any more."""
        self.unanswered_runs = writable(self.unanswered_runs)
        self.unanswered_runs[hop, self.deliveries[index]] = index
        scope = self.steps[index].scope
        if scope is not None:
            scope.pinned = True

    def _put_in_doubt(self, pulse: Pulse, index: int) -> None:
        self._expect_late(pulse.hop, index)
        self._record_doubt(pulse.hop, index)
        self.states[index] = IN_DOUBT

    def _record_doubt(self, hop: str, index: int) -> None:
        if self.states[index] == RUNNING:
            self.runs_in_doubt = writable(self.runs_in_doubt)
            self.runs_in_doubt[hop, self.deliveries[index]] = index
        elif index not in self.steps_in_doubt:
            return  # only its assessment was lost; the run itself is known not to have happened
        if index in self.steps_in_doubt:
            self.completion_order.remove(index)
        self.steps_in_doubt |= {index}
        self.completion_order.append(index)

    def _clear_doubt(self, index: int) -> None:
        """Take a step out of those in doubt."""
        self.steps_in_doubt -= {index}
        self.completion_order.remove(index)
        self.runs_in_doubt = {run: other for run, other in self.runs_in_doubt.items() if other != index}
        self.awaited_runs = {run: other for run, other in self.awaited_runs.items() if other != index}

    def _tombstoned(self, pulse: Pulse, index: int) -> None:
        if pulse.error == POISON and self.states[index] in IN_FLIGHT:
            self.in_flight -= 1
            self._put_in_doubt(pulse, index)

    def _step_halted(self, pulse: Pulse, index: int) -> None:
        if "lost" in (pulse.data or {}):
            self._expect_late(pulse.hop, index)
            self._record_doubt(pulse.hop, index)
        if self.steps[index].around_container is not None:
            self._interrupt_proceed(index)
        self.in_flight -= 1
        self.states[index] = WAITING
        self.phase = HALTING

    def _late(self, pulse: Pulse, index: int) -> None:
        data = pulse.data or {}
        if self.unanswered_runs:
            self.unanswered_runs.pop((pulse.hop, data["delivery"]), None)
        if self.awaited_runs:
            self.awaited_runs.pop((pulse.hop, data["delivery"]), None)
        if data.get("happened") is True:
            if self.states[index] == IN_DOUBT:
                self.states[index] = COMPLETED
            if self.stopping or self.steps[index].required:  # else others have gone on with None
                self.tokens[index] = pulse.token_out
            at = self.completion_order.index(index)
            self._clear_doubt(index)
            self.completion_order.insert(at, index)
        elif data.get("happened") is False:
            if self.runs_in_doubt:
                self.runs_in_doubt.pop((pulse.hop, data["delivery"]), None)
            if index not in self.runs_in_doubt.values():
                self._clear_doubt(index)
                if self.states[index] in (IN_DOUBT, UNDO_FAILED):
                    self.states[index] = FAILED if self.steps[index].required else SKIPPED

    def _undo_spawned(self, pulse: Pulse, index: int) -> None:
        data = pulse.data or {}
        if "delivery" in data:
            self.unanswered_runs = writable(self.unanswered_runs)
            self.unanswered_runs[pulse.hop, self.deliveries[index]] = index
            self.deliveries[index] = data["delivery"]
        else:
            self.undo_attempts[index] = pulse.attempt
            self.deliveries[index] = 1
        self.states[index] = UNDO_RUNNING
        self.undoing = index
        self.spawned_at_ns[index] = pulse.at_ns
        self.phase = UNDOING

    def _undone(self, pulse: Pulse, index: int) -> None:
        self.states[index] = UNDONE
        self.undoing = -1
        at = len(self.completion_order) - 1  # undo goes from the end, and so finds it there
        while self.completion_order[at] != index:
            at -= 1
        del self.completion_order[at]
        if pulse.data is not None:
            self._record_emissions(pulse, pulse.data)

    def _undo_retried(self, pulse: Pulse, index: int) -> None:
        self.states[index] = UNDO_BACKING_OFF
        self.due_ns = writable(self.due_ns)
        self.due_ns[index] = (pulse.data or {})["due_ns"]

    def _undo_failed(self, pulse: Pulse, index: int) -> None:
        self.errors.append((pulse.hop, Fault(*(pulse.data or {})["fault"])))
        if self.states[index] == UNDO_RUNNING:
            self.unanswered_runs = writable(self.unanswered_runs)
            self.unanswered_runs[pulse.hop, self.deliveries[index]] = index
        self.states[index] = UNDO_FAILED
        self.undoing = -1
        self.undo_failed = True
        self.phase = UNDOING

    def _undo_tombstoned(self, pulse: Pulse, index: int) -> None:
        """Change nothing: an `undo_failed` pulse follows, which says everything."""

    def _accepted(self, pulse: Pulse) -> None:
        data = pulse.data or {}
        self.phase = RUNNING
        self.accepted_at_ns = pulse.at_ns
        self.ttl = data["ttl"]
        self.deadline_ns = data["deadline_ns"]
        self.metadata = data.get("metadata")
        if len(self.tokens) == len(self.plan.steps):
            self.tokens += input_tokens(self.plan, pulse.token_out)

    def _transaction_failed(self, pulse: Pulse) -> None:
        data = pulse.data or {}
        if self.phase == ENDED and self.status != COMPLETED:
            raise self._damaged(pulse, f"in a transaction that ended {self.status}")
        self.errors.append((pulse.hop, Fault(*data["fault"])))
        self.cancelling = self.cancelling or bool(data.get("cancel"))
        self._begin_failing(pulse)

    def _begin_failing(self, pulse: Pulse) -> None:
        if self.phase in (FAILING, UNDOING):
            return
        self.phase = FAILING
        self.status = RUNNING
        self.stopping_since_ns = pulse.at_ns
        for index, state in enumerate(self.states):
            if state == BACKING_OFF:
                self.states[index] = IN_DOUBT if index in self.steps_in_doubt else FAILED
            elif state == OPEN:
                self.states[index] = FAILED
            elif state == WAITING and index in self.steps_in_doubt:
                # It halted after an attempt of which nobody knows.
                self.states[index] = IN_DOUBT

    def _transaction_tombstoned(self, pulse: Pulse) -> None:
        if self.emissions:
            self.emissions.pop((pulse.data or {}).get("emit", ""), None)

    def _emitted(self, pulse: Pulse) -> None:
        del self.emissions[(pulse.data or {})["emit"]]

    def _halted(self, pulse: Pulse) -> None:
        self.phase = HALTED
        self.status = HALTED
        for index, state in enumerate(self.states):
            if state == BACKING_OFF:
                self.states[index] = WAITING

    def _resumed(self, pulse: Pulse) -> None:
        data = pulse.data or {}
        self.stopping_since_ns = pulse.at_ns
        if "epoch" in data:
            self.epoch = data["epoch"]
            self.awaited_runs = EMPTY  # they ended with the process they ran in, or will be late
            return
        if self.phase == HALTED:
            self.phase = RUNNING
            self.status = RUNNING
            self.deadline_ns = data["deadline_ns"]
            return
        if self.phase != ENDED or not self.undo_failed:
            raise self._damaged(pulse, f"in a transaction that is {self.phase}")
        self.status = RUNNING
        self.phase = UNDOING
        self.undo_failed = False
        for index, state in enumerate(self.states):
            if state == UNDO_FAILED:
                self.states[index] = IN_DOUBT if index in self.steps_in_doubt else COMPLETED

    def _awaits_undo(self, index: int) -> bool:
        undoable = (COMPLETED, IN_DOUBT, UNDO_RUNNING, UNDO_BACKING_OFF)
        return self.steps[index].undo is not None and self.states[index] in undoable

    def _finished(self, pulse: Pulse) -> None:
        status = (pulse.data or {})["status"]
        if (
            (status == COMPLETED) != (self.phase == RUNNING)
            or (status == COMPLETED and self.unsettled_count)
            or self.in_flight
        ):
            raise self._damaged(pulse, f"{status!r}, which it cannot be yet")
        if status != COMPLETED and any(self._awaits_undo(index) for index in self.completion_order):
            raise self._damaged(pulse, f"{status!r}, although something is left to undo")
        self.phase = ENDED
        self.status = status


def input_tokens(plan: Plan, token: Any) -> list[Any]:
    """The tokens of a plan's input fields, from the token of the whole input."""
    values = decode_token(token) or {}
    return [encode_token(values.get(name)) for name in plan.inputs]


_Rule = Callable[[SagaState, Pulse, int], None]


def _rules(states: Iterable[str], direction: str, rules: Mapping[str, _Rule]) -> dict[tuple[str, str, str], _Rule]:
    return {(state, kind, direction): rule for state in states for kind, rule in rules.items()}


_S = SagaState
STEP_EVOLUTION: Final[Mapping[tuple[str, str, str], _Rule]] = {
    **_rules(STEP_STATES, FORWARD, {LATE: _S._late}),
    **_rules((WAITING,), FORWARD, {
        SPAWNED: _S._spawned, SKIPPED: _S._skipped, COMPLETED: _S._completed_without_run, FAILED: _S._failed,
        TOMBSTONE: _S._tombstoned,
    }),
    **_rules((OPEN,), FORWARD, {SPAWNED: _S._opened_more_scopes, COMPLETED: _S._closed_container, FAILED: _S._failed}),
    **_rules((RUNNING, COMPENSATING), FORWARD, {
        SPAWNED: _S._spawned_again, COMPLETED: _S._completed, COMPENSATED: _S._completed, FAILED: _S._failed,
        RETRIED: _S._retried, TIMED_OUT: _S._timed_out, TOMBSTONE: _S._tombstoned, HALTED: _S._step_halted,
    }),
    **_rules((BACKING_OFF,), FORWARD, {SPAWNED: _S._spawned, TOMBSTONE: _S._tombstoned, FAILED: _S._failed}),
    **_rules((IN_DOUBT,), FORWARD, {SPAWNED: _S._spawned_again, RETRIED: _S._retried, FAILED: _S._failed}),
    **_rules((COMPLETED, IN_DOUBT), UNDO, {SPAWNED: _S._undo_spawned, UNDO_FAILED: _S._undo_failed}),
    **_rules((UNDO_RUNNING,), UNDO, {
        SPAWNED: _S._undo_spawned, UNDONE: _S._undone, RETRIED: _S._undo_retried, UNDO_FAILED: _S._undo_failed,
        TOMBSTONE: _S._undo_tombstoned,
    }),
    **_rules((UNDO_BACKING_OFF,), UNDO, {SPAWNED: _S._undo_spawned, UNDO_FAILED: _S._undo_failed}),
}  # fmt: skip
"""(state of the step, kind of pulse, direction) → how the step's state changes; a pulse that is not here cannot
follow."""

TRANSACTION_EVOLUTION: Final[Mapping[str, Callable[[SagaState, Pulse], None]]] = {
    ACCEPTED: _S._accepted, FAILED: _S._transaction_failed, TOMBSTONE: _S._transaction_tombstoned, EMITTED: _S._emitted,
    HALTED: _S._halted, RESUMED: _S._resumed, FINISHED: _S._finished,
}  # fmt: skip

_GOING_FORWARD: Final = frozenset((RUNNING, HALTING))
_STOPPING: Final = frozenset((FAILING, UNDOING))
_HOPS_IN_FLIGHT: Final = frozenset((RUNNING, HALTING, FAILING))
_BEGUN: Final = frozenset((RUNNING, HALTING, HALTED, FAILING, UNDOING, ENDED))
PHASES_OF_STEP_PULSES: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    (SPAWNED, FORWARD): _GOING_FORWARD, (SKIPPED, FORWARD): frozenset((RUNNING,)), (RETRIED, FORWARD): _GOING_FORWARD,
    (HALTED, FORWARD): _GOING_FORWARD, (COMPLETED, FORWARD): _HOPS_IN_FLIGHT, (COMPENSATED, FORWARD): _HOPS_IN_FLIGHT,
    (FAILED, FORWARD): _HOPS_IN_FLIGHT, (TIMED_OUT, FORWARD): _HOPS_IN_FLIGHT, (TOMBSTONE, FORWARD): _HOPS_IN_FLIGHT,
    (LATE, FORWARD): _BEGUN, (SPAWNED, UNDO): _STOPPING, (UNDO_FAILED, UNDO): _STOPPING,
    (UNDONE, UNDO): frozenset((UNDOING,)), (RETRIED, UNDO): frozenset((UNDOING,)),
    (TOMBSTONE, UNDO): frozenset((UNDOING,)),
}  # fmt: skip
"""(kind of pulse, direction) → the phases in which a step can have one."""

PHASES_OF_TRANSACTION_PULSES: Final[Mapping[str, frozenset[str]]] = {
    ACCEPTED: frozenset((NEW,)), FAILED: frozenset((RUNNING, HALTING, HALTED, ENDED)), TOMBSTONE: _BEGUN,
    EMITTED: _BEGUN, HALTED: frozenset((HALTING,)), RESUMED: _BEGUN, FINISHED: frozenset((RUNNING, FAILING, UNDOING)),
}  # fmt: skip
