"""`Then`: a step's result, and further steps for its transaction.

    @crawl.deferred(retries=2)
    async def fetch(url: str) -> list[str]: ...

    @crawl.step
    async def seeds(start: str) -> Then:
        return Then(start, steps=[fetch.planned("fetch-1", bind={"url": Value(start)})])

New steps run like any others: in the same transaction, journal, hop budget and order of undo.  A function cannot be
kept in a journal, so what is planned is a *declared* step (or one declared as `deferred`, which is planned only so),
under a name of its own.  One with the emitter's own name
replaces it: what waits for that step waits for the new one, which can read the previous result as `Result(<own name>)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitactor.declare.source import Input, Result, Source, Value
from bitactor.errors import DefinitionError, DuplicateName
from bitactor.messages.codec import encode_token, token_bytes


@dataclass(frozen=True, slots=True)
class Planned:
    """A declared step under another name, with other sources for some of its arguments.  Made by `Step.planned`."""

    declared: str
    name: str
    bind: Mapping[str, Source]
    after: tuple[str, ...]

    def data(self) -> list[Any]:
        """Plain data for a pulse: `[declared, name, {parameter: source}, [after…]]`.

        Raises:
            DefinitionError: a source has a transform, which is a function.
            InvalidOutcome, SignalTooLarge: a value cannot be carried.
        """
        return [
            self.declared,
            self.name,
            {name: _source(self.name, name, given) for name, given in self.bind.items()},
            [*self.after],
        ]


@dataclass(frozen=True, slots=True)
class Then:
    """The value of a step that is done, and further steps to be planned."""

    value: Any = None
    """The step's result."""
    steps: Sequence[Planned] = ()
    """The steps to be planned, made by `step.planned(…)`."""

    def __post_init__(self) -> None:
        names = [step.name if isinstance(step, Planned) else "" for step in self.steps]
        wrong = next((step for step in self.steps if not isinstance(step, Planned)), None)
        if wrong is not None:
            raise DefinitionError(f"Then(steps=…) takes steps made by `step.planned(…)`, not {wrong!r}")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DuplicateName(f"Then(steps=…) has two steps {twice!r}; give one of them another name")

    def data(self) -> list[Any]:
        """Plain data for a pulse: a list of what `Planned.data` gives."""
        return [step.data() for step in self.steps]


def planned(declared: str, name: str | None, bind: Mapping[str, Any] | None, after: Iterable[Any]) -> Planned:
    """A `Planned` of a declared step, made from the arguments of `Step.planned`.

    Raises:
        DefinitionError: the name, or a source, is invalid.
    """
    name = declared if name is None else name
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 200 or "/" in name or "#" in name:
        raise DefinitionError(
            f"a planned step's name is 1 to 200 printable characters without '/' and '#', not {name!r}"
        )
    for parameter, source in (bind or {}).items():
        if not isinstance(source, Source):
            raise DefinitionError(
                f"{name!r}: bind[{parameter!r}] is {source!r}; use Input(name, …), Result(step, …) or Value(v)"
            )
    names = tuple(other if isinstance(other, str) else other.name for other in after)
    return Planned(declared, name, dict(bind or {}), names)


def _source(step: str, parameter: str, source: Source) -> list[Any]:
    if source.transform is not None:
        raise DefinitionError(
            f"{step!r}: bind[{parameter!r}] has a transform, and a function cannot be kept in a journal; compute the "
            "value and give Value(…)"
        )
    if isinstance(source, Value):
        return ["value", bytes(token_bytes(encode_token(source.value)))]
    if isinstance(source, Result):
        return ["result", source.step, *source.path]
    assert isinstance(source, Input)
    return ["input", source.name, *source.path]
