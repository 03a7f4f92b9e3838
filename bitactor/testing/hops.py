"""One hop, run here and now: the user's function called, its answer made a reply, by the rules that hosts follow."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, Final

from bitactor.declare.context import Context
from bitactor.errors import ConfigurationError
from bitactor.messages.faults import error_of
from bitactor.messages.outcome import Outcome
from bitactor.messages.signal import UNDO, Reply, Signal
from bitactor.plan.arguments import convert_arguments
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.saga.verdict import Ask, Judgement, Judging, judge, judge_failure, unsent

MAX_YIELDS: Final = 10_000


class NeedsMesh(ConfigurationError):
    """A step waits for something outside (a timer, a socket, another task), which only a mesh's event loop can
    bring, or takes a resource, which only a mesh opens."""


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
        judgement = self._judgement(self._begin())
        self.error = judgement.error
        signal = self.signal
        outcome, token, _, fault, after_ns, reason, planned, _ = judgement
        emits = self.context.end() if outcome in ("ok", "continue") else ()
        return Reply(
            signal.transaction, signal.hop, signal.delivery, signal.epoch, outcome, token, fault, after_ns, emits, 0,
            reason, planned,
        )  # fmt: skip

    def _begin(self) -> Judging:
        step, signal = self.step, self.signal
        if signal.fault is not None:
            return judge_failure(step, signal, error_of(signal.fault, self.plan.errors), signal.fault)
        undoing = signal.direction == UNDO
        callback = step.undo if undoing and step.undo is not None else step.run
        try:
            kwargs = self._kwargs(callback, None)
        except NeedsMesh:
            raise
        except Exception as error:  # the arguments do not fit: no failure of the function
            return judge_failure(step, signal, error, late=True)
        try:
            value = self._call(callback, kwargs)
        except (KeyboardInterrupt, NeedsMesh):
            raise
        except Outcome as verdict:
            return judge(step, signal, verdict)
        except BaseException as error:
            return judge_failure(step, signal, error)
        left = unsent(self.context, value)
        return judge(step, signal, value) if left is None else judge_failure(step, signal, left)

    def _judgement(self, judging: Judging) -> Judgement:
        proceed: Callable[[], Ask] = partial(next, judging)
        while True:
            try:
                ask = proceed()
            except StopIteration as judged:
                judgement: Judgement = judged.value
                return judgement
            try:
                answer = self._call(ask.callback, self._kwargs(ask.callback, ask))
                left = unsent(self.context, answer, compensating=True)
                proceed = partial(judging.send, answer) if left is None else partial(judging.throw, left)
            except (KeyboardInterrupt, NeedsMesh):
                raise
            except BaseException as raised:
                proceed = partial(judging.throw, raised)

    def _call(self, callback: Callback, kwargs: dict[str, Any]) -> Any:
        value = callback.function(**kwargs)
        return drive(value, self.signal.name) if type(value) is CoroutineType else value

    def _kwargs(self, callback: Callback, ask: Ask | None) -> dict[str, Any]:
        step = self.step
        if step.takes_signal is not None:
            kwargs: dict[str, Any] = {}
            if callback is step.run:
                values = convert_arguments(step.arguments, dict(self.values), self.signal.name)
                kwargs[step.takes_signal] = self.signal._replace(token=values["signal"])
        else:
            values = (
                dict(self.values)
                if step.takes_raw_arguments
                else convert_arguments(step.arguments, dict(self.values), self.signal.name)
            )
            kwargs = {name: values[name] for name in callback.takes}
        for name, what in callback.injected.items():
            kwargs[name] = self._injected(what, callback, ask)
        return kwargs

    def _injected(self, what: str, callback: Callback, ask: Ask | None) -> Any:
        if what == "ctx":
            return self.context
        if what == "error":
            return None if ask is None else ask.error
        if what == "attempt":
            return self.signal.attempt if ask is None else ask.attempt
        if what.startswith("resource:"):
            name = what.removeprefix("resource:")
            raise NeedsMesh(
                f"{self.signal.name!r} takes the resource {name!r}, and run_workflow opens none; run it "
                "in a mesh (with another object in its place: `replace`), or replace the step (`steps`)"
            )
        return callback.result_of(self.result)


def drive(coroutine: Coroutine[Any, Any, Any], what: str) -> Any:
    """Run a coroutine that waits for nothing outside to its end.

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
