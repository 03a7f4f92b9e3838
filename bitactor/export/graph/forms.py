"""The dict form of workflows, as pydantic models; the keys are the options of the methods that declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from bitactor.declare.options import NESTED_OPTIONS, STEP_OPTIONS, StepOptions
from bitactor.errors import DefinitionError, suggest

VERSION: Final = 1
OF_A_WORKFLOW: Final = ("ttl", "deadline", "undo_timeout", "grace", "redeliveries", "max_concurrency", "max_hops")


class Form(BaseModel):
    """A mapping with the keys of the model and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

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
    """An object, made from its fields; see `bitactor.export.graph.values`."""

    make: str
    fields: dict[str, Any] = Field(default={}, alias="with")


class Backing(Form):
    """A `Backoff`."""

    initial: float | None = None
    factor: float | None = None
    cap: float | None = None
    jitter: float | None = None


class Origin(Form):
    """The origin of an argument: one of `input`, `result`, `value`, `element`."""

    input: str | None = None
    result: str | None = None
    value: Any = None
    element: Literal[True] | None = None
    path: list[str | int] = []
    transform: str | None = None

    @model_validator(mode="after")
    def _just_one(self) -> Origin:
        said = sorted(self.model_fields_set & {"input", "result", "value", "element"})
        if len(said) != 1:
            what = f"not {' and '.join(said)}" if said else "there is none of them"
            raise ValueError(f"say one of 'input', 'result', 'value', 'element'; {what}")
        if said == ["value"] and self.path:
            raise ValueError("a path leads into an input, a result or an element; give the value itself")
        return self


class Factory(Form):
    """The factory of the elements of a map."""

    factory: str


class Branch(Form):
    """A branch of a switch: a nested workflow by its name, or a function."""

    workflow: str | None = None
    function: str | None = None

    @model_validator(mode="after")
    def _just_one(self) -> Branch:
        if (self.workflow is None) == (self.function is None):
            raise ValueError("a branch is a 'workflow' or a 'function', one of them")
        return self


class Case(Branch):
    """A case of a switch: a value or a predicate (`test`), and the branch."""

    value: Any = None
    test: str | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Case:
        if ("value" in self.model_fields_set) == ("test" in self.model_fields_set):
            raise ValueError("a case has a 'value' to compare with, or a 'test' that says whether it fits")
        return self


def _is_text(data: Any) -> str:
    return "text" if isinstance(data, str) else "form"


Called: TypeAlias = Annotated[Annotated[str, Tag("text")] | Annotated[Made, Tag("form")], Discriminator(_is_text)]
"""A function."""


_HINTS: Final = get_type_hints(StepOptions)
_FORMS: Final[Mapping[str, tuple[Any, Any]]] = {
    "name": (str, ...),
    "sources": (dict[str, Origin], {}),
    "names": (list[str], []),
    "function": (str | None, None),
    "backoff": (
        Annotated[Annotated[str, Tag("text")] | Annotated[Backing, Tag("form")], Discriminator(_is_text)] | None,
        None,
    ),
    "classes": (list[str] | None, None),
    "objects": (list[Made] | None, None),
}
"""Form of an option that is not plain itself (`STEP_OPTIONS`) → type and default of its key."""


def _with_options(base: type[Form], *, nested: bool) -> Any:
    """The form, with keys for the options that every step takes (nested), or for those that take a function."""
    fields: dict[str, Any] = {
        name: _FORMS.get(option.metadata.get("form", "plain"), (_HINTS[name] | None, None))
        for name, option in STEP_OPTIONS.items()
        if (name in NESTED_OPTIONS) is nested
    }
    return create_model("Options", __base__=base, **fields)


class NamedStepForm(_with_options(Form, nested=True)):  # type: ignore[misc]
    """The keys of every step."""


class Undo(Form):
    """A step's undo."""

    function: Called
    in_doubt: bool = False
    retries: int | None = None


class FunctionStepForm(_with_options(NamedStepForm, nested=False)):  # type: ignore[misc]
    """The keys of every step that runs a function."""

    undo: Undo | None = None
    compensate: str | None = None


class StepForm(FunctionStepForm):
    """`workflow.step`, or `workflow.deferred`."""

    kind: Literal["step"]
    function: Called
    deferred: bool = False


