"""Annotations that cannot fit, beside what becomes of values: none that is refused could have worked."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypeVar

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    Json,
    RootModel,
    ValidationError,
    field_serializer,
    model_serializer,
)
from typing_extensions import TypedDict

from bitactor.messages.codec import decode_token, encode_token
from bitactor.plan.arguments import converter_for
from bitactor.plan.fit import cannot_fit, element_of, part_of, type_text

T = TypeVar("T")


class Line(BaseModel):
    sku: str = "s"


@dataclasses.dataclass
class Point:
    sku: str = "p"


class Pair(NamedTuple):
    left: int
    right: int


class Row(TypedDict):
    sku: str


class Colour(enum.Enum):
    RED = "red"


class Names(RootModel[list[str]]):
    pass


class Told(BaseModel):
    sku: str = "t"

    @model_serializer
    def tell(self) -> str:
        return self.sku


MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
VALUES: dict[Any, list[Any]] = {
    str: [
        "",
        "x",
        "1",
        "1.5",
        "true",
        "2026-01-02",
        "2026-01-02T03:04:05Z",
        "P1D",
        "03:04",
        "[1]",
        "{}",
        str(uuid.UUID(int=1)),
    ],
    int: [0, 1, True, 10**20],
    float: [1.5, 2.0, 3, True, float("nan")],
    bool: [True, False],
    bytes: [b"", b"1", b"2026-01-02"],
    None: [None],
    list: [[], [1], ["a", "b"], [[1, 2]], [0, [1], 2]],
    list[str]: [[], ["a"]],
    tuple: [(), (1, 2), (0, (1,), 2)],
    set: [set(), {1}],
    frozenset: [frozenset(), frozenset(("a",))],
    dict: [{}, {"sku": "s"}, {"days": 1}],
    dt.datetime: [MOMENT],
    dt.date: [MOMENT.date(), MOMENT],
    dt.time: [MOMENT.time()],
    dt.timedelta: [dt.timedelta(days=1), dt.timedelta(0)],
    uuid.UUID: [uuid.UUID(int=1)],
    decimal.Decimal: [decimal.Decimal(1), decimal.Decimal("1.5")],
    Line: [Line()],
    Point: [Point()],
    Row: [{"sku": "r"}],
    Colour: [Colour.RED],
    Names: [Names(["a"])],
    Told: [Told()],
    Literal["a", 1]: ["a", 1],
    Literal["a"]: ["a"],
    Literal[True]: [True],
    Literal[None]: [None],
    tuple[int, int]: [(1, 2), (0, 1)],
    tuple[str]: [("1",), ("a",)],
    tuple[()]: [()],
    Pair: [Pair(1, 2)],
    Mapping[str, int]: [{}, {"a": 1}],
    Optional[int]: [None, 1],  # noqa: UP045
    NewType("Sku", str): ["a"],
    Annotated[str, Field(max_length=9)]: ["a"],
}
WANTED: list[Any] = [
    *(kind for kind in VALUES if kind is not None), list[int], dict[str, int], tuple[int, ...], tuple[int, str],
    set[int], int | None, str | None, int | float, str | list[int], Line | None, list[Line],
    Annotated[int, Field(ge=0)], Annotated[int, BeforeValidator(lambda _: 1)], Sequence[int], Mapping[str, int],
    Json[list[int]], Json[dict[str, int]], Literal["a"], Literal["b"], Literal[1, 2], Literal["a", 3], Literal[b"1"],
    Literal[None, "x"], Literal[Colour.RED], Literal["a"] | int, tuple[str], tuple[str, str], tuple[int, int],
    tuple[()], tuple[bool, float], Sequence[str], Sequence[Any], Sequence, Pair, int | bool, Mapping[str, str],
]  # fmt: skip


@pytest.mark.parametrize("given", VALUES, ids=type_text)
def test_what_is_refused_could_not_have_worked(given: Any) -> None:
    for wanted in WANTED:
        if not cannot_fit(given, wanted):
            continue
        converter = converter_for(wanted, "a step")
        assert converter is not None
        for value in VALUES[given]:
            carried = decode_token(encode_token(value), converter.classes)
            try:
                made = converter.convert(carried)
            except ValidationError:
                continue
            except Exception as error:
                assert type(error).__name__ == "_WrongType"
                continue
            pytest.fail(f"{type_text(given)} was refused for {type_text(wanted)}, and {value!r} became {made!r}")


def test_the_plain_misfits_are_seen() -> None:
    plain = (str, int, bytes, None, list, dict)
    seen = {(given, wanted) for given in plain for wanted in plain if wanted is not None and cannot_fit(given, wanted)}
    assert seen == {(given, wanted) for given in plain for wanted in plain if wanted is not None and given != wanted}
    assert not any(cannot_fit(given, given) for given in VALUES)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Literal["a"], Literal["b"]), (int, Literal["a"]), (list, Literal["x"]), (str, Literal[1]),
        (dict, Literal[None]), (tuple[int, int], tuple[str]), (tuple[()], tuple[int]),
        (str, Sequence[str]), (int, Sequence[int]),
        (Pair, int), (Pair, dict), (Mapping[str, int], int), (Mapping[str, int], list), (int, Mapping[str, int]),
        (list, Mapping), (bool, int),
    ],
    ids=type_text,
)  # fmt: skip
def test_the_rarer_misfits_are_seen(given: Any, wanted: Any) -> None:
    assert cannot_fit(given, wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (str, Literal["b"]), (int, Literal[True]), (bool, Literal[1]), (Literal["a", "b"], Literal["b", "c"]),
        (tuple[int, int], tuple[str, str]), (tuple[int, ...], tuple[str]), (tuple, tuple[str]), (list, Sequence[str]),
        (list[int], tuple[str]), (bytes, Sequence), (Pair, list), (Pair, Pair),
        (Pair, tuple[int, int]), (Mapping[str, int], dict), (Mapping, Line), (Sequence[int], list), (Sequence, str),
        (Line, Mapping), (str, Sequence[Any]), (str, Sequence), (str, Sequence[T]),
        (bool, float), (bool, Annotated[int, Field(ge=0)]), (bool, int | float),
        (str, Literal[Colour.RED]), (Literal["red"], Literal[Colour.RED]), (Literal["a"] | int, Literal["b", 3]),
    ],
    ids=type_text,
)  # fmt: skip
def test_what_could_fit_is_let_be(given: Any, wanted: Any) -> None:
    assert not cannot_fit(given, wanted)


class Inner(BaseModel):
    count: int
    at: dict[str, list[str]] = {}


class Outer(BaseModel):
    inner: Inner
    name: str = Field(alias="Name")
    maybe: Inner | None = None


class Spelt(BaseModel):
    count: int = 1

    @field_serializer("count")
    def spelt(self, value: int) -> str:
        return str(value)


def test_parts_of_values() -> None:
    told: list[tuple[Any, tuple[str | int, ...], Any]] = [
        (Outer, (), Outer), (Outer, ("inner",), Inner), (Outer, ("inner", "count"), int), (Outer, ("name",), str),
        (Outer, ("Name",), Any), (Outer, ("maybe", "count"), Any), (Outer, ("zz", "count"), Any), (Outer, (0,), Any),
        (list[Inner], (0, "count"), int), (dict[str, list[str]], ("a", 0), str), (dict[int, str], (0,), str),
        (dict, ("a", "b"), Any), (str, (0,), Any), (int, ("real",), Any), (Any, ("a",), Any), (Row, ("sku",), Any),
        (Names, (0,), Any), (Names, ("root",), Any), (Spelt, ("count",), Any),
    ]  # fmt: skip
    for annotation, path, part in told:
        assert part_of(annotation, path) == part, (annotation, path)


def test_elements() -> None:
    assert [element_of(kind) for kind in (list[int], set[str], tuple[int, ...], Annotated[list[int], "x"])] == [
        int,
        str,
        int,
        int,
    ]
    assert all(element_of(kind) is Any for kind in (list, tuple[int, str], dict[str, int], Sequence[int], int, Any))


def test_annotations_of_any_kind_are_borne() -> None:
    for strange in ([], {}, "int", 3, object(), Literal[...], type, Any, ..., print):
        assert not cannot_fit(strange, int)
        assert not cannot_fit(int, strange, exactly=False)
