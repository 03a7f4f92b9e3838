"""Keys: how one option of a step is written as plain data, and read again; and the forms of data that steps of all
kinds share.

What an option is called in error messages is `what`, the step, and `name`, the option.  The last argument is the graph
that is being written or read, which knows the nested workflows by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, model_validator

from bitactor.declare.backoff import Backoff
from bitactor.declare.options import STEP_OPTIONS, StepOptions
from bitactor.declare.source import Element, Input, Result, Source, Value, functions_of, transform_of
from bitactor.errors import DefinitionError, suggest
from bitactor.forms.paths import class_at, function_at, path_of
from bitactor.forms.values import callable_of, constant, data_of, reference, value_of


class Form(BaseModel):
    """A mapping with the keys of the model and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((key for key in data if key not in known), None) if isinstance(data, Mapping) else None
        if unknown is not None:
            hint = suggest(str(unknown), known)
            raise ValueError(f"unknown key {unknown!r}.{hint}")
        return data

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named keys that the data have, with their values."""
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}


class Made(Form):
    """An object, made from its fields; see `bitactor.forms.values`."""

    make: str
    fields: dict[str, Any] = Field(default={}, alias="with")


_BACKOFF: Final[Mapping[str, Any]] = dict.fromkeys(("initial", "factor", "cap", "jitter"), (float | None, None))
Backing: Any = create_model("Backing", __base__=Form, **_BACKOFF)
"""A `Backoff`."""


class Origin(Form):
    """The origin of an argument: one of `input`, `result`, `value`, `element`."""

    input: str | None = None
    result: str | None = None
    value: Any = None
    element: Literal[True] | None = None
    path: list[str | int] = []
    transform: str | Annotated[list[str], Field(min_length=2)] | None = None

    @model_validator(mode="after")
    def _just_one(self) -> Origin:
        said = sorted(self.model_fields_set & {"input", "result", "value", "element"})
        if len(said) != 1:
            what = f"not {' and '.join(said)}" if said else "there is none of them"
            raise ValueError(f"say one of 'input', 'result', 'value', 'element'; {what}")
        if said == ["value"] and self.path:
            raise ValueError("a path leads into an input, a result or an element; give the value itself")
        return self


def _is_text(data: Any) -> str:
    return "text" if isinstance(data, str) else "form"


F = TypeVar("F")
TextOr: TypeAlias = Annotated[Annotated[str, Tag("text")] | Annotated[F, Tag("form")], Discriminator(_is_text)]
"""A text, most often an import path, or a form."""
Called: TypeAlias = TextOr[Made]
"""A function."""


class Undo(Form):
    """A step's undo."""

    function: Called
    in_doubt: bool = False
    retries: int | None = None


class Writer(Protocol):
    """A graph that is being written."""

    def nest(self, workflow: Any) -> str:
        """The name under which a nested workflow is written."""


class Reader(Protocol):
    """A graph that is being read."""

    def nested(self, name: str, what: str) -> Any:
        """The nested workflow of that name."""


def _same(value: Any, what: str, name: str, graph: Any) -> Any:
    return value


class Key(NamedTuple):
    """How an option is written, and read."""

    annotation: Any
    """The type of the data."""
    required: bool = False
    write: Callable[[Any, str, str, Writer], Any] = _same
    read: Callable[[Any, str, str, Reader], Any] = _same
    default: Any = None
    """The value of the option that is not written; None is not written either."""

    @property
    def field(self) -> tuple[Any, Any]:
        """Type and default of the data, as pydantic takes them."""
        if self.required:
            return self.annotation, ...
        return (self.annotation | None if self.default is None else self.annotation), self.default


def source_data(source: Source, what: str, *_: Any) -> dict[str, Any]:
    """The origin of an argument as plain data.

    Raises:
        DefinitionError: its transform, or its value, cannot be written.
    """
    data: dict[str, Any] = {}
    match source:
        case Input(name=name):
            data["input"] = name
        case Result(step=name):
            data["result"] = name
        case Value(value=value):
            data["value"] = constant(value, what)
        case Element():
            data["element"] = True
    if path := getattr(source, "path", ()):
        data["path"] = [*path]
    if source.transform is not None:
        paths = [path_of(function, f"{what}: its transform") for function in functions_of(source.transform)]
        data["transform"] = paths[0] if len(paths) == 1 else paths
    return data


