"""A plan as a Mermaid flowchart: steps as boxes, arguments as arrows, `after` and `when` as dotted arrows, what is
nested as frames.

    flowchart TD
        input(["users.signup"])
        s0["normalise"]
        input -->|"name, email"| s0

What a step has beside its function stands in its box: `when`, `guard`, `undo`, `compensate`, retries, timeout, pool,
and where it runs if that is `inline` or `process`.  A map or an iterate over a function is one box; what nests
workflows is a frame around their steps: a switch asks in a rhombus and has an arrow for each case, a recurse has an
arrow back with its bound.

With the pulses of a transaction (or of several, which are added up) each box says what became of it, and is coloured
accordingly; one that
stands for many hops or elements has their counts: `3 done, 1 failed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bitactor.declare.spawners import default_spawn
from bitactor.export.step_counts import STATES, StepCounts, step_counts
from bitactor.kinds import KINDS
from bitactor.kinds.base import FunctionKind
from bitactor.messages.pulse import RUNNING, Pulse
from bitactor.plan.kind import Kind
from bitactor.plan.plan import Arrow, Container, Plan, PlanStep

_STYLES: Final = {
    "guarded": "stroke-dasharray: 4 3",
    "undoable": "stroke-width: 3px",
    "deferred": "stroke-dasharray: 2 2",
    "done": "fill:#d3f2dc,stroke:#2c8a4b,color:#111",
    "failed": "fill:#fbd5d5,stroke:#c0392b,color:#111",
    "undone": "fill:#fdf0c8,stroke:#b8860b,color:#111",
    "running": "fill:#d6e9fb,stroke:#2471a3,color:#111",
    "halted": "fill:#e6dcf5,stroke:#7d5ba6,color:#111",
    "skipped": "fill:#eeeeee,stroke:#999999,color:#555",
}
_STYLED_AS: Final = {"undo failed": "failed", "in doubt": "failed", "stopped": "skipped"}
"""State → the state whose style it has."""
_LIST_MARK: Final = re.compile(r"([-+]|\d+[.)])(?=\s|$)")
"""The beginning of a label that Mermaid would make a list of."""
_ENDED: Final = {"completed": "done", "halted": "halted", RUNNING: "running"}
"""Status of a transaction → the style of its result; any other: failed."""


def mermaid(plan: Plan, pulses: Iterable[Pulse] = ()) -> str:
    """The plan as Mermaid source, ending in a newline.

    Raises:
        InvalidInput: there are pulses, and none of them is of this plan.
    """
    return _Drawing(plan, step_counts(plan, pulses)).text()


class _Drawing:
    def __init__(self, plan: Plan, step_counts: StepCounts) -> None:
        self._plan = plan
        self._counts = step_counts
        self._boxes: list[str] = []
        self._arrows: list[str] = []
        self._classes: dict[str, list[str]] = {}

    def text(self) -> str:
        """The whole source of the flowchart."""
        plan = self._plan
        self._body(plan, "", 1)
        for step in plan.steps:
            self._from_input(step)
        if not plan.listens:
            statuses = Counter(self._counts.statuses)
            self._boxes.append(f"    result([{_label(('result', *_counted(statuses, list(statuses))))}])")
            self._arrows.append(f"s{plan.returns} --> result")
            if statuses:
                worst = next((status for status in statuses if status not in _ENDED), next(iter(statuses)))
                self._add_class("result", _ENDED.get(worst, "failed"))
        for emitter, planned in self._counts.planned:
            self._arrows.append(f'{emitter} -.->|"planned"| {planned}')
        origin = f"signal {plan.listens}" if plan.listens else plan.workflow
        lines = [
            "flowchart TD",
            f"    input([{_label((origin,))}])",
            *self._boxes,
            *(f"    {arrow}" for arrow in self._arrows),
        ]
        for name, members in self._classes.items():
            lines += [f"    classDef {name} {_STYLES[name]}", f"    class {','.join(members)} {name}"]
        return "\n".join(lines) + "\n"

    # Boxes and frames

    def _body(self, plan: Plan, at: str, depth: int) -> None:
        """Draw the steps of a plan, and the arrows between them."""
        for step in plan.steps:
            self._step(step, f"{at}s{step.index}", depth)
        for number, step in enumerate(plan.deferred.values()):
            self._step(step, f"{at}d{number}", depth)
            self._add_class(f"{at}d{number}", "deferred")
        for step in plan.steps:
            self._arrows += _arrows(plan, step, at)

    def _step(self, step: PlanStep, place: str, depth: int) -> None:
        container = step.container
        if container is None:
            self._box(step, step.name, _marks(step), place, (place,), depth)
        elif len(container.bodies) == 1 and container.bodies[0].steps[0].name == "":
            inner = container.bodies[0].steps[0]
            marks = [*_marks(step), f"{step.kind}{container.mark}", *_marks(inner)]
            self._box(step, step.name, marks, place, (f"{place}_0_s0", place), depth)
        else:
            self._frame(step, container, place, depth)
        if container is not None:
            self._arrows += map(_drawn_arrow, container.arrows(place))

    def _box(
        self, step: PlanStep, name: str, marks: Sequence[str], place: str, places: Sequence[str], depth: int
    ) -> None:
        counts = next(
            (self._counts.by_place[where] for where in places if where in self._counts.by_place), Counter[str]()
        )
        label = _label((name, *marks, *_counted(counts)))
        opening, closing = (
            ("{{", "}}") if step.when is not None else ("[[", "]]") if step.container is not None else ("[", "]")
        )
        self._boxes.append(f"{'    ' * depth}{place}{opening}{label}{closing}")
        self._classified(step, place, counts)
        if any(
            body.steps[0].undo is not None for body in (step.container.bodies if step.container is not None else ())
        ):
            self._add_class(place, "undoable")

    def _frame(self, step: PlanStep, container: Container, place: str, depth: int) -> None:
        counts = self._counts.by_place.get(place, Counter())
        marks = (
            *_marks(step),
            f"{step.kind}{container.mark}",
            *_counted(counts),
        )
        title = " · ".join((step.name, *marks))
        indent = "    " * depth
        self._boxes.append(f"{indent}subgraph {place}[{_quoted(title)}]")
        self._classified(step, place, counts)
        self._within(step, container, place, depth + 1)
        self._boxes.append(f"{indent}end")

    def _within(self, step: PlanStep, container: Container, place: str, depth: int) -> None:
        """Draw the steps in a container's frame."""
        if container.cases:
            self._switch(step, container, place, depth)
            return
        for number in range(len(container.bodies))[container.drawn]:
            self._hooked(container.bodies[number], step.kind, f"{place}_{number}_", depth)

    def _hooked(self, body: Plan, kind: str, at: str, depth: int) -> None:
        if body.steps[0].name == "":  # the function around
            inner = body.steps[0]
            name = getattr(inner.run.function, "__name__", kind)
            self._box(inner, name, _marks(inner), f"{at}s0", (f"{at}s0",), depth)
        else:
            self._body(body, at, depth)

    def _switch(self, step: PlanStep, container: Container, place: str, depth: int) -> None:
        indent = "    " * depth
        asked = next((argument.reference for argument in step.arguments if argument.name.startswith("(")), "?")
        self._boxes.append(f"{indent}{place}_on{{{_label((f'{asked}?',))}}}")
        for number, body in enumerate(container.bodies):
            at, case = f"{place}_{number}_", _quoted(_cropped(container.cases[number]))
            if len(body.steps) == 1 and body.steps[0].container is None and not body.deferred:
                self._body(body, at, depth)
                self._arrows.append(f"{place}_on -->|{case}| {at}s0")
            else:
                self._boxes.append(f"{indent}subgraph {place}_{number}[{_quoted(body.workflow)}]")
                self._body(body, at, depth + 1)
                self._boxes.append(f"{indent}end")
                self._arrows.append(f"{place}_on -->|{case}| {place}_{number}")

    def _classified(self, step: PlanStep, place: str, counts: Counter[str]) -> None:
        if step.when is not None:
            self._add_class(place, "guarded")
        if step.undo is not None:
            self._add_class(place, "undoable")
        gravest = next((state for state in STATES if counts[state]), None)
        if gravest is not None:
            self._add_class(place, _STYLED_AS.get(gravest, gravest))

    def _add_class(self, place: str, name: str) -> None:
        members = self._classes.setdefault(name, [])
        if place not in members:
            members.append(place)

    def _from_input(self, step: PlanStep) -> None:
        """Draw the arrows from the stimulus to a step; within frames there are none, because the frame says where
        arguments come from."""
        taken = _taken(self._plan, step).get(-1)
        if taken:
            self._arrows.append(f"input -->|{_quoted(', '.join(taken))}| s{step.index}")
        elif not step.dependencies:
            self._arrows.append(f"input --> s{step.index}")


