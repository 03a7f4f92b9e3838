"""The table of verdicts: what a step's function, its `compensate`, its backoff function and its `undo` do, and what comes of it, wherever they run.

Workflows are made here, at module level, one for each case and spawner, so that worker processes find them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, field_serializer

from bitactor import Backoff, Continue, Fail, Halt, Ok, Retry, Then, Workflow
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault

SPAWNERS: Final = ("loop", "inline", "thread", "process")
AT_ONCE: Final = Backoff(initial=0.0)


class Unwritable(BaseModel):
    """A result whose own serializer raises."""

    value: int

    @field_serializer("value")
    def _write(self, value: int) -> int:
        raise OSError("no pen")


class Unspeakable(Exception):
    """Its message cannot be made."""

    def __str__(self) -> str:
        raise OSError("no tongue")


ACTS: Final[Mapping[str, Callable[[], Any]]] = {
    "None": lambda: None,
    "1": lambda: 1,
    "2": lambda: 2,
    "0.0": lambda: 0.0,
    "-1": lambda: -1,
    "'soon'": lambda: "soon",
    "object": object,
    "5 MB": lambda: "x" * 5_000_000,
    "unwritable": lambda: Unwritable(value=1),
    "Ok": lambda: Ok(1),
    "Ok of Retry": lambda: Ok(Retry(after=0)),
    "Ok of object": lambda: Ok(object()),
    "Then": lambda: Then(1, []),
    "Then of object": lambda: Then(object(), []),
    "Continue": lambda: Continue(1),
    "Continue of object": lambda: Continue(object()),
    "Continue of unwritable": lambda: Continue(Unwritable(value=1)),
    "Retry": lambda: Retry(after=0),
    "Retry when it says": lambda: Retry(reason="later"),
    "Fail": lambda: Fail("never"),
    "Fail silently": Fail,
    "Halt": lambda: Halt("wait"),
}
"""What may be returned; an exception, or a verdict after `raise `, is raised instead."""

ERRORS: Final[Mapping[str, type[BaseException]]] = {
    "ValueError": ValueError,
    "OSError": OSError,
    "SystemExit": SystemExit,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "Unspeakable": Unspeakable,
}


@dataclass(frozen=True)
class Case:
    """One row: acts for each call, the last one for all further calls too; `expected` as `observed` says it."""

    expected: str
    does: str = "1"
    compensate: str = ""
    backoff: str = ""
    undo: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


R1: Final = {"retries": 1}
CASES: Final[Mapping[str, Case]] = {
    # A value
    "a value": Case("completed | spawned completed | 1", "1"),
    "nothing": Case("completed | spawned completed | None", "None"),
    "Ok": Case("completed | spawned completed | 1", "Ok"),
    "Ok of a verdict": Case("completed | spawned retried spawned completed | 1", "Ok of Retry, 1", options=R1),
    "Then": Case("completed | spawned completed | 1", "Then"),
    # A value that cannot be carried
    "unencodable": Case(
        "compensated | spawned failed | InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model",
        "object",
        options=R1,
    ),
    "unencodable, compensate None": Case(
        "compensated | spawned failed | InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model",
        "object",
        "None",
    ),
    "unencodable, compensate Continue": Case(
        "completed | spawned compensated | InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model",
        "object",
        "Continue",
    ),
    "unencodable, backoff": Case(
        "compensated | spawned failed | InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model",
        "object",
        backoff="0.0",
        options=R1,
    ),
    "unencodable in Ok": Case(
        "compensated | spawned failed | InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model",
        "Ok of object",
        options=R1,
    ),
    "unencodable in Then": Case(
        "compensated | spawned failed | InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model",
        "Then of object",
        options=R1,
    ),
    "over size": Case(
        "compensated | spawned failed | SignalTooLarge: the result of 'it': 5,000,000 bytes of text, the limit is 4,194,304 (payload_limit); keep large data elsewhere and pass a reference, or raise that on all nodes",
        "5 MB",
        options=R1,
    ),
    "over size, compensate Retry": Case(
        "completed | spawned retried spawned completed | 1", "5 MB, 1", "Retry", options=R1
    ),
    "a model that breaks": Case(
        "compensated | spawned failed | InvalidOutcome: the result of 'it': a Unwritable cannot be carried: Error calling function `_write`: OSError: no pen",
        "unwritable",
        options=R1,
    ),
    "a model that breaks, compensate": Case(
        "completed | spawned compensated | InvalidOutcome: the result of 'it': a Unwritable cannot be carried: Error calling function `_write`: OSError: no pen",
        "unwritable",
        "Continue",
    ),
    # Retry
    "Retry": Case("completed | spawned retried spawned completed | 1", "Retry, 1", options=R1),
    "Retry raised": Case("completed | spawned retried spawned completed | 1", "raise Retry, 1", options=R1),
    "Retry without retries": Case("compensated | spawned failed | Retry: asked for another try", "Retry, 1"),
    "Retry, compensate not asked": Case(
        "completed | spawned retried spawned completed | 1", "Retry, 1", "Continue", options=R1
    ),
    "Retry, retry_on does not matter": Case(
        "completed | spawned retried spawned completed | 1", "Retry, 1", options={"retries": 1, "retry_on": OSError}
    ),
    "Retry with a backoff function": Case(
        "completed | spawned retried spawned completed | 1", "Retry when it says, 1", backoff="0.0", options=R1
    ),
    "Retry, backoff broken": Case(
        "compensated | spawned failed | OSError: boom", "Retry when it says, 1", backoff="raise OSError", options=R1
    ),
    "Retry, backoff says no delay": Case(
        "compensated | spawned failed | InvalidOutcome: backoff of 'it' returned -1; it returns seconds, zero or more",
        "Retry when it says, 1",
        backoff="-1",
        options=R1,
    ),
    "Retry until used up": Case(
        "compensated | spawned retried spawned failed | Retry: asked for another try", "Retry", options=R1
    ),
    # Fail, Halt, Continue
    "Fail": Case("compensated | spawned failed | StepFailed: never", "Fail", options=R1),
    "Fail raised": Case("compensated | spawned failed | StepFailed: never", "raise Fail", options=R1),
    "Fail without a reason": Case("compensated | spawned failed | StepFailed: the step said so", "Fail silently"),
    "Fail, compensate not asked": Case("compensated | spawned failed | StepFailed: never", "Fail", "Continue"),
    "Halt": Case("halted | spawned halted | None", "Halt"),
    "Halt raised": Case("halted | spawned halted | None", "raise Halt"),
    "Halt, compensate not asked": Case("halted | spawned halted | None", "Halt", "Continue"),
    "Continue": Case(
        "compensated | spawned failed | InvalidOutcome: 'it' (forward) returned Continue(value=1); a step may return a value, Then(…), Retry(…), Fail(…) or Halt(…); Continue is for compensate",
        "Continue",
        options=R1,
    ),
    "Continue, compensate not asked": Case(
        "compensated | spawned failed | InvalidOutcome: 'it' (forward) returned Continue(value=1); a step may return a value, Then(…), Retry(…), Fail(…) or Halt(…); Continue is for compensate",
        "Continue",
        "Continue",
    ),
    # An exception, without compensate
    "raises": Case("compensated | spawned failed | ValueError: boom", "raise ValueError"),
    "raises, then works": Case("completed | spawned retried spawned completed | 1", "raise ValueError, 1", options=R1),
    "raises until used up": Case(
        "compensated | spawned retried spawned failed | ValueError: boom", "raise ValueError", options=R1
    ),
    "raises what retry_on has": Case(
        "completed | spawned retried spawned completed | 1",
        "raise OSError, 1",
        options={"retries": 1, "retry_on": OSError},
    ),
    "raises what retry_on has not": Case(
        "compensated | spawned failed | ValueError: boom",
        "raise ValueError, 1",
        options={"retries": 1, "retry_on": OSError},
    ),
    "raises SystemExit": Case("compensated | spawned failed | SystemExit: boom", "raise SystemExit, 1", options=R1),
    "raises GeneratorExit": Case(
        "compensated | spawned failed | GeneratorExit: boom", "raise GeneratorExit, 1", options=R1
    ),
    "raises what cannot be said": Case(
        "compensated | spawned failed | Unspeakable: <its message cannot be made: OSError> 'boom'", "raise Unspeakable"
    ),
    "raises, backoff function": Case(
        "completed | spawned retried spawned completed | 1", "raise ValueError, 1", backoff="0.0", options=R1
    ),
    "raises, backoff says no delay": Case(
        "compensated | spawned failed | ValueError: boom (and its backoff raised InvalidOutcome: backoff of 'it' returned 'soon'; it returns seconds, zero or more)",
        "raise ValueError, 1",
        backoff="'soon'",
        options=R1,
    ),
    "raises, backoff broken": Case(
        "compensated | spawned failed | ValueError: boom (and its backoff raised OSError: boom)",
        "raise ValueError, 1",
        backoff="raise OSError",
        options=R1,
    ),
    "raises, backoff raises Halt": Case(
        "halted | spawned halted | None", "raise ValueError, 1", backoff="raise Halt", options=R1
    ),
    # An exception, with compensate
    "compensate None": Case("compensated | spawned failed | ValueError: boom", "raise ValueError", "None", options=R1),
    "compensate Continue": Case("completed | spawned compensated | ValueError: boom", "raise ValueError", "Continue"),
    "compensate Continue, unencodable": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised InvalidOutcome: the result of 'it': a object cannot be carried: no way to carry a builtins.object; return plain data or a model)",
        "raise ValueError",
        "Continue of object",
    ),
    "compensate Continue, a model that breaks": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised InvalidOutcome: the result of 'it': a Unwritable cannot be carried: Error calling function `_write`: OSError: no pen)",
        "raise ValueError",
        "Continue of unwritable",
    ),
    "compensate Retry": Case(
        "completed | spawned retried spawned completed | 1", "raise ValueError, 1", "Retry", options=R1
    ),
    "compensate Retry without retries": Case(
        "compensated | spawned failed | ValueError: boom", "raise ValueError, 1", "Retry"
    ),
    "compensate raises Retry": Case(
        "completed | spawned retried spawned completed | 1", "raise ValueError, 1", "raise Retry", options=R1
    ),
    "compensate Retry, retry_on does not matter": Case(
        "completed | spawned retried spawned completed | 1",
        "raise ValueError, 1",
        "Retry",
        options={"retries": 1, "retry_on": OSError},
    ),
    "compensate Retry, backoff function": Case(
        "completed | spawned retried spawned completed | 1",
        "raise ValueError, 1",
        "Retry when it says",
        backoff="0.0",
        options=R1,
    ),
    "compensate Retry, backoff broken": Case(
        "compensated | spawned failed | ValueError: boom (and its backoff raised OSError: boom)",
        "raise ValueError, 1",
        "Retry when it says",
        backoff="raise OSError",
        options=R1,
    ),
    "compensate Halt": Case("halted | spawned halted | None", "raise ValueError", "Halt"),
    "compensate Fail": Case("compensated | spawned failed | ValueError: boom", "raise ValueError", "Fail"),
    "compensate a value": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised InvalidOutcome: compensate of 'it' returned 1; it may return None, Retry(…), Continue(value) or Halt(…))",
        "raise ValueError",
        "1",
    ),
    "compensate Ok": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised InvalidOutcome: compensate of 'it' returned Ok(value=1); it may return None, Retry(…), Continue(value) or Halt(…))",
        "raise ValueError",
        "Ok",
    ),
    "compensate breaks": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised OSError: boom)",
        "raise ValueError",
        "raise OSError",
        options=R1,
    ),
    "compensate breaks with SystemExit": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised SystemExit: boom)",
        "raise ValueError",
        "raise SystemExit",
        options=R1,
    ),
    "compensate breaks with StopIteration": Case(
        "compensated | spawned failed | ValueError: boom (and its compensate raised RuntimeError: it raised StopIteration)",
        "raise ValueError",
        "raise StopIteration",
    ),
    # Undo
    "undo": Case("compensated | spawned completed spawned undone | 1", undo="None"),
    "undo, a value": Case("compensated | spawned completed spawned undone | 1", undo="1"),
    "undo, a value that cannot be carried": Case("compensated | spawned completed spawned undone | 1", undo="object"),
    "undo Retry": Case("compensated | spawned completed spawned retried spawned undone | 1", undo="Retry, None"),
    "undo raises Retry": Case(
        "compensated | spawned completed spawned retried spawned undone | 1", undo="raise Retry, None"
    ),
    "undo raises": Case(
        "stuck | spawned completed spawned undo_failed | ValueError: boom", undo="raise ValueError, None"
    ),
    "undo raises, compensate not asked": Case(
        "stuck | spawned completed spawned undo_failed | ValueError: boom",
        compensate="Continue",
        undo="raise ValueError, None",
    ),
    "undo Fail": Case("stuck | spawned completed spawned undo_failed | StepFailed: never", undo="Fail, None"),
    "undo Halt": Case(
        "stuck | spawned completed spawned undo_failed | InvalidOutcome: 'it' (undo) returned Halt('wait'); an undo may return None or Retry(…)",
        undo="Halt, None",
    ),
    "undo Continue": Case(
        "stuck | spawned completed spawned undo_failed | InvalidOutcome: 'it' (undo) returned Continue(value=1); an undo may return None or Retry(…)",
        undo="Continue, None",
    ),
    "undo Then": Case(
        "stuck | spawned completed spawned undo_failed | InvalidOutcome: 'it' (undo) returned Then(value=1, steps=[]); an undo may return None or Retry(…)",
        undo="Then, None",
    ),
    "undo Ok": Case("compensated | spawned completed spawned undone | 1", undo="Ok"),
}


def act(acts: str, attempt: int) -> Any:
    """Do what stands for this attempt."""
    several = acts.split(", ")
    what = several[min(attempt, len(several)) - 1]
    raised = what.removeprefix("raise ")
    if raised in ERRORS:
        raise ERRORS[raised]("boom")
    if raised != what:
        raise ACTS[raised]()
    return ACTS[what]()


def observed(name: str, status: str, pulses: list[Pulse], results: Mapping[str, Any]) -> str:
    """`status | what became of the step, in pulses | its value, or the fault that it failed with`."""
    own = [pulse for pulse in pulses if pulse.step == "it"]
    kinds = " ".join(f"{pulse.kind}{'?' if (pulse.data or {}).get('in_doubt') else ''}" for pulse in own)
    faults = [readable(pulse.error) for pulse in own if pulse.error is not None and pulse.kind != "retried"]
    shown = faults[0] if faults else repr(results.get("it"))
    shown = re.sub(
        "RuntimeError: .* raised StopIteration", "RuntimeError: it raised StopIteration", shown
    )  # Python's words
    return f"{status} | {kinds} | {shown}".replace(f"'{name}/it'", "'it'")


def readable(fault: Fault | str) -> str:
    return fault if isinstance(fault, str) else fault.summary()


def it(case: str, attempt: int) -> Any:
    return act(CASES[case].does, attempt)


def compensate(error: BaseException, case: str, attempt: int) -> Any:
    return act(CASES[case].compensate, attempt)


def backoff(error: BaseException, case: str, attempt: int) -> Any:
    return act(CASES[case].backoff, attempt)


def undo(case: str, attempt: int) -> Any:
    return act(CASES[case].undo, attempt)


def breaks() -> None:
    raise LookupError("something later")


async def it_on_loop(case: str, attempt: int) -> Any:
    return it(case, attempt)


async def compensate_on_loop(error: BaseException, case: str, attempt: int) -> Any:
    return compensate(error, case, attempt)


async def backoff_on_loop(error: BaseException, case: str, attempt: int) -> Any:
    return backoff(error, case, attempt)


async def undo_on_loop(case: str, attempt: int) -> Any:
    return undo(case, attempt)


FUNCTIONS: Final = (it, compensate, backoff, undo)
ON_LOOP: Final = (it_on_loop, compensate_on_loop, backoff_on_loop, undo_on_loop)


def _workflow(place: str, title: str, case: Case) -> Workflow:
    run, compensates, backs_off, undoes = ON_LOOP if place == "loop" else FUNCTIONS
    workflow = Workflow(f"{place}: {title}", input={"case": str}, grace=0.2)
    options = dict(case.options)
    if "retries" in options:
        options["backoff"] = backs_off if case.backoff else AT_ONCE
    step = workflow.step(name="it", spawn=place, **options)(run)
    if case.compensate:
        step.compensate(compensates)
    if case.undo:
        step.undo(undoes)
        workflow.step(name="breaks", spawn="inline", after=["it"])(breaks)
    return workflow


WORKFLOWS: Final = {
    place: {title: _workflow(place, title, case) for title, case in CASES.items()} for place in SPAWNERS
}
globals().update({workflow.name: workflow for several in WORKFLOWS.values() for workflow in several.values()})
