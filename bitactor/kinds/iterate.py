"""iterate: a function again and again, each time on what it answered before.

@search.iterate(start=Input("guess"), until=lambda state: state["error"] < 1e-6, at_most=50)
def improve(state: dict) -> dict: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from typing_extensions import override

from bitactor.errors import DefinitionError
from bitactor.kinds.base import (
    CALLED,
    CONSULT,
    FUNCTION,
    SOURCE,
    Arrow,
    ContainerArguments,
    ContainerKind,
    Key,
    NextAction,
    Open,
    Opening,
    Parameter,
    Progress,
    Site,
    function_inputs,
    function_parameters,
)
from bitactor.kinds.recurse import RoundsContainer, checked_bound, checked_predicate
from bitactor.plan.kind import result_of

START = "(start)"
STATE = "state"


class IterateContainer(RoundsContainer):
    """A function, repeated; compiled: a scope of one step for each round, `improve/1`, `improve/2`."""

    def __init__(self, site: Site, declared: Iterate) -> None:
        goes_on = declared.until is None and declared.at_most > 1
        given = {STATE: (result_of(site.step), "what the round before answers")} if goes_on else {}
        body = site.function_body(declared.function, "", site.address, special={STATE: START}, given=given)
        super().__init__(body, declared.until, declared.at_most)

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """Round 1 is opened."""
        return Open([Opening("1", 0, function_inputs(self.bodies[0], arguments))])

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """As of any rounds; but without `until` nothing has to be asked."""
        action = super().after_scope(progress, key, token)
        return self.another(progress) if action is CONSULT and self._until is None else action

    @override
    def fed(self, progress: Progress, arguments: ContainerArguments | None) -> tuple[Any, ...]:
        """The inputs of the first round, with the result as `state`."""
        inputs = zip(self.bodies[0].inputs, progress.inputs, strict=True)
        return tuple(progress.token if name == START else token for name, token in inputs)

    @override
    def arrows(self, place: str) -> Iterable[Arrow]:
        return [Arrow(place, place, self.bound, dotted=True)]


class Iterate(ContainerKind):
    """A function, repeated; declared.  Its parameter `state` takes what the round before answered."""

    label = "iterate"
    keys = {"function": CALLED, "start": SOURCE, "until": FUNCTION, "at_most": Key(int, required=True)}
    takes_attempts = True
    container = IterateContainer
    function: Callable[..., Any]

    def __init__(
        self,
        what: str,
        function: Callable[..., Any],
        until: Callable[[Any], bool] | None = None,
        at_most: int | None = None,
    ) -> None:
        checked_predicate(what, until)
        self.function, self.until, self.at_most = function, until, checked_bound(what, at_most)

    @override
    def parameters(self, what: str) -> list[Parameter]:
        """The function's parameters, with `start` in place of `state`.

        Raises:
            DefinitionError: the function does not take the state.
        """
        parameters = function_parameters(self.function, what)
        if all(parameter.name != STATE for parameter in parameters):
            raise DefinitionError(
                f"{what}: the function takes what the round before answered as {STATE!r}; give it that parameter"
            )
        return [Parameter(START, Any, False), *(parameter for parameter in parameters if parameter.name != STATE)]
