"""recurse: a nested workflow again and again, each round fed with the result of the one before.

A bound is obligatory, and the hop budget is spent by every round: a workflow that could take more rounds than its
budget allows is refused.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from typing_extensions import override

from bitactor.declare.answer import predicate_answer
from bitactor.declare.functions import refuse_uncallable
from bitactor.errors import DefinitionError, InvalidOutcome
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
    Key,
    NextAction,
    Open,
    Opening,
    Plan,
    Progress,
    Site,
    input_values,
    named_values,
    nested_inputs,
    require_workflow,
)
from bitactor.messages.codec import decode_token
from bitactor.messages.values import shown


def checked_bound(what: str, at_most: Any) -> int:
    """The bound; raises `DefinitionError` unless it is a whole number, at least 1."""
    if isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 1:
        raise DefinitionError(f"{what}: at_most={at_most!r}; a bound is obligatory: a whole number, at least 1")
    return at_most


def checked_predicate(what: str, until: Any) -> None:
    """Raises `DefinitionError` unless `until` is a plain function of the result, or None."""
    if until is not None:
        refuse_uncallable(f"{what}: until=", until, ("result",))


class RoundsContainer(Container):
    """Something repeated; compiled: a scope for each round, which feeds the next."""

    chained = keyed = True

    def __init__(self, body: Plan, until: Callable[[Any], bool] | None, at_most: int) -> None:
        self._until = until
        self.bodies = (body,)
        self.depth = body.depth * at_most
        self.max_rounds: int = at_most
        self.bound = f"at most {at_most:,} rounds"
        """The bound as pictures say it."""
        self.mark = f", {self.bound}"

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The result closes the container after `at_most` rounds; before, what follows is asked."""
        progress.rounds += 1
        progress.token = token
        return CONSULT if progress.rounds < self.max_rounds else Close(token)

    @override
    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open | Close:
        """The result closes the container if `until` is satisfied by it; else it feeds the next round."""
        if self._until is not None and predicate_answer("until=", self._until(decode_token(progress.token))):
            return Close(progress.token)
        return self.another(progress, arguments)

    def another(self, progress: Progress, arguments: ContainerArguments | None = None) -> Open:
        """The next round."""
        return Open([Opening(str(progress.rounds + 1), 0, self.fed(progress, arguments))])

    @abstractmethod
    def fed(self, progress: Progress, arguments: ContainerArguments | None) -> tuple[Any, ...]:
        """The inputs of the next round."""


class RecurseContainer(RoundsContainer):
    """A nested workflow, repeated; compiled: a scope for each round, `descend/1/…`, `descend/2/…`."""

    def __init__(self, site: Site, declared: Recurse) -> None:
        super().__init__(declared.workflow.nested_plan(site.address), declared.until, declared.at_most)
        self._workflow = declared.workflow
        self._what = site.what

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """Round 1 is opened, with its inputs validated."""
        return Open([Opening("1", 0, nested_inputs(self._workflow, self.bodies[0], arguments))])

    @override
    def fed(self, progress: Progress, arguments: ContainerArguments | None) -> tuple[Any, ...]:
        """The inputs of the next round, validated.

        Raises:
            InvalidOutcome: the result is no input for the next round.
        """
        assert arguments is not None
        result = decode_token(progress.token, self._workflow.input_classes)
        valid = self._workflow.validate_input(self._next(arguments, result), named=True)
        return tuple(arguments.pass_on(name, valid[name]) for name in self.bodies[0].inputs)

    @override
    def arrows(self, place: str) -> Iterable[Arrow]:
        body, at = self.bodies[0], f"{place}_0_s"
        return [Arrow(f"{at}{body.returns}", f"{at}{index}", self.bound, dotted=True) for index in body.initial]

    def _next(self, arguments: ContainerArguments, result: Any) -> dict[str, Any]:
        """The next round's input: the names of a mapping override the container's arguments; any other result is the
        one input field."""
        fields = self._workflow.input_model.model_fields
        named = named_values(result)
        if isinstance(named, dict) and any(name in fields for name in named):
            own = {name: value for name, value in named.items() if name in fields}
            return input_values(self._workflow, arguments) | own
        if len(fields) == 1:
            return {next(iter(fields)): result}
        raise InvalidOutcome(
            f"{self._what}: the result {shown(result)} cannot feed the next round; return a mapping with some of "
            f"{', '.join(fields)}"
        )


class Recurse(ContainerKind):
    """A nested workflow, repeated; declared."""

    label = "recurse"
    keys = {"workflow": NESTED, "until": FUNCTION, "at_most": Key(int, required=True)}
    container = RecurseContainer
    workflow: Declaration

    def __init__(
        self, what: str, workflow: Declaration, until: Callable[[Any], bool] | None = None, *, at_most: int
    ) -> None:
        require_workflow(what, workflow)
        checked_predicate(what, until)
        self.workflow, self.until, self.at_most = workflow, until, checked_bound(what, at_most)
