"""Other programs as steps.

    subprocess.run(scans, "scan", ["pdftotext", "--", "{path}", "-"], timeout=30.0)

Each argument is a template; nothing goes through a shell.  An argument that is one field with a list gives one argument
for each of its elements.

A program runs in a process group of its own.  When its time is up, when its transaction is cancelled or its deadline
has passed, all processes of the step are terminated, and killed if they are still there after `grace` seconds; also
those that a worker which is gone had started on this machine, before the step is tried again or undone.  What a program
that ended by itself has left in its group is ended too; a daemon that left the group stays.

The program finds the step's idempotency key in `BITACTOR_IDEMPOTENCY_KEY`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Unpack

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError, InvalidInput, InvalidOutcome, RunError
from bitactor.messages.codec import MAX_TOKEN_BYTES
from bitactor.workflow import Workflow
from mesh.ready.declare import (
    ReadyKeywords,
    ReadyStep,
    TakeBackOnLoop,
    declare,
    is_again,
    refuse_bound,
    refuse_seconds,
)
from mesh.ready.steps.process_run import (
    ATTEMPT_VARIABLE,
    KEY_VARIABLE,
    OutputTooLarge,
    ProgramResult,
    end_leftovers,
    hop_environment,
    run_program,
)
from mesh.ready.templates import Structure, Template, redact, text_of

__all__ = ["ProcessFailed", "Program", "run"]

DEFAULT_GRACE: Final = 5.0
DEFAULT_MAX_OUTPUT: Final = 1024 * 1024
EXCERPT: Final = 1_000
"""Characters of a program's standard error that an error shows."""


class ProcessFailed(RunError):
    """A program ended with another code than 0."""

    def __init__(self, command: str, returncode: int, stderr: str = "") -> None:
        super().__init__(command, returncode, stderr)
        self.command = command
        """The command as declared, for arguments may hold secrets."""
        self.returncode = returncode
        """The program's exit code; negative: the signal that killed it."""
        self.stderr = stderr
        """The end of the program's standard error."""

    @override
    def __str__(self) -> str:
        how = f"was killed by signal {-self.returncode}" if self.returncode < 0 else f"ended with {self.returncode}"
        return f"{self.command!r} {how}{f': {self.stderr}' if self.stderr else ''}"


@dataclass(frozen=True, kw_only=True)
class Program(ReadyStep):
    """One program; what is to be called as the step.  See `run` for its fields."""

    _FIELDS = {"command": Structure, "undo": Structure, "cwd": Template, "input": Structure, "env": Structure}
    command: Sequence[str]
    input: Any = None
    """What it reads."""
    env: Mapping[str, Any] = field(default_factory=dict)
    cwd: str = ""
    """The directory it runs in."""
    check: bool = True
    """Whether another exit code than 0 is an error."""
    undo: Sequence[str] = ()
    """The command that takes back what it did."""
    grace: float = DEFAULT_GRACE
    """Seconds between being asked to end, and being killed."""
    max_output: int = DEFAULT_MAX_OUTPUT
    """The largest output, in bytes."""
    encoding: str = "utf-8"
    """Of its output and input."""

    @override
    def __post_init__(self) -> None:
        _refuse_wrong(self)
        super().__post_init__()

    async def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        result = await self._run("command", given, ctx, self.check)
        stdout, stderr = (output.decode(self.encoding, "replace") for output in (result.stdout, result.stderr))
        return {"returncode": result.returncode, "stdout": stdout, "stderr": stderr}

    async def take_back(self, *, ctx: Context, **given: Any) -> None:
        """End the processes of the step that may still run; then run the command that undoes."""
        if ctx.in_doubt:
            await end_leftovers(f"{KEY_VARIABLE}={ctx.forward_key}", self.grace)
        if self.undo:
            await self._run("undo", given, ctx, True)

    async def _run(self, part: str, given: Mapping[str, Any], ctx: Context, check: bool) -> ProgramResult:
        """Run one of the commands; `check`: raise `ProcessFailed` for another code than 0."""
        command, env, own = " ".join(getattr(self, part)), self._value("env", given), hop_environment(ctx)
        if is_again(ctx):
            await end_leftovers(f"{KEY_VARIABLE}={ctx.idempotency_key}", self.grace)
        try:
            result = await run_program(
                _arguments(self._value(part, given)),
                given=_bytes(self._value("input", given), self.encoding),
                environment=_environment(env) | own,
                directory=self._text("cwd", given) or None,
                mark=f"{ATTEMPT_VARIABLE}={own[ATTEMPT_VARIABLE]}",
                grace=self.grace,
                max_bytes=self.max_output,
            )
        except OutputTooLarge:
            raise InvalidOutcome(
                f"{command!r} wrote more than max_output={self.max_output:,} bytes and was ended; have it "
                "write to a file"
            ) from None
        if check and result.returncode != 0:
            complaint = result.stderr.decode(self.encoding, "replace").strip()
            secrets = [str(value) for value in env.values() if value is not None]
            raise ProcessFailed(command, result.returncode, redact(complaint, secrets)[-EXCERPT:])
        return result


