"""Faults that a test can inject into a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitactor.errors import ConfigurationError, suggest
from bitactor.messages.signal import UNDO
from bitactor.plan.plan import Plan, PlanStep


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
        self._always: dict[str, InjectedFault] = {}
        self._next: dict[str, list[InjectedFault | None]] = {}
        self._names = names = _hop_names(plan) if faults else {}
        undone = [step.address for step in plan.all_steps() if step.undo is not None and step.address in names]
        known = [*names.values(), *(f"{names[address]}.undo" for address in undone)]
        for name, given in (faults or {}).items():
            if name not in known:
                raise ConfigurationError(f"faults names {name!r}, which is {_no_hop(plan, name, known)}")
            several: list[InjectedFault | None] = [given] if isinstance(given, InjectedFault) else list(given)
            if not all(fault is None or isinstance(fault, InjectedFault) for fault in several):
                raise ConfigurationError(
                    f"faults[{name!r}]={given!r}; use Hang(), Lose(), Crash(), or a list of them and None"
                )
            if isinstance(given, InjectedFault) and not isinstance(given, Crash):
                self._always[name] = given
            else:
                self._next[name] = several

    def next_fault(self, step: PlanStep, direction: str) -> InjectedFault | None:
        """The fault of the next delivery to the step; None if it runs as usual."""
        name = self._names.get(step.address, "") + (".undo" if direction == UNDO else "")
        following = self._next.get(name)
        return following.pop(0) if following else self._always.get(name)


def _hop_names(plan: Plan) -> dict[str, str]:
    """Address → name of all steps that are hops, also in containers (`billing/charge`); a map, whose batches are hops,
    and an iterate, whose rounds are, give theirs the name of the container."""
    return {
        step.address: step.name if plan.listens else step.address.removeprefix(f"{plan.workflow}/")
        for step in plan.all_steps()
        if step.container is None
    }


def _no_hop(plan: Plan, name: str, known: Sequence[str]) -> str:
    """What a name is that is none of the known ones, and which of those to take."""
    container = plan.at_address(f"{plan.workflow}/{name}")
    if container is None:
        return f"no step of {plan.workflow!r}.{suggest(name, known)}"
    inside = [other for other in known if other.startswith(f"{name}/")]
    return f"no hop itself ({container.kind} of {plan.workflow!r}); name a step in it.{suggest('', inside)}"
