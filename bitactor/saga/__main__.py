"""Prints the transition tables: `python -m bitactor.saga`."""

from bitactor.saga import STEP_EVOLUTION, STEP_STATES, TRANSITIONS


def main() -> None:
    """Print the tables: of transactions first, then of steps."""
    print(f"{'In these phases':<58} {'this event':<16} means")
    for row in TRANSITIONS:
        print(f"{', '.join(row.phases):<58} {row.event.__name__:<16} {row.meaning}")
    print(f"\n{'A step that is':<17} may be followed by")
    for state in STEP_STATES:
        kinds = [f"{kind} ({direction})" for at, kind, direction in STEP_EVOLUTION if at == state]
        print(f"{state:<17} {', '.join(kinds)}")


if __name__ == "__main__":
    main()
