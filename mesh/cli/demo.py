"""`bitactor demo`"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from mesh.cli.exits import FAILED, OK, UsageError
from mesh.cli.options import Json
from mesh.cli.output import WATERFALL_WIDTH, err, out, print_document, print_table
from mesh.cli.waterfall.render import show
from mesh.demo.findings import WHY
from mesh.demo.walkthrough import FIELDS, SHIPPED, Outcome, ProgressCallback, Walkthrough, read_rows


async def demo(
    *,
    csv: Annotated[
        Path, Parameter(help=f"Sign-ups of your own; columns {', '.join(FIELDS)}.", show_default=False)
    ] = SHIPPED,
    rows: Annotated[int | None, Parameter(help="Only the first so many.")] = None,
    keep: Annotated[
        Path | None, Parameter(help="Directory for journal and users table, instead of a temporary one.")
    ] = None,
    otlp: Annotated[
        str, Parameter(help="OTLP/HTTP collector, such as http://127.0.0.1:4318: see the traces in Jaeger.")
    ] = "",
    json: Json = False,
) -> int:
    """Watch real sign-ups go hop by hop through four processes, and what happens when things go wrong.

    Starts a registry, a service with an HTTP ingress and two workers; posts a few hundred sign-ups; the mail server
    fails for some, one step hangs, two consumers write to each other for ever, and half-way a worker is killed.
    Nothing is left running.

    Example: bitactor demo
    """
    if rows is not None and rows < 1:
        raise UsageError(f"--rows {rows}: at least one")
    given = read_rows(csv, rows)
    with _progress(quiet=json) as report:
        outcome = await _interruptible(Walkthrough(given, keep=keep, otlp=otlp, report=report))
    if json:
        print_document(_document(outcome))
    else:
        _report(outcome, out())
    return FAILED if outcome.findings.problems else OK


async def _interruptible(walkthrough: Walkthrough) -> Outcome:
    """Run the walkthrough so that SIGTERM ends it as Ctrl-C does: in order."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await walkthrough.run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[ProgressCallback]:
    console = err()
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=1)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=what or None)

        yield report


def _report(outcome: Outcome, console: Console) -> None:
    found = outcome.findings
    console.print(Text(f"{found.signups} sign-ups over HTTP, {found.transactions} transactions", style="bold"))
    console.print()
    print_table(
        ("how it ended", "sign-ups", "why"),
        ((how, str(number), WHY[how]) for how, number in found.endings.items()),
        fold="why",
        right=("sign-ups",),
    )
    console.print()
    for line in _events(outcome):
        console.print(line, soft_wrap=False)
    if outcome.pulses:
        console.print(Text("\nOne that was compensated:\n", style="bold"))
        show(outcome.pulses, out(WATERFALL_WIDTH))
    console.print(Text("\nThroughput", style="bold"))
    console.print(
        f"{found.signups / outcome.posting_seconds:,.0f} sign-ups/s and {found.hops / outcome.posting_seconds:,.0f} "
        "hops/s over "
        f"{outcome.posting_seconds:.1f} s, the pause after the kill included; {outcome.rate_before_kill:,.0f} "
        "sign-ups/s "
        "before it"
    )
    _verdict(outcome, console)
    _look_further(outcome, console)


def _events(outcome: Outcome) -> Iterator[Text]:
    found = outcome.findings
    bullet = ("• ", "dim")
    moved = f"{_count(found.redelivered, 'hop')} of {_count(found.redelivered_in, 'transaction')}"
    retried, undone = _count(found.retried, "hop"), _count(found.undone, "user")
    yield Text.assemble(
        bullet,
        f"A worker was killed with SIGKILL half-way: {moved} went to the other one, under the same idempotency keys.",
    )
    yield Text.assemble(
        bullet,
        f"The mail server asked for patience: {retried} retried; {undone} deleted again.",
    )
    for ending in found.expired:
        yield Text.assemble(
            bullet,
            "Two consumers wrote to each other until their budget ended: "
            f"ttl_expired after {found.echo_hops} hops: {ending.expired}",
        )


def _verdict(outcome: Outcome, console: Console) -> None:
    found = outcome.findings
    console.print()
    if not found.problems:
        completed = found.endings["completed"]
        console.print(
            Text.assemble(
                ("✓ ", "green"),
                f"It adds up: {completed} sign-ups completed, {completed} users in the table, {completed} letters "
                "delivered.",
            )
        )
    for problem in found.problems:
        console.print(Text.assemble(("✗ ", "bold red"), f"It does not add up: {problem}."))


def _look_further(outcome: Outcome, console: Console) -> None:
    found, store = outcome.findings, shlex.quote(outcome.store)
    console.print(Text("\nLook further", style="bold"))
    lines = [f"export BITACTOR_STORE={store}", "bitactor list --status compensated"]
    if found.slow is not None:
        lines.append(f"bitactor trace {found.slow.row.transaction}   # the hop that hung")
    if found.expired:
        lines.append(f"bitactor trace {found.expired[0].row.root}   # the loop")
    lines += [
        "bitactor graph mesh.demo.signup:signup",
        f"rm -r {shlex.quote(str(outcome.directory))}   # when you have seen enough",
    ]
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    console.print(Text(f"\n{outcome.seconds:.1f} s in all; nothing is left running.", style="dim"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _document(outcome: Outcome) -> dict[str, Any]:
    found = outcome.findings
    return {
        "ok": not found.problems,
        "problems": list(found.problems),
        "signups": found.signups,
        "endings": dict(found.endings),
        "transactions": found.transactions,
        "hops": found.hops,
        "redelivered": {"hops": found.redelivered, "transactions": found.redelivered_in},
        "retried": found.retried,
        "undone": found.undone,
        "ttl_expired": [
            {"transaction": ending.row.transaction, "root": ending.row.root, "chain": ending.expired}
            for ending in found.expired
        ],
        "compensated": found.compensated.row.transaction if found.compensated is not None else None,
        "timed_out": found.slow.row.transaction if found.slow is not None else None,
        "seconds": round(outcome.seconds, 3),
        "posting_seconds": round(outcome.posting_seconds, 3),
        "signups_per_second": round(found.signups / outcome.posting_seconds, 1),
        "hops_per_second": round(found.hops / outcome.posting_seconds, 1),
        "signups_per_second_before_the_kill": round(outcome.rate_before_kill, 1),
        "directory": str(outcome.directory),
        "store": outcome.store,
    }
