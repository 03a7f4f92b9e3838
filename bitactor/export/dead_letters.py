"""Dead letters of a transaction: what ended nowhere, for whom it was meant, and what was in it, read off its pulses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from bitactor.errors import InvalidInput, ProtocolError
from bitactor.export.display import readable_token
from bitactor.messages.codec import Packed, decode_token, token_from_bytes
from bitactor.messages.pulse import (
    ACCEPTED,
    COMPLETED,
    EMITTED,
    RESUMED,
    RUNNING,
    SKIPPED,
    SPAWNED,
    STUCK,
    TOMBSTONE,
    UNDELIVERED,
    UNDO_FAILED,
    UNDONE,
    UNROUTABLE,
    Pulse,
)
from bitactor.messages.signal import FORWARD, UNDO, Fault
from bitactor.messages.values import is_text, shown
from bitactor.plan.arguments import value_at
from bitactor.plan.plan import Plan
from bitactor.saga import Emission, SagaState, evolve

SIGNAL: Final = "signal"
STEP: Final = "step"
UNREADABLE: Final = "unreadable"

_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9]{1,12})", re.ASCII)

_UNKNOWN: Final = object()
"""In place of a token that the journal alone does not lead to."""
_UNKNOWN_TEXT: Final = "known only where the workflow is declared"


class Part(NamedTuple):
    """One value of a payload, not yet decoded."""

    name: str
    """The argument's; where its workflow is not declared, of its source (`input.email`); empty: it is all of it."""
    token: Any
    path: tuple[str | int, ...] = ()
    """To where in the token's value it is."""

    def read(self) -> Any:
        """The value, or what is wrong with it."""
        if self.token is _UNKNOWN:
            return {"unknown": _UNKNOWN_TEXT}
        try:
            value = decode_token(self.token)
            return value_at(value, self.path, self.name) if self.path else value
        except ProtocolError:
            return readable_token(self.token)
        except InvalidInput as error:
            return {"undecodable": str(error)}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An emitted signal, a step or an undo that ended nowhere."""

    transaction: str
    """The id of its transaction."""
    seq: int
    """The number of the pulse that says so, within the transaction."""
    workflow: str
    """The name of the transaction's workflow, or of the consumer."""
    kind: str
    """What it is: `signal | step | undo`; `transaction`: one whose pulses cannot be read."""
    name: str
    """For whom it was meant: the signal's name (`user.created`), or the step's (`users.signup/welcome`)."""
    reason: str
    """Why it is dead: `unroutable` (nobody took it), `poison` (its workers died of it, as often as it is delivered),
    `stuck` (an undo that failed); `unreadable`: the transaction has dead letters, but its pulses cannot be read."""
    why: str
    """The same in words."""
    step: str
    """The path of the step, or of the one that emitted the signal; empty if it is not known."""
    hop: str
    """The id of the hop, or of the one that emitted the signal."""
    attempt: int | None
    """Which attempt of the step or undo this was, from 1; None for a signal."""
    deliveries: int | None
    """How often this attempt was handed to a worker; None for a signal, of which that is not kept."""
    at_ns: int
    """When it died, in nanoseconds since 1970."""
    parts: tuple[Part, ...] = field(repr=False)
    """The payload as the journal has it."""

    @property
    def id(self) -> str:
        """The dead letter's own id, for `before=`."""
        return f"{self.transaction}-{self.seq}"

    @property
    def payload(self) -> Any:
        """The value of a signal, or a mapping of a step's arguments (for an undo also `result`, which the step
        returned), decoded at each call.  Secrets mask themselves; what cannot be decoded is a mapping that says so."""
        if self.kind == SIGNAL:
            return self.parts[0].read() if self.parts else None
        return {part.name: part.read() for part in self.parts}


class Death(NamedTuple):
    """A pulse by which something has died."""

    kind: str
    reason: str
    why: str


def dead_letters_of(pulses: Sequence[Pulse], status: str, plan: Plan | None = None) -> list[DeadLetter]:
    """The dead letters of a transaction, the last to die first.

    Args:
        pulses: all of its pulses.
        status: its status; the undos that failed are dead while it is stuck.
        plan: its workflow's; without it, or if it is of another shape, arguments go by their sources' names, and of
            nested steps only what the journal says by itself is known.
    """
    deaths = deaths_of(pulses, status)
    if not deaths:
        return []
    folds = plan is not None and plan.digest == pulses[0].digest
    if folds and any(death.kind != SIGNAL for death in deaths.values()):
        try:
            return list(_letters(pulses, deaths, plan))[::-1]
        except Exception:  # of a journal that makes no sense to the plan, or of a kind from outside
            pass
    return list(_letters(pulses, deaths, None))[::-1]


