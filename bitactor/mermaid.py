"""A plan as a Mermaid flowchart: steps as boxes, arguments as arrows, `after` and `when` as dotted arrows.

    flowchart TD
        input(["users.signup"])
        s0["normalise"]
        input -->|"name, email"| s0

What a step has beside its function stands in its box: `when`, `undo`, `compensate`, retries, timeout, and where it runs if
that is `inline` or `process`.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitactor.plan import Plan, PlanStep

_STYLES = (
    "classDef guarded stroke-dasharray: 4 3",
    "classDef undoable stroke-width: 3px",
)


def mermaid(plan: Plan) -> str:
    """The plan as Mermaid source, ending in a newline."""
    lines = ["flowchart TD", f"    input([{_quoted(_origin(plan))}])"]
    lines += [f"    {_node(step)}" for step in plan.steps]
    if not plan.listens:
        lines.append('    result(["result"])')
    for step in plan.steps:
        lines += [f"    {edge}" for edge in _edges(plan, step)]
    if not plan.listens:
        lines.append(f"    s{plan.returns} --> result")
    return "\n".join([*lines, *_classes(plan)]) + "\n"


def _origin(plan: Plan) -> str:
    return f"signal {plan.listens}" if plan.listens else plan.workflow


def _node(step: PlanStep) -> str:
    label = "<br/>".join([_escaped(step.name), *(_escaped(mark) for mark in _marks(step))])
    return f's{step.index}{{{{"{label}"}}}}' if step.when is not None else f's{step.index}["{label}"]'


def _marks(step: PlanStep) -> Iterator[str]:
    if step.when is not None:
        yield "? when"
    if step.undo is not None:
        yield "↩ undo, also in doubt" if step.undo.in_doubt else "↩ undo"
    if step.compensate is not None:
        yield "↷ compensate"
    limits = []
    if step.retries:
        limits.append(f"retries {step.retries}")
    if step.timeout_ns is not None:
        limits.append(f"timeout {step.timeout_ns / 1e9:g} s")
    if step.spawn in ("inline", "process"):
        limits.append(step.spawn)
    if limits:
        yield ", ".join(limits)


def _edges(plan: Plan, step: PlanStep) -> Iterator[str]:
    drawn: set[int] = set()
    given = _by_source(plan, step)
    for source, names in given.items():
        drawn.add(source)
        label = f"|{_quoted(', '.join(names))}|" if any(names) else ""
        yield f"{'input' if source < 0 else f's{source}'} -->{label} s{step.index}"
    for argument in step.when_arguments:
        if 0 <= argument.slot < len(plan.steps) and argument.slot not in drawn:
            drawn.add(argument.slot)
            yield f's{argument.slot} -.->|"when"| s{step.index}'
    for other in step.dependencies:
        if other not in drawn:
            yield f's{other} -.->|"after"| s{step.index}'
    if not step.dependencies and not given:
        yield f"input --> s{step.index}"


def _by_source(plan: Plan, step: PlanStep) -> dict[int, list[str]]:
    """Step index, or -1 for the input → what the step takes from there; nothing to say of a whole result under its own name."""
    given: dict[int, list[str]] = {}
    for argument in step.arguments:
        if argument.slot < 0:
            continue
        inside = argument.slot < len(plan.steps)
        whole = plan.steps[argument.slot].name if inside else plan.inputs[argument.slot - len(plan.steps)]
        taken = ".".join(str(part) for part in (*(() if inside and argument.path else (whole,)), *argument.path))
        label = argument.name if argument.name == taken else f"{argument.name} = {taken}"
        labels = given.setdefault(argument.slot if inside else -1, [])
        if not (inside and label == whole):
            labels.append(label)
    return given


def _classes(plan: Plan) -> Iterator[str]:
    for name, members in (
        ("guarded", [step for step in plan.steps if step.when is not None]),
        ("undoable", [step for step in plan.steps if step.undo is not None]),
    ):
        if members:
            yield f"    {_STYLES[name == 'undoable']}"
            yield f"    class {','.join(f's{step.index}' for step in members)} {name}"


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """`text` so that Mermaid shows it as it is: no HTML, no markdown string, no entity of its own."""
    return "".join(f"#{ord(character)};" if character in '#"<>&`;{}[]|\\' else character for character in text)
