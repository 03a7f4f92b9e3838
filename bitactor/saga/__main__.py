"""Prints the tables of the saga, with the function of each row: `python -m bitactor.saga`; with `--picture`, the phases
of a transaction as a Mermaid diagram."""

import sys
from collections.abc import Callable
from typing import Any

from bitactor.messages.signal import FORWARD
from bitactor.saga import STEP_RULES, TRANSACTION_RULES, TRANSITIONS
from bitactor.saga.phases import NEW


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__.replace('.', '/')}.py:{function.__code__.co_firstlineno}"


def tables() -> str:
    """The tables: what each event means, then what each pulse changes."""
    lines = [f"{'In these phases':<58} {'this event':<16} {'goes to':<36} and means"]
    for row in TRANSITIONS:
        phases = ", ".join(row.phases)
        lines.append(f"{phases:<58} {row.event.__name__:<16} {_place(row.handler):<36} {row.meaning}")
    lines.append(f"\n{'This pulse':<22} {'is taken in by':<36} of a step that is")
    lines += [
        f"{f'{row.kind} ({row.direction})':<22} {_place(row.rule):<36} {', '.join(row.states)}" for row in STEP_RULES
    ]
    lines.append(f"\n{'This pulse':<22} {'is taken in by':<36} of a transaction that is")
    lines += [f"{row.kind:<22} {_place(row.rule):<36} {', '.join(row.phases)}" for row in TRANSACTION_RULES]
    return "\n".join(lines)


def picture() -> str:
    """The phases of a transaction, and the pulses that lead from one to another."""
    kinds: dict[tuple[str, str], dict[str, None]] = {}
    of_steps = [(f"{row.kind} ({'step' if row.direction == FORWARD else 'undo'})", row.leads_to) for row in STEP_RULES]
    for kind, leads_to in (*((row.kind, row.leads_to) for row in TRANSACTION_RULES), *of_steps):
        for change in leads_to.items():
            kinds.setdefault(change, {})[kind] = None
    arrows = [f"    {before} --> {after}: {', '.join(of)}" for (before, after), of in kinds.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {NEW}", *arrows])


if __name__ == "__main__":
    print(picture() if "--picture" in sys.argv[1:] else tables())
