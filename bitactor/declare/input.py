"""The input of a workflow, a pydantic model, made of what its declaration says."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo

from bitactor.declare.options import RESERVED
from bitactor.errors import DefinitionError
from bitactor.messages.values import shown

_FUNCTIONS: Final = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""What pydantic takes for a type, and validates calls of."""
_MISFITS: Final = ("_type", "_parsing")
"""How pydantic's kinds of errors end that say a value is of another type; one that is out of bounds may stand for
none."""


def input_model(name: str, declared: type[BaseModel] | Mapping[str, Any] | None) -> type[BaseModel]:
    """The model of the input of workflow `name`.

    Raises:
        DefinitionError: none can be made of what is declared, or a field has a name with a meaning of its own.
    """
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        made = declared
    else:
        made = _model_of(name, {} if declared is None else declared)
    clash = next((field for field in made.model_fields if field in RESERVED), None)
    if clash is not None:
        raise DefinitionError(
            f"workflow {name!r}: the input field {clash!r} has a reserved name ({', '.join(sorted(RESERVED))})"
        )
    return made


def _model_of(name: str, declared: Any) -> type[BaseModel]:
    if not isinstance(declared, Mapping):
        raise DefinitionError(
            f"workflow {name!r}: input is a pydantic model or a mapping of names to types, not {shown(declared)}"
        )
    fields: dict[str, Any] = {}
    for field, kind in declared.items():
        if not isinstance(field, str) or not field.isidentifier():
            raise DefinitionError(f"workflow {name!r}: input field {field!r} is no identifier")
        if isinstance(kind, _FUNCTIONS):
            raise DefinitionError(
                f"workflow {name!r}: input field {field!r} is {shown(kind)}, a function; give its type, such as int"
            )
        fields[field] = kind if isinstance(kind, tuple) else (kind, _default_in(kind))
    try:
        model = _made(name, fields)
    except Exception as error:
        wrong = next((field for field in fields if not _can_be_made(name, {field: fields[field]})), None)
        of = f"{declared!r}" if wrong is None else f"{wrong!r}: {shown(declared[wrong])}"
        said = str(error).partition("\n")[0] if not isinstance(error, KeyError) else "it is no type"
        raise DefinitionError(
            f"workflow {name!r}: no input can be made of {of} ({said}); give each field a type, as in {{'x': int}}"
        ) from None
    for field in fields.keys() - model.model_fields.keys():
        raise DefinitionError(f"workflow {name!r}: pydantic keeps the name {field!r} to itself; rename the input field")
    _refuse_misfits(name, model)
    return model


def _default_in(kind: Any) -> Any:
    """The default that a type says itself, as `Annotated[int, Field(default=4)]` does; `...` if it says none."""
    said: Any = ...
    for note in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        if isinstance(note, FieldInfo) and not note.is_required():
            factory: Any = note.default_factory
            said = note.default if factory is None else Field(default_factory=factory)
    return said


def _made(name: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    given: dict[str, Any] = dict(fields)
    model = create_model(f"{name} input", __config__={"extra": "forbid"}, **given)
    model.model_rebuild()
    return model


def _refuse_misfits(name: str, model: type[BaseModel]) -> None:
    """Raise `DefinitionError` for a default that is no value of its field; None says that there need be none."""
    for field, info in model.model_fields.items():
        if info.default is None or info.is_required() or info.default_factory is not None:
            continue
        try:
            TypeAdapter(info.rebuild_annotation()).validate_python(info.default)
        except ValidationError as error:
            wrong = next((one for one in error.errors() if one["type"].endswith(_MISFITS)), None)
            if wrong is not None:
                raise DefinitionError(
                    f"workflow {name!r}: the default of input field {field!r} is {shown(info.default)}, which does "
                    f"not fit its type ({wrong['msg']}); give a value of that type, or None for none"
                ) from None
        except Exception:
            continue  # its type says so only with more than a value at hand


def _can_be_made(name: str, fields: Mapping[str, Any]) -> bool:
    try:
        _made(name, fields)
    except Exception:
        return False
    return True
