"""The spawner port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mesh.hops.actor import BitActor


class Spawner(Protocol):
    """Runs actors' functions somewhere.  All methods are called on the loop's thread.

    For each actor started it calls `actor.begin()` when the function starts and `actor.finish(value, error)` (or
    `relay_reply`, or `worker_lost`) when it has ended, on the loop's thread, whatever the function raises: `SystemExit`
    and `KeyboardInterrupt` included.
    """

    def start(self, actor: BitActor) -> None:
        """Run it, now or when there is a free place.  It may finish before this returns."""

    def abandon(self, actor: BitActor) -> None:
        """Stop it if that is possible here; if it is only queued, forget it.  Nothing happens if it is not here."""

    async def close(self, timeout: float) -> None:
        """Stop everything and release threads or processes, within `timeout` seconds.  Twice is once."""
