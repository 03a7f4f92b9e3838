"""The options of a step, and checks of the options of workflows, steps and consumers, made when the options are given.

An option of a step stands here twice: as a field of `StepOptions`, with its default, and as a key of the keywords that
type checkers know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final, Protocol, TypedDict, runtime_checkable

from bitactor.declare.backoff import Backoff
from bitactor.declare.functions import is_coroutine_function, may_need_awaiting, refuse_generator
from bitactor.declare.policy import Policy
from bitactor.declare.resource import Resource
from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import DefinitionError, DuplicateName, suggest
from bitactor.messages.duration import duration_rule, is_duration
from bitactor.messages.values import shown

RESERVED = frozenset(("ctx", "result", "error", "attempt"))
"""Names that parameters, steps and input fields cannot have, because they have a meaning of their own."""


@runtime_checkable
class NamedStep(Protocol):
    """A declared step, as the options of another one refer to it."""

    name: str

    @property
    def workflow(self) -> object:
        """The workflow that the step is declared on."""


class NestedKeywords(TypedDict, total=False):
    """The options of every step, also of one that is made of other steps; see `Workflow.step`."""

    bind: Mapping[str, Any] | None
    after: Iterable[str | NamedStep]
    when: Callable[..., bool] | None
    guard: Callable[..., Any] | None


class AttemptKeywords(NestedKeywords, total=False):
    """The options of a step with a function, but for where that runs; see `Workflow.step`."""

    retries: int
    backoff: Backoff | Callable[..., float] | None
    retry_on: type[BaseException] | Sequence[type[BaseException]]
    timeout: float | None
    required: bool
    priority: int
    limit: str | None
    policies: Sequence[Policy]


class StepKeywords(AttemptKeywords, total=False):
    """The options of `Workflow.step`."""

    name: str | None
    spawn: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepOptions:
    """The options of one step, checked and frozen: an iterator was read once, and later changes by the caller change
    nothing.  What each means is told by `Workflow.step`."""

    name: str | None = field(default=None, metadata={"form": "name"})
    bind: Mapping[str, Any] = field(default_factory=dict, metadata={"form": "sources"})
    after: Sequence[str | NamedStep] = field(default=(), metadata={"form": "names"})
    when: Callable[..., bool] | None = field(default=None, metadata={"form": "function"})
    guard: Callable[..., Any] | None = field(default=None, metadata={"form": "function"})
    retries: int = 0
    backoff: Backoff | Callable[..., float] | None = field(default=None, metadata={"form": "backoff"})
    retry_on: type[BaseException] | Sequence[type[BaseException]] = field(
        default=Exception, metadata={"form": "classes"}
    )
    timeout: float | None = None
    spawn: str | None = None
    required: bool = True
    priority: int = 0
    limit: str | None = None
    policies: tuple[Policy, ...] = field(default=(), metadata={"form": "objects"})
    given: frozenset[str] = frozenset()
    """Names of the options that the caller gave a value."""

    @classmethod
    def of(cls, what: str, given: Mapping[str, Any]) -> StepOptions:
        """The options that were given for `what`.

        Raises:
            DefinitionError: one is unknown, or wrong by itself.
        """
        refuse_unknown(what, given, STEP_OPTIONS)
        for option in ("retries", "timeout"):
            refuse_negative(what, option, given.get(option))
        priority, policies = given.get("priority", 0), given.get("policies", ())
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise DefinitionError(f"{what}: priority={priority!r}; it must be a whole number, the highest goes first")
        refuse_no_bool(what, required=given.get("required", True))
        for option, named in (("limit", f"the pool that a {what} is limited by"), ("name", f"a {what}")):
            if given.get(option) is not None:
                refuse_bad_name(named, given[option])
        if not isinstance(policies, Sequence) or not all(isinstance(policy, Policy) for policy in policies):
            raise DefinitionError(f"{what}: policies={policies!r}; give a list of patterns from bitactor.patterns")
        if not isinstance(given.get("bind"), Mapping | None):
            raise DefinitionError(
                f"{what}: bind={given['bind']!r}; give a mapping of parameters to Input, Result or Value"
            )
        kept = {name: value for name, value in given.items() if value is not None or name == "retry_on"}
        said = frozenset(name for name, value in kept.items() if value is not None)
        kept |= {"bind": dict(kept.get("bind", ())), "policies": tuple(policies)}
        kept["after"] = _steps_named(what, kept.get("after", ()))
        return cls(**kept, given=said)

    @property
    def after_names(self) -> set[str]:
        """Names of the steps in `after`."""
        return {other if isinstance(other, str) else other.name for other in self.after}

    def refuse_unfit(self, what: str, function: Callable[..., Any]) -> None:
        """Raise `DefinitionError` for an option that does not fit the function, or could never have an effect."""
        refuse_generator(what, function)
        _refuse_bad_spawn(what, function, self.spawn)
        if self.spawn is not None and self.timeout is not None and not SPAWNERS[self.spawn].interruptible:
            stuck = f"nothing can interrupt spawn={self.spawn!r}; use 'thread' or 'loop'"
            raise DefinitionError(f"{what}: timeout={self.timeout!r}, but {stuck}")
        useless = next((option for option in ("backoff", "retry_on") if option in self.given), None)
        if useless is not None and not self.retries:
            raise DefinitionError(
                f"{what}: {useless}= says how to try again, but retries=0; give retries=… or leave it out"
            )


STEP_OPTIONS: Final[Mapping[str, Field[Any]]] = {
    option.name: option for option in fields(StepOptions) if option.name != "given"
}
"""All options of a step, by name.  The metadata say of which form an option is in a graph that is plain data (see
`bitactor.forms.keys`); without any it is plain itself."""

NESTED_OPTIONS: Final = ("name", *NestedKeywords.__annotations__)
"""Names of the options that a step made of other steps, without a function of its own, takes too."""


def refuse_unknown(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises `DefinitionError` for an option that does not exist, with the one that was probably meant."""
    for option in options:
        if option not in known:
            raise DefinitionError(f"{what}: unknown option {option!r}.{suggest(option, known)}")


