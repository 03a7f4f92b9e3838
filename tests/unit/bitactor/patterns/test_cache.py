"""Cache aside: hits, misses, keys, age, room, and one question for all who ask."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pattern_calls import Bench, Step, call, turns
from pydantic import BaseModel

from bitactor import DefinitionError, Fail, Halt, InvalidOutcome, Ok, Retry, UnknownArgument
from bitactor.declare.then import Then
from bitactor.patterns import Cache
from tests.amounts import examples


class User(BaseModel):
    name: str


class Asked(NamedTuple):
    name: str
    tags: dict[str, int]


async def ask(bench: Bench, outcome: Any, **arguments: Any) -> tuple[Any, bool]:
    """The answer, and whether the step was run for it."""
    ran = []

    async def step() -> Any:
        ran.append(True)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return await bench.state.around(call(arguments), step), bool(ran)


async def test_a_miss_asks_and_a_hit_does_not() -> None:
    bench = Bench(Cache("users", key="user:{user_id}"))
    assert await ask(bench, "Ada", user_id=1) == ("Ada", True)
    assert await ask(bench, "other", user_id=1) == ("Ada", False)
    assert await ask(bench, "Bob", user_id=2) == ("Bob", True)
    about = dict(bench.state.about())
    assert (about["hits"], about["misses"], about["entries"]) == (1, 2, 2)


async def test_a_kept_none_is_a_hit() -> None:
    bench = Bench(Cache("users", key="{a}"))
    assert await ask(bench, None, a=1) == (None, True)
    assert await ask(bench, "other", a=1) == (None, False)


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("error", [ValueError(), Retry(), Fail(), Halt(), SystemExit()])
async def test_errors_are_not_kept(error: BaseException, coalesce: bool) -> None:
    bench = Bench(Cache("users", key="{a}", coalesce=coalesce))
    with pytest.raises(type(error)):
        await ask(bench, error, a=1)
    assert await ask(bench, "fine", a=1) == ("fine", True)


@pytest.mark.parametrize("verdict", [Retry(), Fail(), Halt(), Then("value")])
async def test_what_the_step_decides_is_not_kept(verdict: Any) -> None:
    bench = Bench(Cache("users", key="{a}"))

    async def step() -> Any:
        return verdict

    assert await bench.begin(step, {"a": 1}) is verdict
    assert await ask(bench, "fine", a=1) == ("fine", True)


async def test_ok_is_its_value() -> None:
    bench = Bench(Cache("users", key="{a}"))
    assert await ask(bench, Ok([1]), a=1) == ([1], True)
    assert await ask(bench, "other", a=1) == ([1], False)


async def test_a_value_is_kept_for_its_time() -> None:
    bench = Bench(Cache("users", key="{a}", ttl=60.0))
    await ask(bench, "old", a=1)
    await bench.pass_time(59.9)
    assert await ask(bench, "new", a=1) == ("old", False), "and asking does not make it younger"
    await bench.pass_time(0.1)
    assert await ask(bench, "new", a=1) == ("new", True)
    assert bench["expired"] == 1


async def test_the_one_not_asked_for_the_longest_goes_first() -> None:
    bench = Bench(Cache("users", key="{a}", max_entries=2))
    for a in (1, 2, 1, 3):
        await ask(bench, a, a=a)
    assert bench["entries"] == 2 and bench["evicted"] == 1
    assert await ask(bench, "again", a=1) == (1, False)
    assert await ask(bench, "again", a=3) == (3, False)
    assert await ask(bench, "again", a=2) == ("again", True)


async def test_every_hit_is_a_value_of_its_own() -> None:
    bench = Bench(Cache("users", key="{a}"))
    given_out, _ = await ask(bench, {"tags": []}, a=1)
    given_out["tags"].append("mine")
    first, _ = await ask(bench, None, a=1)
    first["tags"].append("mine too")
    assert await ask(bench, None, a=1) == ({"tags": []}, False)


async def test_a_model_comes_back_as_it_was() -> None:
    bench = Bench(Cache("users", key="{a}"))
    assert (await ask(bench, User(name="Ada"), a=1))[0] == User(name="Ada")
    assert await ask(bench, None, a=1) == (User(name="Ada"), False)


async def test_what_cannot_be_carried_is_said_and_not_kept() -> None:
    bench = Bench(Cache("users", key="{a}"))
    with pytest.raises(InvalidOutcome):
        await ask(bench, object(), a=1)
    assert bench["entries"] == 0


async def test_fields_of_a_template_are_told_apart() -> None:
    bench = Bench(Cache("users", key="{a}:{b}"))
    asked = [("1:2", "3"), ("1", "2:3"), ("12", "3"), ("1", "23")]
    for a, b in asked:
        assert await ask(bench, [a, b], a=a, b=b) == ([a, b], True)
    for a, b in asked:
        assert await ask(bench, None, a=a, b=b) == ([a, b], False)


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        ("{user.name}", {"user": Asked("Ada", {})}),
        ("{user.tags[x]}", {"user": Asked("Ada", {"x": 5})}),
        ("{a!r:>8}/{b:03d}", {"a": "x", "b": 7}),
        ("{{literal}} {a}", {"a": 1}),
    ],
)
async def test_templates_are_those_of_format(template: str, arguments: dict[str, Any]) -> None:
    bench = Bench(Cache("users", key=template))
    assert (await ask(bench, "first", **arguments))[1]
    assert not (await ask(bench, "second", **arguments))[1]


async def test_a_key_may_be_a_function_of_arguments() -> None:
    bench = Bench(Cache("search", key=lambda query, page=1: (query.lower(), page)))
    await ask(bench, "found", query="Lamp", other=5)
    assert await ask(bench, "again", query="LAMP", other=6) == ("found", False)
    assert await ask(bench, "second", query="LAMP", page=2) == ("second", True)


async def test_a_key_that_cannot_be_one_is_refused_when_it_is_used() -> None:
    with pytest.raises(DefinitionError, match=r"Cache\('x'\).* returned \[1\], which cannot be a key"):
        await ask(Bench(Cache("x", key=lambda a: [a])), "value", a=1)
    with pytest.raises(UnknownArgument, match=r"'user_id' is no argument of the step\. Did you mean 'userid'"):
        await ask(Bench(Cache("x", key="{user_id}")), "value", userid=1)
    with pytest.raises(UnknownArgument, match=r"'user_id' is no argument of the step\. Did you mean 'userid'"):
        await ask(Bench(Cache("x", key=lambda user_id: user_id)), "value", userid=1)


async def test_without_coalescing_everybody_asks() -> None:
    bench = Bench(Cache("users", key="{a}"))
    step = Step()
    for _ in range(3):
        bench.begin(step, {"a": 1})
    await turns()
    assert step.begun == 3
    for number in range(3):
        step.end(number)
    assert await asyncio.gather(*bench.tasks) == [0, 1, 2]


async def test_with_coalescing_one_asks_for_all() -> None:
    bench = Bench(Cache("users", key="{a}", coalesce=True))
    step = Step()
    for _ in range(3):
        bench.begin(step, {"a": 1})
    bench.begin(step, {"a": 2})
    await turns()
    assert step.begun == 2 and bench["waiting"] == 2
    step.end([1])
    step.end([2])
    answers = await asyncio.gather(*bench.tasks)
    assert answers == [[1], [1], [1], [2]] and answers[1] is not answers[2]
    assert bench["coalesced"] == 2 and bench["misses"] == 2 and bench["waiting"] == 0


async def test_an_error_is_shared_by_those_who_waited_for_it() -> None:
    bench = Bench(Cache("users", key="{a}", coalesce=True))
    step = Step()
    for _ in range(3):
        bench.begin(step, {"a": 1})
    await turns()
    step.end(ConnectionError("down"))
    await turns()
    assert [repr(task.exception()) for task in bench.tasks] == ["ConnectionError('down')"] * 3
    assert step.begun == 1
    assert await ask(bench, "up", a=1) == ("up", True)


@pytest.mark.parametrize("how", ["cancelled", "decides otherwise", "ends with its loop"])
async def test_if_who_asks_does_not_bring_an_answer_the_next_asks(how: str) -> None:
    bench = Bench(Cache("users", key="{a}", coalesce=True))
    step = Step()
    for _ in range(3):
        bench.begin(step, {"a": 1})
    await turns()
    if how == "cancelled":
        bench.tasks[0].cancel()
    else:
        step.end(Halt("not today") if how == "decides otherwise" else GeneratorExit())
    await turns()
    assert bench.tasks[0].done() and step.begun == 2 and bench["waiting"] == 1
    step.end("answer")
    assert await asyncio.gather(*bench.tasks[1:]) == ["answer", "answer"]
    if not bench.tasks[0].cancelled():
        bench.tasks[0].exception()


async def test_who_waits_and_is_cancelled_disturbs_nobody() -> None:
    bench = Bench(Cache("users", key="{a}", coalesce=True))
    step = Step()
    for _ in range(3):
        bench.begin(step, {"a": 1})
    await turns()
    bench.tasks[1].cancel()
    await turns()
    step.end("answer")
    assert await bench.tasks[0] == await bench.tasks[2] == "answer"
    assert bench.tasks[1].cancelled() and step.cancelled == 0 and bench["waiting"] == 0


@examples(quick=100, long=2_000)
@given(
    ttl=st.integers(1, 20),
    room=st.integers(1, 4),
    asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=40),
)
def test_no_answer_is_older_than_its_time_or_somebody_elses(ttl: int, room: int, asked: list[tuple[int, int]]) -> None:
    async def scenario() -> None:
        bench = Bench(Cache("x", key="{a}", ttl=ttl, max_entries=room))
        now = 0
        for key, passes in asked:
            now += passes
            bench.clock.advance(passes)
            (owner, made), ran = await ask(bench, [key, now], a=key)
            assert owner == key and (made == now if ran else now - made < ttl)
            assert bench["entries"] <= room
        assert bench["hits"] + bench["misses"] == len(asked)

    asyncio.run(scenario())
