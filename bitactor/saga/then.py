"""The resolution of a `Then`: names become places, in the scope of the step that asks.

A planned step always waits for the one that asked for it, and so carries less hop budget than that one: a chain of
steps that plan each other ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from bitactor.errors import DuplicateName, UnknownArgument, suggest
from bitactor.messages.codec import token_from_bytes
from bitactor.plan.arguments import Argument
from bitactor.plan.order import topological_order
from bitactor.plan.plan import Plan, PlanStep
from bitactor.saga.phases import IN_DOUBT, SETTLED
from bitactor.saga.state import SagaState


class ResolvedStep(NamedTuple):
    """One step that a `Then` asks for, resolved."""

    step: PlanStep
    unmet_dependencies: int
    is_replacement: bool


def resolve(state: SagaState, index: int, planned: Sequence[Sequence[Any]]) -> list[ResolvedStep]:
    """The steps that the `Then` of step `index` asks for, `[declared, name, {parameter: source}, [after…]]` each.

    Raises:
        UnknownArgument: a step of that name is not declared, or an argument names nothing.
        DuplicateName: there is such a step, or such an input, already.
        CycleError: some of the new steps would wait for each other.
        LookupError, TypeError, ValueError, AttributeError: `planned` is not of that form.
    """
    resolution = _Resolution(state, index, planned)
    found = [resolution.instance(number) for number in range(len(planned))]
    resolution.refuse_cycles(found)
    return [ResolvedStep(step, resolution.unmet_dependencies(step), step.replaces >= 0) for step in found]


def is_settled(state: SagaState, index: int) -> bool:
    """Whether a step, or the one that replaces it, has settled, given that the transaction goes forward."""
    now = state.states[state.replacements.get(index, index)]
    return now in SETTLED or now == IN_DOUBT  # one in doubt was not required, or nothing would go forward


class _Resolution:
    """The resolution of one `Then`."""

    def __init__(self, state: SagaState, index: int, planned: Sequence[Sequence[Any]]) -> None:
        self.state, self.index, self.planned = state, index, planned
        self.emitter = emitter = state.steps[index]
        scope = emitter.scope
        self.body: Plan = state.plan if scope is None else scope.body
        self.base = 0 if scope is None else scope.base
        self.at = max(len(state.tokens), len(state.steps))
        """The place of the first new step."""
        self.prefix = emitter.name.rpartition("/")[0] + "/" if scope is not None and "/" in emitter.name else ""
        self.own = emitter.name.removeprefix(self.prefix).partition("#")[0]
        self.names = [str(name) for _, name, _, _ in planned]
        self.head = emitter.replaces if emitter.replaces >= 0 else index
        replaced = self.own in self.names
        self.replacement = self.at + self.names.index(self.own) if replaced else -1
        self.own_slot = self.at + len(planned) if replaced and self.head == index else index
        """The place of the emitter's own result: a new one if the emitter is replaced, its place being for the last
        replacement's result."""
        self.inputs = {name: self.base + len(self.body.steps) + number for number, name in enumerate(self.body.inputs)}
        self.steps = {name: self.base + place for name, place in self.body.by_name.items() if name}
        self._add_names()
        self.step_slots = set(self.steps.values())

    def _add_names(self) -> None:
        """Add the names of the new steps, and those of earlier planned steps that are mentioned."""
        times = Counter(self.names)
        for name in self.names:
            if times[name] > 1 or (name != self.own and self._is_taken(name)):
                raise DuplicateName(
                    f"{self.emitter.address!r} asks for a step {name!r}, and there is one; give it another name"
                )
            if name in self.inputs:
                raise DuplicateName(
                    f"{self.emitter.address!r} asks for a step {name!r}, which is an input; give it another name"
                )
        for name in self._mentioned():
            index = self.state.by_name.get(self.prefix + name)
            if name not in self.steps and index is not None and self.state.steps[index].scope is self.emitter.scope:
                self.steps[name] = index
        self.steps |= {name: self.at + number for number, name in enumerate(self.names)}
        self.steps[self.own] = self.own_slot

    def _is_taken(self, name: str) -> bool:
        """Whether a step has that path, or another scope of the same container will have one."""
        if self.prefix + name in self.state.by_name:
            return True
        scope = self.emitter.scope
        if scope is None or scope.key:
            return False
        container = self.state.container_of(scope.container)
        return (container.chained or container.surrounds) and any(name in body.by_name for body in container.bodies)

    def _mentioned(self) -> Iterator[str]:
        for _, _, bind, after in self.planned:
            yield from (source[1] for source in bind.values() if source[0] == "result")
            yield from after

    def instance(self, number: int) -> PlanStep:
        """The new step at position `number` of the `Then`."""
        declared, _, bind, after = self.planned[number]
        name, template = self.names[number], self._template(declared)
        step = copy(template)
        step.index, step.scope, step.dependents, step.deferred = self.at + number, self.emitter.scope, (), False
        is_replacement = name == self.own
        step.replaces = self.head if is_replacement else -1
        path = f"{self.prefix}{self.own}#{self._generation() + 1}" if is_replacement else self.prefix + name
        where = f"{self.emitter.address!r} asks for {path!r}"
        step.arguments = tuple(self._arguments(template, bind, where))
        step.when_arguments = tuple(argument.moved(self.base) for argument in template.when_arguments)
        step.token_in = tuple(argument.reference for argument in step.arguments)
        needed = {argument.slot for argument in (*step.arguments, *step.when_arguments)} & self.step_slots
        needed |= {self.own_slot, *self._only_ordered(template)}
        for other in after:
            if other not in self.steps:
                raise UnknownArgument(f"{where} after {other!r}, which is no step.{suggest(other, self.steps)}")
            needed.add(self.steps[other])
        step.dependencies = tuple(sorted(needed))
        transforms = any(argument.transform is not None for argument in step.arguments)
        step.needs_evaluation = (
            transforms or step.when is not None or step.guard is not None or step.container is not None
        )
        step.rename(path)
        return step

    def _template(self, declared: str) -> PlanStep:
        template = self.body.deferred.get(declared)
        if template is None and declared and declared in self.body.by_name:
            template = self.body.steps[self.body.by_name[declared]]
        if template is None:
            known = [name for name in (*self.body.deferred, *self.body.by_name) if name]
            hint = suggest(declared, known) or (
                "" if known else " A function in a container plans nothing; give the container a workflow."
            )
            raise UnknownArgument(f"{self.emitter.address!r} asks for {declared!r}, which is not declared.{hint}")
        return template

    def _arguments(self, template: PlanStep, bind: Mapping[str, Sequence[Any]], where: str) -> Iterator[Argument]:
        known = [argument.name for argument in template.arguments]
        for name in bind:
            if name not in known:
                raise UnknownArgument(f"{where} and binds {name!r}, which is no parameter of it.{suggest(name, known)}")
        for argument in template.arguments:
            source = bind.get(argument.name)
            if source is not None:
                yield self._rebound(argument, source, where)
            else:
                yield argument.moved(self.base)

    def _rebound(self, argument: Argument, source: Sequence[Any], where: str) -> Argument:
        """The argument with another source: `["value", bytes]`, or `["result" | "input", name, path…]`."""
        kind, given, *path = source
        if kind == "value":
            return argument._replace(
                slot=-1, path=(), transform=None, constant=token_from_bytes(given), reference="value"
            )
        places, noun = (self.inputs, "input") if kind == "input" else (self.steps, "step")
        if given not in places:
            raise UnknownArgument(
                f"{where} and binds {argument.name!r} to {given!r}, which is no {noun}.{suggest(given, places)}"
            )
        reference = ".".join(str(part) for part in (*(("input",) if kind == "input" else ()), given, *path))
        return argument._replace(slot=places[given], path=tuple(path), transform=None, reference=reference)

    def _only_ordered(self, template: PlanStep) -> Iterable[int]:
        """Places of the steps that a declared step waits for without taking their results."""
        taken = {argument.slot for argument in (*template.arguments, *template.when_arguments)}
        return (self.base + index for index in template.dependencies if index not in taken)

    def _generation(self) -> int:
        number = self.emitter.name.rpartition("#")[2]
        return int(number) if "#" in self.emitter.name and number.isdigit() else 1

    def unmet_dependencies(self, step: PlanStep) -> int:
        """Number of dependencies of `step` that have not settled."""
        return sum(1 for other in step.dependencies if not self._is_settled(other))

    def _is_settled(self, place: int) -> bool:
        if place == self.own_slot:
            return True
        if place == self.head:
            return self.replacement < 0
        return place < len(self.state.states) and is_settled(self.state, place)

    def refuse_cycles(self, steps: Sequence[PlanStep]) -> None:
        """Raises `CycleError` if one of `steps` would wait for itself, directly or through others."""
        new = {step.index: step for step in steps}
        waits: dict[str, list[str]] = {}
        left = list(new)
        while left:
            place = left.pop()
            name = self._name(place, new)
            if name in waits:
                continue
            waits_for = [other for other in self._waits_for(place, new) if not self._is_settled(other)]
            waits[name] = [self._name(other, new) for other in waits_for]
            left += waits_for
        topological_order(waits, f"what {self.emitter.address!r} asks for")

    def _waits_for(self, place: int, new: Mapping[int, PlanStep]) -> Sequence[int]:
        if place in new:
            return new[place].dependencies
        if place == self.head:
            return (self.replacement,)
        stand_in = self.state.replacements.get(place)
        return self.state.steps[place].dependencies if stand_in is None else (stand_in,)

    def _name(self, place: int, new: Mapping[int, PlanStep]) -> str:
        return new[place].name if place in new else self.state.steps[place].name
