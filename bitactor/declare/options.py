"""Checks of the options of workflows, steps and consumers, made when the options are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bitactor.declare.functions import is_coroutine_function
from bitactor.declare.policy import Policy
from bitactor.declare.resource import Resource
from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import DefinitionError, DuplicateName, suggest

RESERVED = frozenset(("ctx", "result", "error", "attempt"))
"""Names that parameters, steps and input fields cannot have, because they have a meaning of their own."""

STEP_OPTIONS = (
    "name", "bind", "after", "when", "guard", "retries", "backoff", "retry_on", "timeout", "spawn", "required",
    "priority", "limit", "policies",
)  # fmt: skip


def refuse_bad_name(what: str, name: object) -> None:
    """Raises `DefinitionError` unless `name` is a printable string of 1 to 200 characters."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise DefinitionError(f"{what} needs a name of 1 to 200 printable characters, not {name!r}")


def refuse_bad_spawn(what: str, function: Callable[..., Any], spawn: str | None) -> None:
    """Raises `DefinitionError` if `function` cannot run where `spawn` says."""
    if spawn is None:
        return
    traits = SPAWNERS.get(spawn)
    if traits is None:
        if spawn == "ray":
            raise DefinitionError(f"{what}: spawn='ray' is not built yet; use one of {', '.join(SPAWNERS)}")
        raise DefinitionError(f"{what}: spawn={spawn!r}.{suggest(str(spawn), SPAWNERS)}")
    problem = traits.refusal(is_coroutine_function(function))
    if not problem and traits.imports:
        if "<locals>" in getattr(function, "__qualname__", "<locals>"):
            problem = "finds functions by name, and a closure has none; define it at module level"
        elif function.__module__ == "__main__":
            problem = "cannot import from __main__; move the workflow to a module of its own"
    if problem:
        raise DefinitionError(f"{what}: spawn={spawn!r} {problem}")


def refuse_without_effect(what: str, options: Mapping[str, Any]) -> None:
    """Raises `DefinitionError` for an option that could never have an effect."""
    spawn = options.get("spawn")
    if spawn is not None and options.get("timeout") is not None and not SPAWNERS[spawn].interruptible:
        raise DefinitionError(
            f"{what}: timeout={options['timeout']!r}, but nothing can interrupt spawn={spawn!r}; use 'thread' or 'loop'"
        )
    if not options.get("retries"):
        for option in ("backoff", "retry_on"):
            if options.get(option) is not None:
                raise DefinitionError(
                    f"{what}: {option}= says how to try again, but retries=0; give retries=… or leave it out"
                )


def refuse_unknown_options(workflow: str, options: Mapping[str, Any]) -> None:
    for option in options:
        if option not in STEP_OPTIONS:
            raise DefinitionError(f"step of {workflow!r}: unknown option {option!r}.{suggest(option, STEP_OPTIONS)}")
    what = f"step of {workflow!r}"
    for option in ("retries", "timeout"):
        refuse_negative(what, option, options.get(option))
    refuse_bad_extras(what, options)


def refuse_bad_extras(what: str, options: Mapping[str, Any]) -> None:
    priority, limit = options.get("priority", 0), options.get("limit")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise DefinitionError(f"{what}: priority={priority!r}; it must be a whole number, the highest goes first")
    if not isinstance(options.get("required", True), bool):
        raise DefinitionError(f"{what}: required={options['required']!r}; it is True or False")
    if limit is not None:
        refuse_bad_name(f"the pool that a {what} is limited by", limit)
    policies = options.get("policies", ())
    if not isinstance(policies, Sequence) or not all(isinstance(policy, Policy) for policy in policies):
        raise DefinitionError(f"{what}: policies={policies!r}; give a list of patterns from bitactor.patterns")


def exception_classes(workflow: str, errors: Any) -> tuple[type[BaseException], ...]:
    kinds = tuple(errors) if isinstance(errors, Iterable) else (errors,)
    if not isinstance(errors, Iterable) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise DefinitionError(f"workflow {workflow!r}: errors={errors!r}; give a list of exception classes")
    return kinds


def refuse_negative(what: str, option: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DefinitionError(f"{what}: {option}={value!r}; it must be a number, zero or more")
    if option in ("retries", "redeliveries", "concurrency") and not isinstance(value, int):
        raise DefinitionError(f"{what}: {option}={value!r}; it must be a whole number")
    if option in ("timeout", "deadline") and value == 0:
        raise DefinitionError(f"{what}: {option}=0 leaves no time at all; leave it out for no limit")


def named_resources(workflow: str, declared: Iterable[Resource]) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
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
