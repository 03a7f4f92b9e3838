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
_MAPPING: Final = dict
"""Stands for what comes as a mapping: models, dataclasses and typed dictionaries too."""

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
    if exactly is None:
        exactly = is_checked_exactly(wanted)
    if exactly:
        return sources.isdisjoint(targets)
    return not any(_converts(source, target) for source in sources for target in targets)


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
        return None if is_wanted else _carried({type(value) for value in get_args(annotation)})
    kind = _NONE if annotation is None else origin or annotation
    if not isinstance(kind, type):
        return None
    if kind in _SCALARS or kind in _LISTS or kind in (_NONE, dict):
        return frozenset((kind,)) if is_wanted else _carried({kind})
    return frozenset((_MAPPING,)) if _is_mapping(kind, is_wanted) else None


def _carried(kinds: set[Any]) -> frozenset[Any] | None:
    if not all(kind in _SCALARS or kind in _LISTS or kind in (_NONE, dict) for kind in kinds):
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
    if is_typeddict(kind):
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
    return bool(validators or hooks.model_serializers)


def _converts(source: Any, target: Any) -> bool:
    """Whether pydantic may make a `target` of a value of the kind `source`."""
    if source is target:
        return True
    if source is _NONE or target is _NONE:
        return False
    if source in _LISTS:
        return target in _LISTS or target is decimal.Decimal  # which has a form of three
    if source is dict:
        return target is dict
    return target in _SCALARS
