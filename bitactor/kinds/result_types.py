"""The types of results, as far as functions are annotated, and their JSON Schemas."""

from __future__ import annotations

import functools
import inspect
import json
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Union, get_args, get_origin

from pydantic import ConfigDict, Secret, TypeAdapter, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonRef, JsonSchemaValue, JsonSchemaWarningKind
from typing_extensions import override

from bitactor.declare.step import Step
from bitactor.declare.then import Then
from bitactor.errors import BitActorError
from bitactor.messages.outcome import Continue, Ok, Outcome
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import kind_of, returned_step

_NO_VALUE: Final = (Outcome, Ok, Continue, Then)
"""Annotations of a return type that are not the type of the value, or do not say it."""


_PLAIN: Final = (bool, int, float, str, bytes, list, dict, type(None))


def result_type(workflow: Declaration) -> Any:
    """The type of a workflow's result; Any if no annotation says it."""
    return step_type(returned_step(workflow))


def step_type(step: Step[Any, Any]) -> Any:
    """The type of a step's result, or None if the step can be skipped or may fail."""
    kind = kind_of(step).result_type(step.name)
    left_out = step.options.when is not None or not step.options.required
    return either(kind, None) if left_out else kind


def target_type(target: Any) -> Any:
    return result_type(target) if isinstance(target, Declaration) else answer_type(getattr(target, "function", target))


def mapping_type(name: str, fields: Mapping[str, Any]) -> Any:
    """The type of a mapping of exactly these keys, as a pydantic model."""
    given: dict[str, Any] = {key: (kind, ...) for key, kind in fields.items()}
    model: Any = create_model(name, __config__=ConfigDict(protected_namespaces=()), **given)
    return model


def answer_type(function: Callable[..., Any]) -> Any:
    """The type of the value that a function returns; Any if no annotation says it."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # a name that is nowhere to be found, or whatever evaluating it raises
        return Any
    return _value_type(hints.get("return", Any))


def _value_type(annotation: Any) -> Any:
    if annotation in (typing.NoReturn, typing.Never):
        return Any
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    values = [member for member in members if not (isinstance(member, type) and issubclass(member, _NO_VALUE))]
    kind = either(*values) if values and not _may_be_any(members) else Any
    return kind if any(kind is plain for plain in _PLAIN) or schema_of(kind) else Any


def _may_be_any(members: tuple[Any, ...]) -> bool:
    """Whether the members of a union have `Then`, `Ok` or `Continue`, which carry a value of any type."""
    return any(isinstance(member, type) and issubclass(member, (Then, Ok, Continue)) for member in members)


def either(*kinds: Any) -> Any:
    if any(kind is Any for kind in kinds):
        return Any
    return (
        functools.reduce(operator.or_, (type(None) if kind is None else kind for kind in kinds))
        if len(kinds) > 1
        else kinds[0]
    )


def schema_of(kind: Any, *, mode: typing.Literal["validation", "serialization"] = "serialization") -> dict[str, Any]:
    """The JSON Schema of a type; `{}` where it has none."""
    try:
        return TypeAdapter(kind).json_schema(mode=mode, schema_generator=JsonSchemas)
    except (BitActorError, KeyboardInterrupt):
        raise
    except BaseException:  # pydantic has many ways to say that there is none, and a type may have hooks of its own
        return {}


class JsonSchemas(GenerateJsonSchema):
    """Makes JSON Schemas of types.  The default of a type that is or has a secret is left out, as is one that has no
    form in JSON."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}

    @override
    def default_schema(self, schema: Any) -> JsonSchemaValue:
        try:
            made = super().default_schema(schema)
            if self._is_secret(made, set()) or _is_secret(schema["schema"]):
                made.pop("default", None)
            elif "default" in made:
                json.dumps(made["default"], allow_nan=False)
            return made
        except BaseException:  # of the default, or of the type within; the latter comes once more
            return self.generate_inner(schema["schema"])

    def _is_secret(self, part: Any, seen: set[str]) -> bool:
        """Whether a schema, or one in it, is that of a `SecretStr` or `SecretBytes`."""
        if isinstance(part, list):
            return any(self._is_secret(inner, seen) for inner in part)
        if not isinstance(part, dict):
            return False
        reference = part.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            known = self.json_to_defs_refs.get(JsonRef(reference))
            if known is not None and self._is_secret(self.definitions.get(known), seen):
                return True
        return part.get("writeOnly") is True or any(
            self._is_secret(inner, seen) for name, inner in part.items() if name != "default"
        )


_SECRET: Final[Any] = TypeAdapter(Secret[int]).core_schema
_WRITES_SECRETS: Final = _SECRET.get("serialization", {}).get("function", _SECRET)


def _is_secret(schema: Any) -> bool:
    """Whether a type, or one in it, is a `Secret[…]`, of which a JSON Schema says nothing."""
    if type(schema) is dict:
        return schema.get("function") is _WRITES_SECRETS or any(map(_is_secret, schema.values()))
    return type(schema) is list and any(map(_is_secret, schema))
