"""collect: a step that gathers its arguments into a mapping, optionally transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.answer import plain_answer
from bitactor.declare.functions import refuse_uncallable
from bitactor.declare.source import Source
from bitactor.errors import DefinitionError
from bitactor.kinds.base import FUNCTION, SOURCES, FunctionKind, Site, with_parameters
from bitactor.kinds.result_types import answer_type, mapping_type
from bitactor.messages.values import carried, shown
from bitactor.plan.arguments import Converter
from bitactor.plan.plan import PlanStep

_PASSED_ON: Final = Converter(lambda value: value, carried)


class Collect(FunctionKind):
    """A mapping of arguments, or what `transform` makes of that mapping; declared."""

    label = "collect"
    keys = {"sources": SOURCES, "transform": FUNCTION}

    def __init__(self, what: str, sources: Mapping[str, Source], transform: Callable[..., Any] | None = None) -> None:
        if not isinstance(sources, Mapping):
            raise DefinitionError(
                f"{what}: sources={shown(sources)}; give a list of steps and input fields, or a mapping of names"
            )
        if transform is not None:
            refuse_uncallable(f"{what}: transform=", transform, ("arguments",))
        self.sources, self.transform = sources, transform

        def collected(**arguments: Any) -> Any:
            return arguments if transform is None else plain_answer("transform=", transform(arguments))

        super().__init__(what, with_parameters(collected, sources, self.label))

    @override
    def compile(self, site: Site) -> PlanStep:
        """Without a transform, objects are passed on as they are."""
        step = super().compile(site)
        if self.transform is None:
            step.arguments = tuple(
                argument if argument.path or argument.transform else argument._replace(converter=_PASSED_ON)
                for argument in step.arguments
            )
        return step

    @override
    @classmethod
    def bind(cls, own: dict[str, Any], given: Mapping[str, Any], source: Callable[[Any], Source]) -> Mapping[str, Any]:
        """Its sources, called as they are if they have no names here."""
        sources: Any = own["sources"]
        if isinstance(sources, str | bytes) or not isinstance(sources, Iterable):
            return given  # refused when it is made, with the step's name
        if not isinstance(sources, Mapping):
            sources = {other if isinstance(other, str) else other.name: other for other in sources}
        named = {name: source(given) for name, given in sources.items()}
        own["sources"] = named
        return {**given, **named}

    @override
    def said_bind(self, bind: Mapping[str, Source]) -> Mapping[str, Source]:
        return {name: source for name, source in bind.items() if name not in self.sources}

    @override
    def result_type(self, name: str) -> Any:
        if self.transform is not None:
            return answer_type(self.transform)
        return mapping_type(name, dict.fromkeys(self.sources, Any))
