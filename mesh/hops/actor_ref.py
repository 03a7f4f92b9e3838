"""A pykka reference to a hop's actor, for code that works with pykka."""

from __future__ import annotations

import threading
from typing import Any, NoReturn, Protocol, TypeVar

import pykka
from typing_extensions import override

from bitactor.errors import BitActorError
from mesh.hops.ports import ENDED


class Referable(Protocol):
    """An object that can be referred to: what a reference needs of its actor."""

    state: int

    @property
    def actor_urn(self) -> str:
        """The actor's name, unique among all actors."""

    def stop(self) -> None:
        """Ask the actor to stop, from any thread."""


A = TypeVar("A", bound=pykka.Actor)


class BitActorRef(pykka.ActorRef[A]):
    """A reference to a hop's actor: it can be looked at and stopped, but takes no messages."""

    def __init__(self, actor: Referable, actor_class: type[A]) -> None:
        # A strong reference: pykka's is weak and relies on its registry to keep the actor.
        self._actor = actor
        self.actor_class = actor_class
        self.actor_urn = actor.actor_urn
        self.actor_stopped = _StoppedFlag(actor)

    @override
    def is_alive(self) -> bool:
        """Whether the user's function may still be running."""
        return self._actor.state != ENDED

    @override
    def tell(self, message: Any) -> NoReturn:
        """Refused: a hop takes one signal in its life."""
        if not self.is_alive():
            raise pykka.ActorDeadError(f"{self} has ended")
        raise BitActorError(
            f"{self} takes one signal in its life; emit a signal, or stimulate a workflow, to start more work"
        )

    @override
    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> NoReturn:
        """Refused, as `tell` is."""
        self.tell(message)

    @override
    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Ask the hop to stop; True if it was alive.  Never waits: what became of it is in the transaction's pulses."""
        alive = self.is_alive()
        self._actor.stop()
        if block:
            return alive
        future: pykka.Future[bool] = pykka.ThreadingFuture()
        future.set(alive)
        return future


class _StoppedFlag(threading.Event):
    """pykka's stopped flag, read from the actor's state."""

    def __init__(self, actor: Referable) -> None:
        super().__init__()
        self._actor = actor

    @override
    def is_set(self) -> bool:
        return self._actor.state == ENDED
