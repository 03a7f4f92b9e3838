"""switch: the first case that fits decides which branch is planned; the others never are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import model_validator
from typing_extensions import override

from bitactor.declare.answer import predicate_answer
from bitactor.declare.functions import refuse_uncallable
from bitactor.errors import DefinitionError, StepFailed
from bitactor.forms.paths import function_at, path_of
from bitactor.forms.values import constant
from bitactor.kinds.base import (
    SOURCE,
    Close,
    Container,
    ContainerArguments,
    ContainerKind,
    Declaration,
    Form,
    Key,
    Open,
    Opening,
    Plan,
    Reader,
    Site,
    Skip,
    Writer,
    function_inputs,
    nested_inputs,
)
from bitactor.kinds.result_types import either, target_type
from bitactor.messages.values import shown

Target: TypeAlias = Declaration | Callable[..., Any]

ON = "(on)"


class Branch(Form):
    """A branch of a switch: a nested workflow by its name, or a function."""

    workflow: str | None = None
    function: str | None = None

    @model_validator(mode="after")
    def _just_one(self) -> Branch:
        if (self.workflow is None) == (self.function is None):
            raise ValueError("a branch is a 'workflow' or a 'function', one of them")
        return self


class Case(Branch):
    """A case of a switch: a value or a predicate (`test`), and the branch."""

    value: Any = None
    test: str | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Case:
        if ("value" in self.model_fields_set) == ("test" in self.model_fields_set):
            raise ValueError("a case has a 'value' to compare with, or a 'test' that says whether it fits")
        return self


def _branch_data(target: Target, what: str, graph: Writer) -> dict[str, Any]:
    if isinstance(target, Declaration):
        return {"workflow": graph.nest(target)}
    return {"function": path_of(getattr(target, "function", target), what)}


def _branch_of(form: Branch, what: str, _: str, graph: Reader) -> Any:
    return function_at(form.function, what) if form.function is not None else graph.nested(str(form.workflow), what)


def _cases_data(cases: Sequence[tuple[Any, Target]], what: str, _: str, graph: Writer) -> list[dict[str, Any]]:
    said = []
    for number, (test, target) in enumerate(cases, 1):
        where = f"{what}: case {number}"
        fits = (
            {"test": path_of(test, f"{where}: its predicate")}
            if callable(test)
            else {"value": constant(test, f"{where}: its value")}
        )
        said.append(fits | _branch_data(target, f"{where}: its branch", graph))
    return said


def _cases_of(cases: Sequence[Case], what: str, name: str, graph: Reader) -> list[tuple[Any, Any]]:
    return [
        (case.value if case.test is None else function_at(case.test, what), _branch_of(case, what, name, graph))
        for case in cases
    ]


class SwitchContainer(Container):
    """Ordered cases, compiled: one scope, an instance of the body that was chosen."""

    def __init__(self, site: Site, declared: Switch) -> None:
        self._declared = declared
        self._what = site.what
        bodies: list[Plan] = []
        addresses: set[str] = set()
        for number, target in enumerate(declared.targets):
            body = _body(site, target, site.address)
            if any(step.address in addresses for step in body.all_steps()):
                body = _body(site, target, f"{site.address}#{number + 1}")  # another branch has steps of that name
            addresses |= {step.address for step in body.all_steps()}
            bodies.append(body)
        self.bodies = tuple(bodies)
        self.depth = max(body.depth for body in bodies)
        self.cases = tuple(declared.case(number) for number in range(len(bodies)))

    @override
    def open(self, arguments: ContainerArguments) -> Open | Skip | Close:
        """The branch of the first case that fits is opened; no case and no default: the step is skipped.

        Raises:
            StepFailed: no case fits.
        """
        chosen = self._choose(arguments.value(ON))
        if chosen is None:
            return Skip()
        body, target = self.bodies[chosen], self._declared.targets[chosen]
        if isinstance(target, Declaration):
            inputs = nested_inputs(target, body, arguments)
        else:
            inputs = function_inputs(body, arguments)
        return Open([Opening("", chosen, inputs)])

    def _choose(self, value: Any) -> int | None:
        declared = self._declared
        for number, test in enumerate(declared.tests):
            if callable(test):
                if predicate_answer(f"the predicate of case {number + 1}", test(value)):
                    return number
            elif test == value and isinstance(test, bool) == isinstance(value, bool):
                return number
        if declared.default is not None:
            return len(declared.tests)
        if declared.optional:
            return None
        known = ", ".join(getattr(test, "__name__", shown(test)) for test in declared.tests)
        raise StepFailed(
            f"{self._what}: no case for {shown(value)}; the cases are {known}; add one, a default, or optional=True"
        )


class Switch(ContainerKind):
    """Ordered cases, declared.

    Args:
        cases: pairs of what to compare with (a value, or a predicate) and the branch: a workflow, or a function that
            makes a step.
        default: the branch when no case fits.
        optional: without a default, True: the step is skipped when no case fits; False: that is an error.
    """

    label = "switch"
    keys = {
        "on": SOURCE,
        "cases": Key(list[Case], required=True, write=_cases_data, read=_cases_of),
        "default": Key(
            Branch,
            write=lambda target, what, _, graph: _branch_data(target, f"{what}: default=", graph),
            read=_branch_of,
        ),
        "optional": Key(bool, default=False),
    }
    container = SwitchContainer

    def __init__(
        self,
        what: str,
        cases: Mapping[Any, Target] | Sequence[tuple[Any, Target]],
        default: Target | None = None,
        optional: bool = False,
    ) -> None:
        pairs = list(cases.items()) if isinstance(cases, Mapping) else list(cases)
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise DefinitionError(
                f"{what}: cases={cases!r}; give a mapping of values to branches, or pairs of (value or predicate, "
                "branch)"
            )
        if optional and default is not None:
            raise DefinitionError(f"{what}: with a default something always fits; leave out optional=True")
        for number, (test, _) in enumerate(pairs, 1):
            if callable(test):
                refuse_uncallable(f"{what}: the predicate of case {number}", test, ("value",))
        self.cases, self.default = pairs, default
        self.tests = [test for test, _ in pairs]
        self.targets = [target for _, target in pairs] + ([default] if default is not None else [])
        for target in self.targets:
            if not callable(target) and not isinstance(target, Declaration):
                raise DefinitionError(f"{what}: the branch {target!r} is neither a workflow nor a function")
        self.optional = optional

    def case(self, number: int) -> str:
        """The name of branch `number` in pictures and descriptions: its value, its predicate, or `otherwise`."""
        if number == len(self.tests):
            return "otherwise"
        test = self.tests[number]
        name = getattr(test, "__name__", "<>")
        return repr(test) if not callable(test) else f"condition {number + 1}" if name.startswith("<") else name

    @override
    def result_type(self, name: str) -> Any:
        return either(*map(target_type, self.targets), *((None,) if self.optional else ()))


def _body(site: Site, target: Target, address: str) -> Plan:
    """The body of a branch, its steps addressed below `address`."""
    if isinstance(target, Declaration):
        return target.nested_plan(address)
    name = getattr(target, "__name__", "branch").strip("<>")
    return site.function_body(target, name, f"{address}/{name}")
