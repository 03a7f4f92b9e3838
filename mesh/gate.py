"""How many of a consumer's transactions run at once."""

from __future__ import annotations

from collections import deque

from bitactor.saga import Dispatch
from mesh.run import Run


class Gate:
    """Lets a bounded number of a consumer's transactions run at once."""

    def __init__(self, places: int) -> None:
        self._free = places
        self.waiting: deque[tuple[Run, Dispatch]] = deque()

    def enter(self, who: tuple[Run, Dispatch]) -> bool:
        """Whether there was a place; if not, `who` waits in line."""
        if self._free > 0:
            self._free -= 1
            return True
        self.waiting.append(who)
        return False

    def leave(self) -> tuple[Run, Dispatch] | None:
        """Give a place back; the answer is who gets it."""
        while self.waiting:
            run, command = self.waiting.popleft()
            if not run.settled:
                return run, command
        self._free += 1
        return None

    def forget(self, run: Run) -> bool:
        """This one waits no more; whether it had."""
        before = len(self.waiting)
        self.waiting = deque(who for who in self.waiting if who[0] is not run)
        return len(self.waiting) < before
