"""Faults that a test can inject into a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitactor.errors import ConfigurationError, suggest
from bitactor.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """Base of `Hang`, `Lose` and `Crash`."""


@dataclass(frozen=True, slots=True)
class Hang(InjectedFault):
    """The step never answers: it runs into its timeout, or the transaction into its deadline."""


@dataclass(frozen=True, slots=True)
class Lose(InjectedFault):
    """The worker dies with the step: it is delivered again, or is poison once its redeliveries are used up."""


@dataclass(frozen=True, slots=True)
class Crash(InjectedFault):
    """The whole process dies while the step runs: the transaction is folded from its journal and taken over by
    another."""


Faults = Mapping[str, InjectedFault | Sequence[InjectedFault | None]]


class FaultPlan:
    """The faults of a test: which fault meets which delivery."""

    def __init__(self, plan: Plan, faults: Faults | None) -> None:
        known = [step.name for step in plan.steps]
        known += [f"{step.name}.undo" for step in plan.steps if step.undo is not None]
        self._always: dict[str, InjectedFault] = {}
        self._next: dict[str, list[InjectedFault | None]] = {}
        for name, given in (faults or {}).items():
            if name not in known:
                raise ConfigurationError(
                    f"faults names {name!r}, which is no step of {plan.workflow!r}.{suggest(name, known)}"
                )
            several: list[InjectedFault | None] = [given] if isinstance(given, InjectedFault) else list(given)
            if not all(fault is None or isinstance(fault, InjectedFault) for fault in several):
                raise ConfigurationError(
                    f"faults[{name!r}]={given!r}; use Hang(), Lose(), Crash(), or a list of them and None"
                )
            if isinstance(given, InjectedFault) and not isinstance(given, Crash):
                self._always[name] = given
            else:
                self._next[name] = several

    def next_fault(self, name: str) -> InjectedFault | None:
        """The fault of the next delivery of this step, or of `step.undo`; None if it runs as usual."""
        following = self._next.get(name)
        return following.pop(0) if following else self._always.get(name)
