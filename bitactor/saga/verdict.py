"""What the end of an attempt means: the outcome of its reply, from the value, verdict or exception of the user's
function, and from what the step's `compensate` and `backoff` say about a failure.

Sans-IO: `judge` and `judge_failure` are generators that yield each question for user code (`Ask`).  Who runs the hop
calls that function where the hop runs, sends its answer in or throws what it raised, and gets the `Judgement` when the
generator returns.  Every runner of hops follows these rules: actors on all spawners, and `bitactor.testing`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, NamedTuple

from bitactor.declare.context import Context
from bitactor.declare.then import Then
from bitactor.errors import BitActorError, DefinitionError, InvalidOutcome, SignalTooLarge
from bitactor.messages.codec import encode_token, pack
from bitactor.messages.duration import nanoseconds
from bitactor.messages.faults import MAX_MESSAGE, fault_of, utf8_safe, with_beside
from bitactor.messages.outcome import Continue, Fail, Halt, Ok, Outcome, Retry, seconds_of
from bitactor.messages.signal import UNDO, Fault, Signal
from bitactor.messages.values import exact_number, exact_text, shown, text_of, type_name
from bitactor.plan.plan import Callback, PlanStep

VERDICTS: Final = frozenset((Ok, Continue, Retry, Fail, Halt, Then))
"""The classes whose instances are verdicts; a value of any other exact class that can be encoded means `ok`."""

_PERMANENT: Final = (DefinitionError, InvalidOutcome, SignalTooLarge)
"""Failures that another try would only repeat."""


class Ask(NamedTuple):
    """A question for user code: call `callback` about `error`."""

    what: str
    """`compensate | backoff`."""
    callback: Callback
    error: BaseException
    fault: Fault
    """The fault of `error`, which the attempt ends with if no answer comes."""
    attempt: int
    """What the callback's `attempt` is: to `compensate` the attempt's number; to `backoff` how many have failed, as a
    `Backoff` counts: one that halted has not."""


class Judgement(NamedTuple):
    """The end of an attempt: the parts of its `Reply`, and live exceptions for the process that it is in."""

    outcome: str
    """`ok | continue | retry | fail | halt`."""
    token: Any = None
    error: BaseException | None = None
    """The exception behind the outcome."""
    fault: Fault | None = None
    after_ns: int | None = None
    """For `retry`: how long to wait; None: as the step's `Backoff` says."""
    reason: str = ""
    planned: bytes | None = None
    """The steps that a `Then` plans, packed."""
    broken: BaseException | None = None
    """What `compensate` or `backoff` raised in place of an answer."""


Judging = Generator[Ask, Any, Judgement]


def judge(step: PlanStep, signal: Signal, value: Any, *, late: bool = False) -> Judging:
    """The end of an attempt, or undo, that returned `value`, or raised it as a verdict.

    `late`: the attempt was answered for already, and only what happened is still to be told; user code is not asked.
    """
    try:
        return (yield from _judge_value(step, signal, value, late))
    except BaseException as broken:  # of a verdict whose class is the user's
        unfit = InvalidOutcome(f"the verdict of {signal.name!r}, {type_name(value)}, cannot be read: {text_of(broken)}")
        return Judgement("fail", error=unfit, fault=fault_of(unfit))


def _judge_value(step: PlanStep, signal: Signal, value: Any, late: bool) -> Judging:
    while issubclass(type(value), Ok):
        value = value.value
    undoing, kind = signal.direction == UNDO, type(value)  # its `__class__` may be anything
    if issubclass(kind, Retry):
        return (yield from _judge_retry(step, signal, value, late))
    if issubclass(kind, Fail):
        return Judgement("fail", fault=Fault("bitactor.errors:StepFailed", _reason(value) or "the step said so"))
    if undoing and issubclass(kind, (Outcome, Continue, Then)):
        return _refused(signal, value, "an undo may return None or Retry(…)")
    if issubclass(kind, Halt):
        return Judgement("halt", reason=_reason(value))
    if issubclass(kind, (Outcome, Continue)):
        allowed = "a step may return a value, Then(…), Retry(…), Fail(…) or Halt(…); Continue is for compensate"
        return _refused(signal, value, allowed)
    try:
        if issubclass(kind, Then):
            return Judgement("ok", encode_token(value.value), planned=pack(value.data()))
        return Judgement("ok", encode_token(value))
    except BaseException as problem:
        if undoing:  # nobody keeps what an undo returns
            return Judgement("ok", encode_token(None))
        unfit = _unfit(problem, signal)
    return (yield from judge_failure(step, signal, unfit, late=late))