# What stands in a box


def _marks(step: PlanStep) -> list[str]:
    return list(_each_mark(step))


def _each_mark(step: PlanStep) -> Iterator[str]:
    if step.when is not None:
        yield "? when"
    if step.guard is not None:
        yield "? guard"
    if step.undo is not None:
        yield "↩ undo, also in doubt" if step.undo.in_doubt else "↩ undo"
    if step.compensate is not None:
        yield "↷ compensate"
    said = []
    if step.retries:
        said.append(f"retries {step.retries}")
    if step.timeout_ns is not None:
        said.append(f"timeout {step.timeout_ns / 1e9:g} s")
    if step.limit is not None:
        said.append(f"pool {step.limit}")
    if not step.required:
        said.append("not required")
    if step.spawn != default_spawn(step.run.is_async) and step.container is None and step.kind == "step":
        said.append(step.spawn)
    if step.kind != "step" and issubclass(KINDS.get(step.kind, Kind), FunctionKind):
        said.insert(0, step.kind)
    if said:
        yield ", ".join(said)
    if step.policies:
        yield ", ".join(policy.pattern for policy in step.policies)


def _counted(counts: Counter[str], names: Sequence[str] = STATES[::-1]) -> list[str]:
    """The state of a box, or, where several are added up, their counts: `3 done, 1 failed`; nothing for no state."""
    found = [name for name in names if counts[name]]
    if counts.total() <= 1:
        return found
    return [", ".join(f"{counts[name]:,} {name}" for name in found)]


