"""map: a function, or a nested workflow, over the elements of something that can be iterated.

The elements are taken in batches, and a batch is what is in memory.  With a function a batch is one hop, and one
append: the hop takes the next elements, calls the function for each, and answers with what came of them.  With a nested
workflow a hop takes the elements, and each element is a scope, `orders/17/charge`, whose steps are hops of their own;
the next batch is taken when this one is settled.  After a crash a map goes on with the batch it was in; a source that
is a factory is then opened again, and told by its parameter `start` how many elements were done, or, if it has none, is
read past them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BaseModel, Discriminator, Tag
from typing_extensions import override

from bitactor.declare.functions import refuse_uncallable
from bitactor.declare.source import Element, Source, functions_of, refuse_bad_parts
from bitactor.declare.step import Step
from bitactor.errors import BitActorError, DefinitionError, suggest
from bitactor.kinds.base import (
    CALLED,
    CONSTANT,
    FUNCTION,
    NESTED,
    SOURCE,
    Container,
    ContainerKind,
    Declaration,
    Form,
    Key,
    Origin,
    Parameter,
    Reader,
    Site,
    Writer,
    function_parameters,
    merge_parameters,
    target_parameters,
)
from bitactor.kinds.batch import (
    ELEMENTS,
    OVER,
)
from bitactor.kinds.map_container import FunctionMapContainer, WorkflowMapContainer
from bitactor.kinds.result_types import answer_type, mapping_type, target_type
from bitactor.messages.codec import (
    encode_token,
)

ON_ERROR: Final = ("fail", "collect")


class FailedElement(BaseModel):
    """What `on_error="collect"` tells of an element."""

    index: int
    element: Any
    error: str


class Factory(Form):
    """The factory of the elements."""

    factory: str


_Over = Annotated[
    Annotated[Origin, Tag("origin")] | Annotated[Factory, Tag("factory")],
    Discriminator(lambda data: "factory" if isinstance(data, Mapping) and "factory" in data else "origin"),
]


def _over_data(over: Any, what: str, name: str, graph: Writer) -> dict[str, Any]:
    if isinstance(over, Source):
        return SOURCE.write(over, what, name, graph)  # type: ignore[no-any-return]
    return {"factory": FUNCTION.write(over, what, name, graph)}


def _over_of(data: Factory | Origin, what: str, name: str, graph: Reader) -> Any:
    if isinstance(data, Factory):
        return FUNCTION.read(data.factory, what, name, graph)
    return SOURCE.read(data, what, name, graph)


def _container(site: Site, declared: Map) -> Container:
    if declared.workflow is None:
        return FunctionMapContainer(site, declared)
    return WorkflowMapContainer(site, declared, declared.workflow)


class Map(ContainerKind):
    """A map, declared; see `Workflow.map`."""

    label = "map"
    keys = {
        "function": CALLED._replace(required=False),
        "workflow": NESTED._replace(required=False),
        "over": Key(_Over, required=True, write=_over_data, read=_over_of),
        "batch": Key(int),
        "ordered": Key(bool),
        "on_error": Key(str),
        "keep": Key(bool),
        "reduce": FUNCTION,
        "initial": CONSTANT,
        "whole": Key(bool | None, default=False),
    }
    takes_attempts = True
    container = staticmethod(_container)

    def __init__(
        self,
        what: str,
        *,
        over: Any,
        function: Callable[..., Any] | None = None,
        workflow: Declaration | None = None,
        batch: int = 100,
        ordered: bool = True,
        on_error: str = "fail",
        keep: bool = True,
        reduce: Callable[[Any, list[Any]], Any] | None = None,
        initial: Any = None,
        whole: bool = False,
        elements: Mapping[str, Element] = MappingProxyType({}),
    ) -> None:
        if (function is None) == (workflow is None):
            raise DefinitionError(f"{what}: a map is over a function, or over workflow=, one of them")
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= sys.maxsize:
            raise DefinitionError(
                f"{what}: batch={batch!r}; it must be a whole number, at least 1 and at most {sys.maxsize:,}"
            )
        if on_error not in ON_ERROR:
            raise DefinitionError(f"{what}: on_error={on_error!r}.{suggest(str(on_error), ON_ERROR)}")
        if reduce is not None:
            refuse_uncallable(f"{what}: reduce=", reduce, ("reduced", "results"))
        for name, element in elements.items():
            refuse_bad_parts(f"{what}: bind[{name!r}]", element)
            for transform in functions_of(element.transform):
                refuse_uncallable(f"{what}: the transform of bind[{name!r}]", transform, ("element",))
        if reduce is None and initial is not None:
            raise DefinitionError(f"{what}: initial= is where reduce= begins, but there is no reduce=")
        try:
            encode_token(initial)
        except BitActorError as error:
            raise DefinitionError(f"{what}: initial={initial!r}: {error}") from None
        if reduce is not None and not keep:
            raise DefinitionError(f"{what}: keep=False keeps nothing, but reduce= makes something of it; leave one out")
        if workflow is not None and (reduce is not None or whole):
            raise DefinitionError(
                f"{what}: reduce= and whole= are for a map over a function; with workflow= say it in the workflow"
            )
        if whole and (elements or not ordered or on_error != "fail"):
            raise DefinitionError(
                f"{what}: with whole=True the function takes the batch as `elements` and answers for it; Element(), "
                "ordered= and on_error= "
                "have no meaning there"
            )
        self.over, self.function, self.workflow, self.batch = over, function, workflow, batch
        self.on_error, self.reduce, self.initial, self.whole = on_error, reduce, initial, whole
        self.ordered, self.keep = bool(ordered), bool(keep)  # None is neither given nor the default when it is written
        self.elements = dict(elements)
        self.factory: Callable[..., Any] | None = over if callable(over) else None

    @override
    @classmethod
    def bind(cls, own: dict[str, Any], given: Mapping[str, Any], source: Callable[[Any], Source]) -> Mapping[str, Any]:
        """What is no element, and `over`, unless that is a factory."""
        own["elements"] = {name: bound for name, bound in given.items() if isinstance(bound, Element)}
        others = {name: bound for name, bound in given.items() if name not in own["elements"]}
        if isinstance(own["over"], str | Step):
            own["over"] = source(own["over"])
        return {**others, OVER: own["over"]} if isinstance(own["over"], Source) else others

    @override
    def said_bind(self, bind: Mapping[str, Source]) -> Mapping[str, Source]:
        return {**super().said_bind(bind), **self.elements}

    @override
    def parameters(self, what: str) -> list[Parameter]:
        source = (
            [Parameter(OVER, Any, False)]
            if self.factory is None
            else function_parameters(self.factory, what, ("start",))
        )
        return merge_parameters([source, self._outer(what)])

    def _outer(self, what: str) -> list[Parameter]:
        """The parameters that are the same for every element."""
        if self.workflow is not None:
            fields = target_parameters(self.workflow, what)
            if not self.elements and all(field.name not in ELEMENTS for field in fields):
                example = fields[0].name if fields else "name"
                raise DefinitionError(
                    f"{what}: no input of {self.workflow.name!r} takes the element; bind one: "
                    f"bind={{{example!r}: Element()}}"
                )
            return [field for field in fields if field.name not in self.elements and field.name not in ELEMENTS]
        assert self.function is not None
        return function_parameters(
            self.function, what, ("elements", "index") if self.whole else (*ELEMENTS, *self.elements)
        )

    @override
    def result_type(self, name: str) -> Any:
        if self.reduce is not None:
            whole, name = answer_type(self.reduce), "result"
        elif self.keep:
            whole, name = list[target_type(self.workflow or self.function)], "results"  # type: ignore[misc]
        else:
            whole, name = int, "count"
        if self.on_error == "fail":
            return mapping_type("map", {name: whole}) if name == "count" else whole
        return mapping_type("map", {name: whole, "errors": list[FailedElement]})
