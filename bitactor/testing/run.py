"""`run_workflow`: a workflow run to its end on the spot, by a small supervisor without loop, threads or store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from bitactor.declare.stimulus import StimulusOptions, encoded
from bitactor.errors import ConfigurationError, InvalidInput, WorkflowFailed, suggest
from bitactor.export.failure import failure_of
from bitactor.messages.codec import decode_token
from bitactor.messages.duration import nanoseconds
from bitactor.messages.faults import beside, error_of, fault_of
from bitactor.messages.ids import hop_id
from bitactor.messages.pulse import UNDONE, Pulse
from bitactor.messages.signal import UNDO, Fault, Reply, Signal
from bitactor.messages.wire import decode_pulse, encode_pulse
from bitactor.plan.arguments import RawArguments, argument_values
from bitactor.plan.consumer import Consumer
from bitactor.plan.plan import Plan, PlanStep
from bitactor.plan.steps import with_function
from bitactor.saga import (
    Accept,
    ArmDeadline,
    ArmGrace,
    ArmRetry,
    CancelHop,
    Command,
    DeadlineExpired,
    Deliver,
    Dispatch,
    EmissionAccepted,
    Evaluate,
    GraceExpired,
    Lost,
    Recovered,
    Replied,
    ResumeRequested,
    RetryDue,
    Saga,
    input_tokens,
)
from bitactor.saga.evaluate import decide, signal_of
from bitactor.saga.machine import overdue
from bitactor.saga.phases import IN_FLIGHT, OPEN, UNDO_RUNNING
from bitactor.testing.fakes import FakeClock, FakeTimer, SequentialIds
from bitactor.testing.faults import Crash, FaultPlan, Faults, Lose
from bitactor.testing.hops import Hop, NeedsMesh
from bitactor.workflow import Workflow

R = TypeVar("R", default=Any)
R_co = TypeVar("R_co", covariant=True, default=Any)


class Emitted(NamedTuple):
    """A signal that a step emitted and that was sent."""

    name: str
    """The signal's name."""
    value: Any
    """What was emitted."""
    ttl: int
    """Hop budget that the signal carries to its consumers."""
    step: str
    """The step that emitted it."""


@dataclass(frozen=True)
class Trace(Generic[R_co]):
    """The end of a transaction, and everything on the way there."""

    transaction: str
    status: str
    """The status: `completed | compensated | cancelled | halted | stuck`."""
    result: R_co
    """The workflow's result; None unless the workflow completed."""
    results: Mapping[str, Any]
    """Step → value of each step that was done, None for a skipped one."""
    errors: Sequence[BaseException]
    """Errors as live exceptions: the original one first, then those of compensation and undo."""
    pulses: Sequence[Pulse] = field(repr=False)
    """The journal, as a store would have it."""
    emitted: Sequence[Emitted] = ()
    """Emitted signals in the order they were sent."""
    failure: WorkflowFailed | None = field(default=None, repr=False)
    """What `Transaction.result` would raise; None if the workflow completed."""

    @property
    def undone(self) -> list[str]:
        """Names of the steps that were undone, in the order in which that happened."""
        return [pulse.step for pulse in self.pulses if pulse.kind == UNDONE]

    @property
    def kinds(self) -> list[str]:
        """`kind step` for each pulse, and `kind` alone for those of the transaction itself: short enough to compare in
        a test."""
        return [f"{pulse.kind} {pulse.step}".strip() for pulse in self.pulses]

    def of(self, step: str) -> list[Pulse]:
        """The pulses of one step."""
        return [pulse for pulse in self.pulses if pulse.step == step]