class MapForm(FunctionStepForm):
    """`workflow.map`."""

    kind: Literal["map"]
    function: Called | None = None
    workflow: str | None = None
    over: Annotated[
        Annotated[Origin, Tag("origin")] | Annotated[Factory, Tag("factory")],
        Discriminator(lambda data: "factory" if isinstance(data, Mapping) and "factory" in data else "origin"),
    ]
    batch: int | None = None
    ordered: bool | None = None
    on_error: str | None = None
    keep: bool | None = None
    reduce: str | None = None
    initial: Any = None
    whole: bool | None = None


class IterateForm(FunctionStepForm):
    """`workflow.iterate`."""

    kind: Literal["iterate"]
    function: Called
    start: Origin
    until: str | None = None
    at_most: int


class AroundForm(FunctionStepForm):
    """`workflow.around`."""

    kind: Literal["around"]
    function: Called
    workflow: str


class ComposeForm(NamedStepForm):
    """`workflow.compose`."""

    kind: Literal["compose"]
    workflow: str


class SwitchForm(NamedStepForm):
    """`workflow.switch`."""

    kind: Literal["switch"]
    on: Origin
    cases: list[Case]
    default: Branch | None = None
    optional: bool = False


class GroupForm(NamedStepForm):
    """`workflow.group`."""

    kind: Literal["group"]
    workflow: str
    before_all: str | None = None
    after_all: str | None = None


class RecurseForm(NamedStepForm):
    """`workflow.recurse`."""

    kind: Literal["recurse"]
    workflow: str
    until: str | None = None
    at_most: int


class CollectForm(FunctionStepForm):
    """`workflow.collect`."""

    kind: Literal["collect"]
    sources: dict[str, Origin]
    transform: str | None = None


class TemplateForm(FunctionStepForm):
    """`workflow.template`."""

    kind: Literal["template"]
    text: str


class DebugForm(FunctionStepForm):
    """`workflow.debug`."""

    kind: Literal["debug"]
    sources: list[str]
    level: str | None = None


class FlunkForm(FunctionStepForm):
    """`workflow.flunk`."""

    kind: Literal["flunk"]
    text: str


AnyStep: TypeAlias = (
    StepForm | MapForm | IterateForm | AroundForm | ComposeForm | SwitchForm | GroupForm | RecurseForm | CollectForm
    | TemplateForm | DebugForm | FlunkForm
)  # fmt: skip

KINDS: Final = (
    "step",
    "map",
    "iterate",
    "around",
    "compose",
    "switch",
    "group",
    "recurse",
    "collect",
    "template",
    "debug",
    "flunk",
)


class FieldForm(Form):
    """An input field with a default."""

    type: str
    default: Any


class Fields(Form):
    """An input that is no class of its own: names and types."""

    fields: dict[
        str, Annotated[Annotated[str, Tag("text")] | Annotated[FieldForm, Tag("form")], Discriminator(_is_text)]
    ]


class ResourceForm(Form):
    """A resource that stands at no import path itself."""

    name: str
    factory: str
    close: str | None = None
    check: str | None = None
    check_every: float | None = None
    provides: str | None = None
    requires: list[str] | None = None


class WorkflowForm(Form):
    """A workflow."""

    name: str
    input: Annotated[Annotated[str, Tag("text")] | Annotated[Fields, Tag("form")], Discriminator(_is_text)] | None = (
        None
    )
    ttl: int | None = None
    deadline: float | None = None
    undo_timeout: float | None = None
    grace: float | None = None
    redeliveries: int | None = None
    errors: list[str] = []
    resources: list[
        Annotated[Annotated[str, Tag("text")] | Annotated[ResourceForm, Tag("form")], Discriminator(_is_text)]
    ] = []
    max_concurrency: int | None = None
    max_hops: int | None = None
    steps: list[Annotated[AnyStep, Discriminator("kind")]]
    returns: str | None = None


class GraphForm(WorkflowForm):
    """A workflow with everything that is nested in it."""

    version: Literal[1] = VERSION
    workflows: list[WorkflowForm] = []


_GRAPH: Final = TypeAdapter(GraphForm)
_TAGS: Final = frozenset((*KINDS, "text", "form", "origin", "factory"))


def validate(data: Any) -> GraphForm:
    """The data as a form.

    Raises:
        DefinitionError: naming each place that is wrong (five at most), what is wrong there, and the key that was
            probably meant.
    """
    try:
        return _GRAPH.validate_python(data)
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
        elif inside or part not in _TAGS:
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
