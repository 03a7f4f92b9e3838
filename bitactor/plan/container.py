"""The messages between the saga and a container, a step whose work is done by other steps, planned under its path when
it opens; the port of containers is `bitactor.plan.plan.Container`.

    orders                    the container: opened once what it waits for is done
    orders/17/charge          a step in the scope for element 17
    orders/17/ship

A container opens *scopes*: instances of one of its `bodies`, each under a path segment of its own.  Scopes belong to
the container's transaction: one journal, one hop budget, one deadline, one order of undo.  The saga plans a scope, runs
its steps like any others, and, when all of them are settled, asks the container what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from bitactor.messages.codec import encode_token
from bitactor.messages.objects import Classes
from bitactor.messages.signal import Fault
from bitactor.messages.values import MAX_TOKEN_BYTES
from bitactor.plan.arguments import BoundArguments, Converter


class Slot(NamedTuple):
    """An input of a scope that is another token of the transaction, given by the place of that token: nothing is
    copied."""

    place: int


class Opening(NamedTuple):
    """A scope to be planned."""

    key: str
    """The scope's path segment: its steps are called `container/key/step`; empty: `container/step`."""
    body: int
    """Index of the scope's body among the container's."""
    inputs: tuple[Any, ...]
    """A token, or a `Slot`, for each of the body's inputs."""


class Open(NamedTuple):
    """The container goes on with these scopes."""

    scopes: Sequence[Opening]


class Close(NamedTuple):
    """The container is done; its result is `token`."""

    token: Any


class FailContainer(NamedTuple):
    """The container fails with `fault`."""

    fault: Fault


class Skip(NamedTuple):
    """The container is skipped; its result is None."""


class Consult(NamedTuple):
    """User code must be asked what follows: the supervisor calls `Container.consult` once, and the answer is
    recorded."""


class AnswerFunctionAround(NamedTuple):
    """The nested scope's result is to be given to the function around it."""


class Wait(NamedTuple):
    """The container waits for scopes that are still open."""


WAIT: Final = Wait()
CONSULT: Final = Consult()
ANSWER_FUNCTION_AROUND: Final = AnswerFunctionAround()

NextAction = Open | Close | FailContainer | Consult | AnswerFunctionAround | Wait


class Progress:
    """How far an open container is.  Changed by pulses alone, and so the same live and folded."""

    __slots__ = (
        "batch", "errors", "failed_scopes", "inputs", "limit", "next_action", "open", "opened", "proceeding",
        "results", "round_results", "rounds", "size", "token", "ttl", "ttl_left",
    )  # fmt: skip

    def __init__(self, ttl: int, limit: int = MAX_TOKEN_BYTES) -> None:
        self.limit = limit
        """The payload limit of its transaction, in bytes."""
        self.ttl = ttl
        """Hop budget that the container's next scopes begin with."""
        self.ttl_left = ttl
        """Hop budget that the container passes on: the least that any of its scopes has left."""
        self.inputs: tuple[Any, ...] = ()
        """Inputs that the first scope was opened with."""
        self.open = 0
        """Number of scopes that are not settled."""
        self.rounds = 0
        """Number of rounds so far; the kind says what a round is."""
        self.token: Any = None
        """The latest result; of a map, its position, whether there is more, and what was accumulated."""
        self.results: list[bytes] = []
        """Packed lists of results, one for each round."""
        self.round_results: dict[int, Any] = {}
        """Results of this round's scopes, by key."""
        self.errors: list[bytes] = []
        """Packed lists of errors, as `results`."""
        self.size = 0
        """Bytes of results and errors held."""
        self.opened = 0
        """Number of scopes opened so far."""
        self.failed_scopes: dict[int, Fault] = {}
        """Place of a failed scope of which something still runs → its fault."""
        self.batch: list[Any] = []
        """Elements of this round's scopes, kept where failures are collected."""
        self.proceeding = False
        """True: the function around the nested steps waits for them."""
        self.next_action: Close | FailContainer | Consult | AnswerFunctionAround | None = None
        """The container's next action (close, fail, consult, answer), taken at the end of this turn."""


class ContainerArguments(BoundArguments):
    """A container's arguments, decoded or handed on."""

    __slots__ = ()

    def has(self, name: str) -> bool:
        """Whether the container has an argument of that name."""
        return any(argument.name == name for argument in self.arguments)

    def value(self, name: str, classes: Classes | None = None) -> Any:
        """The value of one argument, a fresh copy; objects of `classes` are restored in it.

        Raises:
            InvalidInput: a path leads nowhere.
        """
        converter = None if classes is None else Converter(lambda value: value, classes)
        wanted = [argument._replace(converter=converter) for argument in self.arguments if argument.name == name]
        return self._replace(arguments=wanted).raw()[name]

    def token(self, name: str) -> Any:
        """One argument as the input of a scope: a `Slot` where it is another token as it stands, else a token.

        Raises:
            InvalidInput: a path leads nowhere.
        """
        argument = next(argument for argument in self.arguments if argument.name == name)
        if argument.slot >= 0 and not argument.path and argument.transform is None:
            return Slot(argument.slot)
        return encode_token(self.value(name))

    def pass_on(self, name: str, value: Any) -> Any:
        """`value` as the input of a scope: a `Slot` if it is what that argument already is, else a token."""
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
