"""A transaction as a terminal waterfall: one row per attempt in order of start, its bar where and how long it ran.

Pure functions over a list of pulses; `mesh.cli.waterfall.rows` says what the rows are, this file how they look.  Pulses
of child transactions may be among them: they follow the first one on the same time axis, indented.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from bitactor.messages.pulse import Pulse
from mesh.cli import work
from mesh.cli.output import STYLES
from mesh.cli.waterfall.fold import folded
from mesh.cli.waterfall.rows import FOLD, Row, Timeline, timelines

MIN_WIDTH: Final = 40

_SYMBOLS: Final = {
    "completed": ("✓", "+"),
    "compensated": ("↷", "~"),
    "failed": ("✗", "x"),
    "retried": ("↺", "r"),
    "timed_out": ("⏱", "T"),
    "undone": ("↩", "<"),
    "undo_failed": ("✗", "x"),
    "tombstone": ("☠", "!"),
    "skipped": ("·", "."),
    "halted": ("‖", "="),
    "resumed": ("▸", ">"),
    "running": ("…", ">"),
    "unknown": ("?", "?"),
}
_STATUS_SYMBOLS: Final = {
    **_SYMBOLS,
    "compensated": ("↩", "<"),
    "cancelled": ("✗", "x"),
    "stuck": ("☠", "!"),
}
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


class Layout(NamedTuple):
    """The layout of a waterfall: its width, and whether only ASCII can be shown."""

    width: int
    ascii_only: bool

    def symbol(self, pair: tuple[str, str]) -> str:
        """The symbol of the pair (Unicode, ASCII) that can be shown."""
        return pair[self.ascii_only]

    def clean(self, text: str) -> str:
        """`text` in one line without control characters (a step's error may hold escape sequences), in what can be
        shown."""
        line = " ".join(text.split())
        line = "".join(character if character.isprintable() else "?" for character in line)
        return line.encode("ascii", "backslashreplace").decode() if self.ascii_only else line

    def crop(self, text: str, width: int) -> str:
        """`text` in at most `width` cells, its end replaced by an ellipsis if need be."""
        if cell_len(text) <= width:
            return text
        ellipsis = "..." if self.ascii_only else "…"
        room = width - len(ellipsis)
        return (chop_cells(text, room)[0] + ellipsis) if room > 0 else ellipsis[:width]

    def pad(self, text: str, width: int) -> str:
        """`text` in exactly `width` cells."""
        cropped = self.crop(text, width)
        return cropped + " " * (width - cell_len(cropped))


class _Columns(NamedTuple):
    """Widths of the columns in cells; 0 leaves a column out."""

    name: int
    bar: int
    spawn: int
    outcome: int


def show(pulses: Sequence[Pulse], console: Console, *, now_ns: int | None = None, fold: bool = False) -> None:
    """Print the waterfall; the console says how wide, in colour or not, and whether in Unicode."""
    for line in render(pulses, console.width, ascii_only=console.options.ascii_only, now_ns=now_ns, fold=fold):
        console.print(line, no_wrap=True, overflow="ignore", crop=False, highlight=False, soft_wrap=True)


def render(
    pulses: Sequence[Pulse],
    width: int = 100,
    *,
    ascii_only: bool = False,
    now_ns: int | None = None,
    fold: bool = False,
) -> list[Text]:
    """The lines of the waterfall, none wider than `width` (at least 40); see `timelines` for `now_ns`.  With `fold`,
    one line stands for many alike where there would be more than `LONG`."""
    layout = Layout(max(width, MIN_WIDTH), ascii_only)
    found = timelines(pulses, now_ns)
    all_rows = sum(len(timeline.rows) for timeline in found)
    found = folded(found) if fold else found
    if not found:
        return [Text("no pulses")]
    start, end = min(timeline.start_ns for timeline in found), max(timeline.end_ns for timeline in found)
    columns = _columns(found, layout)
    lines = [*_header(found[0], layout), Text(), _titles(columns, end - start, layout)]
    for timeline in found:
        if timeline is not found[0]:
            lines.append(_row_line(_as_row(timeline), columns, start, end, layout, depth=0))
        for row in timeline.rows:
            depth = 0 if timeline is found[0] else 1
            lines.append(_row_line(row, columns, start, end, layout, depth))
            lines.extend(_note_lines(row, layout, depth))
    if any(row.kind == FOLD for timeline in found for row in timeline.rows):
        lines.append(Text(layout.crop(f"{all_rows:,} rows; --all shows each", layout.width), style="dim"))
    return lines


def to_json(pulses: Sequence[Pulse], now_ns: int | None = None) -> str:
    """The waterfall's rows, and the pulses they were made from, as JSON; `null` without pulses.

    Times are nanoseconds since 1970, durations nanoseconds.
    """
    found = timelines(pulses, now_ns)
    if not found:
        return "null"
    first, *children = [_plain_timeline(timeline) for timeline in found]
    return json.dumps(
        {**first, "children": children, "pulses": [work.plain_pulse(pulse) for pulse in pulses]}, indent=2
    )


def duration(ns: int, *, ascii_only: bool = False) -> str:
    """A duration for people, three digits: `870 ns`, `12.3 µs`, `1.24 s`, `2m03s`, `1h05m`."""
    if ns < 1_000:
        return f"{ns} ns"
    for unit, size in ((" us" if ascii_only else " µs", 1e3), (" ms", 1e6), (" s", 1e9)):
        value = ns / size
        if value < (59.95 if unit == " s" else 999.5):
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    minutes, seconds = divmod(round(ns / 1e9), 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _plain_timeline(timeline: Timeline) -> dict[str, Any]:
    return {
        "transaction": timeline.transaction,
        "root": timeline.root,
        "parent": timeline.parent,
        "parent_hop": timeline.parent_hop,
        "workflow": timeline.workflow,
        "status": timeline.status,
        "error": timeline.error,
        "ttl": timeline.ttl,
        "ttl_left": timeline.ttl_left,
        "start_ns": timeline.start_ns,
        "total_ns": timeline.end_ns - timeline.start_ns,
        "rows": [{**row._asdict(), "causes": list(row.causes), "notes": list(row.notes)} for row in timeline.rows],
    }


def _header(timeline: Timeline, layout: Layout) -> list[Text]:
    status = timeline.status
    symbol = layout.symbol(_STATUS_SYMBOLS.get(status, ("", "")))
    total = duration(timeline.end_ns - timeline.start_ns, ascii_only=layout.ascii_only)
    verb = "after" if status in ("running", "halted", "stuck") else "in"
    ending = f"  {symbol} {status} {verb} {total}"
    title = Text(layout.crop(layout.clean(timeline.workflow), layout.width - len(ending)), style="bold")
    title.append(ending, style=STYLES.get(status, ""))
    started = dt.datetime.fromtimestamp(timeline.start_ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
    budget = f"ttl {timeline.ttl}, {timeline.ttl_left} left" if timeline.ttl is not None else "ttl unknown"
    lines = [title, Text(layout.crop(f"{timeline.transaction}  {budget}  {started}", layout.width), style="dim")]
    if timeline.parent_hop:
        child_of = f"emitted by hop {timeline.parent_hop} of {timeline.parent or '?'}"
        lines.append(Text(layout.crop(child_of, layout.width), style="dim"))
    if timeline.root != timeline.transaction:
        lines.append(Text(layout.crop(f"in trace {timeline.root}", layout.width), style="dim"))
    if timeline.error and status != "completed":
        lines.append(Text(layout.crop(layout.clean(timeline.error), layout.width), style=STYLES.get(status, "")))
    return lines


def _columns(found: Sequence[Timeline], layout: Layout) -> _Columns:
    longest = max(
        [
            cell_len(layout.clean(row.name)) + (timeline is not found[0]) * 2
            for timeline in found
            for row in timeline.rows
        ]
        + [cell_len(layout.clean(timeline.workflow)) for timeline in found[1:]]
        + [4]
    )
    name = min(longest, max(8, int(layout.width * 0.35)))
    spawn = 7 if layout.width >= 60 else 0
    outcome = 11 if layout.width >= 110 else 0
    bar = (
        layout.width - (2 + name + 1) - (1 + 8) - (1 + 3) - (1 + 4) - (spawn and spawn + 1) - (outcome and outcome + 1)
    )
    return _Columns(name, bar, spawn, outcome)


def _titles(columns: _Columns, total: int, layout: Layout) -> Text:
    ending = duration(total, ascii_only=layout.ascii_only)
    axis = layout.crop("0" + " " * (columns.bar - 1 - len(ending)) + ending, columns.bar)
    line = f"  {layout.pad('step', columns.name)} {axis} {'took':>8} {'try':>3} {'ttl':>4}"
    line += f" {'spawn':<{columns.spawn}}" if columns.spawn else ""
    line += f" {'outcome':<{columns.outcome}}" if columns.outcome else ""
    return Text(line.rstrip(), style="dim")


def _row_line(row: Row, columns: _Columns, start: int, end: int, layout: Layout, depth: int) -> Text:
    style = STYLES.get(row.outcome, "dim")
    table = _STATUS_SYMBOLS if row.kind == "transaction" else _SYMBOLS
    symbol = ("⋮", ":") if row.kind == FOLD else table.get(row.outcome, ("?", "?"))
    line = Text(layout.symbol(symbol) + " ", style=style)
    name = layout.pad("  " * depth + layout.clean(row.name), columns.name)
    line.append(f"{name} ", style="bold" if row.kind == "transaction" else "")
    line.append(_bar(row, columns.bar, start, end, layout), style=style)
    took = duration(row.took_ns, ascii_only=layout.ascii_only) if row.kind != "mark" else ""
    tried = str(row.attempt) if row.kind == "hop" else ""
    ttl = str(row.ttl) if row.ttl is not None else ""
    line.append(f" {took:>8} {tried:>3} {ttl:>4}")
    if columns.spawn:
        line.append(" " + layout.pad(row.spawn, columns.spawn), style="dim")
    if columns.outcome:
        line.append(" " + layout.pad(row.outcome.replace("_", " "), columns.outcome), style=style)
    line.rstrip()
    return line


def _bar(row: Row, width: int, start: int, end: int, layout: Layout) -> str:
    whole = max(1, end - start)
    before = min(width - 1, (row.start_ns - start) * width // whole)
    if row.kind == "mark":
        bar = layout.symbol(("╎", "|"))
    else:
        eighths = max(1, min((width - before) * 8, round((row.end_ns - row.start_ns) * width * 8 / whole)))
        if layout.ascii_only:
            bar = ("=" if row.direction == "forward" else "<") * max(1, round(eighths / 8))
        else:
            full = "█" if row.direction == "forward" else "▒"
            part = _EIGHTHS[eighths % 8].strip() if row.direction == "forward" or eighths < 8 else ""
            bar = full * (eighths // 8) + part
    return " " * before + bar + " " * (width - before - len(bar))


def _note_lines(row: Row, layout: Layout, depth: int) -> list[Text]:
    lead = "  " + "  " * depth + layout.symbol(("└ ", "` "))
    style = STYLES.get(row.outcome, "") if row.outcome != "completed" else "dim"
    lines = []
    for note in row.notes:
        indent = " " * (len(note) - len(note.lstrip(" ")))  # what came with the note before
        lines.append(Text(layout.crop(lead + indent + layout.clean(note), layout.width), style=style))
    return lines


def _as_row(timeline: Timeline) -> Row:
    return Row(
        kind="transaction",
        name=timeline.workflow,
        hop=timeline.transaction,
        causes=(timeline.parent_hop,) if timeline.parent_hop else (),
        spawn="",
        direction="forward",
        attempt=1,
        ttl=timeline.ttl,
        start_ns=timeline.start_ns,
        end_ns=timeline.end_ns,
        took_ns=timeline.end_ns - timeline.start_ns,
        outcome=timeline.status,
        notes=(),
    )
