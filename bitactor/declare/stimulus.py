"""`StimulusOptions`: what a caller may say of a transaction beside its workflow and input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypedDict

from bitactor.errors import InvalidInput, InvalidOutcome, suggest
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.duration import duration_rule, is_duration
from bitactor.messages.signal import MAX_TTL
from bitactor.messages.values import exact_number, exact_text, is_text, named_text, shown

MAX_KEY: Final = 255
MAX_GIVEN: Final = 1_000_000_000
"""The largest priority and limit that can be given with a stimulus, so that a journal can hold them."""


class _Options(NamedTuple):
    key: str | None
    ttl: int | None
    deadline: float | None
    metadata: Mapping[str, Any] | None
    traceparent: str | None
    max_concurrency: int | None
    priority: int


class StimulusKeywords(TypedDict, total=False):
    """The options of a stimulus as keywords."""

    key: str | None
    ttl: int | None
    deadline: float | None
    metadata: Mapping[str, Any] | None
    traceparent: str | None
    max_concurrency: int | None
    priority: int


def refuse_unknown(call: str, options: Mapping[str, object]) -> None:
    """Raise `TypeError` for keywords that are no options of a stimulus, saying what may have been meant."""
    for name in options:
        if name in _RULES:
            continue
        near = suggest(name, _RULES)
        hint = f".{near}" if near.startswith(" Did you") else f"; an input is one mapping: {{{name!r}: …}}"
        if name == "timeout":
            hint = "; `result` and `run` wait for a timeout=…, deadline=… is how long the transaction may take"
        raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{hint}")


class StimulusOptions(_Options):
    """The options of one stimulus, whichever way it came in; `Mesh.stimulate` says what each means.

    Raises:
        InvalidInput: names the first option that is wrong; `fields` has all of them.
    """

    __slots__ = ()

    def __new__(
        cls,
        key: str | None = None,
        ttl: int | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        max_concurrency: int | None = None,
        priority: int = 0,
    ) -> StimulusOptions:
        unbound = key is None and ttl is None and deadline is None and max_concurrency is None
        if unbound and metadata is None and traceparent is None and priority is _ORDINARY:
            return _NOTHING  # as most say
        given = _Options(*map(_exact, (key, ttl, deadline, metadata, traceparent, max_concurrency, priority)))
        wrong = [
            (name, rule)
            for (name, (right, rule)), value in zip(_RULES.items(), given, strict=True)
            if (value is not None or name == "priority") and not _is_right(right, value)
        ]
        if wrong:
            name, rule = wrong[0]
            raise InvalidInput(f"{name}={shown(getattr(given, name))}; {rule}", wrong)
        if given.metadata is not None:
            given = given._replace(metadata=_plain_metadata(given.metadata))
        if given.max_concurrency is not None:
            given = given._replace(max_concurrency=min(given.max_concurrency, MAX_GIVEN))
        return cls._make(given)

    @staticmethod
    def of(given: Mapping[str, Any]) -> StimulusOptions:
        """Options that another process gives, whatever its version.

        Raises:
            InvalidInput: an option is wrong, or not known here.
        """
        for name in given:
            if name not in _RULES:
                raise InvalidInput(f"a stimulus has no option {name!r} here.{suggest(str(name), _RULES)}")
        return StimulusOptions(**given)

    def given(self) -> dict[str, Any]:
        """The options that were given, as plain data."""
        return {
            name: value for name, value in self._asdict().items() if value is not None and (value or name != "priority")
        }

    def record(self) -> dict[str, Any]:
        """What the journal keeps of the options as they are."""
        if self is _NOTHING:
            return {}
        return {name: value for name in _RECORDED if (value := getattr(self, name))}


def encoded(what: str, value: Any, *, field: str = "") -> Any:
    """The token of something a caller gives.

    Raises:
        InvalidInput: it cannot be carried; `field` is what to call it among `fields`.
    """
    try:
        return encode_token(value)
    except InvalidOutcome as error:
        raise InvalidInput(f"{what}: {error}", [(field, str(error))] if field else ()) from error


def _exact(given: Any) -> Any:
    """A text or number itself, for what a subclass makes of comparing would be done for every transaction."""
    if issubclass(type(given), str):
        return exact_text(given)
    number = None if type(given) is bool else exact_number(given)
    return given if number is None else number


def _is_right(right: Callable[[Any], bool], value: Any) -> bool:
    try:
        return right(value)
    except BaseException:  # of a user's object
        return False


def _plain_metadata(given: Mapping[str, Any]) -> Any:
    try:
        items = dict(given)
    except BaseException as error:  # of a user's mapping
        raise InvalidInput(f"metadata: {named_text(error)}", [("metadata", named_text(error))]) from error
    plain = decode_token(encoded("metadata", items, field="metadata"))
    odd = next(_odd_keys(plain), None)
    if odd is not None:
        text = f"{shown(odd)} is the key of a mapping in it; journals take strings, numbers, bytes and None as keys"
        raise InvalidInput(f"metadata: {text}", [("metadata", text)])
    return plain


def _odd_keys(value: Any) -> Iterator[Any]:
    """Keys of mappings in plain data that would not be keys any more where they are read."""
    if type(value) is dict:
        yield from (key for key in value if type(key) not in (str, int, float, bool, bytes, type(None)))
        for part in value.values():
            yield from _odd_keys(part)
    elif type(value) in (list, tuple, set, frozenset):
        for part in value:
            yield from _odd_keys(part)


def _is_whole(given: object, least: int, most: float) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and least <= given <= most


_ORDINARY: Final = 0
_NOTHING: Final = StimulusOptions._make((None, None, None, None, None, None, _ORDINARY))
_RECORDED: Final = ("metadata", "traceparent", "max_concurrency", "priority")
# Option → whether a value that was given is right, and what it has to be.
_RULES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "key": (
        lambda given: is_text(given) and 1 <= len(given) <= MAX_KEY,
        f"an idempotency key is a string of 1 to {MAX_KEY} characters, none of them a lone surrogate",
    ),
    "ttl": (lambda given: _is_whole(given, 0, MAX_TTL), f"a hop budget is a whole number from 0 to {MAX_TTL:,}"),
    "deadline": (
        is_duration,
        f"a deadline is {duration_rule()}",
    ),
    "metadata": (
        lambda given: issubclass(type(given), Mapping) and all(issubclass(type(name), str) for name in given),
        "metadata are plain data by name: a mapping whose keys are strings",
    ),
    "traceparent": (is_text, "a trace context is a string, without lone surrogates"),
    "max_concurrency": (
        lambda given: _is_whole(given, 1, float("inf")),
        "how many hops may run at once is a whole number, at least 1",
    ),
    "priority": (
        lambda given: _is_whole(given, -MAX_GIVEN, MAX_GIVEN),
        f"a whole number from -{MAX_GIVEN:,} to {MAX_GIVEN:,}, the highest goes first",
    ),
}
