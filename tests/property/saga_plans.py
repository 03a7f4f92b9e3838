"""Random workflows: DAGs of every kind, nested in each other, with random options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from bitactor import Backoff, Input, Result, Value, Workflow
from bitactor.declare.source import Element
from bitactor.declare.then import Planned
from bitactor.errors import DefinitionError
from bitactor.messages.codec import pack
from bitactor.messages.signal import MAX_TTL
from bitactor.plan.plan import Plan

KINDS = (
    "step", "step", "step", "emitter", "emitter", "map", "map of workflows", "map that collects", "compose", "compose",
    "switch", "group", "recurse", "iterate", "around",
)  # fmt: skip


@dataclass
class Coins:
    """What random predicates say: a fixed sequence, so that a failing example fails again."""

    seed: int
    thrown: int = 0

    def throw(self, sides: int) -> int:
        """0 … sides - 1."""
        self.thrown += 1
        return (self.seed * 2_654_435_761 + self.thrown * 40_503) // 64 % sides


@dataclass
class Random:
    """A random plan, shown as a tree."""

    plan: Plan

    def __repr__(self) -> str:
        return "\n".join(_shown(self.plan, ""))


class Builder:
    """Declares one workflow after another from what `draw` says."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.count = 0
        self.coins = Coins(draw(st.integers(0, 2**20)))

    def workflow(self, depth: int, *, undo: bool = True, nested: bool = True, **options: Any) -> Workflow:
        """A workflow of one to four steps, nested at most `depth` levels deep."""
        self.count += 1
        name = f"w{self.count}"
        fields = {"x": (Any, 0)} if nested else {}
        made = Workflow(name, input=fields, ttl=MAX_TTL, **options)
        taken: list[str] = []
        for number in range(self.draw(st.integers(1, 4 if depth else 3))):
            kind = self.draw(st.sampled_from(KINDS if depth else KINDS[:6]))
            step = f"{'t' if kind == 'emitter' else 's'}{number}"
            after = self.draw(st.lists(st.sampled_from(taken), unique=True, max_size=2)) if taken else []
            getattr(self, "_" + kind.replace(" ", "_"))(made, step, after, depth, undo)
            taken.append(step)
        if any(step.startswith("t") for step in taken):
            self._deferred(made, undo)
        return made

    def _options(self, after: list[str]) -> dict[str, Any]:
        options: dict[str, Any] = {"after": after}
        if self.draw(st.integers(0, 5)) == 5:
            options["when"] = lambda: self.coins.throw(4) > 0
        if self.draw(st.integers(0, 7)) == 7:
            options["guard"] = lambda: 3 if self.coins.throw(3) == 0 else None
        return options

    def _step_options(self, after: list[str]) -> dict[str, Any]:
        options = self._options(after) | {
            "retries": self.draw(st.integers(0, 2)),
            "timeout": self.draw(st.sampled_from([None, 1.0])),
            "required": self.draw(st.integers(0, 3)) > 0,
        }
        if options["retries"]:
            options["backoff"] = self.draw(st.sampled_from([None, Backoff(0.1), Backoff(0.0)]))
        return options

    def _declare(
        self, made: Workflow, name: str, options: dict[str, Any], undo: bool, declare: Callable[..., Any]
    ) -> None:
        if self.draw(st.integers(0, 3)) == 3:
            options["bind"] = {"x": Value(1).map(self._transformed)}
        elif "x" in made.input_model.model_fields:
            options["bind"] = {"x": Input("x")}
        else:
            options["bind"] = {"x": Value(1)}
        step = declare(name=name, **options)(_takes_x)
        takes_back = self.draw(st.sampled_from([None, "known", "in_doubt", "in_doubt"])) if undo else None
        if takes_back is not None:
            step.undo(in_doubt=takes_back == "in_doubt", retries=1)(lambda ctx: None)
        if self.draw(st.integers(0, 4)) == 4:
            step.compensate(lambda error: None)

    def _transformed(self, value: int) -> int:
        if self.coins.throw(12) == 0:
            raise ValueError("a transform that fails")
        return value + 1

    def _step(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        self._declare(made, name, self._step_options(after), undo, made.step)

    _emitter = _step

    def _deferred(self, made: Workflow, undo: bool) -> None:
        for name in ("d0", "d1"):
            options = self._step_options([])
            self._declare(
                made, name, {key: value for key, value in options.items() if key != "guard"}, undo, made.deferred
            )

    def _map(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        options = self._options(after)
        reduce = (lambda total, batch: total + len(batch)) if self.draw(st.integers(0, 3)) == 3 else None
        if reduce is not None:
            options |= {"reduce": reduce, "initial": 0}
        step = made.map(
            over=self._elements(),
            name=name,
            batch=self.draw(st.integers(1, 4)),
            on_error=self._on_error(reduce),
            **options,
        )(_double)
        if undo and self.draw(st.booleans()):
            step.undo(lambda element, result: None)

    def _on_error(self, reduce: Any) -> str:
        return "fail" if reduce is not None else self.draw(st.sampled_from(["fail", "collect"]))

    def _elements(self) -> Value:
        return Value([*range(self.draw(st.integers(0, 6)))])

    def _map_of_workflows(
        self, made: Workflow, name: str, after: list[str], depth: int, undo: bool, on_error: str = "fail"
    ) -> None:
        made.map(
            name=name, workflow=self.workflow(depth - 1, undo=undo and on_error == "fail"), over=self._elements(),
            batch=self.draw(st.integers(1, 4)), bind={"x": Element()}, ordered=self.draw(st.booleans()),
            on_error=on_error, keep=self.draw(st.booleans()), **self._options(after),
        )  # fmt: skip

    def _map_that_collects(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        self._map_of_workflows(made, name, after, depth, undo, "collect")

    def _compose(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        made.compose(name, self.workflow(depth - 1, undo=undo), bind={"x": Value(5)}, **self._options(after))

    def _switch(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        on = Result(after[0]).map(lambda value: str(value)[:1]) if after else Value("2")
        nested = self.workflow(depth - 1, undo=undo)
        cases: list[tuple[Any, Any]] = [("2", nested), (lambda value: value in "1357", _branch)]
        optional = self.draw(st.booleans())
        default = None if optional else self.workflow(depth - 1, undo=undo)
        made.switch(name, on, cases, default=default, optional=optional, bind={"x": Value(1)}, **self._options(after))

    def _group(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        made.group(
            name, self.workflow(depth - 1, undo=undo), bind={"x": Value(1)},
            before_all=_before if self.draw(st.booleans()) else None, after_all=_after, **self._options(after),
        )  # fmt: skip

    def _recurse(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        until = self.draw(st.sampled_from([None, lambda result: self.coins.throw(3) == 0]))
        nested = self.workflow(depth - 1, undo=undo)
        made.recurse(
            name,
            nested,
            at_most=self.draw(st.integers(1, 3)),
            until=until,
            bind={"x": Value(1)},
            **self._options(after),
        )

    def _iterate(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        until = self.draw(st.sampled_from([None, lambda result: self.coins.throw(3) == 0]))
        step = made.iterate(
            name=name, start=Value(1), until=until, at_most=self.draw(st.integers(1, 4)), **self._options(after)
        )(_next)
        if undo and self.draw(st.booleans()):
            step.undo(in_doubt=True)(lambda ctx: None)

    def _around(self, made: Workflow, name: str, after: list[str], depth: int, undo: bool) -> None:
        made.around(
            name=name, workflow=self.workflow(depth - 1, undo=undo), bind={"x": Value(1)}, **self._options(after)
        )(_around)


def _takes_x(x: int) -> int:
    return x


def _double(element: int) -> int:
    return 2 * element


def _branch(x: int) -> int:
    return x


def _before(x: int) -> int:
    return x


def _after(x: int, result: Any) -> int:
    return x


def _next(state: int) -> int:
    return state + 1


async def _around(proceed: Any) -> Any:
    return await proceed()


@st.composite
def nested_plans(draw: st.DrawFn) -> Random:
    """A random workflow whose steps are of all kinds."""
    builder = Builder(draw)
    options = {
        "grace": 2.0, "undo_timeout": 60.0, "redeliveries": draw(st.integers(0, 2)),
        "max_hops": draw(st.sampled_from([None, None, None, 30])),
    }  # fmt: skip
    try:
        plan = builder.workflow(draw(st.integers(1, 3)), nested=False, **options).check()
    except DefinitionError as error:
        raise AssertionError(f"the builder declared nonsense: {error}") from error
    return Random(plan)


def _shown(plan: Plan, indent: str) -> Iterator[str]:
    for step in (*plan.steps, *plan.deferred.values()):
        marks = [
            mark for mark in ("when", "guard", "undo", "compensate", "timeout_ns") if getattr(step, mark) is not None
        ]
        tries = f"retries {step.retries} required {step.required}"
        yield f"{indent}{step.address} {step.kind} after {step.dependencies} {marks} {tries}"
        for body in step.container.bodies if step.container is not None else ():
            yield from _shown(body, indent + "    ")


def planner(path: str, number: int) -> tuple[bytes, bool] | None:
    """What an emitter asks for, and whether that is nonsense: replacing itself, further steps, chains of these, or what
    cannot be."""
    name = path.rpartition("/")[2].partition("#")[0]
    if not name.startswith("t"):
        return None
    mine, other = f"p{number}", f"q{number}"
    x = {"x": Value(number)}
    itself = Planned(name, name, x, ())
    sensible: list[list[Planned]] = [
        [],
        [itself],
        [Planned("d0", mine, x, ())],
        [
            Planned("d0", mine, {"x": Result(name)}, ()),
            Planned("d1", other, {"x": Result(mine)}, ()),
            Planned(name, name, x, (other,)),
        ],
        [Planned("d1", mine, x, ()), itself],
        [Planned("d1", mine, x, (other,)), Planned("d0", other, {}, ())],
    ]
    nonsense: list[bytes] = [
        pack([Planned("nobody", mine, x, ()).data()]),
        pack([Planned("d0", mine, x, ()).data()] * 2),
        pack([Planned("d0", mine, {"y": Value(1)}, ()).data()]),
        pack([Planned("d0", mine, {"x": Result("nobody")}, ()).data()]),
        pack([Planned("d0", mine, {"x": Input("nobody")}, ()).data()]),
        pack([Planned("d0", mine, x, ("nobody",)).data()]),
        pack([Planned("d0", mine, x, (mine,)).data()]),
        pack([Planned("d0", mine, x, (other,)).data(), Planned("d0", other, x, (mine,)).data()]),
        pack([[1, 2], 3]),
        b"\xc1",
    ]
    at = number % (len(sensible) * 2 + len(nonsense))
    if at < len(sensible) * 2:
        return pack([planned.data() for planned in sensible[at // 2]]), False
    return nonsense[at - len(sensible) * 2], True
