"""Objects that were validated are taken as they are, and come back as those of their own class."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import datetime as dt
import functools
import shutil
import tempfile
import threading
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)  # fmt: skip
from typing_extensions import TypedDict

from bitactor import Element, Result, Value, Workflow
from bitactor.errors import DefinitionError, DuplicateTransaction, InvalidInput, InvalidOutcome
from bitactor.messages.classes import AnnotatedClasses
from bitactor.messages.codec import decode_token, encode_token
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.network.client import Client
from registry import RegistryServer
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, finished, passes, result_of
from tests.e2e.support import BOUND

T = TypeVar("T")
S = TypeVar("S")


class Hashed(BaseModel):
    """Its validator is no fixpoint."""

    word: str

    @model_validator(mode="after")
    def _hashes(self) -> Self:
        self.word = f"h({self.word})"
        return self


class Cat(Hashed):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Named(TypedDict, total=False):
    one: Hashed


class Family(TypedDict, total=False):
    """Names itself."""

    head: Hashed
    members: list[Family]


class Request(BaseModel):
    one: Hashed
    many: list[Hashed] = Field(default_factory=list, max_length=2)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    other: Hashed | None = Field(None, alias="Other")
    count: int = 0

    @field_validator("count")
    @classmethod
    def _counts(cls, count: int) -> int:
        return count + 1


HELD = Hashed(word="x")
AS_OBJECTS: dict[str, Any] = {"one": HELD, "many": [HELD], "pet": Cat(word="x"), "Other": HELD, "count": 0}
AS_DATA: dict[str, Any] = {"one": {"word": "x"}, "many": [{"word": "x"}], "pet": {"kind": "cat", "word": "x"},
                           "Other": {"word": "x"}, "count": 0}  # fmt: skip
ONCE = ["h(x)", "h(x)", "h(x)", "h(x)", 1]


def words(one: Hashed, many: list[Hashed], pet: Any, other: Any, count: int) -> list[Any]:
    return [one.word, many[0].word, pet["word"], other["word"], count]


def takes(name: str) -> Workflow[Any]:
    workflow = Workflow(name, input=Request)
    workflow.add(words, name="words")
    return workflow


def nests() -> Workflow[Any]:
    """A nested workflow within another, and one for each element of a map, all of one kind of input."""
    fields: Any = {"one": Hashed, "many": list[Hashed], "pet": Cat | Dog | None, "other": Hashed | None, "count": int}
    inner = Workflow("inner", input=fields)
    inner.add(words, name="words")
    middle = Workflow("middle", input=fields)
    middle.compose("inner", inner)
    workflow = Workflow("nests", input=Request)
    workflow.compose("middle", middle)
    workflow.add(lambda one: [one], name="ones", bind={"one": Result("middle", 4)})
    workflow.map(workflow=middle, over="ones", bind={"count": Element()}, name="each")
    workflow.collect("both", ["middle", "each"])
    return workflow


@claim(
    "Values",
    "An object that is given as an input, or within one, is taken as it is on every way in, by nested workflows too: "
    "no validator runs again; plain data are validated.",
)
@pytest.mark.parametrize("given", [AS_OBJECTS, AS_DATA, Request.model_construct(
    one=HELD, many=[HELD], pet=Cat(word="x"), other=HELD, count=1
)], ids=["objects", "data", "model"])  # fmt: skip
async def test_objects_as_inputs(given: Any, store: str) -> None:
    assert await result_of(takes("takes"), given, store=store) == ONCE
    assert run_workflow(takes("takes"), given).result == ONCE
    nested = await result_of(nests(), given, store=store)
    assert nested == {"middle": ONCE, "each": [ONCE]}
    directory = tempfile.mkdtemp(prefix="ba-")
    registry = f"ipc://{directory}/registry"
    with RegistryServer(registry):
        async with Mesh(takes("takes"), registry=registry), Client(registry) as client:
            began = await client.stimulate("takes", given)
            assert await client.result(began["transaction"], BOUND) == ONCE
    shutil.rmtree(directory)
    assert HELD.word == "h(x)"


@claim("Values", "Blocking calls take objects as they are, too.")
def test_objects_as_inputs_that_block() -> None:
    with Mesh(takes("takes")) as mesh:
        assert mesh.run("takes", AS_OBJECTS, timeout=BOUND) == ONCE


class Aliased(BaseModel):
    word: str = Field(alias="Word")
    left: int = Field(3, validation_alias="Left")


@claim("Values", "A nested workflow whose input has aliases gets it by the fields' names, whatever kind nests it.")
async def test_nested_inputs_with_aliases(store: str) -> None:
    inner = Workflow("inner", input=Aliased)
    inner.add(lambda word, left: {"word": word + "!", "left": left - 1}, name="one")
    workflow = Workflow("outer", input={"word": str, "left": int})
    workflow.compose("composed", inner)
    workflow.map(workflow=inner, over=Value(["a", "b"]), bind={"word": Element()}, name="each")
    workflow.recurse("rounds", inner, until=lambda result: result["left"] == 0, at_most=5)
    workflow.group("grouped", inner, before_all=lambda word: {"word": word * 2})
    workflow.collect("all", ["composed", "each", "rounds", "grouped"])
    expected = {
        "composed": {"word": "x!", "left": 1}, "each": [{"word": "a!", "left": 1}, {"word": "b!", "left": 1}],
        "rounds": {"word": "x!!", "left": 0}, "grouped": {"word": "xx!", "left": 1},
    }  # fmt: skip
    given = {"word": "x", "left": 2}
    assert await result_of(workflow, given, store=store) == expected
    assert run_workflow(workflow, given).result == expected


class Asks(Hashed):
    model_config = ConfigDict(revalidate_instances="always")


HOOKS: list[type] = []


class Hooked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    one: Hashed
    many: list[Hashed] = Field(default_factory=list, max_length=1)

    def __init_subclass__(cls, **options: Any) -> None:
        HOOKS.append(cls)


@claim("Values", "What is no object of the class is refused as before, beside objects too, and named.")
async def test_what_is_no_object() -> None:
    workflow = Workflow("hooked", input=Hooked)
    workflow.add(lambda one: one, name="passes")
    asks = Workflow("asks", input=Asks)
    asks.add(lambda word: word, name="passes")
    either = Workflow("either", input={"value": Hashed | Dog | int, "other": Hashed})
    either.add(lambda value: value, name="passes")
    async with Mesh(workflow, asks, either) as mesh:
        for wrong, field in (
            ({"one": HELD, "two": 2}, "two"),
            ({"one": HELD, "many": [HELD, HELD]}, "many"),
            ({"one": HELD, "many": [{"word": 1}]}, "many.0.word"),
            ({"one": Dog()}, "one"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await mesh.stimulate(workflow, wrong)
            assert [name for name, _ in refused.value.fields] == [field]
        with pytest.raises(InvalidInput, match=r"value\.Hashed\.word: .*value\.Dog\.kind: .*value\.int: "):
            await mesh.stimulate(either, {"value": {"kind": 5}, "other": HELD})
        # A model that wants its instances to be validated is asked.
        with pytest.raises(InvalidInput, match="word"):
            await mesh.stimulate(asks, Asks.model_construct(word=5))
    assert HOOKS == []


AGAIN: dict[str, tuple[Any, Any]] = {
    "a tuple": (tuple[Hashed, ...], (HELD,)),
    "a typed dictionary": (Named, {"one": HELD}),
    "a typed dictionary that names itself": (Family, {"head": HELD, "members": [{"members": []}]}),
    "one told by a field": (Annotated[Cat | Dog, Field(discriminator="kind")], Cat(word="x")),
    "a mapping of lists": (dict[str, list[Annotated[Hashed, Field(description="one")]]], {"a": [HELD]}),
}


@claim("Values", "Objects in tuples, typed dictionaries and unions told by a field are not validated again.")
@pytest.mark.parametrize("name", AGAIN)
async def test_objects_in_containers(name: str, store: str) -> None:
    annotation, value = AGAIN[name]
    workflow, came = passes(annotation, value)
    await result_of(workflow, store=store)
    assert came == [value]


class Box(BaseModel, Generic[T]):
    inside: T


class Labelled(Box[S], Generic[S, T]):
    label: T


class Holds(BaseModel):
    _own: Hashed = PrivateAttr(default_factory=lambda: HELD)
    value: int = 0


@dataclasses.dataclass
class Plain:
    value: int


def slotted() -> type[Plain]:
    @dataclasses.dataclass(slots=True)
    class Slotted(Plain):
        more: int = 0

    return Slotted


SUBCLASSES: dict[str, tuple[Any, Any]] = {
    "of a generic model": (Box[int], Labelled[int, str](inside=1, label="kept")),
    "of generic models in a list": (list[Box[int]], [Labelled[int, str](inside=1, label="kept"), Box[int](inside=2)]),
    "of a model, and private": (Holds, Holds()),
    "with slots": (Plain, slotted()(1)),
}


@claim("Values", "A subclass of a parametrised generic model, one with slots, and what is private come back.")
@pytest.mark.parametrize("name", SUBCLASSES)
async def test_subclasses(name: str, store: str) -> None:
    annotation, value = SUBCLASSES[name]
    workflow, came = passes(annotation, value)
    await result_of(workflow, store=store)
    assert came == [value] and type(came[0]) is type(value)


@claim("Values", "A parametrised generic class that is not there yet is made of what is known, or asked for.")
def test_a_generic_class_that_nobody_has_made_yet() -> None:
    token = encode_token(Labelled[int, float](inside=1, label=0.5))
    assert decode_token(token, AnnotatedClasses(Box[int])).label == 0.5
    unmade = type(token)(bytes(token).replace(b"Labelled[int, float]", b"Labelled[int, bytes]"))
    with pytest.raises(Exception, match=r"nothing here has made the class Labelled\[int, bytes\]"):
        decode_token(unmade, AnnotatedClasses(Box[int]))


def in_a_module(name: str) -> Any:
    """A class `Item` of a module of that name."""
    module = ModuleType(name)
    module.__dict__["Item"] = create_model("Item", __module__=name, number=(int, ...))
    return module.__dict__["Item"]


@claim(
    "Values",
    "Classes of one name and with the same fields are told apart by their modules; where nothing tells two apart, the "
    "step whose annotation leads to both fails, and the class is named.",
)
async def test_classes_of_one_name(store: str) -> None:
    ours, theirs = in_a_module("ours"), in_a_module("theirs")
    for annotation in (ours | theirs, theirs | ours):
        workflow, came = passes(annotation, [theirs(number=1), ours(number=1)])
        workflow, came = passes(list[annotation], [theirs(number=1), ours(number=1)])
        await result_of(workflow, store=store)
        assert [type(item) for item in came[0]] == [theirs, ours]

    def alike() -> type[Dog]:
        class Puppy(Dog):
            age: int = 0

        return Puppy

    first, second = alike(), alike()
    workflow, came = passes(Dog, second(age=3))
    async with finished(workflow, store=store) as transaction:
        failure = await failure_of(transaction)
    assert came == [] and "argument 'made' of passes/taken, from made: several classes are named" in str(failure)
    assert "Puppy" in str(failure) and first is not second
    plain, came = passes(dict, second(age=3))
    await result_of(plain, store=store)
    assert came == [{"kind": "dog", "age": 3}]


class Unknown(BaseModel):
    """Of no annotation here."""

    number: int = 1
    hidden: int = Field(2, exclude=True)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    anything: Any = None
    mapping: dict[str, Any] = {}
    _own: tuple[int, ...] = PrivateAttr((1, 2))

    def own(self) -> tuple[int, ...]:
        return self._own

    @model_validator(mode="after")
    def _counts(self) -> Self:
        self.mapping["validated"] = self.mapping.get("validated", 0) + 1
        return self


ANYTHING: dict[str, Any] = {
    "extra": Open.model_validate({"pair": (1, {2}), "day": dt.date(2026, 1, 2), "one": Unknown()}),
    "in a field": Open(anything=[(1, Unknown(), frozenset({3}))]),
    "in a mapping": Open(mapping={"one": Unknown(), "path": Path("/x"), "words": OrderedDict(a=(1,))}),
    "known here": Open(anything=Open(anything=(1, 2))),
}


@claim(
    "Values",
    "Where a model may hold anything (`Any`, extra fields) the library's types are as they were, an object of a class "
    "that the reader does not know is plain data there, and all else of the model is as it was.",
)
@pytest.mark.parametrize("name", ANYTHING)
async def test_anything_in_a_model(name: str, store: str) -> None:
    given = ANYTHING[name]
    workflow, came = passes(Open, given)
    await result_of(workflow, store=store)
    [got] = came
    expected = {
        "extra": {"pair": (1, {2}), "day": dt.date(2026, 1, 2), "one": {"number": 1}},
        "in a field": [(1, {"number": 1}, frozenset({3}))],
        "in a mapping": {"one": {"number": 1}, "path": Path("/x"), "words": OrderedDict(a=(1,)), "validated": 1},
        "known here": given.anything,
    }[name]
    found = {"extra": got.model_extra, "in a mapping": got.mapping}.get(name, got.anything)
    assert found == expected and type(found) is type(expected) and repr(found) == repr(expected)
    assert got.mapping["validated"] == 1 and got.own() == (1, 2)
    plain, came = passes(Any, given)
    await result_of(plain, store=store)
    assert type(came[0]) is dict and came[0]["mapping"]["validated"] == 1


DECLARED: dict[str, tuple[Any, Any]] = {
    "range": (range, range(1, 9, 3)),
    "timezone": (dt.timezone, dt.timezone(dt.timedelta(hours=1))),
    "tzinfo": (dt.tzinfo, zoneinfo.ZoneInfo("Europe/Berlin")),
    "optional range": (range | None, range(3)),
    "complex": (complex, 1 + 2j),
    "Fraction": (Fraction, Fraction(1, 3)),
    "deque": (deque[int], deque([1, 2], maxlen=2)),
    "Counter": (Counter[str], Counter("aab")),
    "OrderedDict": (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    "defaultdict": (defaultdict[str, int], defaultdict(int, a=1)),
    "Decimal": (Decimal, Decimal("sNaN")),
}


@claim("Values", "A parameter annotated with one of the library's types gets one.")
@pytest.mark.parametrize("name", DECLARED)
async def test_types_of_the_library(name: str, store: str) -> None:
    annotation, value = DECLARED[name]
    workflow, came = passes(annotation, value)
    await result_of(workflow, store=store)
    assert repr(came[0]) == repr(value) and type(came[0]) is type(value)


@claim("Values", "A parameter or an input of a type that nothing can make is refused where it is declared, and named.")
@pytest.mark.parametrize("annotation", [bytearray, memoryview, slice])
def test_types_that_cannot_be_made(annotation: Any) -> None:
    workflow, _ = passes(annotation, None)
    with pytest.raises(DefinitionError, match=f"no way to make a .*{annotation.__name__}"):
        workflow.check()
    with pytest.raises(DefinitionError, match=f"no input can be made of .*{annotation.__name__}"):
        Workflow("given", input={"value": annotation})


@dataclasses.dataclass(frozen=True)
class Key:
    number: int


class Keyed(BaseModel):
    items: dict[Key, int]


@claim("Values", "An object as a key of a mapping fails the step that made it, with step, key, class, and what to do.")
@pytest.mark.parametrize("value", [{Key(1): 2}, [{"a": {(Key(1), 2): 3}}], Keyed(items={Key(1): 2})])
async def test_objects_as_keys(value: Any, store: str) -> None:
    workflow, _ = passes(Any, value)
    async with finished(workflow, store=store) as transaction:
        failure = await failure_of(transaction)
    assert failure.step == "passes/made" and isinstance(failure.errors[0], InvalidOutcome)
    for part in ("its key", "Key(number=1)", "an object", "a list of pairs"):
        assert part in str(failure.errors[0])


class Guarded(BaseModel):
    """Makes a lock and holds what is private, is validated only once, and is not shown whole."""

    word: str
    hidden: str = Field("lost", exclude=True)
    _held: Any = PrivateAttr(None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="after")
    def _once(self) -> Self:
        self.word += "!"
        return self

    def hold(self, value: Any) -> Self:
        self._held = value
        return self

    def held(self) -> Any:
        assert self._lock.acquire(blocking=False)
        return self._held


@dataclasses.dataclass
class Loose:
    anything: Any
    word: str
    made: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.word += "!"


class Holds(BaseModel, Generic[T]):
    item: T
    hidden: str = Field("lost", exclude=True)


@dataclasses.dataclass
class Refused(Exception):
    number: int


def loose() -> Loose:
    found = Loose(Unknown(), "a")
    found.made, found.more = 5, [Unknown()]  # type: ignore[attr-defined]
    return found


PARTLY_KNOWN: dict[str, tuple[Any, Any, Callable[[Any], Any], Any]] = {
    "private": (
        lambda: Guarded(word="a", hidden="kept").hold([Unknown(), (1,)]), Guarded,
        lambda found: (found.word, found.hidden, found.held()), ("a!", "kept", [{"number": 1}, (1,)]),
    ),
    "a dataclass": (
        loose, Loose, lambda found: (type(found), vars(found)),
        (Loose, {"anything": {"number": 1}, "word": "a!", "made": 5, "more": [{"number": 1}]}),
    ),
    "a generic model without its type": (
        lambda: Holds(item=Unknown(), hidden="kept"), Holds, lambda found: (found.item, found.hidden),
        ({"number": 1}, "kept"),
    ),
    "any model": (lambda: [Hashed(word="x")], list[BaseModel], lambda found: found, [HELD]),
    "an exception": (lambda: Refused(3), Refused, lambda found: (type(found), found.number), (Refused, 3)),
}  # fmt: skip


@claim(
    "Values",
    "An object of a class that the reader does not know is plain data in what is private in a model, in a dataclass, "
    "in a generic model whose type is not given; what is private and cannot be carried, a lock, is made anew. Nothing "
    "else of the object changes.",
)
@pytest.mark.parametrize("name", PARTLY_KNOWN)
async def test_what_is_known_in_part(name: str, store: str) -> None:
    make, annotation, seen, expected = PARTLY_KNOWN[name]
    workflow, came = passes(annotation, make())
    await result_of(workflow, store=store)
    assert [seen(found) for found in came] == [expected]


def loose_with_a_lock() -> Loose:
    found = Loose(1, "a")
    found.lock = threading.Lock()  # type: ignore[attr-defined]
    return found


@claim(
    "Values",
    "What is no field of a dataclass, or private in a model without a factory, and cannot be carried fails the step "
    "that made it.",
)
@pytest.mark.parametrize(
    "held", [loose_with_a_lock(), Guarded(word="a").hold(threading.Lock())], ids=["dataclass", "model"]
)
@pytest.mark.parametrize("annotation", [Loose, Guarded, Any])
async def test_an_attribute_that_cannot_be_carried(held: Any, annotation: Any) -> None:
    workflow, came = passes(annotation, held)
    async with finished(workflow) as transaction:
        failure = await failure_of(transaction)
    assert failure.step == "passes/made" and "lock" in str(failure) and came == []


class Left(BaseModel):
    number: int


class Right(BaseModel):
    number: int


class Secretive(BaseModel):
    shown: int = 1
    hidden: str = Field("", exclude=True)


@claim(
    "Values",
    "A key's request is another one if a field that is left out of plain data, or the class of an object, is another; "
    "a default that is spelled out, or an object in place of its data, is the same one.",
)
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"secretive": {"hidden": "1"}}, {"secretive": {"hidden": "2"}}, False),
        ({"secretive": Secretive(hidden="1")}, {"secretive": Secretive(hidden="2")}, False),
        ({"side": Left(number=1)}, {"side": Right(number=1)}, False),
        ({"side": Left(number=1)}, {"side": {"number": 1}}, True),
        ({"secretive": {"hidden": "1"}}, {"secretive": Secretive(hidden="1")}, True),
        ({"secretive": {}}, {"secretive": {"shown": 1}}, True),
    ],
)
async def test_requests_of_objects(one: Any, other: Any, same: bool, store: str) -> None:
    class Either(BaseModel):
        secretive: Secretive = Secretive()
        side: Left | Right | None = None

    workflow = Workflow("either", input=Either)
    workflow.add(lambda secretive, side: [secretive["hidden"], side], name="says")
    async with Mesh(workflow, store=store) as mesh:
        first = await mesh.stimulate(workflow, one, key="k")
        if same:
            assert (await mesh.stimulate(workflow, other, key="k")).id == first.id
        else:
            with pytest.raises(DuplicateTransaction, match="another input"):
                await mesh.stimulate(workflow, other, key="k")
        await first.ended(BOUND)


class Place(NamedTuple):
    key: Key
    name: str = "here"


class Private(BaseModel):
    number: int = 1
    _held: Any = PrivateAttr(None)

    def hold(self, held: Any) -> Self:
        self._held = held
        return self


class Whole(BaseModel):
    number: int
    other: Any = None


@dataclasses.dataclass
class Ring:
    following: Any = None

    def closed(self) -> Self:
        self.following = {"back": self}
        return self


def around(*, through: Callable[[Any], Any]) -> Any:
    """A list that is in itself."""
    found: list[Any] = []
    found.append(through(found))
    return found


NAMED: dict[str, tuple[Callable[[], Any], str]] = {
    "a named tuple as a key": (lambda: {Place(Key(1)): 2}, "its key Place(key=Key(number=1), name='here'), a Place, "),
    "keys in what is private": (lambda: [Private().hold({Key(1): 2})], "its key Key(number=1), a Key, at [0]._held,"),
    "a key that cannot be carried": (lambda: {"a": {threading.Lock: 1}}, "at ['a'], cannot be carried: no"),
    "a list in itself": (lambda: around(through=lambda it: {"a": it}), "its [0]['a'] is the list that it is in:"),
    "a mapping in itself": (lambda: around(through=lambda it: {1: (it,)})[0], "its [1][0][0] is the dict that it"),
    "a model in itself": (lambda: around(through=lambda it: Whole(number=1, other=it)), "its [0].other is the list"),
    "a dataclass in itself": (lambda: Ring().closed(), "its .following['back'] is the Ring that it is in:"),
    "a model without a field": (lambda: {"a": Whole.model_construct(other=1)}, "['a'], a Whole: a Whole without its"),
    "a lock": (lambda: Whole(number=1, other=[{"held": threading.Lock()}]), "its .other[0]['held'], a lock: no way"),
    "half a surrogate pair": (lambda: {"a": {"b": "\udcff"}}, "its ['a']['b'], a str: 'utf-8' codec can"),
    "braces in a key": (lambda: {"{x}": {Key(1): 2}}, "its key Key(number=1), a Key, at ['{x}'], is"),
    "too deep": (lambda: functools.reduce(lambda inner, _: [inner], range(100), 1), "nested deeper than 64 levels; fl"),
}  # fmt: skip


@claim("Values", "A value that cannot be carried is refused with the path of what is wrong in it, why, and what to do.")
@pytest.mark.parametrize("spawn", ["loop", "thread", "inline"])
async def test_what_is_wrong_in_a_value(spawn: str) -> None:
    def make(index: int) -> Any:
        return [*NAMED.values()][index][0]()

    async def made(index: int) -> Any:
        return make(index)

    workflow = Workflow("makes", input={"index": int})
    workflow.add(made if spawn == "loop" else make, name="made", spawn=spawn)
    async with Mesh(workflow) as mesh:
        for index, (_, words) in enumerate(NAMED.values()):
            transaction = await mesh.stimulate(workflow, {"index": index})
            failure = await failure_of(transaction)
            assert failure.step == "makes/made" and words in str(failure.errors[0])
            assert isinstance(failure.errors[0], InvalidOutcome)


@dataclasses.dataclass(frozen=True)
class Pair:
    key: Key
    numbers: tuple[int, ...] = ()


class Frosty(BaseModel):
    model_config = ConfigDict(frozen=True)

    number: int


SETS: dict[str, tuple[Any, Any]] = {
    "dataclasses": ({Key(1), Key(2)}, {("number", 1), ("number", 2)}),
    "in each other": ({Pair(Key(1), (2,))}, {("key", frozenset({("number", 1)})), ("numbers", (2,))}),
    "models": (frozenset({Frosty(number=1)}), {("number", 1)}),
    "tuples": ({(1, Key(1))}, {1, frozenset({("number", 1)})}),
    "named tuples": ({Place(Key(1))}, {"here", frozenset({("number", 1)})}),
    "sets": ({frozenset({Key(1)})}, {frozenset({("number", 1)})}),
}


def as_rows(value: Any) -> Any:
    """What is in a set of plain data, mappings as sets of pairs."""
    if isinstance(value, dict):
        return frozenset((name, as_rows(item)) for name, item in value.items())
    rows = [as_rows(item) for item in value] if isinstance(value, set | frozenset | tuple) else value
    return type(value)(rows) if isinstance(value, set | frozenset | tuple) else rows


@claim("Values", "Objects in a set are mappings that cannot be changed to a reader that does not name their class.")
@pytest.mark.parametrize("annotation", [set, frozenset, set[Any], Any], ids=str)
@pytest.mark.parametrize("name", SETS)
async def test_objects_in_sets(name: str, annotation: Any) -> None:
    value, rows = SETS[name]
    workflow, came = passes(annotation, value)
    await result_of(workflow)
    [got] = came
    assert isinstance(got, set | frozenset) and len(got) == len(value)
    assert {row for item in as_rows(got) for row in item} == rows
    assert as_rows(decode_token(encode_token(got))) == as_rows(got) == as_rows(copy.deepcopy(got))
    for item in got:
        with pytest.raises((TypeError, AttributeError)):
            item["number"] = 5


@claim("Values", "Objects in a set that are the same plain data stay several, in a set.")
@pytest.mark.parametrize("annotation", [set, frozenset, set[Any], Any], ids=str)
async def test_objects_in_sets_that_are_alike(annotation: Any) -> None:
    several = [
        {Key(1), Frosty(number=1)},
        {(Key(1), 2), (Frosty(number=1), 2)},
        {frozenset({Key(1), Frosty(number=1)})},
    ]
    for value in several:
        workflow, came = passes(annotation, value)
        await result_of(workflow)
        [got] = came
        for again in (got, decode_token(encode_token(got)), copy.deepcopy(got)):
            assert isinstance(again, set | frozenset) and repr(again).count("{'number': 1}") == 2


@dataclasses.dataclass
class Shelf:
    """Holds objects whose class its annotations do not name."""

    keys: frozenset[Any]
    pairs: set[Any] = dataclasses.field(default_factory=set)


@claim("Values", "A set whose class is not named is a set within an object that is restored, too.")
async def test_sets_of_objects_in_an_object() -> None:
    workflow, came = passes(Shelf, Shelf(frozenset({Key(1), Key(2)}), {(Key(1), 2)}))
    await result_of(workflow)
    [got] = came
    assert as_rows(got.keys) == {frozenset({("number", 1)}), frozenset({("number", 2)})}
    assert as_rows(got.pairs) == {(frozenset({("number", 1)}), 2)}


COMPUTED: list[int] = []


@dataclasses.dataclass
class Computed:
    number: int

    @functools.cached_property
    def lock(self) -> Any:
        COMPUTED.append(self.number)
        return threading.Lock()


class ComputedModel(BaseModel):
    number: int

    @functools.cached_property
    def lock(self) -> Any:
        COMPUTED.append(self.number)
        return threading.Lock()


@claim("Values", "What a cached_property has computed is no part of an object: it is computed anew where it is read.")
@pytest.mark.parametrize("kind", [Computed, ComputedModel])
async def test_cached_properties(kind: Any) -> None:
    COMPUTED.clear()
    given = kind(number=1)
    assert given.lock is given.lock and COMPUTED == [1]
    workflow, came = passes(kind, given)
    await result_of(workflow)
    assert came[0] == given and "lock" not in vars(came[0]) and COMPUTED == [1]
    assert came[0].lock is came[0].lock is not given.lock and COMPUTED == [1, 1]


class Bad(Mapping[str, Any]):
    """A mapping one of whose methods raises."""

    def __init__(self, method: str, error: BaseException) -> None:
        self._method, self._error = method, error

    def _called(self, method: str) -> None:
        if method == self._method:
            raise self._error

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        self._called("iter")
        return iter(["value"])

    def __getitem__(self, name: str) -> Any:
        self._called("getitem")
        return 1

    def items(self) -> Any:
        self._called("items")
        return super().items()


class Raising:
    """What can be gone through only in part."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise self._error