def _steps_named(what: str, after: Any) -> Sequence[str | NamedStep]:
    if isinstance(after, str):
        return after or ()  # a text is refused together with the step's name
    named = tuple(after) if isinstance(after, Iterable) else (after,)
    if isinstance(after, NamedStep) or not all(isinstance(other, str | NamedStep) for other in named):
        raise DefinitionError(f"{what}: after={after!r}; give a list of steps")
    return named


def refuse_no_bool(what: str, **given: object) -> None:
    """Raises `DefinitionError` unless each option given is True or False: any other value would count as one of
    them."""
    for option, value in given.items():
        if not isinstance(value, bool):
            raise DefinitionError(f"{what}: {option}={shown(value)}; it is True or False")


def refuse_bad_name(what: str, name: object) -> None:
    """Raises `DefinitionError` unless `name` is a printable string of 1 to 200 characters."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise DefinitionError(f"{what} needs a name of 1 to 200 printable characters, not {name!r}")


def refuse_bad_path(what: str, name: str) -> None:
    """Raises `DefinitionError` if `name`, which stands in URLs, has a part that clients resolve before they ask."""
    if any(part in (".", "..") for part in name.split("/")):
        raise DefinitionError(
            f"{what} {name!r}: '.' and '..' between slashes mean something else in the URL that it is stimulated by; "
            "name it otherwise"
        )


def _refuse_bad_spawn(what: str, function: Callable[..., Any], spawn: str | None) -> None:
    if spawn is None:
        return
    traits = SPAWNERS.get(spawn) if isinstance(spawn, str) else None
    if traits is None:
        if spawn == "ray":
            raise DefinitionError(f"{what}: spawn='ray' is not built yet; use one of {', '.join(SPAWNERS)}")
        raise DefinitionError(f"{what}: spawn={shown(spawn)}.{suggest(str(spawn), SPAWNERS)}")
    passes_on = traits.on_loop and traits.refuses_def and may_need_awaiting(function)
    problem = traits.refusal(is_coroutine_function(function) or bool(passes_on))
    if not problem and traits.imports:
        if "<locals>" in getattr(function, "__qualname__", "<locals>"):
            problem = "finds functions by name, and a closure has none; define it at module level"
        elif function.__module__ == "__main__":
            problem = "cannot import from __main__; move the workflow to a module of its own"
    if problem:
        raise DefinitionError(f"{what}: spawn={spawn!r} {problem}")


def exception_classes(workflow: str, errors: Any) -> tuple[type[BaseException], ...]:
    kinds = tuple(errors) if isinstance(errors, Iterable) else (errors,)
    if not isinstance(errors, Iterable) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise DefinitionError(f"workflow {workflow!r}: errors={errors!r}; give a list of exception classes")
    return kinds


_NO_ZERO: Final = ("timeout", "deadline")
_DURATIONS: Final = (*_NO_ZERO, "undo_timeout", "grace")


def refuse_negative(what: str, option: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DefinitionError(f"{what}: {option}={value!r}; it must be a number, zero or more")
    if option in ("retries", "redeliveries", "concurrency") and not isinstance(value, int):
        raise DefinitionError(f"{what}: {option}={value!r}; it must be a whole number")
    if option in _DURATIONS and not is_duration(value, zero=True):
        raise DefinitionError(f"{what}: {option}={value!r}; give {duration_rule(zero=option not in _NO_ZERO)}")
    if option in _NO_ZERO and value == 0:
        raise DefinitionError(f"{what}: {option}=0 leaves no time at all; leave it out for no limit")


def named_resources(workflow: str, declared: Iterable[Resource]) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
    if not isinstance(declared, Iterable):
        raise DefinitionError(
            f"workflow {workflow!r}: resources={shown(declared)}; give a list of Resource(name, factory)"
        )
    for resource in declared:
        if not isinstance(resource, Resource):
            raise DefinitionError(
                f"workflow {workflow!r}: resources are made with Resource(name, factory), not {resource!r}"
            )
        if resource.name in found:
            raise DuplicateName(f"workflow {workflow!r} has two resources {resource.name!r}")
        if resource.name in RESERVED:
            raise DefinitionError(
                f"workflow {workflow!r}: the resource {resource.name!r} has a reserved name "
                f"({', '.join(sorted(RESERVED))})"
            )
        found[resource.name] = resource
    return found