# Arrows


def _arrows(plan: Plan, step: PlanStep, at: str) -> Iterator[str]:
    """The arrows to a step from other steps of its plan."""
    drawn: set[int] = set()
    for source, names in _taken(plan, step).items():
        if source >= 0:
            drawn.add(source)
            label = f"|{_quoted(', '.join(names))}|" if names else ""
            yield f"{at}s{source} -->{label} {at}s{step.index}"
    for argument in step.when_arguments:
        if 0 <= argument.slot < len(plan.steps) and argument.slot not in drawn:
            drawn.add(argument.slot)
            yield f'{at}s{argument.slot} -.->|"when"| {at}s{step.index}'
    for other in step.dependencies:
        if other not in drawn:
            yield f'{at}s{other} -.->|"after"| {at}s{step.index}'


def _taken(plan: Plan, step: PlanStep) -> dict[int, list[str]]:
    """Step index, or -1 for the input → labels of what the step takes from there; none for a whole result under its own
    name."""
    taken: dict[int, list[str]] = {}
    for argument in step.arguments:
        if argument.slot < 0:
            continue
        inside, name = argument.slot < len(plan.steps), argument.name.strip("()")
        whole = plan.steps[argument.slot].name if inside else plan.inputs[argument.slot - len(plan.steps)]
        path = ".".join(str(part) for part in (*(() if inside and argument.path else (whole,)), *argument.path))
        label = name if name == path else f"{name} = {path}"
        labels = taken.setdefault(argument.slot if inside else -1, [])
        if not (inside and label == whole):
            labels.append(label)
    return taken


def _drawn_arrow(arrow: Arrow) -> str:
    label = f"|{_quoted(arrow.label)}|" if arrow.label else ""
    return f"{arrow.source} {'-.->' if arrow.dotted else '-->'}{label} {arrow.target}"


# Text


def _label(lines: Iterable[str]) -> str:
    return f'"{"<br/>".join(_escaped(line) for line in lines)}"'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _cropped(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _escaped(text: str) -> str:
    """`text` escaped so that Mermaid shows it as it is: no HTML, no markdown, no formula, no entity of its own."""
    listed = _LIST_MARK.match(text)
    marker = listed.end() - 1 if listed is not None else -1
    return "".join(
        f"#{ord(character)};" if character in '#"<>&`;{}[]|\\$*' or at == marker else character
        for at, character in enumerate(text)
    )
