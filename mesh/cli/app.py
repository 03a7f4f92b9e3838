"""The `bitactor` command: finds the verb, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from cyclopts import App, CycloptsError

from bitactor.errors import BitActorError, suggest
from mesh.cli import work
from mesh.cli.exits import BROKEN_PIPE, INTERRUPTED, OK, TABLE, USAGE, CommandError, UsageError, exit_code
from mesh.cli.output import PipedConsole, prepare_streams, print_error

_HELP = (
    "BitActor: bounded work as hops with a budget and a deadline, undone when it fails, traced to the last transition."
)


def _version() -> str:
    try:
        return version("bitactor")
    except PackageNotFoundError:
        return "0 (from a source tree)"


class Verb(NamedTuple):
    """A verb of the `bitactor` command."""

    place: str
    """Its function, or its app, `module:name`, so that it costs only what it imports itself."""
    about: str
    """The first sentence of its docstring, for the overview, which imports no verb."""


VERBS: Final = {
    "cancel": Verb("mesh.cli.change:cancel", "Stop a running transaction and undo what it did."),
    "dead-letters": Verb(
        "mesh.cli.dead_letters:dead_letters", "List what ended nowhere: for whom it was meant, why, what was in it."
    ),
    "demo": Verb(
        "mesh.cli.demo:demo",
        "Watch real sign-ups go hop by hop through four processes, and what happens when things go wrong.",
    ),
    "doctor": Verb(
        "mesh.cli.doctor:doctor",
        "Look at this machine, and at the store, registry and collector that are named: does a node find what it "
        "needs?",
    ),
    "export": Verb(
        "mesh.cli.export:export",
        "Copy transactions and their pulses out of a journal, the newest first, while nodes write it or not.",
    ),
    "graph": Verb(
        "mesh.cli.graph:graph",
        "Draw workflows as Mermaid flowcharts: steps, where arguments come from, order, what is nested, undo, when.",
    ),
    "list": Verb("mesh.cli.list:list_transactions", "List transactions, the newest first."),
    "migrate": Verb("mesh.cli.migrate:migrate", "Bring a journal of an earlier release into the form of this one."),
    "registry": Verb("mesh.cli.registry:app", "Show who is registered: names, holders, values."),
    "resume": Verb("mesh.cli.change:resume", "Let a halted or stuck transaction go on."),
    "run": Verb(
        "mesh.cli.run:run", "Run a node: it takes stimuli, supervises transactions and runs steps, until it is stopped."
    ),
    "send-again": Verb("mesh.cli.dead_letters:send_again", "Bring what is in a dead letter to its receiver once more."),
    "stimulate": Verb("mesh.cli.stimulate:stimulate", "Begin a transaction and show its result."),
    "trace": Verb(
        "mesh.cli.trace:trace",
        "Show one transaction as a waterfall: hops, durations, attempts, TTL left, tombstones, undo.",
    ),
    "undo": Verb("mesh.cli.change:undo", "Take back what a completed transaction did, the last step first, once."),
    "verify": Verb(
        "mesh.cli.verify:verify",
        "Walk through a journal: is all that it keeps what was written, and can each pulse be read?",
    ),
}


def command_line(*, overview: bool) -> App:
    """The command line; `overview` shows each verb by what is said about it here, without importing it."""
    app = App(
        name="bitactor",
        help=_HELP,
        help_epilogue=TABLE,
        help_format="plaintext",
        version=_version,
        console=PipedConsole(),
        usage="Usage: bitactor VERB [OPTIONS]   (bitactor VERB --help has an example)",
    )
    for name, verb in VERBS.items():
        app.command(verb.place, name=name, help=verb.about if overview else None)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.  Arguments are the program's own unless given."""
    prepare_streams()
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
    if arguments and arguments[0][:1] != "-" and arguments[0] not in VERBS:
        raise UsageError(
            f"there is no verb {arguments[0]!r}.{suggest(arguments[0], VERBS)}", "'bitactor --help' shows what there is"
        )
    app = command_line(overview=VERBS.keys().isdisjoint(arguments))
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    answer = command(*bound.args, **bound.kwargs)
    return work.awaited(answer) if inspect.iscoroutine(answer) else answer


def _verbs(arguments: Sequence[str]) -> list[str]:
    """The verb at the beginning of the arguments, with its subcommand, for a hint; empty if there is none."""
    found = [argument for argument in arguments[:1] if argument in VERBS]
    return found if found != ["registry"] or arguments[1:2] != ["serve"] else ["registry", "serve"]


def _silence(stream: Any) -> None:
    """Point a stream whose reader is gone to the null device, so that Python, when it exits, does not complain of what
    is still buffered."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
