"""Replacing the functions of steps, for one mesh."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from unittest.mock import NonCallableMock

from bitactor.declare.functions import is_coroutine_function
from bitactor.declare.spawners import SPAWNERS, default_spawn, spawn_beside
from bitactor.errors import ConfigurationError, DefinitionError, suggest
from bitactor.plan.callbacks import compile_callback
from bitactor.plan.consumer import Consumer, compile_consumer
from bitactor.plan.plan import Callback, Plan, PlanStep
from bitactor.workflow import Workflow

Replacements = Mapping[str, Callable[..., Any]]

_ROLES: Final = ("run", "undo", "compensate")


class CallbackSlot(NamedTuple):
    """A step's `run`, `undo` or `compensate`, whose function may be replaced."""

    step: PlanStep
    role: str
    workflow: Workflow | None
    """The workflow of the step; None: the step is a consumer's."""

    @property
    def name(self) -> str:
        """The slot's short name: `step`, `step.undo` or `step.compensate`; an iterate's round has the iterate's."""
        name = self.step.name or self.step.address.rpartition("/")[2]
        return name if self.role == "run" else f"{name}.{self.role}"

    @property
    def path(self) -> str:
        """The slot's full name: with the workflow, and with everything the step is nested in."""
        if self.workflow is None:
            return self.name
        return self.step.address if self.role == "run" else f"{self.step.address}.{self.role}"


def replace_callbacks(definitions: Iterable[Workflow | Consumer], functions: Replacements) -> dict[str, Plan]:
    """Plans of these definitions, by name, with other functions in some places; the definitions stay as they are.

    Args:
        functions: `workflow/step`, or `step` where that can mean only one → the function; with `.undo` or `.compensate`
            behind it, of a step that has one.

    Raises:
        ConfigurationError: there is no such place, or several.
        DefinitionError: the function asks for something it cannot have there.
    """
    plans: dict[str, Plan] = {}
    slots: dict[str, list[CallbackSlot]] = {}
    for definition in definitions:
        workflow = definition if isinstance(definition, Workflow) else None
        plan = (
            definition.nested_plan(definition.name)
            if isinstance(definition, Workflow)
            else compile_consumer(definition)
        )
        plans[plan.workflow] = plan
        for slot in _slots(plan, workflow):
            for name in {slot.name, slot.path}:
                slots.setdefault(name, []).append(slot)
    for name, function in functions.items():
        _replace(_find_slot(name, slots, plans), function)
    return plans


def _slots(plan: Plan, workflow: Workflow | None) -> list[CallbackSlot]:
    return [
        CallbackSlot(step, role, workflow)
        for step in plan.all_steps()
        if step.container is None and not step.takes_raw_arguments
        for role in _ROLES
        if getattr(step, role) is not None
    ]


def _find_slot(name: str, slots: Mapping[str, list[CallbackSlot]], plans: Mapping[str, Plan]) -> CallbackSlot:
    found = slots.get(name, [])
    if not found:
        raise ConfigurationError(f"steps names {name!r}, which is {_no_slot(name, slots, plans)}")
    if len(found) > 1:
        raise ConfigurationError(
            f"steps names {name!r}, which may be {' or '.join(slot.path for slot in found)}; say which"
        )
    return found[0]


def _no_slot(name: str, slots: Mapping[str, list[CallbackSlot]], plans: Mapping[str, Plan]) -> str:
    """What a name is that is no slot's, and what to do instead."""
    plain = name.removesuffix(".undo")
    for step in (step for plan in plans.values() for step in plan.containers):
        if plain not in (step.name, step.address):
            continue
        inside = [path for path in slots if path.startswith(f"{step.address}/")]
        if inside:
            return f"made of steps ({step.kind}); name one of them.{suggest('', inside)}"
        return (
            f"a {step.kind}: its functions are called for each element, within a hop, and cannot be replaced; replace "
            "what they call, or have it over a workflow (workflow=…), whose steps can be"
        )
    return f"no step, undo or compensate here.{suggest(name, slots)}"


def _replace(slot: CallbackSlot, function: Callable[..., Any]) -> None:
    step, role = slot.step, slot.role
    original: Callback = getattr(step, role)
    what = f"replacement of {slot.path!r}"
    if _takes_anything(function):
        callback = replace(original)
        names = [*callback.injected, *([step.takes_signal] if step.takes_signal is not None else callback.takes)]
    else:
        takes = [argument.name for argument in step.arguments]
        if step.takes_signal is not None:
            takes = [_signal_parameter(function, what)]
            step.takes_signal = takes[0]
        callback = compile_callback(role, function, takes, what, slot.workflow)
        names = [*callback.injected, *callback.takes]
    callback.is_async = _is_coroutine_function(function)
    callback.function = _wrap(function, callback.is_async, names)
    callback.in_doubt, callback.retries = original.in_doubt, original.retries
    setattr(step, role, callback)
    if not SPAWNERS[step.spawn].carries_objects:
        step.spawn = default_spawn(step.run.is_async)  # another process would not know the function
    elif role == "run":
        step.spawn = spawn_beside(step.spawn, callback.is_async)


def _signal_parameter(function: Callable[..., Any], what: str) -> str:
    names = [name for name in inspect.signature(function).parameters if name not in ("ctx", "attempt")]
    if len(names) != 1:
        raise DefinitionError(
            f"{what} takes ({', '.join(names)}); a consumer takes the signal and, if it asks, `ctx` and `attempt`"
        )
    return names[0]


def _takes_anything(function: Callable[..., Any]) -> bool:
    """Whether a function has no parameters to go by: a mock, for example; it is given what the function in whose place
    it stands takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a function is awaited, mocks with the signature of something else included; a mock seems to be a
    `partial`, too, without end."""
    mock = getattr(function, "mock", function)
    return inspect.iscoroutinefunction(mock) or (
        not isinstance(mock, NonCallableMock) and is_coroutine_function(function)
    )


def _wrap(function: Callable[..., Any], is_async: bool, names: Sequence[str]) -> Callable[..., Any]:
    """`function` behind a function that gives it only the arguments in `names`: a step is called with all of its own,
    and another function may take fewer.

    A mock, too, is better kept behind a function: it has every attribute that anybody looks for, and would be taken for
    anything.
    """

    def call(**arguments: Any) -> Any:
        return function(**{name: arguments[name] for name in names})

    async def call_async(**arguments: Any) -> Any:
        return await function(**{name: arguments[name] for name in names})

    return call_async if is_async else call
