"""group: a nested workflow with a step before it and a step after it.

`before_all` may take what the nested workflow takes; if it answers with a mapping, that overrides the nested inputs of
those names.  `after_all` may take the nested result as `result`, and the nested inputs; what it answers is the group's
result.  Both are hops like any others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from bitactor.errors import DefinitionError, DuplicateName, InvalidOutcome, suggest
from bitactor.kinds.nested import (
    function_inputs,
    function_parameters,
    merge_parameters,
    nested_inputs,
    require_workflow,
    workflow_parameters,
)
from bitactor.messages.codec import decode_token, encode_token
from bitactor.plan.callbacks import Parameter
from bitactor.plan.container import CONSULT, Close, ContainerArguments, NextAction, Open, Opening, Progress
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind, Site
from bitactor.plan.plan import Container

RESULT = "(result)"
_BEFORE, _BODY, _AFTER = "before", "", "after"


class Group(Kind):
    """A nested workflow with hooks, declared."""

    label = "group"

    def __init__(
        self, what: str, workflow: Declaration, before: Callable[..., Any] | None, after: Callable[..., Any] | None
    ) -> None:
        require_workflow(what, workflow)
        if before is None and after is None:
            raise DefinitionError(
                f"{what}: a group has a function before_all=, after_all=, or both; without any, use compose"
            )
        for role, function in ((_BEFORE, before), (_AFTER, after)):
            if function is not None and not callable(function):
                raise DefinitionError(f"{what}: {role}_all={function!r}; give a function")
            if function is not None and role in workflow.steps:
                raise DuplicateName(
                    f"{what}: {workflow.name!r} has a step {role!r}, and so has the group; rename that one"
                )
        self.workflow, self.before, self.after = workflow, before, after

    @override
    def parameters(self, what: str) -> list[Parameter]:
        lists = [workflow_parameters(self.workflow)]
        if self.before is not None:
            lists.append(function_parameters(self.before, what))
        if self.after is not None:
            lists.append(function_parameters(self.after, what, ("result",)))
        return merge_parameters(lists)

    @override
    def compile(self, site: Site) -> Container:
        return GroupContainer(site, self)


class GroupContainer(Container):
    """A nested workflow with hooks, compiled: a scope for each of the three, one after the other."""

    kind = "group"
    chained = True

    def __init__(self, site: Site, declared: Group) -> None:
        self._declared = declared
        self._what = site.what
        bodies = [site.body(declared.workflow, site.address)]
        self._places = {_BODY: 0}
        for role, function, special in ((_BEFORE, declared.before, {}), (_AFTER, declared.after, {"result": RESULT})):
            if function is not None:
                self._places[role] = len(bodies)
                bodies.append(site.function_body(function, role, f"{site.address}/{role}", special=special))
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
        if progress.rounds == len(self.bodies):
            return Close(token)
        return CONSULT

    @override
    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open:
        """The nested workflow, with the mapping that `before_all` answered over its inputs; then `after_all`.

        Raises:
            InvalidOutcome: `before` answered with what is no input.
        """
        if progress.rounds == 1 and _BEFORE in self._places:
            return Open([Opening("", 0, self._inputs(arguments, decode_token(progress.token)))])
        number = self._places[_AFTER]
        body = self.bodies[number]
        inputs = tuple(progress.token if name == RESULT else arguments.token(name) for name in body.inputs)
        return Open([Opening("", number, inputs)])

    def _inputs(self, arguments: ContainerArguments, overrides: Any) -> tuple[Any, ...]:
        workflow, body = self._declared.workflow, self.bodies[0]
        if overrides is None:
            return nested_inputs(workflow, body, arguments)
        fields = workflow.input_model.model_fields
        if not isinstance(overrides, dict):
            raise InvalidOutcome(
                f"before of {self._what} answered {overrides!r}; it answers None, or a mapping of inputs to override"
            )
        unknown = next((name for name in overrides if name not in fields), None)
        if unknown is not None:
            raise InvalidOutcome(
                f"before of {self._what} overrides {unknown!r}, which is no input.{suggest(str(unknown), fields)}"
            )
        values = {name: arguments.value(name) for name in fields if arguments.has(name)} | overrides
        valid = workflow.validate_input(values)
        return tuple(encode_token(valid[name]) for name in body.inputs)
