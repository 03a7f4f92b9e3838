"""Whether what one annotation promises can ever be what another one asks for.

Only what is certain is refused: a step that answers a `str` for a parameter that is an `int`.  A value comes as plain
data does: a tuple as a list, a model as a mapping, where its class is not asked for; and pydantic makes numbers and
moments of texts, and models of mappings.  Where a type is not known here (a TypeVar, a Protocol, a class with a schema
of its own), everything fits.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import types
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NewType, Union, get_args, get_origin

from pydantic import BaseModel, RootModel
from typing_extensions import is_typeddict

from bitactor.messages.values import shown
from bitactor.plan.arguments import is_checked_exactly

_NONE: Final = type(None)
_SCALARS: Final = frozenset(
    (bool, int, float, str, bytes, dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal)
)
_LISTS: Final = frozenset((list, tuple, set, frozenset))
_CARRIED: Final = _SCALARS | _LISTS | {_NONE, dict, range}
"""Types of values that are of a known kind once they were carried."""
_MAPPING: Final = dict
"""Stands for what comes as a mapping: models, dataclasses and typed dictionaries too."""

_NUMBERS: Final = frozenset((bool, int, float, decimal.Decimal))
_EQUAL: Final[dict[Any, frozenset[Any]]] = {
    bool: _NUMBERS, int: _NUMBERS, str: frozenset((str,)), bytes: frozenset((bytes,)), _NONE: frozenset((_NONE,)),
}  # fmt: skip
"""Class of a constant of a wanted `Literal` → the kinds of values that can equal it, which stand for it as a target."""

# What an annotation's values are at run time, once they were carried: type checkers take an int for a float, and a
# bool for an int.
_CARRIED_AS: Final[dict[Any, frozenset[Any]]] = {
    int: frozenset((int, bool)),
    float: frozenset((float, int, bool)),
    tuple: frozenset((list,)),
    dt.date: frozenset((dt.date, dt.datetime)),
}


def cannot_fit(given: Any, wanted: Any, *, exactly: bool | None = None) -> bool:
    """Whether no value that `given` annotates can become what `wanted` annotates.

    Args:
        exactly: whether only the exact plain type is taken, and nothing is converted; None: as for a parameter.
    """
    sources, targets = _kinds(given), _kinds(wanted, is_wanted=True)
    if sources is None or targets is None:
        return False
    if _have_nothing_in_common(_bare(given), _bare(wanted)):
        return True
    if exactly is None:
        exactly = is_checked_exactly(wanted)
    if exactly:
        return sources.isdisjoint(targets)
    return not any(_converts(source, target) for source in sources for target in targets)


def part_of(annotation: Any, path: Sequence[str | int]) -> Any:
    """The annotation of what is at a path into a value; Any if that is not known."""
    for part in path:
        annotation = _bare(annotation)
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif isinstance(part, int):
            annotation = element_of(annotation)
        elif not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
            return Any
        else:
            is_field = part in annotation.model_fields and not issubclass(annotation, RootModel)
            annotation = field_of(annotation, part) if is_field else Any
    return annotation


def field_of(model: type[BaseModel], name: str) -> Any:
    """The annotation of a field of a model; Any if something else may come of it."""
    field = model.model_fields[name]
    if has_hooks(model) or field.default_factory is not None or not all(map(is_plain_note, field.metadata)):
        return Any
    return field.annotation if field.is_required() else Union[field.annotation, type(field.default)]  # noqa: UP007


def element_of(annotation: Any) -> Any:
    """The annotation of the elements of a list, tuple or set; Any if it does not say, or is something else."""
    annotation = _bare(annotation)
    arguments = get_args(annotation)
    if get_origin(annotation) in (list, set, frozenset) and arguments:
        return arguments[0]
    if get_origin(annotation) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return arguments[0]
    return Any


def type_text(annotation: Any) -> str:
    """An annotation, for messages."""
    if isinstance(annotation, type) and not get_args(annotation):
        return "None" if annotation is _NONE else annotation.__name__
    return shown(annotation).replace("typing.", "")


def _kinds(annotation: Any, *, is_wanted: bool = False) -> frozenset[Any] | None:
    """The kinds of values that an annotation is for; None: not known."""
    annotation = _bare(annotation)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        found: set[Any] = set()
        for member in get_args(annotation):
            kinds = _kinds(member, is_wanted=is_wanted)
            if kinds is None:
                return None
            found |= kinds
        return frozenset(found)
    if origin is Literal:
        classes = {type(value) for value in get_args(annotation)}
        if not is_wanted:
            return _carried(classes)
        return frozenset(_EQUAL[kind] for kind in classes) if classes <= _EQUAL.keys() else None
    kind = _NONE if annotation is None else origin or annotation
    if not isinstance(kind, type):
        return None
    if kind in _CARRIED:
        return frozenset((kind,)) if is_wanted else _carried({kind})
    if is_wanted and kind is Sequence and any(_kinds(part, is_wanted=True) for part in get_args(annotation)):
        return frozenset((Sequence,))  # of anything may be a text too
    if not is_wanted and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return frozenset((list,))
    return frozenset((_MAPPING,)) if _is_mapping(kind, is_wanted) else None


def _have_nothing_in_common(given: Any, wanted: Any) -> bool:
    """Whether both are `Literal`s without a constant that is in both, or tuples of different lengths."""
    if get_origin(given) is get_origin(wanted) is Literal:
        return not any(one == other for one in get_args(given) for other in get_args(wanted))
    lengths = _length(given), _length(wanted)
    return None not in lengths and lengths[0] != lengths[1]


def _length(annotation: Any) -> int | None:
    """The length of the tuples that an annotation is for; None: not known."""
    elements = get_args(annotation)
    is_known = get_origin(annotation) is tuple and all(isinstance(element, type) for element in elements)
    return len(elements) if is_known else None


def _carried(kinds: set[Any]) -> frozenset[Any] | None:
    if not kinds <= _CARRIED:
        return None
    return frozenset(made for kind in kinds for made in _CARRIED_AS.get(kind, (kind,)))


def _bare(annotation: Any) -> Any:
    """The annotation without what says nothing of its kind; Any if a validator may make of it what it likes."""
    while True:
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            if not all(is_plain_note(note) for note in notes):
                return Any
        else:
            return annotation


def is_plain_note(note: Any) -> bool:
    """Whether a note in an `Annotated` only narrows the type, or says something to people."""
    return isinstance(note, str) or type(note).__module__ in ("annotated_types", "pydantic.fields")


def _is_mapping(kind: Any, is_wanted: bool) -> bool:
    """Whether values of a class come, or are taken, as mappings and as nothing else."""
    if is_typeddict(kind) or kind is Mapping:
        return True
    if hasattr(kind, "__get_pydantic_core_schema__") and not issubclass(kind, BaseModel):
        return False
    if issubclass(kind, BaseModel):
        return not issubclass(kind, RootModel) and not has_hooks(kind)
    return dataclasses.is_dataclass(kind) and not (is_wanted and hasattr(kind, "__pydantic_validator__"))


def has_hooks(model: type[BaseModel]) -> bool:
    """Whether a model makes of its input, or of itself, what only its functions know."""
    hooks = model.__pydantic_decorators__
    if any("__get_pydantic_core_schema__" in vars(kind) for kind in model.__mro__ if kind is not BaseModel):
        return True
    validators = hooks.model_validators or hooks.field_validators or hooks.validators or hooks.root_validators
    return bool(validators or hooks.model_serializers or hooks.field_serializers)


def _converts(source: Any, target: Any) -> bool:
    """Whether pydantic may make a `target` of a value of the kind `source`."""
    if source is target:
        return True
    if isinstance(target, frozenset):
        return source in target
    if target is Sequence:
        return source in _LISTS or source in (bytes, range)
    if source is _NONE or target is _NONE:
        return False
    if source in _LISTS:
        return target in _LISTS or target is decimal.Decimal  # which has a form of three
    if source is range:
        return target in _LISTS
    if source is dict:
        return target is dict
    return target in _SCALARS