def letter_place(letter: Any) -> tuple[str, int]:
    """The transaction of a dead letter, and the number of the pulse that says so, by its id.

    Raises:
        InvalidInput: none has that id.
    """
    matched = _ID.fullmatch(letter) if is_text(letter) else None
    if matched is None:
        raise InvalidInput(f"{shown(letter)} is no id of a dead letter: its transaction's, `-`, and a number")
    return matched[1], int(matched[2])


def emission_again(
    pulses: Sequence[Pulse], state: SagaState, seq: int, deaths: Mapping[int, Death] | None = None
) -> Emission | None:
    """The signal that is brought to its consumers once more if the dead letter of pulse `seq` is sent again; None: it
    is an undo, which is tried again when its transaction is resumed.

    Args:
        pulses: all of the transaction's.
        state: what follows from them.
        deaths: what `deaths_of` says of them, if it was asked before.

    Raises:
        InvalidInput: it cannot be sent again, or was before; says why, and what to do.
    """
    letter = f"dead letter {state.transaction}-{seq}"
    death = (deaths_of(pulses, state.status) if deaths is None else deaths).get(seq)
    if death is None:
        raise InvalidInput(f"there is no {letter}{_what_became(pulses, state, seq)}")
    if death.kind == UNDO:
        return None
    if death.kind == STEP:
        name = f"{pulses[seq].workflow}/{pulses[seq].step}"
        raise InvalidInput(
            f"{letter} is a step, {name!r}, and its transaction has gone on without it: it is {state.status}; "
            f"stimulate {pulses[seq].workflow!r} again, with another key"
        )
    emission = state.undelivered[(pulses[seq].data or {})["emit"]]
    taken_back = state.stopping and state.status != COMPLETED
    if taken_back and not any(pulse.hop == emission.hop and pulse.direction == UNDO for pulse in pulses):
        now = "being undone" if state.status == RUNNING else state.status
        raise InvalidInput(
            f"{letter} is a signal, {emission.name!r}, of a transaction that is {now}: what it tells was taken back; "
            f"stimulate {pulses[seq].workflow!r} again, with another key"
        )
    return emission


def _what_became(pulses: Sequence[Pulse], state: SagaState, seq: int) -> str:
    """What became of what was a dead letter, in words; empty if it never was one."""
    pulse = pulses[seq] if seq < len(pulses) else None
    data = {} if pulse is None else pulse.data or {}
    if pulse is not None and pulse.kind == UNDO_FAILED:
        last = max(other.seq for other in pulses if other.kind == UNDO_FAILED and other.step == pulse.step)
        if state.status == STUCK and last > seq:
            return f" any more: it was tried again, and failed again; that is dead letter {state.transaction}-{last}"
        return f": its transaction was resumed since, and is {state.status}"
    if pulse is None or pulse.kind != TOMBSTONE or pulse.error not in UNDELIVERED or "emit" not in data:
        return ""
    if data["emit"] in state.emissions:
        return " any more: it was sent again, and is on its way"
    last = max(other.seq for other in pulses if (other.data or {}).get("emit") == data["emit"])
    if data["emit"] in state.undelivered:
        return f" any more: it was sent again, and nobody took it; that is dead letter {state.transaction}-{last}"
    return " any more: it was sent again, and taken"


def deaths_of(pulses: Sequence[Pulse], status: str) -> dict[int, Death]:
    """Position of a pulse → what has died by it, in order."""
    found: dict[int, Death] = {}
    signals: dict[str, int] = {}  # emission → position of the pulse by which it has died last
    undos: dict[str, tuple[int, Death]] = {}  # step → the undo of it that failed last
    reasons: dict[str, str] = {}
    for at, pulse in enumerate(pulses):
        data = pulse.data or {}
        if pulse.kind == TOMBSTONE and pulse.error in UNDELIVERED:
            if "emit" in data:
                signals[data["emit"]] = at
                found[at] = Death(SIGNAL, pulse.error, str(data.get("why", "")))
            elif pulse.direction == FORWARD:
                found[at] = Death(STEP, pulse.error, Fault(*data["fault"]).summary())
            else:
                reasons[pulse.hop] = pulse.error
        elif pulse.kind == EMITTED and data.get("again"):
            found.pop(signals.get(data["emit"], -1), None)
        elif pulse.kind == UNDO_FAILED:
            undos[pulse.step] = at, Death(UNDO, reasons.get(pulse.hop, STUCK), pulse.error or "")
        elif pulse.kind == UNDONE:
            undos.pop(pulse.step, None)
        elif pulse.kind == RESUMED and "epoch" not in data:  # somebody had it try again
            undos.clear()
    return dict(sorted((*found.items(), *(undos.values() if status == STUCK else ()))))


