"""Cache aside: the value of a call is kept for a while, and answers later calls with the same key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, ClassVar, Final, NamedTuple

from typing_extensions import override

from bitactor.declare.answer import plain_answer
from bitactor.declare.functions import may_need_awaiting
from bitactor.declare.policy import Call, Policy, PolicyState, Proceed, is_verdict
from bitactor.errors import DefinitionError, UnknownArgument, suggest
from bitactor.messages.classes import Kept
from bitactor.messages.duration import nanoseconds
from bitactor.messages.outcome import Ok, Outcome
from bitactor.messages.values import exact_text, shown
from bitactor.patterns.options import check_count, check_flag, check_name, check_seconds
from bitactor.patterns.substitute import UserFunction
from bitactor.patterns.tasks import TaskResult
from bitactor.ports import Clock

DEFAULT_TTL: Final = 300.0
DEFAULT_MAX_ENTRIES: Final = 1_000


@dataclass(frozen=True, init=False)
class Cache(Policy):
    """Keeps the values of calls in memory.

        Cache("users", key="user:{user_id}", ttl=60.0)
        Cache("search", key=lambda query, page: (query.lower(), page), max_entries=10_000, coalesce=True)

    A hit does not run the step's function: what it would have emitted is not emitted.  A kept None is a hit.  Errors,
    `Retry`, `Fail`, `Halt` and further steps are not kept.  Every hit is a value of its own, as if it had come through
    the journal.

    Args:
        key: what the calls that share a value have in common: a template over the step's arguments, as for `str.format`
            (fields are told apart, so `"{a}:{b}"` does not mistake `1:2, 3` for `1, 2:3`), or a function of arguments,
            by name, that returns something hashable.
        ttl: seconds for which a value is kept.
        max_entries: values kept at most; the one that was not asked for the longest goes first.
        coalesce: calls for a key that is just being asked for wait for that answer, or for its error, instead of asking
            too; if it is cancelled or decides otherwise, the next asks.

    Raises:
        DefinitionError: an option, or the template, is invalid.
    """

    pattern: ClassVar[str] = "cache"
    _kept_as: ClassVar[Mapping[str, str]] = {"key": "keyed_by"}
    """Parameter → the field that keeps it, where that has another name."""
    name: str
    keyed_by: str | Callable[..., Hashable]
    ttl: float
    max_entries: int
    coalesce: bool
    key_of: KeyTemplate | KeyFunction = field(repr=False, compare=False)
    """Makes the key of a call."""

    def __init__(
        self,
        name: str,
        key: str | Callable[..., Hashable],
        *,
        ttl: float = DEFAULT_TTL,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        coalesce: bool = False,
    ) -> None:
        # Written out, because `key` as a field would hide what a policy's state goes by.
        given = {"name": name, "keyed_by": key, "ttl": ttl, "max_entries": max_entries, "coalesce": coalesce}
        for option, value in given.items():
            object.__setattr__(self, option, value)
        check_name(self)
        check_seconds(self, "ttl")
        check_count(self, "max_entries")
        check_flag(self, "coalesce")
        what = f"Cache({name!r}): key={key!r}"
        if isinstance(key, str):
            object.__setattr__(self, "key_of", KeyTemplate(key, what))
        elif callable(key):
            object.__setattr__(self, "key_of", KeyFunction(key, what))
        else:
            raise DefinitionError(f"{what}; give a template such as 'user:{{user_id}}', or a function of arguments")

    @override
    def check(self, takes: Sequence[str]) -> None:
        self.key_of.check(takes)

    @override
    def open(self, clock: Clock) -> CacheState:
        return CacheState(self, clock)


class KeyTemplate:
    """The key of a call as a template over its arguments, formatted as by `str.format`.

    Raises:
        DefinitionError: it is no template, or a field has no name.
    """

    def __init__(self, text: str, what: str) -> None:
        self._what = what
        self._formatter = Formatter()
        try:
            parts = list(self._formatter.parse(text))
        except ValueError as error:
            raise DefinitionError(f"{what}: {error}") from None
        self._fields = [(name, conversion, spec or "") for _, name, spec, conversion in parts if name is not None]
        self._text = text
        self._names = [name.partition(".")[0].partition("[")[0] for name, _, _ in self._fields]
        if not self._names:
            raise DefinitionError(
                f"{what} names no argument, so all calls would share one value; write 'user:{{user_id}}', say"
            )
        if not all(name.isidentifier() for name in self._names):
            raise DefinitionError(f"{what}: every field names an argument, as '{{user_id}}' does")

    def check(self, takes: Sequence[str] | Mapping[str, Any]) -> None:
        """Refuse a field that names no argument.

        Raises:
            UnknownArgument: with the field's name and the likely one.
        """
        for name in self._names:
            if name not in takes:
                raise UnknownArgument(f"{self._what}: {name!r} is no argument of the step.{suggest(name, takes)}")

    def __call__(self, arguments: Mapping[str, Any]) -> Hashable:
        """The key of a call with these arguments."""
        self.check(arguments)
        made = [self._text]
        for name, conversion, spec in self._fields:
            value, _ = self._formatter.get_field(name, (), arguments)
            if conversion:
                value = self._formatter.convert_field(value, conversion)  # type: ignore[arg-type, unused-ignore]
            made.append(exact_text(format(value, spec)))
        return tuple(made)


class KeyFunction:
    """The key of a call as a user's function of its arguments makes it; the function must not be `async`."""

    def __init__(self, function: Callable[..., Hashable], what: str) -> None:
        if may_need_awaiting(function):
            raise DefinitionError(f"{what}: a key is made at once, and cannot be awaited; make it a plain function")
        self._what = what
        self._function = UserFunction(function, what)
        self.check = self._function.check

    def __call__(self, arguments: Mapping[str, Any]) -> Hashable:
        """The key of a call with these arguments."""
        key = plain_answer(self._what, self._function.call(arguments))
        try:
            return _Key(key, hash(key))
        except TypeError:
            raise DefinitionError(
                f"{self._what} returned {shown(key)}, which cannot be a key; return a string or a tuple of plain values"
            ) from None


