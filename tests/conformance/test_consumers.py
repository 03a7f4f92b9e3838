"""A consumer that asks for a value of a type gets it, whichever store and process it is in."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import uuid
import zoneinfo
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

import pytest
from pydantic import BaseModel, Field, SecretStr, model_validator

from bitactor import Consumer, Context, Signal, Workflow, consumer
from bitactor.errors import DefinitionError, InvalidInput
from bitactor.testing import run_workflow
from mesh import Mesh
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.e2e.support import BOUND

SECTION = "Values"
PASSWORD = "correct horse battery"


@dataclasses.dataclass(frozen=True)
class Line:
    item: str
    price: Decimal


class Order(BaseModel):
    """Its validator is no fixpoint, and a field is not in its plain data."""

    number: uuid.UUID
    at: dt.datetime
    password: SecretStr
    lines: frozenset[Line] = frozenset()
    hidden: str = Field("", exclude=True)
    validated: int = 0

    @model_validator(mode="after")
    def _counts(self) -> Self:
        self.validated += 1
        return self


ORDER = Order(
    number=uuid.UUID(int=5),
    at=dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    password=SecretStr(PASSWORD),
    lines=frozenset({Line("lamp", Decimal("1.50"))}),
    hidden="kept",
)


class Came(list[tuple[str, Any]]):
    """Who got what; `whole` is set once there are so many."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.whole, self._wanted = asyncio.Event(), wanted

    def add(self, who: str, value: Any) -> None:
        self.append((who, value))
        if len(self) >= self._wanted:
            self.whole.set()

    async def wait(self) -> dict[str, Any]:
        async with asyncio.timeout(BOUND):
            await self.whole.wait()
        return dict(self)


def emitting(name: str, value: Any) -> Workflow[Any]:
    workflow = Workflow(name, deadline=BOUND)

    @workflow.step
    async def tells(ctx: Context) -> None:
        await ctx.emit("order", value)

    return workflow


def consumers(came: Came) -> list[Consumer]:
    @consumer("order")
    async def model(order: Order, ctx: Context) -> None:
        came.add("model", (order, bool(ctx.transaction)))

    @consumer("order")
    async def named_signal(signal: Order | None) -> None:
        came.add("named signal", signal)

    @consumer("order")
    async def plain(value: dict[str, Any]) -> None:
        came.add("plain", value["hidden"] if "hidden" in value else value["number"])

    @consumer("order")
    async def annotated(given: Annotated[Signal, "it"] | None) -> None:
        came.add("annotated", type(given))

    @consumer("order")
    async def unannotated(given) -> None:  # type: ignore[no-untyped-def]
        came.add("unannotated", type(given))

    @consumer("order")
    async def signal_of(signal: Signal[Order]) -> None:  # type: ignore[type-arg]
        came.add("signal of", (signal.name, signal.token))

    return [model, named_signal, plain, annotated, unannotated, signal_of]


@claim(
    SECTION,
    "A consumer whose parameter is annotated with a type gets the emitted value, an object as it was, plain data "
    "validated; one annotated with `Signal`, or not at all, the signal, and with `Signal[Order]` one of such a value.",
)
async def test_a_consumer_of_typed_values(store: str) -> None:
    came = Came(6)
    async with Mesh(emitting("tells", ORDER), *consumers(came), store=store) as mesh:
        await (await mesh.stimulate("tells")).result(BOUND)
        got = await came.wait()
    assert got == {
        "model": (ORDER, True), "named signal": ORDER, "plain": ORDER.number, "annotated": Signal,
        "unannotated": Signal, "signal of": ("order", ORDER),
    }  # fmt: skip
    made, _ = got["model"]
    assert (made.hidden, made.validated, made.at.fold, str(made.at.tzinfo)) == ("kept", 1, 1, "Europe/Berlin")


@claim(
    SECTION, "What does not fit a consumer's annotation is its `InvalidInput`; one that nothing can make is refused."
)
async def test_a_consumer_of_something_else() -> None:
    @consumer("order")
    def takes(order: Order) -> str:
        return order.password.get_secret_value()

    run = run_workflow(takes, {"number": "x"})
    assert run.status == "compensated" and isinstance(run.errors[0], InvalidInput)
    assert "argument 'order' of order, from input.signal" in str(run.errors[0])
    given = {"number": ORDER.number, "at": "2026-01-01", "password": PASSWORD}
    assert run_workflow(takes, given).result == PASSWORD == run_workflow(takes, ORDER).result

    @consumer("order")
    def tells(signal: Signal[Order]) -> str:  # type: ignore[type-arg]
        return signal.token.hidden

    assert run_workflow(tells, given).result == "" and run_workflow(tells, ORDER).result == "kept"
    for annotation in (bytearray, "Nowhere"):

        async def wrong(value: Any) -> None: ...

        wrong.__annotations__["value"] = annotation
        with pytest.raises(DefinitionError, match=r"consumer 'wrong@order', parameter 'value': .*(bytearray|Nowhere)"):
            consumer("order")(wrong)


@claim(SECTION, "Services with a store each pass objects to each other by signals, as they were.")
async def test_two_services_with_a_store_each(tmp_path: Path) -> None:
    registry = f"ipc://{tmp_path}/registry"
    came, back = Came(1), Came(1)

    @consumer("order")
    async def ship(order: Order, ctx: Context) -> Order:
        came.add("ship", order)
        await ctx.emit("shipped", order)
        return order

    @consumer("shipped")
    async def shipped(order: Order) -> None:
        back.add("shipped", order)

    stores = [f"sqlite:///{tmp_path}/{name}.db" for name in ("shop", "mailer")]
    with RegistryServer(registry):
        async with (
            Mesh(emitting("shop", ORDER), shipped, registry=registry, store=stores[0]) as shop,
            Mesh(ship, registry=registry, store=stores[1]) as mailer,
        ):
            await (await shop.stimulate("shop")).result(BOUND)
            for got in ((await came.wait())["ship"], (await back.wait())["shipped"]):
                assert got == ORDER and (got.hidden, got.validated) == ("kept", 1)
                assert (got.at.fold, str(got.at.tzinfo)) == (1, "Europe/Berlin")
                assert got.password.get_secret_value() == PASSWORD and got.lines == ORDER.lines
            rows = [await mesh.transactions() for mesh in (shop, mailer)]
    assert [sorted(row.workflow for row in found) for found in rows] == [["shipped@shipped", "shop"], ["ship@order"]]
    assert PASSWORD not in str(rows)
