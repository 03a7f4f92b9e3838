"""group: a nested workflow with a step before it and a step after it.

`before_all` may take what the nested workflow takes; if it answers with a mapping, that overrides the nested inputs of
those names.  `after_all` may take the nested result as `result`, and the nested inputs; what it answers is the group's
result.  Both are hops like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from typing_extensions import override

from bitactor.errors import DefinitionError, DuplicateName, InvalidOutcome, suggest
from bitactor.kinds.base import (
    CONSULT,
    FUNCTION,
    NESTED,
    Arrow,
    Close,
    Container,
    ContainerArguments,
    ContainerKind,
    Declaration,
    NextAction,
    Open,
    Opening,
    Parameter,
    Progress,
    Site,
    function_inputs,
    input_values,
    merge_parameters,
    named_values,
    nested_inputs,
    require_workflow,
    target_parameters,
)
from bitactor.kinds.result_types import target_type
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.values import shown
from bitactor.plan.kind import result_of, returned_step

RESULT = "(result)"
_BEFORE, _BODY, _AFTER = "before", "", "after"


class GroupContainer(Container):
    """A nested workflow with hooks, compiled: a scope for each of the three, one after the other."""

    chained = True

    def __init__(self, site: Site, declared: Group) -> None:
        self._declared = declared
        self._what = site.what
        bodies = [declared.workflow.nested_plan(site.address)]
        self._places = {_BODY: 0}
        answer = (result_of(returned_step(declared.workflow)), f"the result of {declared.workflow.name!r}")
        for role, function, special, given in (
            (_BEFORE, declared.before_all, {}, {}),
            (_AFTER, declared.after_all, {"result": RESULT}, {"result": answer}),
        ):
            if function is not None:
                self._places[role] = len(bodies)
                address = f"{site.address}/{role}"
                bodies.append(site.function_body(function, role, address, special=special, given=given))
        self.bodies = tuple(bodies)
        self.depth = sum(body.depth for body in bodies)

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """`before_all` is opened first; without one, the nested workflow."""
        if _BEFORE in self._places:
            number = self._places[_BEFORE]
            return Open([Opening("", number, function_inputs(self.bodies[number], arguments))])
        return Open([Opening("", 0, nested_inputs(self._declared.workflow, self.bodies[0], arguments))])

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The last scope's result closes the container; after another, what follows is asked."""
        progress.rounds += 1
        progress.token = token
        return CONSULT if progress.rounds < len(self.bodies) else Close(token)

    @override
    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open:
        """The nested workflow, with the mapping that `before_all` answered over its inputs; then `after_all`.

        Raises:
            InvalidOutcome: `before` answered with what is no input.
        """
        if progress.rounds == 1 and _BEFORE in self._places:
            classes = self._declared.workflow.input_classes
            return Open([Opening("", 0, self._inputs(arguments, decode_token(progress.token, classes)))])
        number = self._places[_AFTER]
        body = self.bodies[number]
        inputs = tuple(progress.token if name == RESULT else arguments.token(name) for name in body.inputs)
        return Open([Opening("", number, inputs)])

    @override
    def arrows(self, place: str) -> Iterable[Arrow]:
        """From `before_all` to what begins the nested workflow, and from what ends it to `after_all`."""
        nested, hooks = self.bodies[0], {role: f"{place}_{number}_s0" for role, number in self._places.items()}
        if _BEFORE in hooks:
            yield from (Arrow(hooks[_BEFORE], f"{place}_0_s{index}") for index in nested.initial)
        if _AFTER in hooks:
            last = (step.index for step in nested.steps if not step.dependents)
            yield from (Arrow(f"{place}_0_s{index}", hooks[_AFTER]) for index in last)

    def _inputs(self, arguments: ContainerArguments, overrides: Any) -> tuple[Any, ...]:
        workflow, body = self._declared.workflow, self.bodies[0]
        if overrides is None:
            return nested_inputs(workflow, body, arguments)
        fields, overrides = workflow.input_model.model_fields, named_values(overrides)
        if not isinstance(overrides, dict):
            raise InvalidOutcome(
                f"before of {self._what} answered {shown(overrides)}; it answers None, or a mapping of inputs to "
                "override"
            )
        unknown = next((name for name in overrides if name not in fields), None)
        if unknown is not None:
            raise InvalidOutcome(
                f"before of {self._what} overrides {unknown!r}, which is no input.{suggest(str(unknown), fields)}"
            )
        valid = workflow.validate_input(input_values(workflow, arguments) | overrides, named=True)
        return tuple(encode_token(valid[name]) for name in body.inputs)


class Group(ContainerKind):
    """A nested workflow with hooks, declared."""

    label = "group"
    keys = {"workflow": NESTED, "before_all": FUNCTION, "after_all": FUNCTION}
    container = GroupContainer
    workflow: Declaration

    def __init__(
        self,
        what: str,
        workflow: Declaration,
        before_all: Callable[..., Any] | None = None,
        after_all: Callable[..., Any] | None = None,
    ) -> None:
        require_workflow(what, workflow)
        if before_all is None and after_all is None:
            raise DefinitionError(
                f"{what}: a group has a function before_all=, after_all=, or both; without any, use compose"
            )
        for role, function in ((_BEFORE, before_all), (_AFTER, after_all)):
            if function is not None and not callable(function):
                raise DefinitionError(f"{what}: {role}_all={function!r}; give a function")
            if function is not None and role in workflow.steps:
                raise DuplicateName(
                    f"{what}: {workflow.name!r} has a step {role!r}, and so has the group; rename that one"
                )
        self.workflow, self.before_all, self.after_all = workflow, before_all, after_all

    @override
    def parameters(self, what: str) -> list[Parameter]:
        nested = ((self.workflow, ()), (self.before_all, ()), (self.after_all, ("result",)))
        return merge_parameters(
            [target_parameters(target, what, special) for target, special in nested if target is not None]
        )

    @override
    def result_type(self, name: str) -> Any:
        return target_type(self.after_all or self.workflow)