def judge_failure(
    step: PlanStep, signal: Signal, error: BaseException, fault: Fault | None = None, *, late: bool = False
) -> Judging:
    """The end of an attempt, or undo, that failed with `error`, or was lost or timed out: as the step's `compensate`
    says, else as its `backoff` and `retry_on` say.

    `late`: as for `judge`.
    """
    fault = fault or fault_of(error)
    if late or signal.direction == UNDO:
        return Judgement("fail", error=error, fault=fault)
    backoff = step.backoff if isinstance(step.backoff, Callback) else None
    what = "backoff" if step.compensate is None else "compensate"
    after_ns = None
    try:
        try:
            if step.compensate is not None:
                verdict = yield from _answer_or_verdict(Ask(what, step.compensate, error, fault, signal.attempt))
                if issubclass(type(verdict), Retry) and verdict.after is None and backoff is not None:
                    what = "backoff"
                    verdict = Retry(
                        (yield from _asked_delay(backoff, step, signal, error, fault)),
                        verdict.reason,
                    )
                return _judge_compensation(signal, verdict, error, fault)
            if backoff is not None:
                after_ns = nanoseconds((yield from _asked_delay(backoff, step, signal, error, fault)))
        except Outcome as verdict:
            return _judge_compensation(signal, verdict, error, fault)
        what = "retry_on"  # has classes that the user wrote
        again = signal.retries_left > 0 and isinstance(error, step.retry_on) and not isinstance(error, _PERMANENT)
    except BaseException as broken:
        return Judgement("fail", error=error, fault=with_beside(fault, what, error, broken), broken=broken)
    if again:
        return Judgement("retry", error=error, fault=fault, after_ns=after_ns)
    return Judgement("fail", error=error, fault=fault)


def unsent(context: Context | None, value: Any, *, compensating: bool = False) -> InvalidOutcome | None:
    """The error of a function that returned `value` and has not awaited each `ctx.emit(…)`, so that a signal would not
    be sent which it says is sent; None: it has, or with that value nothing is sent anyway.

    `compensating`: it is a compensation or backoff.
    """
    if context is None or not context.unawaited:
        return None
    kind = type(value)
    if not issubclass(kind, Continue) if compensating else issubclass(kind, (Retry, Fail, Halt)):
        return None
    names = list(dict.fromkeys(shown(emitting.name) for emitting in context.unawaited))
    context.unawaited.clear()  # what the compensation answers is no matter of these
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return InvalidOutcome(
        f"{context.signal.name!r} did not await ctx.emit({names[0]}){more}, so nothing would be sent; write `await "
        "ctx.emit(…)`, await a task that emits, or use ctx.emit_later(…), which needs no await"
    )


def unanswered(ask: Ask, why: str) -> Fault:
    """The fault of an attempt whose `compensate` or `backoff` gave no answer in time, and `why`."""
    return ask.fault._replace(message=f"{ask.fault.message} (and its {ask.what} {why})")


def _judge_retry(step: PlanStep, signal: Signal, verdict: Retry, late: bool) -> Judging:
    """A step, or undo, asks for another try; if it does not say when, its backoff function does."""
    asks = verdict.after is None and isinstance(step.backoff, Callback)
    if not asks or late or signal.direction == UNDO or signal.retries_left <= 0:
        return Judgement("retry", after_ns=_delay_ns(verdict), reason=_reason(verdict))
    assert isinstance(step.backoff, Callback)
    fault = Fault("bitactor.outcome:Retry", _reason(verdict) or "asked for another try")
    try:
        after_ns = nanoseconds((yield from _asked_delay(step.backoff, step, signal, verdict, fault)))
    except BaseException as broken:
        return Judgement("fail", error=broken, fault=fault_of(broken))
    return Judgement("retry", error=verdict, fault=fault, after_ns=after_ns, reason=_reason(verdict))


