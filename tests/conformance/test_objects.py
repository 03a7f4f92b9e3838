"""Objects that were validated are taken as they are, and come back as those of their own class."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import tempfile
import threading
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, create_model, field_validator, model_validator
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
from tests.conformance.support import failure_of, finished, result_of
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


def passes(annotation: Any, value: Any) -> tuple[Workflow[Any], list[Any]]:
    """A workflow whose second step takes what the first one returns, and says what came."""
    workflow, came = Workflow("passes"), list[Any]()

    @workflow.step
    async def made() -> Any:
        return value

    async def taken(made: Any) -> None:
        came.append(made)

    taken.__annotations__["made"] = annotation
    workflow.add(taken)
    return workflow, came


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
