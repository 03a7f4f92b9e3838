"""iterate: a function again and again, each time on what it answered before.

@search.iterate(start=Input("guess"), until=lambda state: state["error"] < 1e-6, at_most=50)
def improve(state: dict) -> dict: ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from bitactor.errors import DefinitionError
from bitactor.kinds.nested import function_parameters
from bitactor.kinds.recurse import checked_bound, checked_predicate
from bitactor.messages.codec import decode_token
from bitactor.plan.callbacks import Parameter
from bitactor.plan.container import CONSULT, Close, ContainerArguments, NextAction, Open, Opening, Progress
from bitactor.plan.kind import Kind, Site
from bitactor.plan.plan import Container

START = "(start)"
STATE = "state"


class Iterate(Kind):
    """A function, repeated; declared.  Its parameter `state` takes what the round before answered."""

    label = "iterate"

    def __init__(
        self, what: str, function: Callable[..., Any], until: Callable[[Any], bool] | None, at_most: int
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

    @override
    def compile(self, site: Site) -> Container:
        return IterateContainer(site, self)


class IterateContainer(Container):
    """A function, repeated; compiled: a scope of one step for each round, `improve/1`, `improve/2`."""

    kind = "iterate"
    chained = True

    def __init__(self, site: Site, declared: Iterate) -> None:
        self._declared = declared
        self.bodies = (site.function_body(declared.function, "", site.address, special={STATE: START}),)
        self.depth = self.max_rounds = declared.at_most

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """Round 1 is opened."""
        return Open([Opening("1", 0, tuple(arguments.token(name) for name in self.bodies[0].inputs))])

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The result closes the container after `at_most` rounds; before, it is the next round's `state`, unless
        `until` has to be asked."""
        progress.rounds += 1
        progress.token = token
        if progress.rounds == self._declared.at_most:
            return Close(token)
        return self._another(progress) if self._declared.until is None else CONSULT

    @override
    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open | Close:
        """The result closes the container if `until` is satisfied by it; else the next round is opened."""
        until = self._declared.until
        if until is not None and until(decode_token(progress.token)):
            return Close(progress.token)
        return self._another(progress)

    def _another(self, progress: Progress) -> Open:
        inputs = zip(self.bodies[0].inputs, progress.inputs, strict=True)
        following = tuple(progress.token if name == START else token for name, token in inputs)
        return Open([Opening(str(progress.rounds + 1), 0, following)])
