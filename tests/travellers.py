"""Values and objects of many types, as Hypothesis's strategies, and workflows that carry them; worker processes import
it by its name."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress
import pickle
import re
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pydantic
from hypothesis import strategies as st
from pydantic import AfterValidator, AnyUrl, BaseModel, ConfigDict, Field, HttpUrl, Json, SecretStr, computed_field
from typing_extensions import TypedDict

from bitactor import Halt, Result, Workflow

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Told(TypedDict, total=False):
    name: str
    point: Point


def doubled(value: int) -> int:
    return 2 * value


class Base(BaseModel):
    number: int = 0


class Derived(Base):
    more: str = ""


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    moment: dt.datetime
    pair: tuple[int, str]
    level: Level


class Aliased(BaseModel):
    model_config = ConfigDict(extra="allow")

    first: int = Field(alias="First")
    second: str = Field(default="", validation_alias="zweite", serialization_alias="dos")
    hidden: str = Field(default="", exclude=True)


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: Annotated[int, AfterValidator(doubled)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.width**2


class Everything(BaseModel):
    url: HttpUrl
    any_url: AnyUrl
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network
    secret: SecretStr
    pattern: re.Pattern[str]
    json_: Json[list[int]]
    colour: Colour
    told: Told
    items: deque[Base]
    counts: Counter[str]
    ordered: OrderedDict[str, int]
    grouped: defaultdict[str, list[int]]
    path: Path
    frozen: frozenset[Strict]
    either: Strict | Aliased | Computed | None
    literal: Literal[1, "a", Colour.PAIR]
    zone: dt.time


class Box(BaseModel, Generic[T]):
    inside: T


@dataclasses.dataclass
class Initialised:
    shown: int
    factor: dataclasses.InitVar[int] = 3
    made: int = dataclasses.field(init=False)

    def __post_init__(self, factor: int) -> None:
        self.made = self.shown * factor
        self.shown += 1


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Generic[T]):
    value: T
    others: tuple[Slotted[T], ...] = ()


ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "UTC", "Asia/Kolkata", "Australia/Lord_Howe"]).map(
    zoneinfo.ZoneInfo
)
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
FIRST, LAST = (dt.datetime(year, 1, 1) for year in (1900, 2100))  # noqa: DTZ001
MOMENTS = st.datetimes(min_value=FIRST, max_value=LAST, timezones=st.none() | ZONES | OFFSETS).flatmap(
    lambda moment: st.sampled_from([moment, moment.replace(fold=1)])
)
TIMES = st.times(timezones=st.none() | ZONES | OFFSETS).flatmap(lambda t: st.sampled_from([t, t.replace(fold=1)]))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), TEXTS,
    st.binary(max_size=8), MOMENTS, TIMES, st.dates(), st.timedeltas(), st.uuids(),
    st.decimals(allow_nan=False), st.fractions(), st.complex_numbers(allow_nan=False), st.ip_addresses(),
    ZONES, OFFSETS,
    st.sampled_from([re.compile("a+", re.I), re.compile(b"x"), ipaddress.ip_network("10.0.0.0/8"), range(1, 9, 2)]),
    st.sampled_from([HttpUrl("http://a.b/c?d#e"), AnyUrl("x://y"), pydantic.PostgresDsn("postgres://u:p@h/d")]),
)  # fmt: skip
"""What comes back whatever the reader knows."""
STRICT = st.builds(
    Strict, moment=MOMENTS, pair=st.tuples(st.integers(0, 9), TEXTS), level=st.sampled_from([Level.LOW, Level(3)])
)
ALIASED = st.builds(lambda a, b, c, d: Aliased(First=a, zweite=b, hidden=c, more=d), st.integers(), TEXTS, TEXTS, TEXTS)
COMPUTED = st.builds(Computed, width=st.integers(-9, 9))
BASES = st.builds(Base, number=st.integers()) | st.builds(Derived, more=TEXTS)
EVERYTHING = st.builds(
    Everything,
    url=st.just("http://user:pass@example.org:8080/x"),
    any_url=st.just("redis://h/1"),
    address=st.ip_addresses(),
    secret=TEXTS,
    pattern=st.sampled_from(["a.*b", re.compile("x", re.M)]),
    json_=st.lists(st.integers(0, 9)).map(str),
    colour=st.sampled_from(Colour),
    told=st.fixed_dictionaries({}, optional={"name": TEXTS, "point": st.builds(Point, st.integers(), st.floats(0, 1))}),
    items=st.lists(BASES, max_size=2).map(deque),
    counts=st.dictionaries(TEXTS, st.integers(0, 5)),
    ordered=st.dictionaries(TEXTS, st.integers(0, 5)),
    grouped=st.dictionaries(TEXTS, st.lists(st.integers())),
    path=TEXTS.map(lambda text: Path("/" + text.replace("\0", ""))),
    frozen=st.frozensets(STRICT, max_size=2),
    either=st.none() | STRICT | ALIASED | COMPUTED,
    literal=st.sampled_from([1, "a", Colour.PAIR]),
    zone=TIMES,
)
SLOTTED = st.recursive(
    st.builds(Slotted, VALUES),
    lambda inner: st.builds(Slotted, VALUES, st.lists(inner, max_size=2).map(tuple)),
    max_leaves=4,
)
KINDS = st.one_of(
    st.tuples(st.just(Strict), STRICT), st.tuples(st.just(Aliased), ALIASED), st.tuples(st.just(Computed), COMPUTED),
    st.tuples(st.just(Base), BASES), st.tuples(st.just(Everything), EVERYTHING),
    st.tuples(st.just(Initialised), st.builds(Initialised, st.integers(), factor=st.integers())),
    st.tuples(st.just(Slotted[Any]), SLOTTED),
    st.tuples(st.just(Box[Base]), BASES.map(lambda inside: Box[Base](inside=inside))),
    st.tuples(st.just(list[Strict | Computed]), st.lists(STRICT | COMPUTED, max_size=3)),
    st.tuples(st.just(dict[str, tuple[Base, ...]]), st.dictionaries(TEXTS, st.lists(BASES, max_size=2))),
    st.tuples(st.just(Colour), st.just(Colour.PAIR)),
)  # fmt: skip
"""An annotation, and something of it."""
AnyObject = (
    Strict | Aliased | Computed | Base | Everything | Initialised | Slotted[Any] | Box[Base] | list[Strict | Computed]
    | Colour
)  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, of the same types and the same in what equality does not see."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dt.datetime | dt.time):
        return left == right and left.fold == right.fold and str(left.tzinfo) == str(right.tzinfo)
    if isinstance(left, BaseModel):
        return left.model_fields_set == right.model_fields_set and same(vars(left), vars(right)) and left == right
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple | deque):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def differ(before: Any, after: Any) -> None:
    if not same(before, after):
        raise AssertionError(f"{before!r} came as {after!r}")


def make(data: bytes) -> Any:
    return pickle.loads(data)


def take(value: AnyObject, data: bytes) -> AnyObject:
    differ(pickle.loads(data), value)
    return value


def pair(value: AnyObject) -> list[Any]:
    return [value, value]


def take_back(value: AnyObject, result: AnyObject, data: bytes) -> None:
    differ(pickle.loads(data), value)
    differ(pickle.loads(data), result)


def take_plain(value: Any, data: bytes) -> Any:
    differ(pickle.loads(data), value)
    return value


def take_gathered(value: AnyObject, data: bytes) -> None:
    differ(pickle.loads(data), value)


def take_element(element: AnyObject, data: bytes) -> AnyObject:
    return take(element, data)


def take_element_back(element: AnyObject, result: AnyObject, data: bytes) -> None:
    take_back(element, result, data)


def fail(taken: Any) -> None:
    raise LookupError("turn back")


def _journey(name: str, spawner: Any, *, objects: bool) -> Workflow[Any]:
    """Makes what is pickled in `data`, fails where it comes to a step otherwise than it was, and turns back at the end:
    a transaction that is stuck in undo was given something else there."""
    workflow = Workflow(name, input={"data": bytes})
    workflow.add(make, name="value", spawn=spawner)
    if objects:
        workflow.add(take, name="taken", spawn=spawner).undo(take_back)
        workflow.collect("gathered", {"kept": "value", "list": "pair"})
        workflow.add(take_gathered, bind={"value": Result("gathered", "kept")})
        workflow.add(pair)
        workflow.map(take_element, over="pair", name="each").undo(take_element_back)
    else:
        workflow.add(take_plain, name="taken", spawn=spawner)
    workflow.add(fail, name="end", after=["each", "take_gathered"] if objects else [])
    return workflow


JOURNEYS = {
    (spawner, objects): _journey(f"journey-{spawner}-{objects}", spawner, objects=objects)
    for spawner in ("thread", "process")
    for objects in (False, True)
}
THREAD_VALUES, THREAD_OBJECTS, PROCESS_VALUES, PROCESS_OBJECTS = JOURNEYS.values()

HALTED = Workflow("journey-over-a-restart", input={"data": bytes})
AWAKE = [False]


@HALTED.step
def several(data: bytes) -> Any:
    return pickle.loads(data)


@HALTED.step
def rest(several: list[AnyObject], data: bytes) -> None:
    if not AWAKE[0]:
        raise Halt("until the mesh has been opened again")
    differ(pickle.loads(data), several)
