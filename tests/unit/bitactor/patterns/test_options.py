"""Every option of every pattern is understood or refused by name, when it is declared."""

from __future__ import annotations

from typing import Any

import pytest

import bitactor.patterns
from bitactor import Backoff, DefinitionError, Fail, Halt, Retry, RunError, UnknownArgument
from bitactor.patterns import (
    Batching,
    Bulkhead,
    Cache,
    CircuitBreaker,
    CircuitOpen,
    ErrorHandler,
    Fallback,
    Policy,
    RateLimit,
    RateLimited,
    Refused,
    RetryPolicy,
    TimedOut,
    Timeout,
)
from bitactor.testing import FakeClock


async def handle(items: list[Any]) -> list[Any]:
    return items


def wrong_shape(first: int, /) -> None: ...


GOOD: dict[type[Policy], dict[str, Any]] = {
    RateLimit: {"name": "x", "per_second": 1},
    CircuitBreaker: {"name": "x"},
    RetryPolicy: {"name": "x"},
    Timeout: {"name": "x", "seconds": 1.0},
    Fallback: {"name": "x", "fallback": None},
    ErrorHandler: {"name": "x", "handle": "log"},
    Batching: {"name": "x", "size": 2, "interval": 1.0, "handler": handle},
    Cache: {"name": "x", "key": "{a}"},
    Bulkhead: {"name": "x", "concurrent": 1},
}
NO_COUNT = (0, -1, 1.5, True, "1")
NO_SECONDS = (0, -1.0, float("nan"), float("inf"), True, "1", 1e12)
NO_ERRORS = (None, "ValueError", ValueError("x"), BaseException, (ValueError, int), ())

WRONG = [
    *((kind, {"name": name}, "name") for kind in GOOD for name in ("", "a\nb", 3, None, "x" * 201)),
    *((RateLimit, {"per_second": value}, "per_second") for value in (0, -1, "5", True, float("nan"), 1e10)),
    (RateLimit, {"per_second": None}, "per_second=None, rate=None"),
    (RateLimit, {"rate": 5}, "per_second=1, rate=5"),
    (RateLimit, {"per": 5.0}, "per=5.0; it belongs to rate="),
    *((RateLimit, {"per_second": None, "rate": 5, "per": value}, "per=") for value in (0, -1.0, "1")),
    *((RateLimit, {"per_second": None, "rate": value}, "rate=") for value in (0, "1", False)),
    *((RateLimit, {"burst": value}, "burst") for value in NO_COUNT),
    *((RateLimit, {"max_wait": value}, "max_wait") for value in (-1, "1", float("inf"))),
    *(
        (CircuitBreaker, {option: value}, option)
        for option in ("failures", "probes", "successes")
        for value in NO_COUNT
    ),
    *((CircuitBreaker, {"open_for": value}, "open_for") for value in NO_SECONDS),
    *((CircuitBreaker, {"failure_rate": value, "window": 10.0}, "failure_rate") for value in (0, 1.1, -0.5, "1", True)),
    (CircuitBreaker, {"failure_rate": 0.5}, "give window= too"),
    (CircuitBreaker, {"window": 10.0}, "window=10.0; it belongs to failure_rate="),
    (CircuitBreaker, {"minimum": 10}, "minimum=10; it belongs to failure_rate="),
    (CircuitBreaker, {"failures": 3, "failure_rate": 0.5, "window": 1.0}, "failures=3, failure_rate=0.5"),
    *((CircuitBreaker, {"counts": value}, "counts") for value in NO_ERRORS),
    *((CircuitBreaker, {"ignores": value}, "ignores") for value in NO_ERRORS[:-1]),
    (CircuitBreaker, {"counts": (Halt,)}, "Halt is what a step decides"),
    *((RetryPolicy, {"attempts": value}, "attempts") for value in (*NO_COUNT, 1)),
    *((RetryPolicy, {"backoff": value}, "backoff") for value in (None, 1.0, lambda: 1)),
    *((RetryPolicy, {"max_wait": value}, "max_wait") for value in (-1, None, "1")),
    *((kind, {"on": value}, "on=") for kind in (RetryPolicy, Fallback, ErrorHandler) for value in NO_ERRORS),
    *(
        (kind, {"on": (value,)}, value.__name__)
        for kind in (RetryPolicy, Fallback, ErrorHandler)
        for value in (Retry, Fail, Halt)
    ),
    *((Timeout, {"seconds": value}, "seconds") for value in (*NO_SECONDS, None)),
    *((Timeout, {"grace": value}, "grace") for value in (-1, None, "1")),
    *((Timeout, {"fallback": value}, "fallback") for value in (object(), wrong_shape, dict)),
    *((Fallback, {"fallback": value}, "fallback") for value in (object(), [object()], wrong_shape)),
    *((ErrorHandler, {"handle": value}, "handle") for value in (None, 3, "retry", ["log"], wrong_shape)),
    (ErrorHandler, {"handle": "ingore"}, "Did you mean 'ignore'"),
    (ErrorHandler, {"handle": "fallback"}, "'fallback' needs it"),
    (ErrorHandler, {"handle": "fallback", "value": object()}, "value="),
    (ErrorHandler, {"handle": "ignore", "value": 3}, "value=3; it belongs to 'fallback'"),
    (ErrorHandler, {"handle": "log", "level": "loud"}, "level='loud'"),
    (ErrorHandler, {"handle": "ignore", "level": "error"}, "it belongs to 'log'"),
    *((Batching, {"size": value}, "size") for value in NO_COUNT),
    *((Batching, {"interval": value}, "interval") for value in NO_SECONDS),
    *((Batching, {"handler": value}, "handler") for value in (None, 3, lambda items: items)),
    *((Cache, {"ttl": value}, "ttl") for value in NO_SECONDS),
    *((Cache, {"max_entries": value}, "max_entries") for value in NO_COUNT),
    *((Cache, {"coalesce": value}, "coalesce") for value in (None, 1, "yes")),
    *((Cache, {"key": value}, "key=") for value in (None, 3, "", "user", "{}", "{0}", "{a", "a}", "{a!}", wrong_shape)),
    *((Bulkhead, {"concurrent": value}, "concurrent") for value in NO_COUNT),
    *((Bulkhead, {"queue": value}, "queue") for value in (-1, 1.5, True, None)),
    *((Bulkhead, {"queue": 1, "max_wait": value}, "max_wait") for value in NO_SECONDS),
    (Bulkhead, {"max_wait": 1.0}, "nobody waits with queue=0"),
]  # fmt: skip


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_the_least_that_can_be_said_is_enough(kind: type[Policy]) -> None:
    policy = kind(**GOOD[kind])
    assert policy.key == (kind.pattern, "x")
    assert policy.open(FakeClock()).about()


