"""Containers: how they open, go on and close, and how user code is asked about steps.

What user code decides (a predicate, a choice, what a round comes to) is asked of the supervisor with `Evaluate` and
answered with `Evaluated`; a function around nested steps asks for them with `Proceeded` and gets `AnswerProceed`.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from bitactor.messages.codec import token_bytes
from bitactor.messages.pulse import COMPLETED, RUNNING, SKIPPED, SPAWNED
from bitactor.plan.container import AnswerFunctionAround, Close, Consult, FailContainer
from bitactor.saga.commands import AnswerProceed, CancelHop, Evaluate
from bitactor.saga.events import Evaluated, Lost, Proceeded
from bitactor.saga.forward import Forward
from bitactor.saga.phases import HALTING, IN_FLIGHT, OPEN, WAITING
from bitactor.saga.rules.scopes import opening_data


class Containers(Forward):
    """The part of the saga that has user code asked, and opens, advances and closes containers."""

    __slots__ = ()

    @override
    def _request_evaluation(self, index: int) -> None:
        if index not in self.being_evaluated:
            self.being_evaluated = self.being_evaluated or set()
            self.being_evaluated.add(index)
            self.commands.append(Evaluate(index))

    def _evaluated(self, event: Evaluated, now_ns: int) -> None:
        index = event.step
        if index not in self.being_evaluated:
            return
        self.being_evaluated.discard(index)
        if self.states[index] == OPEN:
            self._apply_consultation(event, now_ns)
            return
        if self.states[index] != WAITING or self.unmet_dependencies[index] or index in self.evaluated:
            return
        if event.fault is not None:
            self._fail(index, event.fault, now_ns)
        elif not event.run:
            self._record_step(index, SKIPPED, now_ns)
            self._continue_after(index, now_ns)
        elif event.answer is not None:
            self._record_step(index, COMPLETED, now_ns, token_out=event.answer[0], data={"answered": True})
            self._continue_after(index, now_ns)
        else:
            arguments = {name: bytes(token_bytes(token)) for name, token in (event.arguments or {}).items()}
            if event.opening is not None:
                data = {"decided": arguments, "opening": opening_data(event.opening)}
                self._record_step(index, SPAWNED, now_ns, data=data)
                self._start_pending(now_ns)
            else:
                self._spawn(index, now_ns, {"decided": arguments})

    def _apply_consultation(self, event: Evaluated, now_ns: int) -> None:
        """Apply the answer of user code to a container whose round is over."""
        index = event.step
        progress = self.progress[index]
        if type(progress.next_action) is not Consult:
            return
        if event.fault is not None:
            self._fail(index, event.fault, now_ns)
        elif event.answer is not None:
            self._close_container(index, event.answer[0], now_ns)
            self._continue_after(index, now_ns)
        else:
            self._record_step(index, SPAWNED, now_ns, data={"opening": opening_data(event.opening or ())})
            self._start_pending(now_ns)

    @override
    def _start_pending(self, now_ns: int) -> None:
        """While the transaction is not running, what is pending is dropped: a resume looks for it in the state."""
        ready_candidates, pending_containers = self.ready_candidates, self.pending_containers
        while self.phase is RUNNING and (ready_candidates or pending_containers):
            if ready_candidates:
                ready = ready_candidates[:]
                ready_candidates.clear()
                self._spawn_ready(ready, now_ns)
            else:
                self._advance_container(pending_containers.pop(0), now_ns)
        ready_candidates.clear()
        pending_containers.clear()

    def _advance_container(self, index: int, now_ns: int) -> None:
        progress = self.progress.get(index)
        next_action = None if progress is None else progress.next_action
        if next_action is None:
            return  # seen to already
        if type(next_action) is Close:
            self._close_container(index, next_action.token, now_ns)
            self._spawn_ready(self.steps[index].dependents, now_ns)
        elif type(next_action) is FailContainer:
            self._fail(index, next_action.fault, now_ns)
        elif type(next_action) is AnswerFunctionAround:
            self._answer_proceed(index)
        else:
            self._request_evaluation(index)

    def _close_container(self, index: int, token: Any, now_ns: int) -> None:
        self._record_step(index, COMPLETED, now_ns, elapsed_ns=now_ns - self.spawned_at_ns[index], token_out=token)

    def _answer_proceed(self, index: int) -> None:
        """Answer the `proceed()` of the function around nested steps with their result, if that function waits."""
        around = self._function_around(index)
        if around is not None and self.states[around] == RUNNING and self.progress[index].proceeding:
            self.commands.append(AnswerProceed(around, self.progress[index].round_results[0]))

    def _function_around(self, container: int) -> int | None:
        return next(
            (
                index
                for index in range(self.plan_size, len(self.states))
                if self.states[index] in IN_FLIGHT
                and self.steps[index].around_container is not None
                and (scope := self.steps[index].scope) is not None
                and scope.container == container
            ),
            None,
        )

    def _proceeded(self, event: Proceeded, now_ns: int) -> None:
        """The function around nested steps has called `proceed()`: open their scope, or, after an interruption, let its
        steps go on."""
        index, delivery = event
        step = self.steps[index]
        if (
            self.states[index] != RUNNING
            or delivery != self.deliveries[index]
            or step.scope is None
            or step.around_container is None
        ):
            return
        if not self.goes_forward(index):
            self.commands.append(CancelHop(index))
            return
        if self.phase is HALTING:
            self._pause_function_around(index, now_ns)
            self._continue_stopping(now_ns)
            return
        container = step.scope.container
        progress = self.progress[container]
        if not progress.proceeding:
            self._record_step(
                container, SPAWNED, now_ns, data={"opening": opening_data(step.around_container.nested(progress))}
            )
            for other in [other for other in self.awaiting_redelivery if not self.awaits_proceed(other)]:
                self.awaiting_redelivery.discard(other)
                if self.states[other] in IN_FLIGHT:
                    self._lost(Lost(other, self.deliveries[other], "its process ended"), now_ns)
            self._start_pending(now_ns)
            self._spawn_ready(range(self.plan_size, len(self.states)), now_ns)
        if progress.next_action is not None:
            self._advance_container(container, now_ns)