class _Key:
    """What a user's function made of a call, as a key beside those of other calls: one that cannot be compared is like
    no other, and troubles none."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Any, number: int) -> None:
        self._value = value
        self._hash = number

    @override
    def __hash__(self) -> int:
        return self._hash

    @override
    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, _Key) and bool(self._value == other._value)
        except BaseException:
            return False


class _Entry(NamedTuple):
    value: Kept
    expires_ns: int


class CacheState(PolicyState):
    """The kept values, in the order in which they were last asked for."""

    def __init__(self, policy: Cache, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._ttl_ns = nanoseconds(policy.ttl)
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        # The call for a key ended with a value, or by an error, for those that waited too; with None: the next asks.
        self._loading: dict[Hashable, asyncio.Future[TaskResult | None]] = {}
        self._hits = self._misses = self._coalesced = self._expired = self._evicted = self._waiting = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """The kept value of the key, decoded afresh, if it has not expired; else what `proceed` answers, which is kept.

        Raises:
            UnknownArgument: the key names an argument that the step does not take.
            InvalidOutcome, SignalTooLarge: the value cannot be carried; as without a cache.
        """
        key = self._policy.key_of(call.arguments)
        while True:
            entry = self._find(key)
            if entry is not None:
                self._hits += 1
                return entry.value()
            if not self._policy.coalesce:
                self._misses += 1
                return await self._load(key, proceed)
            if key not in self._loading:
                self._misses += 1
                return await self._load_shared(key, proceed)
            shared = await self._wait(key)
            if shared is not None:
                self._coalesced += 1
                return shared.get()()

    @override
    def about(self) -> Mapping[str, Any]:
        return {
            "entries": len(self._entries),
            "hits": self._hits,
            "misses": self._misses,
            "coalesced": self._coalesced,
            "waiting": self._waiting,
            "expired": self._expired,
            "evicted": self._evicted,
        }

    def _find(self, key: Hashable) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_ns <= self._clock.monotonic_ns():
            del self._entries[key]
            self._expired += 1
            return None
        self._entries.move_to_end(key)
        return entry

    async def _load(self, key: Hashable, proceed: Proceed) -> Any:
        value = await proceed()
        if issubclass(type(value), Ok):
            value = value.value
        if not is_verdict(value):
            self._store(key, Kept(value))
        return value

    def _store(self, key: Hashable, value: Kept) -> None:
        self._entries[key] = _Entry(value, self._clock.monotonic_ns() + self._ttl_ns)
        self._entries.move_to_end(key)
        if len(self._entries) > self._policy.max_entries:
            self._entries.popitem(last=False)
            self._evicted += 1

    async def _load_shared(self, key: Hashable, proceed: Proceed) -> Any:
        loading = self._loading[key] = asyncio.get_running_loop().create_future()
        shared = None
        try:
            value = await self._load(key, proceed)
            entry = self._entries.get(key)
            if entry is not None and not is_verdict(value):
                shared = TaskResult(entry.value, None)
            return value
        except Outcome:
            raise
        except Exception as error:
            shared = TaskResult(None, error)
            raise
        finally:
            del self._loading[key]
            loading.set_result(shared)

    async def _wait(self, key: Hashable) -> TaskResult | None:
        self._waiting += 1
        try:
            return await asyncio.shield(self._loading[key])
        finally:
            self._waiting -= 1