def validates(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


def takes_all() -> Workflow[Any]:
    workflow = Workflow(
        "takes all", input={"value": Annotated[int, BeforeValidator(validates)], "many": (list[int], []),
                            "named": (dict[str, int], {}), "key": (Hashed | None, None)},
    )  # fmt: skip
    workflow.add(lambda value: value, name="passes")
    return workflow


def wrong_inputs(make: Callable[[], BaseException]) -> list[tuple[Any, BaseException]]:
    """Inputs, and what reading each raises."""
    errors = [make() for _ in range(8)]
    given = [
        Bad("iter", errors[0]), Bad("getitem", errors[1]), Bad("items", errors[2]),
        {"value": 1, "many": Raising(errors[3])}, {"value": 1, "named": Bad("getitem", errors[4])},
        {"value": 1, "named": Bad("items", errors[5])}, {"value": errors[6]},
        {"value": 1, "key": Bad("getitem", errors[7])},
    ]  # fmt: skip
    return [*zip(given, errors, strict=True)]


READ_WRONGLY = [ValueError, KeyError, SystemExit, KeyboardInterrupt, asyncio.CancelledError]


@claim("Values", "What a method of an input raises, or a validator, is the cause of the refusal.")
@pytest.mark.parametrize("kind", READ_WRONGLY)
async def test_why_an_input_is_refused(kind: Any) -> None:
    workflow = takes_all()
    async with Mesh(workflow) as mesh:
        for given, error in wrong_inputs(lambda: kind("mine")):
            with pytest.raises(InvalidInput) as refused:
                await mesh.stimulate(workflow, given)
            assert refused.value.__cause__ is error, given
            with pytest.raises(InvalidInput) as refused:
                run_workflow(workflow, given)
            assert refused.value.__cause__ is error, given


@claim("Values", "So it is for blocking calls.")
@pytest.mark.parametrize("kind", READ_WRONGLY)
def test_why_an_input_is_refused_that_blocks(kind: Any) -> None:
    workflow = takes_all()
    with Mesh(workflow) as mesh:
        for given, error in wrong_inputs(lambda: kind("mine")):
            with pytest.raises(InvalidInput) as refused:
                mesh.submit(workflow, given)
            assert refused.value.__cause__ is error, given
        assert mesh.run(workflow, {"value": 1}, timeout=BOUND) == 1
