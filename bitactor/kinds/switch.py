"""switch: the first case that fits decides which branch is planned; the others never are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from typing_extensions import override

from bitactor.errors import DefinitionError, StepFailed
from bitactor.kinds.nested import function_inputs, merge_parameters, nested_inputs, target_parameters
from bitactor.plan.callbacks import Parameter
from bitactor.plan.container import Close, ContainerArguments, NextAction, Open, Opening, Progress, Skip
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind, Site
from bitactor.plan.plan import Container, Plan

Target: TypeAlias = Declaration | Callable[..., Any]

ON = "(on)"


class Switch(Kind):
    """Ordered cases, declared.

    Args:
        cases: pairs of what to compare with (a value, or a predicate) and the branch: a workflow, or a function that
            makes a step.
        default: the branch when no case fits.
        optional: without a default, True: the step is skipped when no case fits; False: that is an error.
    """

    label = "switch"

    def __init__(
        self,
        what: str,
        cases: Mapping[Any, Target] | Sequence[tuple[Any, Target]],
        default: Target | None,
        optional: bool,
    ) -> None:
        pairs = list(cases.items()) if isinstance(cases, Mapping) else list(cases)
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise DefinitionError(
                f"{what}: cases={cases!r}; give a mapping of values to branches, or pairs of (value or predicate, "
                "branch)"
            )
        if optional and default is not None:
            raise DefinitionError(f"{what}: with a default something always fits; leave out optional=True")
        self.tests = [test for test, _ in pairs]
        self.targets = [target for _, target in pairs] + ([default] if default is not None else [])
        for target in self.targets:
            if not callable(target) and not isinstance(target, Declaration):
                raise DefinitionError(f"{what}: the branch {target!r} is neither a workflow nor a function")
        self.has_default = default is not None
        self.optional = optional

    def case(self, number: int) -> str:
        """The name of branch `number` in pictures and descriptions: its value, its predicate, or `otherwise`."""
        if number == len(self.tests):
            return "otherwise"
        test = self.tests[number]
        name = getattr(test, "__name__", "<>")
        return repr(test) if not callable(test) else f"condition {number + 1}" if name.startswith("<") else name

    @override
    def parameters(self, what: str) -> list[Parameter]:
        """The value that is compared, and the parameters of all branches."""
        return [
            Parameter(ON, Any, False),
            *merge_parameters([target_parameters(target, what) for target in self.targets]),
        ]

    @override
    def compile(self, site: Site) -> Container:
        return SwitchContainer(site, self)


class SwitchContainer(Container):
    """Ordered cases, compiled: one scope, an instance of the body that was chosen."""

    kind = "switch"

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

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The result of the branch closes the container."""
        return Close(token)

    def _choose(self, value: Any) -> int | None:
        declared = self._declared
        for number, test in enumerate(declared.tests):
            if test(value) if callable(test) else (test == value and isinstance(test, bool) == isinstance(value, bool)):
                return number
        if declared.has_default:
            return len(declared.tests)
        if declared.optional:
            return None
        known = ", ".join(getattr(test, "__name__", repr(test)) for test in declared.tests)
        raise StepFailed(
            f"{self._what}: no case for {value!r}; the cases are {known}; add one, a default, or optional=True"
        )


def _body(site: Site, target: Target, address: str) -> Plan:
    """The body of a branch, its steps addressed below `address`."""
    if isinstance(target, Declaration):
        return site.body(target, address)
    name = getattr(target, "__name__", "branch").strip("<>")
    return site.function_body(target, name, f"{address}/{name}")
