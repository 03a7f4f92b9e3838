"""What must follow from a journal, worked out a second time: who is settled, what hop budget each path has, what undo
has to take back first."""

from __future__ import annotations

from typing import Any

from bitactor import Value
from bitactor.kinds.batch import DeclaredMap
from bitactor.messages.codec import decode_token
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import FORWARD
from bitactor.plan.plan import Plan, PlanStep, Scope
from bitactor.saga import SagaState


def head_of(path: str) -> str:
    """The step that a replacement `crawl#3` stands for."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}{name.partition('#')[0]}"


def ancestors(path: str) -> list[str]:
    """The containers it may be in, the innermost first."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


class Model:
    """Fed with pulses; asked when something is dispatched."""

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.settled: set[str] = set()
        """Paths whose own work is done, skipped or given up."""
        self.final: set[str] = set()
        """The same, and nothing replaces them any more."""
        self.ttl_of: dict[str, int] = {}
        self.final_ttl: dict[str, int] = {}
        self.open: dict[str, PlanStep] = {}
        """Containers at work."""
        self.entering: dict[str, int] = {}
        """Container → what its first scope begins with, or all, if they are not rounds."""
        self.broken: tuple[str, ...] = ()
        """Elements that failed and were given up."""
        self.proceeded: set[str] = set()
        """Functions around steps that have begun these, which then begin with one less than the function itself."""
        self.least: dict[str, int] = {}
        self.happened: dict[str, None] = {}
        """Hops that happened or may have, in order."""
        self.spawned: set[str] = set()

    # Being told

    def note(self, pulse: Pulse, step: PlanStep, *, in_doubt: bool) -> None:
        """A pulse of `step`, after which it is in doubt or not."""
        if pulse.direction != FORWARD:
            return
        path, data = pulse.step, pulse.data or {}
        if pulse.kind == "spawned" and "opening" in data:
            self._note_opening(pulse, step)
        elif pulse.kind == "spawned" and "delivery" not in data:
            self.spawned.add(path)
            self.ttl_of[path] = pulse.ttl
        if in_doubt and ("in_doubt" in data or "lost" in data or pulse.kind == "timed_out" or pulse.error == "poison"):
            self._move_to_end(path)
        if pulse.kind in ("completed", "compensated", "skipped") or "tolerated" in data or "caught" in data:
            self._note_settled(pulse, data)

    def _note_opening(self, pulse: Pulse, step: PlanStep) -> None:
        assert step.container is not None
        path = pulse.step
        if path not in self.open:
            self.open[path] = step
            self.entering[path] = self.least[path] = pulse.ttl
        elif step.container.surrounds:
            self.entering[path] = pulse.ttl - 1
            self.proceeded.add(path)

    def _note_settled(self, pulse: Pulse, data: Any) -> None:
        path = pulse.step
        replaced = any(planned[1] == head_of(path).rpartition("/")[2] for planned in data.get("planned", ()))
        if path in self.open:
            del self.open[path]
            self.ttl_of[path] = self.least[path]
        elif path not in self.spawned:
            self.ttl_of[path] = pulse.ttl
        elif pulse.kind in ("completed", "compensated"):
            self._move_to_end(path)
        self.settled.add(path)
        for above in ancestors(path):
            if above in self.open:
                self.least[above] = min(self.least[above], self.ttl_of[path])
        if "caught" in data:
            self._break_off(path)
        if not replaced:
            self.final |= {path, head_of(path)}
            self.final_ttl[head_of(path)] = self.ttl_of[path]

    def _break_off(self, path: str) -> None:
        """A failure was caught by the innermost map that does that: what is open in that element is closed with it."""
        for above in ancestors(path):
            container = self.open[above].container if above in self.open else None
            key = path.removeprefix(above + "/").partition("/")[0]
            if container is not None and container.catches and key.isdigit():
                element = f"{above}/{key}/"
                self.broken += (element,)
                self.open = {name: step for name, step in self.open.items() if not name.startswith(element)}
                return

    def _move_to_end(self, path: str) -> None:
        self.happened.pop(path, None)
        self.happened[path] = None

    def forget(self, path: str) -> None:
        """It is known now not to have happened."""
        self.happened.pop(path, None)

    # Being asked

    def after(self, path: str) -> list[str]:
        """What happened after it."""
        paths = list(self.happened)
        return paths[paths.index(path) + 1 :]

    def check_causes(self, saga: SagaState, index: int) -> None:
        """A hop is dispatched: all it waits for is done, and what it carries is one less than the least of these."""
        step = saga.steps[index]
        least = self._least_of_causes(saga, step)
        assert least > 0
        assert saga.ttls[index] == least - 1, f"{step.name} carries {saga.ttls[index]}, its causes {least}"
        if step.scope is not None:
            container = saga.steps[step.scope.container].name
            assert container in self.open, f"{step.name} runs outside of its container"

    def _least_of_causes(self, saga: SagaState, step: PlanStep) -> int:
        kept = {place: head for head, place in saga.own_result_slots.items()}
        ttls = []
        for other in step.dependencies:
            if other in kept:
                path = saga.steps[kept[other]].name
                assert path in self.settled
                ttls.append(self.ttl_of[path])
            elif other in saga.replacements:
                path = saga.steps[other].name
                assert path in self.final, f"{step.name} before the last that stands for {path}"
                ttls.append(self.final_ttl[path])
            else:
                path = saga.steps[other].name
                assert path in self.settled, f"{step.name} before {path}"
                ttls.append(self.ttl_of[path])
        if ttls:
            return min(ttls)
        return self.ttl if step.scope is None else self._entering(saga, step, step.scope)

    def _entering(self, saga: SagaState, step: PlanStep, scope: Scope) -> int:
        """Rounds, and the parts of a group, come one after the other, and each begins with what those before have
        left."""
        container = saga.steps[scope.container].name
        kind = self.open[container].container
        assert kind is not None
        entering = self.entering[container] + (step.around_container is not None and container in self.proceeded)
        if not kind.chained:
            return entering
        own = {saga.steps[index].name for index in (*scope.indices, *scope.planned)}
        for path in self.spawned | self.settled:
            if path.startswith(container + "/") and not any(
                path == other or path.startswith(other + "/") for other in own
            ):
                assert path in self.settled or path.startswith(self.broken), f"{step.name} before {path}"
                entering = min(entering, self.ttl_of[path])
        return entering

    def check_map(self, pulse: Pulse, declared: DeclaredMap) -> None:
        """A map is closed: every element is in its result."""
        value = decode_token(pulse.token_out)
        assert isinstance(declared.over, Value)
        size = len(declared.over.value)
        if declared.reduce is not None:
            assert value == size, (pulse.step, value)
        elif isinstance(value, list):
            assert len(value) == size, (pulse.step, value)
        else:
            assert len(value.get("results", ())) + value.get("count", 0) + len(value.get("errors", ())) == size, value

    def check_completed(self, plan: Plan) -> None:
        """Everything of a completed transaction is settled."""
        assert not self.open
        assert all(step.name in self.final for step in plan.steps)
