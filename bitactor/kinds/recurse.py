"""recurse: a nested workflow again and again, each round fed with the result of the one before.

A bound is obligatory, and the hop budget is spent by every round: a workflow that could take more rounds than its
budget allows is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from bitactor.declare.functions import is_coroutine_function
from bitactor.errors import DefinitionError, InvalidOutcome
from bitactor.kinds.nested import nested_inputs, require_workflow, workflow_parameters
from bitactor.messages.codec import decode_token
from bitactor.plan.callbacks import Parameter
from bitactor.plan.container import CONSULT, Close, ContainerArguments, NextAction, Open, Opening, Progress
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind, Site
from bitactor.plan.plan import Container


def checked_bound(what: str, at_most: Any) -> int:
    """The bound; raises `DefinitionError` unless it is a whole number, at least 1."""
    if isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 1:
        raise DefinitionError(f"{what}: at_most={at_most!r}; a bound is obligatory: a whole number, at least 1")
    return at_most


def checked_predicate(what: str, until: Any) -> None:
    """Raises `DefinitionError` unless `until` is a plain function or None."""
    if until is not None and (not callable(until) or is_coroutine_function(until)):
        raise DefinitionError(
            f"{what}: until={until!r}; give a plain function of the result, which says whether that is enough"
        )


class Recurse(Kind):
    """A nested workflow, repeated; declared."""

    label = "recurse"

    def __init__(self, what: str, workflow: Declaration, until: Callable[[Any], bool] | None, at_most: int) -> None:
        require_workflow(what, workflow)
        checked_predicate(what, until)
        self.workflow, self.until, self.at_most = workflow, until, checked_bound(what, at_most)

    @override
    def parameters(self, what: str) -> list[Parameter]:
        return workflow_parameters(self.workflow)

    @override
    def compile(self, site: Site) -> Container:
        return RecurseContainer(site, self)


class RecurseContainer(Container):
    """A nested workflow, repeated; compiled: a scope for each round, `descend/1/…`, `descend/2/…`."""

    kind = "recurse"
    chained = True

    def __init__(self, site: Site, declared: Recurse) -> None:
        self._declared = declared
        self._what = site.what
        body = site.body(declared.workflow, site.address)
        self.bodies = (body,)
        self.depth = body.depth * declared.at_most
        self.max_rounds = declared.at_most

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """Round 1 is opened, with its inputs validated."""
        return Open([Opening("1", 0, nested_inputs(self._declared.workflow, self.bodies[0], arguments))])

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The result closes the container after `at_most` rounds; before, what follows is asked."""
        progress.rounds += 1
        progress.token = token
        return CONSULT if progress.rounds < self._declared.at_most else Close(token)

    @override
    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open | Close:
        """The result closes the container if `until` is satisfied by it; else it feeds the next round's inputs, which
        are validated.

        Raises:
            InvalidOutcome: the result is no input for the next round.
        """
        until = self._declared.until
        result = decode_token(progress.token)
        if until is not None and until(result):
            return Close(progress.token)
        values = self._next(arguments, decode_token(progress.token))
        valid = self._declared.workflow.validate_input(values)
        body = self.bodies[0]
        return Open(
            [Opening(str(progress.rounds + 1), 0, tuple(arguments.pass_on(name, valid[name]) for name in body.inputs))]
        )

    def _next(self, arguments: ContainerArguments, result: Any) -> dict[str, Any]:
        """The next round's input: the names of a mapping override the container's arguments; any other result is the
        one input field."""
        fields = self._declared.workflow.input_model.model_fields
        outer = {name: arguments.value(name) for name in fields if arguments.has(name)}
        if isinstance(result, dict) and any(name in fields for name in result):
            return outer | {name: value for name, value in result.items() if name in fields}
        if len(fields) == 1:
            return {next(iter(fields)): result}
        raise InvalidOutcome(
            f"{self._what}: the result {result!r} cannot feed the next round; return a mapping with some of "
            f"{', '.join(fields)}"
        )
