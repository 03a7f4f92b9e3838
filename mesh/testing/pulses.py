"""The recorded pulses of a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from bitactor.export.display import readable_pulses
from bitactor.messages.pulse import UNDO_FAILED, UNDONE, Pulse
from bitactor.messages.signal import UNDO
from bitactor.plan.plan import Plan
from bitactor.testing import RecordingSink


def format_pulse(pulse: Pulse, *, error: bool = False) -> str:
    """A pulse as text: `kind step`; `kind step.undo` for what an undo goes through on its way to `undone step`; `kind`
    alone where there is no step."""
    step = pulse.step
    if step and pulse.direction == UNDO and pulse.kind not in (UNDONE, UNDO_FAILED):
        step = f"{step}.undo"
    text = f"{pulse.kind} {step}".rstrip()
    return f"{text}: {pulse.error}" if error and pulse.error else text


class Pulses(RecordingSink):
    """Every pulse of every mesh of a test, in the order they were kept; also a `Sink`, for a mesh of your own.

    Iterating it gives pulses as people read them, with arguments and results as values; `pulses` has them as they are
    in the journal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._plans: dict[str, Plan] = {}

    def know(self, plans: Mapping[str, Plan]) -> None:
        """Take the plans of workflows, whose arguments are shown as values from now on."""
        self._plans.update(plans)

    def __len__(self) -> int:
        return len(self.pulses)

    def __iter__(self) -> Iterator[Pulse]:
        return iter(self._readable())

    def of(
        self, step: str | None = None, kind: str | None = None, *, workflow: str | None = None, transaction: Any = None
    ) -> list[Pulse]:
        """The pulses that fit, in order.

        Args:
            step: of the step with this path; `""`: of the transaction itself.
            kind: `completed`, `failed`, …
            workflow: of this workflow or consumer, by its name.
            transaction: of this one, by its id or itself.
        """
        wanted = {"step": step, "kind": kind, "workflow": workflow, "transaction": _id_of(transaction)}
        criteria = [(name, value) for name, value in wanted.items() if value is not None]
        return [pulse for pulse in self._readable() if all(getattr(pulse, name) == value for name, value in criteria)]

    @override
    def kinds(self, transaction: Any = None) -> list[str]:
        """The kinds of the pulses so far, of one transaction (by its id or itself) or of all."""
        return super().kinds(_id_of(transaction))

    def lines(self, transaction: Any = None) -> list[str]:
        """The pulses as `assert_trace` reads them: `completed create_user`, `spawned create_user.undo`, `finished`,
        …"""
        wanted = _id_of(transaction)
        return [format_pulse(pulse) for pulse in list(self.pulses) if wanted is None or pulse.transaction == wanted]

    def transactions(self, workflow: str | None = None) -> list[str]:
        """The ids of the transactions that began, in that order; of one workflow or consumer, or of all."""
        begun = [pulse for pulse in list(self.pulses) if workflow is None or pulse.workflow == workflow]
        return list(dict.fromkeys(pulse.transaction for pulse in begun))

    def report(self) -> str:
        """All pulses as text, transaction by transaction, for people."""
        found = []
        for transaction in self.transactions():
            own = [pulse for pulse in list(self.pulses) if pulse.transaction == transaction]
            found += [
                f"{own[0].workflow!r} {transaction}",
                *(f"    {format_pulse(pulse, error=True)}" for pulse in own),
            ]
        return "\n".join(found)

    def _readable(self) -> list[Pulse]:
        """All pulses in order of arrival, each shown in the light of those of its transaction that came before."""
        pulses = list(self.pulses)
        readable: dict[str, Iterator[Pulse]] = {}
        for transaction in dict.fromkeys(pulse.transaction for pulse in pulses):
            own = [pulse for pulse in pulses if pulse.transaction == transaction]
            whole = own[0].seq == 0
            readable[transaction] = iter(readable_pulses(self._plans.get(own[0].workflow) if whole else None, own))
        return [next(readable[pulse.transaction]) for pulse in pulses]


def _id_of(given: Any) -> str | None:
    return given if given is None or isinstance(given, str) else given.id
