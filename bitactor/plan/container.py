"""What is said between the saga and a container, a step whose work is done by other steps, planned under its path when
it opens; the port itself is `bitactor.plan.plan.Container`.

    orders                    the container: opened once what it waits for is done
    orders/17/charge          a step in the scope for element 17
    orders/17/ship

A container opens *scopes*: instances of one of its `bodies`, each under a path segment of its own.  Scopes belong to
the container's transaction: one journal, one hop budget, one deadline, one order of undo.  The saga plans a scope, runs
its steps like any others, and, when all of them are settled, asks the container what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bitactor.messages.codec import encode_token
from bitactor.messages.signal import Fault
from bitactor.plan.arguments import Argument, argument_values


class Slot(NamedTuple):
    """A scope's input that is another token of the transaction, by its place: nothing is copied."""

    place: int


class Opening(NamedTuple):
    """Plan a scope."""

    key: str
    """Its path segment: the scope's steps are called `container/key/step`; empty: `container/step`."""
    body: int
    """Which of the container's bodies."""
    inputs: tuple[Any, ...]
    """A token, or a `Slot`, for each of the body's inputs."""


class Open(NamedTuple):
    """Go on with these scopes."""

    scopes: Sequence[Opening]


class Close(NamedTuple):
    """The container is done, with this token as its result."""

    token: Any


class FailContainer(NamedTuple):
    """The container fails."""

    fault: Fault


class Skip(NamedTuple):
    """The container is skipped; its result is None."""


class Consult(NamedTuple):
    """User code must be asked: `Container.consult`, once, by the supervisor; what it says is recorded."""


class AnswerFunctionAround(NamedTuple):
    """The function around the scope is to be told of its result."""


class Wait(NamedTuple):
    """Other scopes are still open."""


WAIT: Final = Wait()
CONSULT: Final = Consult()
ANSWER_FUNCTION_AROUND: Final = AnswerFunctionAround()

NextAction = Open | Close | FailContainer | Consult | AnswerFunctionAround | Wait


class Progress:
    """How far a container is.  Changed by pulses alone, and so the same live and folded."""

    __slots__ = (
        "batch", "errors", "failed_scopes", "inputs", "next_action", "open", "opened", "proceeding", "results",
        "round_results", "rounds", "size", "token", "ttl", "ttl_left",
    )  # fmt: skip

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        """What its scopes' first hops take from."""
        self.ttl_left = ttl
        """What it passes on: the least that any of its scopes has left."""
        self.inputs: tuple[Any, ...] = ()
        """What the first scope was opened with."""
        self.open = 0
        """Scopes that are not settled."""
        self.rounds = 0
        """Rounds so far; what a round is, the kind says."""
        self.token: Any = None
        """The latest result."""
        self.results: list[bytes] = []
        """Packed lists, one for each round."""
        self.round_results: dict[int, Any] = {}
        """Results of the scopes of this round, by their key."""
        self.errors: list[bytes] = []
        """Packed lists, as `results`."""
        self.size = 0
        """Bytes of results held."""
        self.opened = 0
        """Scopes opened so far."""
        self.failed_scopes: dict[int, Fault] = {}
        """Scopes that have failed, by their place, and are not yet quiet."""
        self.batch: list[Any] = []
        """What the scopes of this round are about, where a failure has to tell of it."""
        self.proceeding = False
        """Whether the function around the nested steps waits for them."""
        self.next_action: Close | FailContainer | Consult | AnswerFunctionAround | None = None
        """What is to be done about it, once there is time."""


class ContainerArguments(NamedTuple):
    """A container's arguments."""

    arguments: Sequence[Argument]
    tokens: Sequence[Any]
    owner: str
    evaluated: Mapping[str, Any]
    """Tokens of transformed ones."""

    def has(self, name: str) -> bool:
        """Whether there is such an argument."""
        return any(argument.name == name for argument in self.arguments)

    def value(self, name: str) -> Any:
        """One argument, a fresh copy.

        Raises:
            InvalidInput: a path leads nowhere.
        """
        wanted = [argument for argument in self.arguments if argument.name == name]
        return argument_values(wanted, self.tokens, self.owner, self.evaluated)[name]

    def token(self, name: str) -> Any:
        """One argument to be handed on: a `Slot` where it is another token as it stands.

        Raises:
            InvalidInput: a path leads nowhere.
        """
        argument = next(argument for argument in self.arguments if argument.name == name)
        if argument.slot >= 0 and not argument.path and argument.transform is None:
            return Slot(argument.slot)
        return encode_token(self.value(name))

    def pass_on(self, name: str, value: Any) -> Any:
        """`value` to be handed on; a `Slot` if it is what that argument is already."""
        token = encode_token(value)
        if self.has(name):
            known = self.token(name)
            if (
                type(known) is Slot
                and self.tokens[known.place] == token
                and type(self.tokens[known.place]) is type(token)
            ):
                return known
        return token