def test_patterns_are_called_differently() -> None:
    assert len({kind.pattern for kind in GOOD}) == len(GOOD)
    every = {value for name in bitactor.patterns.__all__ if isinstance(value := getattr(bitactor.patterns, name), type)}
    assert {kind for kind in every if issubclass(kind, Policy)} == {Policy, *GOOD}


@pytest.mark.parametrize(("kind", "options", "named"), WRONG)
def test_what_an_option_cannot_be_is_refused_by_name(kind: type[Policy], options: dict[str, Any], named: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        kind(**(GOOD[kind] | options))
    assert named in str(caught.value) and kind.__name__ in str(caught.value)


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_policies_compare_by_what_they_were_declared_with(kind: type[Policy]) -> None:
    assert kind(**GOOD[kind]) == kind(**GOOD[kind])
    assert hash(kind(**GOOD[kind])) == hash(kind(**GOOD[kind]))
    assert kind(**GOOD[kind]) != kind(**(GOOD[kind] | {"name": "y"}))
    with pytest.raises(AttributeError):
        kind(**GOOD[kind]).name = "z"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RateLimit("x", per_second=1), RateLimit("x", per_second=1, burst=2)),
        (CircuitBreaker("x"), CircuitBreaker("x", open_for=1)),
        (RetryPolicy("x"), RetryPolicy("x", backoff=Backoff(cap=3))),
        (Timeout("x", 1), Timeout("x", 1, fallback=None)),
        (Fallback("x", {"a": 1}), Fallback("x", {"a": 2})),
        (ErrorHandler("x", "ignore"), ErrorHandler("x", "log")),
        (Batching("x", 1, 1.0, handle), Batching("x", 2, 1.0, handle)),
        (Cache("x", "{a}"), Cache("x", "{b}")),
        (Bulkhead("x", 1), Bulkhead("x", 1, queue=1)),
    ],
)
def test_another_option_is_another_policy(one: Policy, other: Policy) -> None:
    assert one != other


def test_a_policy_with_a_mutable_value_has_a_hash() -> None:
    assert (
        hash(Fallback("x", {"a": [1]}))
        and hash(Timeout("x", 1, fallback=[]))
        and hash(ErrorHandler("x", "fallback", value=[]))
    )


def test_one_class_or_several_are_the_same_said_twice() -> None:
    assert RetryPolicy("x", on=ValueError) == RetryPolicy("x", on=(ValueError,))


@pytest.mark.parametrize(
    "policy",
    [
        Cache("x", "user:{user_id}"),
        Cache("x", lambda user_id: user_id),
        Fallback("x", lambda user_id: user_id),
        Timeout("x", 1, fallback=lambda user_id, error: user_id),
        ErrorHandler("x", lambda error, user_id: user_id),
    ],
)
def test_an_argument_that_the_step_does_not_take_is_refused_with_the_likely_one(policy: Policy) -> None:
    policy.check(["user_id", "other"])
    with pytest.raises(UnknownArgument, match=r"'user_id' is no argument of the step\. Did you mean 'userid'"):
        policy.check(["userid"])


@pytest.mark.parametrize(
    "policy",
    [
        Fallback("x", lambda elsewhere=1, **rest: elsewhere),
        Fallback("x", lambda error: error),
        Fallback("x", {"any": "value"}),
        ErrorHandler("x", "log"),
        Cache("x", "{userid.name[0]!r:>10}"),
    ],
)
def test_what_need_not_be_there_is_not_asked_for(policy: Policy) -> None:
    policy.check(["userid"])


def test_errors_are_made_of_their_arguments() -> None:
    for error in (RateLimited("late", 2.5), CircuitOpen("open", 3.0), Refused("no"), TimedOut("slow")):
        again = type(error)(*error.args)
        assert (str(again), getattr(again, "retry_after", None)) == (str(error), getattr(error, "retry_after", None))
        assert isinstance(error, RunError)
    assert isinstance(TimedOut("slow"), TimeoutError)