def run(
    workflow: Workflow,
    name: str,
    command: Sequence[str],
    *,
    input: Any = None,
    env: Mapping[str, Any] | None = None,
    cwd: str = "",
    check: bool = True,
    undo: Sequence[str] = (),
    grace: float = DEFAULT_GRACE,
    max_output: int = DEFAULT_MAX_OUTPUT,
    encoding: str = "utf-8",
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step that runs a program; its result has `returncode`, `stdout` and `stderr`.

    It is at least once, as every effect is: after a crash it runs again.  Its undo ends what may still run, and then
    runs the command `undo`.

    Args:
        command: the program, by name or path, without fields; and its arguments.  Put `--` before one that might begin
            with a dash.
        input: what the program reads: a text with fields, or a source of a text or bytes.
        env: variables on top of this process's own; a None takes one away.
        cwd: the directory it runs in.
        check: whether another code than 0 is a `ProcessFailed`.
        undo: the command that takes back what the program has done.  It may also be run when nobody knows whether the
            program did anything.
        grace: seconds between asking to end and killing.
        max_output: bytes that it may write to its standard output, or else it is ended; of its errors, the last so many
            are kept.
        encoding: of input and output; what does not fit is replaced.
        options: those of `Workflow.step`; with `timeout`, seconds it may take.

    Raises:
        DefinitionError: or one of its kinds.
    """
    shapes = {
        "command": command, "input": input, "env": dict(env or {}), "cwd": cwd, "check": check, "undo": undo,
        "grace": grace, "max_output": max_output, "encoding": encoding,
    }  # fmt: skip
    return declare(workflow, name, Program, shapes, options, undo=TakeBackOnLoop)


def _refuse_wrong(program: Program) -> None:
    for what, command in (("the command", program.command), ("undo=", program.undo)):
        if isinstance(command, str) or not all(isinstance(argument, str) for argument in command):
            raise DefinitionError(
                f"{what} is {command!r}; give a list of texts, for there is no shell that would split one"
            )
        if command and Template(command[0]).fields:
            raise DefinitionError(
                f"{what} begins with {command[0]!r}; which program runs is not for an argument to say"
            )
    if not program.command:
        raise DefinitionError("the command is empty")
    refuse_bound("max_output", program.max_output, MAX_TOKEN_BYTES // 2, ", for a journal carries it")
    refuse_seconds("grace", program.grace)


def _arguments(command: Sequence[Any]) -> list[str]:
    lists = (value if isinstance(value, list) else [value] for value in command)
    made = [text_of(item, "argument") for items in lists for item in items]
    if any("\0" in argument for argument in made):
        raise InvalidInput("an argument holds a NUL character, which no program can be given")
    return made


def _environment(given: Mapping[str, Any]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in given}
    return own | {name: text_of(value, name) for name, value in given.items() if value is not None}


def _bytes(given: Any, encoding: str) -> bytes:
    if given is None:
        return b""
    return given if isinstance(given, bytes) else text_of(given, "input").encode(encoding)
