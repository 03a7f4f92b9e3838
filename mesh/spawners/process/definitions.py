"""What a worker process must know to run a hop: the workflow's definition, found by name (which modules to import
there, and the workflow among what they define), and the payload, which travels as the signal's token."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

from bitactor.declare.step import Step
from bitactor.errors import DefinitionError
from bitactor.messages.codec import decode_token, encode_token, token_bytes, token_from_bytes
from bitactor.messages.wire import MAX_FRAME_BYTES
from bitactor.plan.consumer import Consumer
from bitactor.plan.plan import Callback, Plan
from bitactor.workflow import Workflow
from mesh.hops.ports import Actor

Definition = Workflow | Consumer

SPANS: Final = "spans"
"""The verb of a worker that sends spans, and the option of one that shall."""


def modules_of(plan: Plan) -> list[str]:
    """The modules that a worker has to import to have this plan's definition: where the definition is to be found
    first, then where its functions are.

    Raises:
        DefinitionError: the definition can be found in `__main__` only, which no other process can import.
    """
    functions = dict.fromkeys(getattr(function, "__module__", None) or "" for function in _functions(plan))
    homes = [name for name in functions if _defines(sys.modules.get(name), plan.workflow)]
    if not homes:
        homes = [name for name, module in list(sys.modules.items()) if _defines(module, plan.workflow)]
    if homes and all(_is_main(name) for name in homes):
        raise DefinitionError(
            f"{plan.workflow!r} is declared in __main__, which worker processes cannot import; move it to a module of "
            "its own"
        )
    names = dict.fromkeys([*(homes if len(homes) == 1 else ()), *functions, *homes])
    return [name for name in names if name and not _is_main(name)]


def load(workflow: str, digest: str, modules: Sequence[str]) -> Plan:
    """Import `modules` and answer the plan of the workflow or consumer of that name.

    Raises:
        DefinitionError: a module cannot be imported, none of them has the workflow, or it is another than the parent's.
    """
    imported = [_import(name, workflow) for name in modules]
    definition = next((found for module in imported for found in _definitions(module) if found.name == workflow), None)
    shown = " or ".join(repr(name) for name in modules)
    if definition is None:
        raise DefinitionError(
            f"{workflow!r} is not among the globals of module {shown} when a worker process imports it; "
            "define it at module level, not in a function and not below `if __name__ == '__main__'`"
        )
    plan = definition.check()
    if plan.digest != digest:
        raise DefinitionError(
            f"{workflow!r} in module {shown} has another shape in a worker process (digest {plan.digest}) than in the "
            "process that "
            f"started it ({digest}); it must not depend on how the program was called, and after an edit restart the "
            "program"
        )
    return plan


def _functions(plan: Plan) -> Iterator[Callable[..., Any]]:
    for step in plan.all_steps():
        for callback in (step.run, step.undo, step.compensate, step.backoff, step.when):
            if isinstance(callback, Callback):
                yield callback.function


def _is_main(name: str) -> bool:
    """Whether the module of that name is the program itself (`multiprocessing` knows it by a second name)."""
    return name == "__main__" or sys.modules.get(name) is sys.modules.get("__main__")


def _import(name: str, workflow: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:  # a module may do anything when it is imported, sys.exit() included
        raise DefinitionError(
            f"module {name!r}, which {workflow!r} needs, cannot be imported in a worker process: "
            f"{type(error).__name__}: {error}"
        ) from error


def _defines(module: ModuleType | None, workflow: str) -> bool:
    return any(found.name == workflow for found in _definitions(module))


def _definitions(module: ModuleType | None) -> Iterator[Definition]:
    """Workflows and consumers among a module's globals, and those whose steps are.

    By exact type: asking a stranger's object `isinstance` may run its code.
    """
    for value in list(getattr(module, "__dict__", {}).values()):
        kind = type(value)
        if kind is Workflow or kind is Consumer:
            yield value
        elif kind is Step:
            yield value.workflow


class HopPayload(NamedTuple):
    """Which step of which plan to run, and with which arguments."""

    workflow: str
    digest: str
    step: str
    """Address of the step."""
    values: Any
    """Token of the step's arguments, not yet converted as their annotations ask."""
    result: Any
    """Token of the result that an undo takes back."""
    metadata: Mapping[str, Any] | None


def pack_payload(actor: Actor) -> Any:
    """The token for a worker.

    Raises:
        InvalidOutcome, SignalTooLarge: an argument cannot be carried, or all of them together are too much for a frame.
    """
    plan = actor.plan
    values = bytes(actor.arguments.packed())
    result = bytes(token_bytes(actor.result))
    payload = (plan.workflow, plan.digest, actor.step.address, values, result, actor.signal.metadata)
    return encode_token(list(payload), MAX_FRAME_BYTES)


def unpack_payload(token: Any) -> HopPayload:
    """The payload in a token that our parent made."""
    workflow, digest, step, values, result, metadata = decode_token(token)
    return HopPayload(workflow, digest, step, token_from_bytes(values), token_from_bytes(result), metadata)
