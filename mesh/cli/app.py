"""The `bitactor` command: finds the verb, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from traceback import walk_tb
from typing import Any, Final

from cyclopts import App, CycloptsError

from bitactor.errors import BitActorError
from bitactor.messages.values import shown
from mesh.cli import registry
from mesh.cli.exits import BROKEN_PIPE, INTERRUPTED, OK, TABLE, USAGE, CommandError, exit_code
from mesh.cli.output import print_error
from mesh.hops.exits import run_on

_RUNNER: Final = asyncio.Runner.run.__code__.co_filename
"""Where asyncio raises what Ctrl-C comes to."""
_HELP = (
    "BitActor: bounded work as hops with a budget and a deadline, undone when it fails, traced to the last transition."
)


def _version() -> str:
    try:
        return version("bitactor")
    except PackageNotFoundError:
        return "0 (from a source tree)"


app = App(
    name="bitactor",
    help=_HELP,
    help_epilogue=TABLE,
    help_format="plaintext",
    version=_version,
    usage="Usage: bitactor VERB [OPTIONS]   (bitactor VERB --help has an example)",
)
registry_app = App(name="registry", help_format="plaintext")
registry_app.default(registry.show)
registry_app.command(registry.serve)

# By name, so that a verb costs only what it imports itself.
_VERBS = {
    "demo": "demo:demo",
    "run": "run:run",
    "stimulate": "stimulate:stimulate",
    "trace": "trace:trace",
    "list": "list:list_transactions",
    "cancel": "change:cancel",
    "resume": "change:resume",
    "undo": "change:undo",
    "graph": "graph:graph",
    "doctor": "doctor:doctor",
}
for _verb, _place in _VERBS.items():
    app.command(f"mesh.cli.{_place}", name=_verb)
app.command(registry_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.  Arguments are the program's own unless given."""
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(arguments: list[str]) -> int:
    try:
        answer = _call(arguments)
    except CycloptsError as error:
        print_error(
            str(error).strip(),
            f"'bitactor {' '.join(_verbs(arguments))} --help' shows what it takes".replace("  ", " "),
        )
        return USAGE
    except CommandError as error:
        print_error(str(error), error.hint, error.details)
        return error.code
    except BrokenPipeError:
        raise
    except (BitActorError, TimeoutError, OSError) as error:
        print_error(str(error) or type(error).__name__)
        return exit_code(error)
    return answer if isinstance(answer, int) else OK


def _call(arguments: list[str]) -> Any:
    if not arguments or arguments[0] in app.help_flags:
        for verb in _VERBS:
            app[verb]  # imports it, so that the overview can say what it does
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    answer = command(*bound.args, **bound.kwargs)
    return _awaited(answer) if inspect.iscoroutine(answer) else answer


def _awaited(command: Coroutine[Any, Any, Any]) -> Any:
    """The answer of a command, whose loop goes on when a callback of the user's exits.

    Raises:
        CommandError: the command itself exits.
        KeyboardInterrupt: Ctrl-C.
    """
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(command)

        async def ended() -> None:
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:  # Ctrl-C
                task.cancel()
                await asyncio.wait([task])
                raise

        def must_end(error: BaseException) -> bool:
            is_ctrl_c = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)][-1:] == [_RUNNER]
            return is_ctrl_c or (task.done() and not task.cancelled() and task.exception() is error)

        try:
            run_on(lambda: runner.run(ended()), must_end)
        except SystemExit as error:
            raise CommandError(f"the command was ended by {shown(error)}") from error
        return task.result()


def _verbs(arguments: Sequence[str]) -> list[str]:
    """The verb at the beginning of the arguments, with its subcommand, for a hint; empty if there is none."""
    found = [argument for argument in arguments[:1] if argument in app]
    return found if found != ["registry"] or arguments[1:2] != ["serve"] else ["registry", "serve"]


def _silence(stream: Any) -> None:
    """Point a stream whose reader is gone to the null device, so that Python, when it exits, does not complain of what
    is still buffered."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
