"""The dict form of workflows, as pydantic models; the keys are the options of the methods that declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_type_hints

from pydantic import Discriminator, ValidationError, create_model

from bitactor.declare.options import NESTED_OPTIONS
from bitactor.errors import DefinitionError, suggest
from bitactor.forms.keys import FUNCTION, OPTION_KEYS, Form, Key, TextOr, Undo
from bitactor.kinds import KINDS
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind

VERSION: Final = 1
OF_A_WORKFLOW: Final = ("ttl", "deadline", "undo_timeout", "grace", "redeliveries", "max_concurrency", "max_hops")
_TAGS: Final = ("text", "form", "origin", "factory")


class FieldForm(Form):
    """An input field with a default."""

    type: str
    default: Any


class Fields(Form):
    """An input that is no class of its own: names and types."""

    fields: dict[str, TextOr[FieldForm]]


class ResourceForm(Form):
    """A resource that stands at no import path itself."""

    name: str
    factory: str
    close: str | None = None
    check: str | None = None
    check_every: float | None = None
    provides: str | None = None
    requires: list[str] | None = None


def step_form(kind: type[Kind]) -> type[Form]:
    """The form of a step of a kind: its own keys, and those of the options that every step takes, or every one that
    has a function."""
    keys = {name: key for name, key in OPTION_KEYS.items() if kind.takes_attempts or name in NESTED_OPTIONS}
    keys |= {"undo": Key(Undo), "compensate": FUNCTION} if kind.takes_attempts else {}
    fields: dict[str, Any] = {name: key.field for name, key in (keys | {**kind.keys}).items()}
    fields["kind"] = (Literal[kind.label], ...)
    return create_model(kind.label, __base__=Form, **fields)


@cache
def _graph(kinds: tuple[type[Kind], ...]) -> type[Form]:
    """The form of a workflow, with all that are nested in it, whose steps are of these kinds."""
    any_step: Any = Annotated[Union[tuple(map(step_form, kinds))], Discriminator("kind")]  # noqa: UP007
    hints = get_type_hints(Declaration)
    fields: dict[str, Any] = {
        "name": (str, ...),
        "input": (TextOr[Fields] | None, None),  # type: ignore[misc]
        **{name: (hints[name] | None, None) for name in OF_A_WORKFLOW},
        "errors": (list[str], []),
        "resources": (list[TextOr[ResourceForm]], []),
        "steps": (list[any_step], ...),
        "returns": (str | None, None),
    }
    workflow: Any = create_model("WorkflowForm", __base__=Form, **fields)
    nested: Any = (list[workflow], [])
    return create_model("GraphForm", __base__=workflow, version=(Literal[1], VERSION), workflows=nested)


def validate(data: Any) -> Any:
    """The data as a form.

    Raises:
        DefinitionError: naming each place that is wrong (five at most), what is wrong there, and the key that was
            probably meant.
    """
    try:
        return _graph(tuple(KINDS.values())).model_validate(data)
    except ValidationError as error:
        name = data.get("name") if isinstance(data, Mapping) else None
        what = f"the graph of workflow {name!r}" if isinstance(name, str) else "the graph of a workflow"
        said = [f"{_place(item['loc'], data)}{_message(item)}" for item in error.errors(include_url=False)[:5]]
        raise DefinitionError(f"{what}: {'; '.join(dict.fromkeys(said))}") from None


def _place(loc: tuple[str | int, ...], data: Any) -> str:
    """The place of an error in the data; steps are named and not counted."""
    said = list(_walk(loc, data))
    return f"{'.'.join(said)}: " if said else ""


def _walk(loc: tuple[str | int, ...], data: Any) -> Iterator[str]:
    here = data
    for part in loc:
        inside = isinstance(here, Mapping) and part in here
        if isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
            name = here.get("name") if isinstance(here, Mapping) else None
            yield repr(name) if isinstance(name, str) else str(part)
        elif inside or (part not in KINDS and part not in _TAGS):
            here = here[part] if inside and isinstance(here, Mapping) else None
            yield str(part)


def _message(item: Any) -> str:
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind = item["ctx"].get("tag")
        if kind is None:
            return f"say of what kind it is: 'kind' is one of {', '.join(map(repr, KINDS))}"
        return f"there is no kind {kind!r}.{suggest(str(kind), KINDS)}"
    if item["type"] == "missing":
        return "is missing"
    message = str(item["msg"])
    if item["type"] == "value_error":
        return message.removeprefix("Value error, ")
    given = repr(item["input"])
    return f"{message[:1].lower()}{message[1:]}, not {given if len(given) <= 60 else f'{given[:57]}...'}"
