"""What stands in for an error, and what else may become of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pattern_calls import Bench, Step, turns

from bitactor import Fail, Halt, Retry
from bitactor.patterns import CircuitOpen, ErrorHandler, Fallback


@pytest.mark.parametrize("value", [None, 0, {"price": None}])
async def test_a_value_instead_of_an_error(value: Any) -> None:
    bench = Bench(Fallback("x", value))
    assert await bench.now("fine") == "fine"
    assert await bench.now(ValueError("down")) == value
    assert bench.state.about() == {"calls": 2, "fell_back": 1, "last_error": "ValueError('down')"}


async def test_every_fallback_is_a_value_of_its_own() -> None:
    given = {"tags": []}
    bench = Bench(Fallback("x", given))
    first = await bench.now(ValueError())
    first["tags"].append("mine")
    given["tags"].append("theirs")
    assert await bench.now(ValueError()) == {"tags": []}


async def test_a_function_of_the_error_and_some_arguments() -> None:
    async def cached(item: str, error: Exception, shop: str = "here", **rest: Any) -> Any:
        await asyncio.sleep(0)
        return item, str(error), shop, rest

    bench = Bench(Fallback("x", cached))
    answer = await bench.now(ValueError("down"), {"item": "lamp", "colour": "red"})
    assert answer == ("lamp", "down", "here", {"colour": "red"})


async def test_it_stands_in_only_for_what_it_is_told_to() -> None:
    bench = Bench(Fallback("x", "instead", on=(CircuitOpen, KeyError)))
    assert await bench.now(CircuitOpen("open", 3.0)) == "instead"
    with pytest.raises(ValueError):
        await bench.now(ValueError())
    assert bench["fell_back"] == 1


@pytest.mark.parametrize("policy", [Fallback("x", "instead"), ErrorHandler("x", "ignore")])
@pytest.mark.parametrize("verdict", [Retry(), Fail(), Halt(), SystemExit()])
async def test_what_is_no_error_passes_through(policy: Any, verdict: BaseException) -> None:
    with pytest.raises(type(verdict)):
        await Bench(policy).now(verdict)


@pytest.mark.parametrize("policy", [Fallback("x", "instead"), ErrorHandler("x", "ignore")])
async def test_being_cancelled_passes_through(policy: Any) -> None:
    bench = Bench(policy)
    task = bench.begin(Step())
    await turns()
    task.cancel()
    await turns()
    assert task.cancelled()


async def test_the_errors_of_a_function_are_the_steps() -> None:
    with pytest.raises(ZeroDivisionError):
        await Bench(Fallback("x", lambda: 1 / 0)).now(ValueError())


async def test_log_tells_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(ErrorHandler("x", "log", level="warning"))
    with caplog.at_level(logging.INFO), pytest.raises(ValueError):
        await bench.now(ValueError("down"))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("bitactor.step.shop.price", "WARNING")
    assert record.getMessage() == f"shop/price of {'0190' * 8}, attempt 1: ValueError('down')"
    assert record.exc_info is not None and record.__dict__["step"] == "price"
    assert bench.state.about() == {"calls": 1, "handled": 1, "last_error": "ValueError('down')"}


async def test_log_is_an_error_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError):
        await Bench(ErrorHandler("x", "log")).now(ValueError("down"))
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_ignore_is_none_and_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert await Bench(ErrorHandler("x", "ignore")).now(ValueError("down")) is None
    assert not caplog.records


async def test_fallback_is_the_value() -> None:
    assert await Bench(ErrorHandler("x", "fallback", value={"ok": False})).now(ValueError("down")) == {"ok": False}


async def test_a_function_of_ones_own_decides() -> None:
    def decide(error: Exception, item: str) -> Any:
        if item == "again":
            return Retry(after=1.0)
        if item == "other":
            raise LookupError(item) from error
        return f"no {item}"

    bench = Bench(ErrorHandler("x", decide, on=ValueError))
    assert await bench.now(ValueError(), {"item": "lamp"}) == "no lamp"
    assert isinstance(await bench.now(ValueError(), {"item": "again"}), Retry)
    with pytest.raises(LookupError, match="other"):
        await bench.now(ValueError(), {"item": "other"})
    with pytest.raises(KeyError):
        await bench.now(KeyError(), {"item": "lamp"})
    assert bench["handled"] == 3