def run_workflow(
    workflow: Workflow[R] | Consumer,
    input: Any = None,
    *,
    ttl: int | None = None,
    deadline: float | None = None,
    steps: Mapping[str, Callable[..., Any]] | None = None,
    faults: Faults | None = None,
    resumes: int = 0,
    metadata: Mapping[str, Any] | None = None,
    clock: FakeClock | None = None,
    ids: SequentialIds | None = None,
) -> Trace[R]:
    """Run a workflow, or a consumer, to its end, here and now.

    The saga is the real one, and so are its pulses: the same kinds, steps, hops and budgets as in a mesh.  Steps run
    one after another on the calling thread, wherever they would run in a mesh; `async def` steps too, as long as they
    wait for nothing outside.  Backoffs, timeouts and deadlines pass on `clock`, which takes no time.

    Args:
        workflow: what to run; a consumer takes `input` as the value that was emitted.
        input: as for `mesh.stimulate`.
        ttl, deadline, metadata: as for `mesh.stimulate`.
        steps: step, or `step.undo` or `step.compensate` → function to run in its place; it may take any of the step's
            arguments, `ctx` and `attempt`.  Not for a map, or what else is made of other steps.
        faults: step, or `step.undo` → what happens to it: one fault for every delivery (but `Crash()` once), or a list,
            one for each delivery in order, None for none; after the list it runs as usual.  A step of a nested workflow
            is named with what it is nested in, `billing/charge`; the name of a map means the hops of its batches, that
            of an iterate the hops of its rounds.
        resumes: how often to resume when it has halted or is stuck.
        clock: time; by default a `FakeClock` of its own.
        ids: where the transaction's id comes from.

    Raises:
        DefinitionError: the workflow as declared cannot work.
        InvalidInput: the input does not fit, or `ttl`, `deadline` or `metadata` is wrong.
        ConfigurationError: `steps` or `faults` name what is not there; or the workflow would hang for ever.
        NeedsMesh: a step waits for something only an event loop can bring.
    """
    plan = workflow.check()
    options = StimulusOptions(ttl=ttl, deadline=deadline, metadata=metadata)
    values = {"signal": input} if isinstance(workflow, Consumer) else workflow.validate_input(input)
    running = _Runner(
        _replaced(plan, steps or {}),
        FaultPlan(plan, faults),
        clock or FakeClock(),
        (ids or SequentialIds()).transaction(),
    )
    running.begin(
        encoded(f"input of {workflow.name!r}", values),
        plan.ttl if ttl is None else ttl,
        plan.deadline_ns if deadline is None else nanoseconds(deadline),
        options.record(),
    )
    running.run_until_settled()
    for _ in range(resumes):
        if running.saga.state.status in ("halted", "stuck"):
            running.resume()
            running.run_until_settled()
    return running.trace()


def _replaced(plan: Plan, functions: Mapping[str, Callable[..., Any]]) -> Plan:
    own = {
        name if role == "run" else f"{name}.{role}": (step.index, role)
        for step in plan.steps
        for role in ("run", "undo", "compensate")
        if step.container is None and getattr(step, role) is not None
        for name in (step.name, step.address)
    }
    for name in (name for name in functions if name not in own):
        index = plan.by_name.get(name)
        if index is None or plan.steps[index].container is None:
            raise ConfigurationError(
                f"steps names {name!r}, which is no step, undo or compensate of {plan.workflow!r}."
                f"{suggest(name, sorted(own))}"
            )
        raise ConfigurationError(
            f"steps names {name!r}, which is made of other steps ({plan.steps[index].kind}), and run_workflow replaces "
            f"only steps of {plan.workflow!r} itself; replace what its function calls, or, of nested workflows, "
            "steps in a mesh: the `mesh` fixture takes steps={…} of all depths"
        )
    if not functions:
        return plan
    steps = list(plan.steps)
    for name, function in functions.items():
        index, role = own[name]
        steps[index] = with_function(steps[index], function, role)
    return replace(plan, steps=tuple(steps))


