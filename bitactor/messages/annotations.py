"""Annotations by which objects are taken as they are, and only plain data are validated."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import inspect
import re
import types
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from itertools import islice
from typing import Annotated, Any, Final, NotRequired, Required, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, InstanceOf, TypeAdapter, ValidationError, WrapValidator, create_model
from typing_extensions import TypeAliasType, TypedDict, is_typeddict, override

from bitactor.messages.classes import fits

Validates = Callable[[Any], Any]
"""What pydantic calls the handler of a validator."""


def taking_objects(annotation: Any, values: Collection[type] = (), around: tuple[Any, ...] = ()) -> Any:
    """The annotation, in which objects of its classes, and `values` of exactly their type, are not validated again; it
    itself if there are none in it, or if it is one of those `around` it, which it names again."""
    if any(outer is annotation for outer in around):
        return annotation
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and origin is None:
        if annotation in _INSTANCES and values:
            return cast("Any", InstanceOf)[annotation]
        if annotation in values or is_object_class(annotation):
            return Annotated[annotation, WrapValidator(_keeper(annotation))]
        return _typed_dict(annotation, values, around) if is_typeddict(annotation) else annotation
    if isinstance(annotation, TypeAliasType) or hasattr(annotation, "__supertype__"):
        meant = annotation.__value__ if isinstance(annotation, TypeAliasType) else annotation.__supertype__
        found = taking_objects(meant, values, (*around, annotation))
        return annotation if found is meant else found
    if origin is Annotated:
        inner = taking_objects(annotation.__origin__, values, around)
        return annotation if inner is annotation.__origin__ else Annotated[(inner, *annotation.__metadata__)]
    if isinstance(origin, type) and is_object_class(origin):
        return Annotated[annotation, WrapValidator(_keeper(origin))]
    is_union = origin is Union or origin is types.UnionType
    if not is_union and not (isinstance(origin, type) and issubclass(origin, _CONTAINERS)):
        return annotation
    inside = tuple(taking_objects(part, values, around) for part in parts)
    if all(map(_same, inside, parts)):
        return annotation
    return Union[inside] if is_union else cast("Any", origin)[inside]  # noqa: UP007


def is_object_class(kind: Any) -> bool:
    """Whether objects of a class are restored."""
    return issubclass(kind, BaseModel | enum.Enum) or dataclasses.is_dataclass(kind)


VALUES: Final = frozenset((dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, fractions.Fraction))
"""Types of values that come back as they were."""
_INSTANCES: Final = (range, dt.timezone, dt.tzinfo)
"""Such types that pydantic knows nothing of."""


_HAS_BY_NAME: Final = "by_name" in inspect.signature(TypeAdapter.validate_python).parameters  # since pydantic 2.11
BY_NAME: Final[dict[str, Any]] = {"by_alias": True, "by_name": True} if _HAS_BY_NAME else {}
"""Has pydantic take a field by its name, though it has an alias."""


def place_of(problem: Mapping[str, Any]) -> str:
    """Where in a value one of a `ValidationError`'s problems is: `orders.3.amount`."""
    return ".".join(_MEMBER.sub(r"\1", str(part)) for part in problem["loc"])


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """Where in the value each problem is, and what it is."""
    said = error.errors(include_url=False, include_context=False, include_input=False)
    return [(place_of(problem), problem["msg"]) for problem in said]


def cause_of(error: ValidationError) -> BaseException | None:
    """What made a value not fit: the exception of a validator, or of a method of the value while it was read, which
    pydantic only tells of; such a value is read once more."""
    for problem in error.errors(include_url=False):
        raised = problem.get("ctx", {}).get("error")
        if isinstance(raised, BaseException):
            return raised
        if problem["type"] in _UNREAD and (raised := _raised_by(problem["input"])) is not None:
            return raised
    return None


_UNREAD: Final = frozenset(
    ("mapping_type", "dict_type", "model_type", "dataclass_type", "iteration_error", "iterable_type", "list_type",
     "tuple_type", "set_type", "frozen_set_type", "missing")
)  # fmt: skip
_MOST_READ: Final = 10_000


def _raised_by(value: Any) -> BaseException | None:
    """What reading a value raises, one of a user's class that can be read again."""
    kind = type(value)
    try:
        if kind.__module__ == "builtins" or not issubclass(kind, Iterable) or iter(value) is value:
            return None
        for _ in islice(value.items() if issubclass(kind, Mapping) else value, _MOST_READ):
            pass
    except BaseException as error:
        return error
    return None