def source_of(origin: Origin, what: str) -> Source:
    """The origin of an argument that `source_data` wrote."""
    paths = [origin.transform] if isinstance(origin.transform, str) else origin.transform or ()
    transform = transform_of([function_at(path, f"{what}: transform") for path in paths])
    if origin.input is not None:
        return Input(origin.input, *origin.path, transform=transform)
    if origin.result is not None:
        return Result(origin.result, *origin.path, transform=transform)
    if origin.element is not None:
        return Element(*origin.path, transform=transform)
    return Value(origin.value, transform=transform)


def called(data: str | Made, what: str) -> Callable[..., Any]:
    """The function of a step or an undo."""
    return callable_of(data.model_dump(by_alias=True) if isinstance(data, Made) else data, f"{what}: function")


def _backoff_data(backoff: Any, what: str, name: str, _: Writer) -> Any:
    if type(backoff) is Backoff:
        return {field: getattr(backoff, field) for field in _BACKOFF}
    return path_of(backoff, f"{what}: {name}=")


def _backoff_of(data: Any, what: str, name: str, _: Reader) -> Any:
    if isinstance(data, str):
        return function_at(data, f"{what}: {name}")
    try:
        return Backoff(**{field: value for field, value in data.model_dump().items() if value is not None})
    except ValueError as error:
        raise DefinitionError(f"{what}: {name}: {error}") from None


FUNCTION: Final = Key(
    str,
    write=lambda function, what, name, _: path_of(function, f"{what}: {name}="),
    read=lambda path, what, name, _: function_at(path, f"{what}: {name}"),
)
"""A function beside that of the step."""
CALLED: Final = Key(
    Called,
    required=True,
    write=lambda function, what, *_: reference(function, f"{what}: its function"),
    read=lambda data, what, *_: called(data, what),
)
"""The function of the step."""
NESTED: Final = Key(
    str,
    required=True,
    write=lambda workflow, what, name, graph: graph.nest(workflow),
    read=lambda nested, what, name, graph: graph.nested(nested, what),
)
"""A nested workflow."""
SOURCE: Final = Key(
    Origin,
    required=True,
    write=lambda source, what, name, _: source_data(source, f"{what}: {name}="),
    read=lambda origin, what, name, _: source_of(origin, f"{what}: {name}"),
)
"""The origin of an argument that is called as the option is, in parentheses."""
SOURCES: Final = Key(
    dict[str, Origin],
    required=True,
    write=lambda bind, what, *_: {name: source_data(bind[name], f"{what}: bind[{name!r}]") for name in bind},
    read=lambda bind, what, *_: {name: source_of(bind[name], f"{what}: bind[{name!r}]") for name in bind},
)
"""Origins of arguments, by name."""
CONSTANT: Final = Key(Any, write=lambda value, what, name, _: constant(value, f"{what}: {name}="))
"""A value that steps get."""

_FORMS: Final[Mapping[str, Key]] = {
    "name": Key(str, required=True),
    "sources": SOURCES._replace(required=False, default={}),
    "names": Key(
        list[str],
        write=lambda steps, *_: [step if isinstance(step, str) else step.name for step in steps],
        default=[],
    ),
    "function": FUNCTION,
    "backoff": Key(TextOr[Backing], write=_backoff_data, read=_backoff_of),  # type: ignore[misc]
    "classes": Key(
        list[str],
        write=lambda kinds, what, name, _: [
            path_of(kind, f"{what}: {name}=") for kind in ([kinds] if isinstance(kinds, type) else kinds)
        ],
        read=lambda paths, what, name, _: [class_at(path, f"{what}: {name}", BaseException) for path in paths],
    ),
    "objects": Key(
        list[Made],
        write=lambda objects, what, name, _: [data_of(thing, f"{what}: {name}=") for thing in objects],
        read=lambda given, what, name, _: [
            value_of(made.model_dump(by_alias=True), f"{what}: {name}") for made in given
        ],
    ),
}
"""Form of an option that is not plain itself → its key."""

_HINTS: Final = get_type_hints(StepOptions)
OPTION_KEYS: Final[Mapping[str, Key]] = {
    name: _FORMS.get(option.metadata.get("form", ""), Key(_HINTS[name])) for name, option in STEP_OPTIONS.items()
}
"""Option of every step → how it is written, and read."""
