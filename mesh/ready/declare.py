"""Declaring ready-made steps: a callable whose parameters are the fields of its templates.

What a step does is a frozen dataclass that can be called; the workflow takes it as it takes a user's function, and
`to_dict` writes it down by its fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any, ClassVar

from bitactor.declare.context import Context
from bitactor.declare.options import RESERVED, AttemptKeywords, refuse_unknown
from bitactor.declare.source import Source
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError
from bitactor.messages.duration import duration_rule, is_duration
from bitactor.workflow import Workflow
from mesh.ready.templates import Structure, Template, lift_sources


class ReadyKeywords(AttemptKeywords, total=False):
    """The options that every ready-made step takes; see `Workflow.step`."""


@dataclass(frozen=True)
class ReadyStep:
    """The base of what ready-made steps do: a callable whose parameters are the fields of its templates, `ctx`, and a
    resource.

    Raises:
        DefinitionError: a template cannot be read, or a field is no name of an argument.
    """

    _FIELDS: ClassVar[Mapping[str, type[Template] | type[Structure]]]
    """Field with a template → what it is: a text, or any structure."""
    _templates: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        templates = {name: kind(getattr(self, name)) for name, kind in self._FIELDS.items()}
        names = dict.fromkeys(name for template in templates.values() for name in template.arguments)
        resource = self._resource()
        for name in names:
            if name in RESERVED or iskeyword(name):
                raise DefinitionError(
                    f"{{{name}}}: a reserved name; give the value another one: bind={{'other': …}} and {{other}}"
                )
            if name in resource:
                raise DefinitionError(
                    f"{{{name}}} is also the name of the resource that the step uses; rename one of them, or bind "
                    "another name"
                )
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, keyword) for name in (*names, *resource)]
        parameters.append(inspect.Parameter("ctx", keyword, annotation=Context))
        object.__setattr__(self, "_templates", templates)
        object.__setattr__(self, "__signature__", inspect.Signature(parameters))
        object.__setattr__(self, "__annotations__", {"ctx": Context})

    def _text(self, name: str, given: Mapping[str, Any]) -> str:
        text: str = self._templates[name].filled(given)
        return text

    def _value(self, name: str, given: Mapping[str, Any]) -> Any:
        return self._templates[name].value(given)

    def _resource(self) -> tuple[str, ...]:
        """The name of the resource that the step uses, if any."""
        return ()


def is_again(ctx: Context) -> bool:
    """Whether an earlier attempt or delivery may have done the same before."""
    return ctx.attempt > 1 or ctx.signal.delivery > 1


def refuse_bound(option: str, bound: Any, highest: int, why: str = "") -> None:
    """Raise `DefinitionError` unless a bound is a whole number from 1 to `highest`."""
    if isinstance(bound, bool) or not isinstance(bound, int) or not 1 <= bound <= highest:
        raise DefinitionError(f"{option}={bound!r}; a whole number from 1 to {highest:,}{why}")


def refuse_seconds(option: str, seconds: Any) -> None:
    """Raise `DefinitionError` unless these are seconds, zero or more."""
    if not is_duration(seconds, zero=True):
        raise DefinitionError(f"{option}={seconds!r}; give {duration_rule(zero=True)}")


@dataclass(frozen=True)
class _TakenBack:
    """The undo of a ready-made step: takes the same arguments."""

    step: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "__signature__", self.step.__signature__)
        object.__setattr__(self, "__annotations__", self.step.__annotations__)


@dataclass(frozen=True)
class TakeBack(_TakenBack):
    """Calls the step's `take_back`, in a thread."""

    def __call__(self, **given: Any) -> None:
        self.step.take_back(**given)


@dataclass(frozen=True)
class TakeBackOnLoop(_TakenBack):
    """Awaits the step's `take_back`."""

    async def __call__(self, **given: Any) -> None:
        await self.step.take_back(**given)


def declare(
    workflow: Workflow,
    name: str,
    make: Callable[..., Any],
    shapes: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    undo: type[TakeBack] | type[TakeBackOnLoop] | None = None,
) -> Step[..., Any]:
    """Declare the step that `make(**shapes)` makes; `Input`, `Result` and `Value` in the shapes are bound to fields of
    their own.

    Raises:
        DefinitionError: or one of its kinds; a template cannot be read, an option is unknown or wrong.
    """
    what = f"step {name!r} of {workflow.name!r}"
    refuse_unknown(what, options, ReadyKeywords.__annotations__)
    given = options.get("bind") or {}
    if not isinstance(given, Mapping):
        raise DefinitionError(f"{what}: bind={given!r}; give a mapping of fields to Input, Result or Value")
    bind: dict[str, Source] = dict(given)
    try:
        function = make(**{part: lift_sources(shape, bind) for part, shape in shapes.items()})
    except DefinitionError as error:
        raise DefinitionError(f"{what}: {error}") from None
    step = workflow.step(name=name, **{**options, "bind": bind})(function)
    if undo is not None:
        step.undo(in_doubt=True)(undo(function))
    return step