class ModelReader:
    """What is given for a model: its instances and objects of its fields' classes as they are, plain data validated.

    A model that has `revalidate_instances` set is asked about its instances too.
    """

    __slots__ = ("_fields", "_model", "_taking")

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._fields: dict[str, Any] | None = None
        self._taking: type[BaseModel] = model

    def __call__(self, given: Any, **options: Any) -> BaseModel:
        """An instance with the fields of the model; `options` are pydantic's.

        Raises:
            ValidationError: plain data in it do not fit.
        """
        model, kind = self._model, type(given)
        is_instance = kind is not dict and issubclass(kind, model)  # the latter is dear
        if is_instance and model.model_config.get("revalidate_instances", "never") == "never":
            return cast("BaseModel", given)
        if issubclass(kind, dict) and self._has_objects(given):
            return self._taking.model_validate(given, **options)
        return model.model_validate(given, **options)

    def _has_objects(self, given: dict[str, Any]) -> bool:
        if self._fields is None:
            self._taking, self._fields = _taking_model(self._model)
        return bool(self._fields) and _holds_objects([dict.get(given, name) for name in self._fields])


class _Quiet:
    """Stands before a model whose hooks for subclasses are the user's."""

    @override
    def __init_subclass__(cls, **options: Any) -> None:
        """Nothing."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Nothing."""


def _taking_model(model: type[BaseModel]) -> tuple[type[BaseModel], dict[str, Any]]:
    """The model with fields that take objects as they are; and these fields, by all names that they are given under."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation = taking_objects(field.annotation)
        if not _same(annotation, field.annotation):
            own = copy(field)
            own.annotation = annotation
            fields[name] = (annotation, own)
    if not fields:
        return model, {}
    made: Any = create_model(
        f"{model.__name__} of objects", __base__=cast("Any", (_Quiet, model)), __module__=model.__module__, **fields
    )
    aliases = [alias for name in fields for alias in _aliases(model.model_fields[name])]
    return made, {**fields, **dict.fromkeys(aliases)}


def _aliases(field: Any) -> Iterable[str]:
    given = field.validation_alias or field.alias
    paths = [getattr(alias, "path", [alias]) for alias in getattr(given, "choices", [given])]
    return [path[0] for path in paths if isinstance(path[0], str)]


def _holds_objects(values: list[Any]) -> bool:
    waiting = values
    while waiting:
        here = waiting.pop()
        kind = type(here)
        if kind in (list, tuple, set, frozenset, deque):
            waiting += here
        elif kind is dict:
            waiting += here.values()
        elif issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind):
            return True
    return False


_CONTAINERS: Final = (list, dict, tuple, set, frozenset, deque, Mapping, Collection)


_AS_IT_IS: Final = " as it is"
"""What stands behind the name of a class where pydantic names the member of a union that did not fit."""
_MEMBER: Final = re.compile(rf"function-wrap\[(.*){_AS_IT_IS}\(\)\]")


def _same(left: Any, right: Any) -> bool:
    return left is right


def _keeper(kind: type) -> Callable[[Any, Validates], Any]:
    is_object = is_object_class(kind)

    def as_it_is(value: Any, validate: Validates) -> Any:
        found = type(value)
        return value if found is kind or (is_object and fits(found, kind)) else validate(value)

    as_it_is.__name__ = as_it_is.__qualname__ = f"{kind.__name__}{_AS_IT_IS}"
    return as_it_is


def _typed_dict(kind: Any, values: Collection[type], around: tuple[Any, ...]) -> Any:
    """A typed dictionary whose items are taken as they are."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except Exception:  # a name that is not known there
        return kind
    meant = {
        name: get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint for name, hint in hints.items()
    }
    items = {name: taking_objects(hint, values, (*around, kind)) for name, hint in meant.items()}
    if all(map(_same, items.values(), meant.values())):
        return kind
    wanted = {
        name: Required[item] if name in kind.__required_keys__ else NotRequired[item] for name, item in items.items()
    }
    made = TypedDict(kind.__name__, wanted)  # type: ignore[misc]
    if (config := vars(kind).get("__pydantic_config__")) is not None:
        type.__setattr__(made, "__pydantic_config__", config)
    return made