class _Runner:
    """One transaction with its queue of stimuli, its timers and its journal."""

    def __init__(self, plan: Plan, faults: FaultPlan, clock: FakeClock, transaction: str) -> None:
        self.plan = plan
        self.faults = faults
        self.clock = clock
        self.saga = Saga(plan, transaction)
        self.journal: list[Pulse] = []
        self.emitted: list[Emitted] = []
        self.errors: dict[str, BaseException] = {}
        self.events: deque[Any] = deque()
        self.hanging: dict[int, Signal] = {}
        self.hop_timers: dict[int, FakeTimer] = {}
        self.timers: list[FakeTimer] = []
        self.deadline: FakeTimer | None = None

    def begin(self, token: Any, ttl: int, budget_ns: int | None, data: Mapping[str, Any]) -> None:
        deadline_ns = None if budget_ns is None else self.clock.wall_ns() + budget_ns
        self.events.append(Accept(token, tuple(input_tokens(self.plan, token)), ttl, deadline_ns, data))

    def resume(self) -> None:
        halted = next((pulse for pulse in reversed(self.journal) if pulse.kind == "halted" and not pulse.step), None)
        left = (halted.data or {}).get("left_ns") if halted is not None else None
        self.events.append(ResumeRequested(None if left is None else self.clock.wall_ns() + left))

    def run_until_settled(self) -> None:
        """Feed stimuli until nothing more happens by itself."""
        while True:
            while self.events:
                pulses, commands = self.saga.react(self.events.popleft(), self.clock.wall_ns())
                self.journal.extend(pulses)
                for command in commands:
                    if self._obey(command):
                        break
            if self.saga.state.status != "running":
                break
            due_ns = self.clock.next_timer_ns()
            if due_ns is None:
                raise ConfigurationError(
                    f"{self._waiting_for()} would hang for ever; give it a timeout, or the workflow a deadline"
                )
            self.clock.advance_to(due_ns)
        for timer in (*self.timers, *self.hop_timers.values(), *((self.deadline,) if self.deadline else ())):
            timer.cancel()

    def _waiting_for(self) -> str:
        """The steps that never end; the workflow if there are none."""
        state = self.saga.state
        running = [index for index, now in enumerate(state.states) if now in (*IN_FLIGHT, OPEN, UNDO_RUNNING)]
        names = [repr(state.steps[index].name) for index in self.hanging or running]
        return ", ".join(names) or f"workflow {self.plan.workflow!r}"

    def trace(self) -> Trace:
        state = self.saga.state
        errors = [error for failed in state.errors for error in self._errors_of(failed.hop, failed.fault)]
        return Trace(
            transaction=state.transaction,
            status=state.status,
            result=decode_token(state.result()) if state.status == "completed" else None,
            results={name: decode_token(token) for name, token in state.results().items()},
            errors=errors,
            pulses=self.journal,
            emitted=self.emitted,
            failure=None if state.status == "completed" else failure_of(state, errors, self.journal),
        )

    # Obeying; the answer is whether the process died of it

    def _obey(self, command: Command) -> bool:
        if isinstance(command, Dispatch):
            return self._dispatch(command)
        if isinstance(command, Evaluate):
            self._evaluate(command.step)
        elif isinstance(command, ArmRetry):
            due = RetryDue(command.step)
            self._arm(command.due_ns, lambda: self.events.append(due))
        elif isinstance(command, ArmGrace):
            self._arm(self.clock.wall_ns() + command.after_ns, lambda: self.events.append(GraceExpired()))
        elif isinstance(command, ArmDeadline):
            if self.deadline is not None:
                self.deadline.cancel()
            self.deadline = None if command.due_ns is None else self._arm(command.due_ns, self._deadline_expired)
        elif isinstance(command, CancelHop):
            self._cancel_hop(command.step)
        elif isinstance(command, Deliver):
            self._deliver(command)
        return False

    def _errors_of(self, hop: str, fault: Fault) -> list[BaseException]:
        error = self.errors.get(hop) or error_of(fault, self.plan.errors)
        return [error, *beside(fault, error, self.plan.errors)]

    def _dispatch(self, command: Dispatch) -> bool:
        index, direction, _ = command
        state = self.saga.state
        step = state.steps[index]
        if step.around_container is not None:
            raise NeedsMesh(
                f"{step.name!r} of {self.plan.workflow!r} waits for the steps it is around; run it in a mesh"
            )
        signal = signal_of(state, step, direction, command.fault)
        fault = self.faults.next_fault(step, direction) if command.fault is None else None
        if isinstance(fault, Crash):
            self._crash()
            return True
        if isinstance(fault, Lose):
            self.events.append(Lost(index, signal.delivery, "injected"))
        elif fault is not None:
            self._hang(step, signal)
        else:
            try:
                evaluated = state.evaluated.get(index)
                if step.takes_raw_arguments:
                    values = RawArguments(step.arguments, state.tokens, step.address, evaluated)()
                else:
                    values = argument_values(step.arguments, state.tokens, step.address, evaluated)
                result = state.own_result(index) if direction == UNDO and index not in state.steps_in_doubt else None
                hop = Hop(self.plan, step, signal, values, result, self.clock.monotonic_ns)
                reply, error = hop.run(), hop.error
            except InvalidInput as problem:
                reply, error = self._reply(signal, "fail", fault_of(problem)), problem
            if error is not None:
                self.errors[signal.hop] = error
            self.events.append(Replied(index, reply))
        return False

    def _reply(self, signal: Signal, outcome: str, fault: Fault | None = None, elapsed_ns: int = 0) -> Reply:
        return Reply(
            signal.transaction, signal.hop, signal.delivery, signal.epoch, outcome, fault=fault, elapsed_ns=elapsed_ns
        )

    def _hang(self, step: PlanStep, signal: Signal) -> None:
        self.hanging[step.index] = signal
        budget_ns = signal.budget_ns
        if budget_ns is None:
            return
        message = f"{signal.name!r}, attempt {signal.attempt}, took longer than {budget_ns / 1e9:g} s"
        fault = Fault("bitactor.errors:StepTimeout", message)
        late = Replied(step.index, self._reply(signal, "timed_out", fault, budget_ns))
        self.hop_timers[step.index] = self._arm(self.clock.wall_ns() + budget_ns, lambda: self.events.append(late))

    def _cancel_hop(self, index: int) -> None:
        """Cancel a hop that hangs, if its function is a coroutine; a plain function cannot be cancelled."""
        signal = self.hanging.pop(index, None)
        timer = self.hop_timers.pop(index, None)
        if timer is not None:
            timer.cancel()
        if signal is not None and self.saga.state.steps[index].run.is_async:
            self.events.append(Replied(index, self._reply(signal, "cancelled")))

    def _crash(self) -> None:
        """Lose everything but the journal, which goes through bytes as it would through a store."""
        for timer in (*self.timers, *self.hop_timers.values()):
            timer.cancel()
        self.timers.clear()
        self.hop_timers.clear()
        self.hanging.clear()
        self.events.clear()
        self.errors.clear()
        for container in self.plan.containers:
            container.container.release(self.saga.state.transaction)  # type: ignore[union-attr]
        epoch = self.saga.state.epoch + 1
        self.saga = Saga.fold(self.plan, [decode_pulse(encode_pulse(pulse)) for pulse in self.journal])
        self.events.append(Recovered("another process", epoch))

    def _evaluate(self, index: int) -> None:
        state = self.saga.state
        evaluated, error = decide(state, index)
        if isinstance(error, KeyboardInterrupt):
            raise error
        if error is not None:
            self.errors[hop_id(state.transaction, state.steps[index].name)] = error
        self.events.append(evaluated)

    def _deliver(self, command: Deliver) -> None:
        emission = command.emission
        step = next(pulse.step for pulse in reversed(self.journal) if pulse.hop == emission.hop)
        self.emitted.append(Emitted(emission.name, decode_token(emission.token), emission.ttl, step))
        self.events.append(EmissionAccepted(emission.id, ("run_workflow",)))

    def _deadline_expired(self) -> None:
        self.deadline = None
        self.events.append(DeadlineExpired(overdue(self.saga.state, self.clock.wall_ns())))

    def _arm(self, due_wall_ns: int, callback: Callable[[], None]) -> FakeTimer:
        timer = self.clock.call_at(self.clock.monotonic_ns() + due_wall_ns - self.clock.wall_ns(), callback)
        self.timers.append(timer)
        return timer


__all__ = ["NeedsMesh", "run_workflow"]
