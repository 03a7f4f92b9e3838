"""Backoff: the wait between two attempts."""

from __future__ import annotations

from dataclasses import dataclass

from bitactor.errors import DefinitionError
from bitactor.messages.duration import LONGEST, duration_rule, is_duration, nanoseconds


class WrongBackoff(DefinitionError, ValueError):
    """A `Backoff` is made of what cannot be one."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with a cap and full or partial jitter.

    The delay before try n+1 is `min(cap, initial * factor ** (n - 1))` seconds, of which the share `jitter` (0 … 1) is
    random. See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    initial: float = 0.1
    """Seconds before the second try."""
    factor: float = 2.0
    """Each delay is so many times the one before."""
    cap: float = 30.0
    """Seconds that no delay exceeds."""
    jitter: float = 0.5
    """The share of each delay that is random, from 0 to 1."""

    def __post_init__(self) -> None:
        if not is_duration(self.initial, zero=True):
            raise WrongBackoff(f"{self}: initial is {duration_rule(zero=True)}")
        if not is_duration(self.cap, zero=True) and self.cap != float("inf"):
            raise WrongBackoff(f"{self}: cap is {duration_rule(zero=True)}, or infinite")
        if (
            isinstance(self.factor, bool)
            or not isinstance(self.factor, int | float)
            or not 1 <= self.factor < float("inf")
        ):
            raise WrongBackoff(f"{self}: factor must be 1 or more")
        if not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise WrongBackoff(f"{self}: jitter is a share between 0 and 1")

    def delay_ns(self, failures: int, fraction: float) -> int:
        """Nanoseconds to wait after failure number `failures`, from 1; `fraction` (0 … 1) places the wait within the
        jittered part."""
        try:
            full = min(self.cap, self.initial * self.factor ** (failures - 1))
        except OverflowError:
            full = self.cap
        return nanoseconds(min(full, LONGEST) * (1 - self.jitter * fraction))


DEFAULT_BACKOFF = Backoff()