def _judge_compensation(signal: Signal, verdict: Any, error: BaseException, fault: Fault) -> Judgement:
    """The end of an attempt that failed with `error`, as its compensation's answer says."""
    if verdict is None:
        return Judgement("fail", error=error, fault=fault)
    kind = type(verdict)
    if issubclass(kind, Continue):
        try:
            return Judgement("continue", encode_token(verdict.value), error, fault)
        except BaseException as problem:
            return _wrong_answer(error, fault, _unfit(problem, signal))
    if issubclass(kind, Retry):
        return Judgement("retry", error=error, fault=fault, after_ns=_delay_ns(verdict), reason=_reason(verdict))
    if issubclass(kind, Halt):
        return Judgement("halt", error=error, reason=_reason(verdict))
    if issubclass(kind, Fail):
        return Judgement("fail", error=error, fault=fault, reason=_reason(verdict))
    allowed = "it may return None, Retry(…), Continue(value) or Halt(…)"
    wrong = InvalidOutcome(f"compensate of {signal.name!r} returned {shown(verdict)}; {allowed}")
    return _wrong_answer(error, fault, wrong)


def _wrong_answer(error: BaseException, fault: Fault, wrong: BitActorError) -> Judgement:
    """The attempt fails with its own error, and beside it with what is wrong about the compensation's answer."""
    return Judgement("fail", error=error, fault=with_beside(fault, "compensate", error, wrong), broken=wrong)


def _answer_or_verdict(ask: Ask) -> Generator[Ask, Any, Any]:
    """What user code answered, returned or, if it is a verdict, raised."""
    try:
        return (yield ask)
    except Outcome as verdict:
        return verdict


def _unfit(problem: BaseException, signal: Signal) -> BitActorError:
    """The error of a result that cannot be carried, naming the step; `problem` may come from a model's serializer."""
    kind = type(problem)
    if issubclass(kind, BitActorError):
        return kind(f"the result of {signal.name!r}: {problem}")
    return InvalidOutcome(f"the result of {signal.name!r}: {shown(problem)}")


def _asked_delay(
    backoff: Callback, step: PlanStep, signal: Signal, error: BaseException, fault: Fault
) -> Generator[Ask, Any, float]:
    """Seconds, as the step's backoff function says."""
    failures = max(1, step.retries - signal.retries_left + 1)  # with this one
    return _delay((yield Ask("backoff", backoff, error, fault, failures)), signal)


def _delay(answer: Any, signal: Signal) -> float:
    """Seconds, as a backoff function says.

    Raises:
        InvalidOutcome: its answer is no delay.
    """
    seconds = None if exact_number(answer) is None else seconds_of(answer)
    if seconds is None:
        raise InvalidOutcome(f"backoff of {signal.name!r} returned {shown(answer)}; it returns seconds, zero or more")
    return seconds


def _delay_ns(verdict: Retry) -> int | None:
    if verdict.after is None:
        return None
    seconds = seconds_of(verdict.after)
    if seconds is None:
        raise InvalidOutcome(f"Retry(after={shown(verdict.after)}); a delay is a number of seconds, zero or more")
    return nanoseconds(seconds)


def _reason(verdict: Retry | Fail | Halt) -> str:
    try:
        return utf8_safe(exact_text(str(verdict.reason))[:MAX_MESSAGE]) if verdict.reason else ""
    except BaseException as broken:  # a user's object, which can do anything
        return f"<its reason cannot be shown: {type_name(broken)}>"


def _refused(signal: Signal, verdict: Any, allowed: str) -> Judgement:
    wrong = InvalidOutcome(f"{signal.name!r} ({signal.direction}) returned {shown(verdict)}; {allowed}")
    return Judgement("fail", error=wrong, fault=fault_of(wrong))
