"""One hop, run on the spot: the user's function is called, and its answer made a reply, by the rules that hosts
follow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final

import bitactor.errors
from bitactor.declare.context import Context
from bitactor.declare.then import Then
from bitactor.errors import BitActorError, ConfigurationError, InvalidOutcome, RemoteError
from bitactor.messages.codec import decode_token, encode_token, pack
from bitactor.messages.duration import nanoseconds, nanoseconds_or_none
from bitactor.messages.outcome import Continue, Fail, Halt, Ok, Outcome, Retry
from bitactor.messages.signal import UNDO, Fault, Reply, Signal
from bitactor.plan.arguments import convert_arguments
from bitactor.plan.plan import Callback, Plan, PlanStep

MAX_YIELDS: Final = 10_000


class NeedsMesh(ConfigurationError):
    """A step waits for something outside (a timer, a socket, another task) that only a mesh's event loop can bring."""


class Hop:
    """One delivery of one signal.  `run` gives the reply; `error` is then the live exception, if there was one."""

    def __init__(
        self,
        plan: Plan,
        step: PlanStep,
        signal: Signal,
        values: dict[str, Any],
        result: Any,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.plan = plan
        self.step = step
        self.signal = signal
        self.values = values
        self.result = result
        self.error: BaseException | None = None
        budget_ns = signal.budget_ns
        deadline_ns = None if budget_ns is None else monotonic_ns() + budget_ns
        self.context = Context(signal, plan.workflow, step.spawn, deadline_ns, monotonic_ns)

    def run(self) -> Reply:
        """Call the step's function, or its undo, or, if the signal carries a fault, only what decides about that."""
        if self.signal.fault is not None:
            return self._judge_error(error_of(self.signal.fault), self.signal.fault)
        undoing = self.signal.direction == UNDO
        callback = self.step.undo if undoing and self.step.undo is not None else self.step.run
        try:
            value = self._call(callback)
        except (KeyboardInterrupt, NeedsMesh):
            raise
        except Outcome as outcome:
            value = outcome
        except BaseException as error:
            return self._judge_error(error, fault_of(error))
        return self._answer(value)

    def _answer(self, value: Any) -> Reply:
        if isinstance(value, Ok):
            value = value.value
        undoing = self.signal.direction == UNDO
        if isinstance(value, Continue) or (undoing and isinstance(value, Halt)):
            allowed = "an undo may return None or Retry(…)" if undoing else "only a compensation may"
            return self._judge_new_error(InvalidOutcome(f"{self.signal.name!r} returned {value!r}; {allowed}"))
        if isinstance(value, Retry):
            after = value.after
            if (
                after is None
                and isinstance(self.step.backoff, Callback)
                and not undoing
                and self.signal.retries_left > 0
            ):
                after = self._seconds(self._call(self.step.backoff, value))
            return self._reply("retry", after_ns=nanoseconds_or_none(after), reason=value.reason)
        if isinstance(value, Halt):
            return self._reply("halt", reason=value.reason)
        if isinstance(value, Fail):
            return self._reply(
                "fail", fault=Fault("bitactor.errors:StepFailed", value.reason or f"{self.signal.name!r} said so")
            )
        try:
            if isinstance(value, Then) and not undoing:
                return self._reply("ok", encode_token(value.value), planned=pack(value.data()))
            return self._reply("ok", encode_token(value))
        except BitActorError as problem:
            return self._judge_new_error(type(problem)(f"result of {self.signal.name!r}: {problem}"))

    def _judge_new_error(self, error: BaseException) -> Reply:
        return self._judge_error(error, fault_of(error))

    def _judge_error(self, error: BaseException, fault: Fault) -> Reply:
        """The reply for a failed run: what its compensation, or else its retry policy, makes of the error."""
        self.error = error
        step = self.step
        after_ns = None
        if self.signal.direction == UNDO:
            return self._reply("fail", fault=fault)
        what = "backoff" if step.compensate is None else "compensate"
        try:
            if step.compensate is not None:
                verdict = self._compensate(step.compensate, error)
                if isinstance(verdict, Retry) and verdict.after is None and isinstance(step.backoff, Callback):
                    what = "backoff"
                    verdict = Retry(self._seconds(self._call(step.backoff, error)), verdict.reason)
                return self._judge(verdict, error, fault)
            if isinstance(step.backoff, Callback):
                after_ns = nanoseconds(self._seconds(self._call(step.backoff, error)))
        except (KeyboardInterrupt, NeedsMesh):
            raise
        except Outcome as verdict:
            return self._judge(verdict, error, fault)
        except BaseException as broken:
            second = fault_of(broken).summary()
            return self._reply(
                "fail", fault=fault._replace(message=f"{fault.message} (and its {what} raised {second})")
            )
        if self.signal.retries_left > 0 and isinstance(error, step.retry_on) and not isinstance(error, InvalidOutcome):
            return self._reply("retry", fault=fault, after_ns=after_ns)
        return self._reply("fail", fault=fault)

    def _judge(self, verdict: Any, error: BaseException, fault: Fault) -> Reply:
        if verdict is None:
            return self._reply("fail", fault=fault)
        if isinstance(verdict, Continue):
            try:
                return self._reply("continue", encode_token(verdict.value), fault=fault)
            except BitActorError as problem:
                self.error = problem
                return self._reply("fail", fault=fault_of(problem))
        if isinstance(verdict, Retry):
            return self._reply("retry", fault=fault, after_ns=nanoseconds_or_none(verdict.after), reason=verdict.reason)
        if isinstance(verdict, Halt):
            return self._reply("halt", reason=verdict.reason)
        if isinstance(verdict, Fail):
            return self._reply("fail", fault=fault, reason=verdict.reason)
        allowed = "it may return None, Retry(…), Continue(value) or Halt(…)"
        self.error = InvalidOutcome(f"compensate of {self.signal.name!r} returned {verdict!r}; {allowed}")
        return self._reply("fail", fault=fault_of(self.error))

    def _compensate(self, compensate: Callback, error: BaseException) -> Any:
        try:
            return self._call(compensate, error)
        except Outcome as verdict:
            return verdict

    def _seconds(self, seconds: Any) -> float:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise InvalidOutcome(
                f"backoff of {self.signal.name!r} returned {seconds!r}; it returns seconds, zero or more"
            )
        return seconds

    def _call(self, callback: Callback, error: BaseException | None = None) -> Any:
        value = callback.function(**self._kwargs(callback, error))
        return drive(value, self.signal.name) if callback.is_async else value

    def _kwargs(self, callback: Callback, error: BaseException | None) -> dict[str, Any]:
        step = self.step
        if step.takes_signal is not None:
            kwargs: dict[str, Any] = {}
            if callback is step.run:
                kwargs[step.takes_signal] = self.signal._replace(token=self.values["signal"])
        else:
            values = (
                dict(self.values)
                if step.takes_raw_arguments
                else convert_arguments(step.arguments, dict(self.values), self.signal.name)
            )
            kwargs = {name: values[name] for name in callback.takes}
        for name, what in callback.injected.items():
            kwargs[name] = self._injected(what, callback, error)
        return kwargs

    def _injected(self, what: str, callback: Callback, error: BaseException | None) -> Any:
        if what == "ctx":
            return self.context
        if what == "error":
            return error
        if what == "attempt":
            return self.signal.attempt
        value = decode_token(self.result)
        return callback.convert_result(value) if callback.convert_result is not None and value is not None else value

    def _reply(
        self,
        outcome: str,
        token: Any = None,
        *,
        fault: Fault | None = None,
        after_ns: int | None = None,
        reason: str = "",
        planned: bytes | None = None,
    ) -> Reply:
        signal = self.signal
        emits = self.context.emitted() if outcome in ("ok", "continue") else ()
        return Reply(
            signal.transaction,
            signal.hop,
            signal.delivery,
            signal.epoch,
            outcome,
            token,
            fault,
            after_ns,
            emits,
            0,
            reason,
            planned,
        )


def drive(coroutine: Coroutine[Any, Any, Any], what: str) -> Any:
    """Run a coroutine to its end, provided that it waits for nothing outside.

    Raises:
        NeedsMesh: it does wait.
    """
    try:
        for _ in range(MAX_YIELDS):
            if coroutine.send(None) is not None:
                break
    except StopIteration as stop:
        return stop.value
    except RuntimeError as error:
        if "no running event loop" not in str(error):
            raise
    coroutine.close()
    raise NeedsMesh(
        f"{what!r} waits for something only an event loop can bring, and run_workflow has none; replace it with "
        "steps={…}, let it hang with faults={…: Hang()}, or test it in a Mesh"
    )


def fault_of(error: BaseException) -> Fault:
    """The fault that the journal keeps of an exception."""
    kind = type(error)
    shown = "".join(traceback.format_exception(error))[-20_000:]
    try:
        arguments: bytes | None = pack(list(error.args), 64 * 1024)
    except BitActorError:
        arguments = None
    return Fault(f"{kind.__module__}:{kind.__qualname__}", str(error)[:10_000], shown, arguments)


def error_of(fault: Fault) -> BaseException:
    """An exception for a fault that was raised elsewhere, or never."""
    name = fault.type.rpartition(":")[2]
    kind = getattr(bitactor.errors, name, None) if fault.type.startswith("bitactor.errors:") else None
    if isinstance(kind, type) and issubclass(kind, BitActorError):
        try:
            return kind(fault.message)
        except TypeError:
            pass
    return RemoteError(name, fault.message, fault.traceback)