def _letters(pulses: Sequence[Pulse], deaths: Mapping[int, Death], plan: Plan | None) -> Iterator[DeadLetter]:
    context = _Context(pulses[0].transaction, plan)
    for at, pulse in enumerate(pulses[: max(deaths) + 1]):
        if at in deaths:
            yield context.letter(pulse, deaths[at])
        context.add(pulse)


class _Context:
    """What the pulses before one say that its letter has to know.

    Args:
        plan: by which arguments are told; None: by the journal alone.
    """

    def __init__(self, transaction: str, plan: Plan | None) -> None:
        self._state = None if plan is None else SagaState(plan, transaction)
        self._input: Any = None
        self._steps: dict[str, str] = {}  # hop → path of its step
        self._deliveries: dict[str, int] = {}
        self._spawned: dict[str, Pulse] = {}  # path → the pulse that began its last attempt
        self._results: dict[str, Any] = {}  # path → token
        self._emits: dict[str, Sequence[Any]] = {}

    def add(self, pulse: Pulse) -> None:
        """Take in a pulse."""
        data = pulse.data or {}
        if pulse.kind == ACCEPTED:
            self._input = pulse.token_out
        elif pulse.kind == SPAWNED:
            self._steps[pulse.hop] = pulse.step
            self._deliveries[pulse.hop] = data.get("delivery", 1)
            if pulse.direction == FORWARD and "delivery" not in data:
                self._spawned[pulse.step] = pulse
        elif pulse.kind in (COMPLETED, SKIPPED):
            self._results[pulse.step] = pulse.token_out
        if "emits" in data:
            self._emits[pulse.hop] = data["emits"]
        if self._state is not None:
            evolve(self._state, pulse)

    def letter(self, pulse: Pulse, death: Death) -> DeadLetter:
        """The dead letter of a pulse, which is added after that."""
        data = pulse.data or {}
        signal = death.kind == SIGNAL
        delivery = self._deliveries.get(pulse.hop, 0)
        return DeadLetter(
            transaction=pulse.transaction,
            seq=pulse.seq,
            workflow=pulse.workflow,
            kind=death.kind,
            name=str(data["name"]) if signal else f"{pulse.workflow}/{pulse.step}",
            reason=death.reason,
            why=death.why,
            step=self._steps.get(pulse.hop, pulse.step),
            hop=pulse.hop,
            attempt=None if signal else pulse.attempt,
            # The last delivery of what nobody took is the one that nobody took.
            deliveries=None if signal else max(0, delivery - (death.reason == UNROUTABLE)),
            at_ns=pulse.at_ns,
            parts=tuple(self._emitted(str(data["emit"])) if signal else self._given(pulse)),
        )

    def _emitted(self, emission: str) -> Iterator[Part]:
        hop, _, position = emission.rpartition(":")
        emits = self._emits.get(hop, ())
        if position.isdigit() and int(position) < len(emits):
            yield Part("", _token(emits[int(position)][1]))

    def _given(self, pulse: Pulse) -> Iterator[Part]:
        """What a step was given, and of an undo what it takes back."""
        state = self._state
        if state is None:
            yield from self._sources(pulse.step)
            if pulse.direction == UNDO and pulse.step in self._results:
                yield Part("result", self._results[pulse.step])
            return
        index = state.by_name[pulse.step]
        evaluated = state.evaluated.get(index) or {}
        for name, slot, path, transform, _, constant, _ in state.steps[index].arguments:
            if transform is not None:
                yield Part(name.strip("()"), evaluated.get(name, _UNKNOWN))
            else:
                yield Part(name.strip("()"), state.tokens[slot] if slot >= 0 else constant, tuple(path))
        if pulse.direction == UNDO and index not in state.steps_in_doubt:
            yield Part("result", state.own_result(index))

    def _sources(self, step: str) -> Iterator[Part]:
        """What a step was given, by the names of the sources; those that are transformed also by their own."""
        spawned = self._spawned.get(step)
        if spawned is None:
            return
        for reference in spawned.token_in if isinstance(spawned.token_in, tuple | list) else ():
            head, *rest = str(reference).split(".")
            path = tuple(int(part) if part.isdigit() else part for part in rest)
            if "/" in step or (head not in self._results and (head != "input" or not path)):
                yield Part(str(reference), _UNKNOWN)
            elif head in self._results:
                yield Part(str(reference), self._results[head], path)
            else:
                yield Part(str(reference), self._input, path)
        for name, token in ((spawned.data or {}).get("decided") or {}).items():
            yield Part(str(name).strip("()"), _token(token))


def _token(data: bytes) -> Any:
    try:
        return token_from_bytes(data)
    except ProtocolError:
        return Packed(data)
