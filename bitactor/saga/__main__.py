"""Prints the transition tables: `python -m bitactor.saga`."""

from bitactor.saga import EVOLUTION, STEP_STATES, TRANSITIONS


def main() -> None:
    """Transactions first, then steps."""
    print("In these phases            this stimulus   means")
    for row in TRANSITIONS:
        print(f"{', '.join(row.phases):<58} {row.stimulus.__name__:<13} {row.meaning}")
    print("\nA step that is    may be followed by")
    for number, state in enumerate(STEP_STATES):
        kinds = [f"{kind} ({direction})" for at, kind, direction in EVOLUTION if at == number]
        print(f"{state:<17} {', '.join(kinds)}")


if __name__ == "__main__":
    main()
