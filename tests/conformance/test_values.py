"""What is passed on is what it was, and the same request is the same request."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress
import logging
import re
import time
import uuid
import zoneinfo
from base64 import b64decode
from collections import deque
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    PrivateAttr,
    SecretBytes,
    SecretStr,
    computed_field,
    field_validator,
    model_validator,
)  # fmt: skip

from bitactor import Context, Value, Workflow
from bitactor.errors import DuplicateTransaction, InvalidOutcome
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.ingress.render import as_json, pulses_as_plain
from mesh.sinks.jsonl import JsonlSink
from mesh.sinks.otel.sink import OtelSink
from mesh.sinks.plain import plain_pulse
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, finished, passes, result_of
from tests.e2e.support import BOUND

PASSWORD = "correct horse battery"


class Colour(enum.Enum):
    RED = ("r", 1)


class Place(NamedTuple):
    x: int
    name: str = "here"


HERE = Place(1)


class Base(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    value: int = Field(alias="Value")
    hidden: str = Field("", exclude=True)
    _own: int = PrivateAttr(0)

    @field_validator("value")
    @classmethod
    def _doubles(cls, value: int) -> int:
        return 2 * value

    def with_own(self, own: int) -> Self:
        """The same, with another private value."""
        self._own = own
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.value


class Derived(Base):
    colours: tuple[Colour, ...] = ()


@dataclasses.dataclass
class Initialised:
    value: int
    factor: dataclasses.InitVar[int] = 3
    place: Place = HERE

    def __post_init__(self, factor: int) -> None:
        self.value *= factor


def derived() -> Derived:
    return Derived(Value=4, hidden="shade", colours=(Colour.RED,)).with_own(7)


class Counted(BaseModel):
    """Its validators would count it on."""

    count: int

    @model_validator(mode="after")
    def _counts(self) -> Self:
        self.count += 1
        return self


class Places(enum.Enum):
    FIRST = Counted(count=1)


OBJECTS: dict[str, tuple[Any, Any]] = {
    "a model whose validator counts": (Counted, Counted(count=1)),
    "models whose validators count": (dict[str, list[Counted | None]], {"a": [Counted(count=1), None]}),
    "an enum of models": (Places, Places.FIRST),
    "a number that is none": (list[Decimal], [Decimal("Infinity"), Decimal(1)]),
    "a model's subclass": (Base, derived()),
    "models in a list": (list[Base], [derived(), Base(Value=1)]),
    "a dataclass with a named tuple": (Initialised, Initialised(2)),
    "an enum whose value is a tuple": (Colour, Colour.RED),
    "objects in a mapping": (dict[str, Base | Initialised], {"a": derived(), "b": Initialised(1)}),
}


@claim(
    "Values",
    "An object comes to a parameter that names its class as it was: of a subclass, with excluded, private and aliased "
    "fields, and no validator or `__post_init__` runs again.",
)
@pytest.mark.parametrize("name", OBJECTS)
async def test_objects(name: str, store: str) -> None:
    annotation, value = OBJECTS[name]
    workflow, came = passes(annotation, value)
    await result_of(workflow, store=store)
    assert run_workflow(workflow).status == "completed"
    assert came == [value, value] and repr(came) == repr([value, value])


@claim("Values", "To a parameter that names no class an object is plain data.")
async def test_plain_data() -> None:
    workflow, came = passes(Any, {"model": Derived(Value=1), "enum": Colour.RED, "place": Place(1)})
    await result_of(workflow)
    assert came == [
        {"model": {"value": 2, "twice": 4, "colours": []}, "enum": ["r", 1], "place": [1, "here"]},
    ]


MOMENTS = [
    dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    dt.datetime(2026, 10, 24, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    dt.time(8, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    dt.datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001
]


@claim("Values", "A datetime and a time keep their zone, by its name, and their fold.")
async def test_moments(store: str) -> None:
    workflow, came = passes(Any, MOMENTS)
    await result_of(workflow, store=store)
    assert came == [MOMENTS]
    assert [(str(moment.tzinfo), moment.fold) for moment in came[0]] == [
        (str(moment.tzinfo), moment.fold) for moment in MOMENTS
    ]
    assert (came[0][1] + dt.timedelta(days=1)).utcoffset() == dt.timedelta(hours=1)


@claim("Values", "URLs, IP addresses, patterns, deques, complex numbers and ranges come back for every reader.")
async def test_values_of_the_library(store: str) -> None:
    values = [
        HttpUrl("https://example.org/a"), ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8"),
        re.compile("a+", re.I), deque([1, 2], maxlen=2), 1 + 2j, range(1, 9, 3), uuid.UUID(int=5), 10**30,
    ]  # fmt: skip
    workflow, came = passes(list[Any], values)
    await result_of(workflow, store=store)
    assert came == [values] and came[0][4].maxlen == 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: int


@claim("Values", "What could not be read back fails the step that made it, and its type is named.")
@pytest.mark.parametrize("value", [{Frozen(1): 2}, {"a": [{Base(Value=1).twice: object()}]}, "\udcff", {1: float}])
async def test_what_cannot_be_read_back(value: Any, store: str) -> None:
    workflow, came = passes(Any, value)
    async with finished(workflow, store=store) as transaction:
        failure = await failure_of(transaction)
    assert (failure.step, came) == ("passes/made", [])
    [error] = failure.errors
    assert isinstance(error, InvalidOutcome) and type(value).__name__ in str(error)


class Login(BaseModel):
    user: str
    password: SecretStr


def logs_in() -> Workflow[Any]:
    workflow = Workflow("logs-in", input=Login)

    @workflow.step
    async def session(password: SecretStr) -> dict[str, Any]:
        assert password.get_secret_value() == PASSWORD
        logging.getLogger("test").warning("with %s", password)
        return {"key": SecretBytes(PASSWORD.encode()), "login": Login(user="ada", password=password)}

    @workflow.step
    async def used(session: dict[str, Any], password: SecretStr) -> Any:
        assert session["key"].get_secret_value().decode() == PASSWORD == password.get_secret_value()
        return session

    @workflow.step
    async def listed(password: SecretStr) -> list[Any]:
        return [password]

    workflow.map(lambda element: element, over="listed", name="each")
    workflow.map(lambda element: element, over=Value([SecretStr(PASSWORD)]), name="constants")

    @workflow.step(after=["each", "constants"])
    async def fails(used: dict[str, Any], ctx: Context) -> None:
        ctx.emit_later("told", used)
        raise LookupError("wrong", used["key"], used)

    return workflow


@claim("Values", "A secret is carried, and masked wherever it is shown: pulses, spans, logs, errors.")
async def test_secrets(store: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    lines = tmp_path / "pulses.jsonl"
    sinks = [OtelSink(exporter=exporter, service_name="secrets"), JsonlSink(lines)]
    async with Mesh(logs_in(), store=store, sinks=sinks) as mesh:
        transaction = await mesh.stimulate("logs-in", {"user": "ada", "password": PASSWORD})
        failure = await failure_of(transaction)
        shown = [plain_pulse(pulse) for pulse in transaction.pulses()]
        over_http = as_json(pulses_as_plain(transaction.pulses()))
        about = transaction.about()
        kept = transaction.pulses(), transaction.raw_pulses(), transaction.faults(), transaction
        assert "with a secret" in str(kept)
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) >= 4 and "**********" in str(shown)
    for text in (shown, about, *kept, failure, failure.errors, caplog.text, spans):
        assert PASSWORD not in str(text)
    for found in re.findall(rb"[A-Za-z0-9+/_-]{20,}", lines.read_bytes() + over_http):
        if len(found) % 4 != 1:  # else it is no base64
            padded = found.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(found) % 4)
            assert PASSWORD.encode() not in b64decode(padded)


class Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    amount: float
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    at: float = Field(default_factory=time.time)
    tags: set[str] = Field(default_factory=set)
    nested: dict[str, Any] = Field(default_factory=dict)


def takes_requests() -> Workflow[Any]:
    workflow = Workflow("takes-requests", input=Request)

    @workflow.step
    async def took(amount: float) -> float:
        return amount

    return workflow


SENT: Any = {"amount": 1, "tags": ["a", "b"], "nested": {"x": 1, "y": [1, 2]}}
AGAIN: Any = [
    SENT,
    {"nested": {"y": [1.0, 2.0], "x": 1.0}, "tags": ["a", "b"], "amount": 1.0},
    {"nested": {"y": (1, 2), "x": 1}, "tags": ("a", "b"), "amount": 1},
    Request(**SENT),
]


@claim(
    "Values",
    "A key's request is the same however it was written: whatever defaults made of it, in any order of mappings and "
    "sets, `1` or `1.0`, a model or a mapping; another input is refused.",
)
async def test_the_same_request(store: str) -> None:
    async with Mesh(takes_requests(), store=store) as mesh:
        for key, tags in (("list", ["a", "b"]), ("set", {"a", "b"})):
            first = await mesh.stimulate("takes-requests", SENT | {"tags": tags}, key=key)
            for again in AGAIN[:3]:
                again = again | {"tags": tags}
                assert (await mesh.stimulate("takes-requests", again, key=key)).id == first.id
            with pytest.raises(DuplicateTransaction):
                await mesh.stimulate("takes-requests", SENT | {"amount": 2}, key=key)
        first = await mesh.stimulate("takes-requests", Request(**SENT), key="model")
        assert (await mesh.stimulate("takes-requests", Request(**SENT), key="model")).id == first.id
        await first.result(BOUND)


@claim("Values", "What is sent but can be read only once is the same request by its validated input.")
async def test_a_request_that_can_be_read_once(store: str) -> None:
    workflow = Workflow("reads", input={"items": list[int]})
    workflow.add(lambda items: sum(items), name="total")
    async with Mesh(workflow, store=store) as mesh:
        first = await mesh.stimulate(workflow, {"items": (n for n in range(3))}, key="k")
        assert (await mesh.stimulate(workflow, {"items": (n for n in range(3))}, key="k")).id == first.id
        assert await first.result(BOUND) == 3
        with pytest.raises(DuplicateTransaction):
            await mesh.stimulate(workflow, {"items": (n for n in range(4))}, key="k")


class Credentials(BaseModel):
    token: SecretStr
    url: HttpUrl
    counts: dict[str, int] = Field(default_factory=dict)


@claim("Values", "Two inputs that the input model makes the same of are the same request, secrets and URLs included.")
async def test_the_same_input(store: str) -> None:
    workflow = Workflow("credentials", input=Credentials)
    workflow.add(lambda token: None, name="taken")
    given = {"token": PASSWORD, "url": "https://example.org", "counts": {"a": 1, "b": 2}}
    async with Mesh(workflow, store=store) as mesh:
        first = await mesh.stimulate(workflow, given, key="k")
        for again in (
            Credentials.model_validate(given),
            given | {"url": "https://example.org/"},
            given | {"counts": {"b": "2", "a": 1}},
        ):
            assert (await mesh.stimulate(workflow, again, key="k")).id == first.id
        with pytest.raises(DuplicateTransaction) as refused:
            await mesh.stimulate(workflow, given | {"token": "another"}, key="k")
        assert len(over_http := as_json(pulses_as_plain(first.pulses()))) > 100 and PASSWORD.encode() not in over_http
        assert PASSWORD not in str(refused.value)


@claim("Values", "With a key whatever can be carried is accepted, however deep.")
async def test_a_key_takes_whatever_can_be_carried() -> None:
    workflow = Workflow("deep", input={"value": object})
    workflow.add(lambda value: None, name="taken")
    deep: Any = 1
    for _ in range(63):
        deep = [deep]
    async with Mesh(workflow) as mesh:
        first = await mesh.stimulate(workflow, {"value": deep}, key="k")
        assert (await mesh.stimulate(workflow, {"value": deep}, key="k")).id == first.id
