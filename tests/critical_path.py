"""The critical path of a trace: as the official Jaeger UI draws it, and as the pulses of the transaction say it was.

`drawn` follows the rule of jaeger-ui (`packages/jaeger-ui/src/components/TracePage/CriticalPath`, as of 2026): times
are cut to microseconds; what a producer caused in a consumer does not count; a span that reaches beyond its parent is
cut, one outside of it dropped.  From the root it goes to the child that ended last, into that, and from its start back
to the sibling that ended last strictly before, until nothing ended before; then the parent's start is the one to go
back from.  `said` knows nothing of spans and times: only in what order pulses came, and which hop caused which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bitactor.messages import pulse as kinds
from bitactor.messages.ids import hop_id
from bitactor.messages.pulse import Pulse


class Bar(NamedTuple):
    """A span, as the UI has it."""

    id: str
    parent: str
    start: int
    end: int
    """Start and end in microseconds."""
    kind: str
    """`internal`, `producer`, `consumer`, …"""


class Section(NamedTuple):
    """A piece of the critical path: the time that a span itself took."""

    id: str
    start: int
    end: int


@dataclass
class _Node:
    bar: Bar
    start: int
    end: int
    children: list[str] = field(default_factory=list)


def drawn(bars: Iterable[Bar], root: str) -> list[Section]:
    """The sections of the critical path below the span `root`, the last first."""
    nodes = _cut(_blocking(bars, root))
    sections: list[Section] = []
    at, before = root, 0
    while at in nodes:
        node = nodes[at]
        last = ""
        for child in node.children:
            ended = nodes[child].end
            if (not before or ended < before) and (not last or ended > nodes[last].end):
                last = child
        section = Section(at, nodes[last].end if last else node.start, before or node.end)
        if section.start != section.end:
            sections.append(section)
        at, before = (last, 0) if last else (node.bar.parent, node.start)
    return sections


def _blocking(bars: Iterable[Bar], root: str) -> dict[str, _Node]:
    """The spans below `root` that its end waits for, parents before their children, children by their start."""
    below: dict[str, list[Bar]] = {}
    by_id = {}
    for bar in bars:
        by_id[bar.id] = bar
        below.setdefault(bar.parent, []).append(bar)
    nodes: dict[str, _Node] = {}
    left = [by_id[root]]
    while left:
        bar = left.pop()
        nodes[bar.id] = node = _Node(bar, bar.start, bar.end)
        blocking = [child for child in below.get(bar.id, ()) if (bar.kind, child.kind) != ("producer", "consumer")]
        blocking.sort(key=lambda child: child.start)
        node.children = [child.id for child in blocking]
        left += reversed(blocking)
    return nodes


def _cut(nodes: dict[str, _Node]) -> dict[str, _Node]:
    for name, node in list(nodes.items()):
        if name not in nodes or not node.bar.parent:
            continue
        parent = nodes.get(node.bar.parent)
        if parent is None:
            if node is not next(iter(nodes.values())):
                del nodes[name]
        elif node.start >= parent.end or (node.start < parent.start and node.end <= parent.start):
            del nodes[name]
            parent.children.remove(name)
        else:
            node.start, node.end = max(node.start, parent.start), min(node.end, parent.end)
    return nodes


# What the pulses say


@dataclass
class _Hop:
    pulse: Pulse
    parent: str
    begun: int
    ended: int = -1
    timed_out: int = -1
    is_container: bool = False
    children: int = 0


def said(pulses: Sequence[Pulse]) -> list[str]:
    """Hops that a transaction's end had to wait for, the last first; those in a container after it."""
    hops, resumed = _hops(pulses)
    path: list[str] = []

    def last(parent: str, before: int) -> str:
        ended = [(hop.ended, name) for name, hop in hops.items() if hop.parent == parent and 0 <= hop.ended < before]
        return max(ended)[1] if ended else ""

    def cause(name: str) -> str:
        """What the hop had to wait for."""
        hop = hops[name]
        pulse = hop.pulse
        if pulse.attempt > 1:
            before = hop_id(pulse.transaction, pulse.step, pulse.direction, pulse.attempt - 1)
            if before in hops and before in resumed.backed_off:
                return before
            return last(hop.parent, hop.begun)
        causes = [other for other in pulse.causes if other in hops and other != hop.parent and not _around(hop, other)]
        if pulse.direction == "undo" or (pulse.causes and not causes):
            return last(hop.parent, hop.begun)
        latest = max(causes, key=lambda other: hops[other].ended, default="")
        held = [seq for seq in resumed.at if (hops[latest].ended if latest else -1) < seq < hop.begun]
        return last(hop.parent, held[-1]) if held else latest

    def _around(hop: _Hop, other: str) -> bool:
        """Whether `other` is the container whose function is around the hop."""
        return bool(hop.parent) and hops[hop.parent].parent == other

    def walk(parent: str) -> None:
        name = last(parent, 1 << 60)
        while name:
            path.append(name)
            if hops[name].children:
                walk(name)
            name = cause(name)

    walk("")
    return path


class _Breaks(NamedTuple):
    at: list[int]
    """Numbers of the pulses with which the transaction was resumed."""
    backed_off: set[str]
    """Hops that were tried again."""


_ENDS = frozenset(("completed", "failed", "retried", "compensated", "undone", "undo_failed", "halted", "timed_out"))


def _hops(pulses: Sequence[Pulse]) -> tuple[dict[str, _Hop], _Breaks]:
    hops: dict[str, _Hop] = {}
    breaks = _Breaks([], set())
    open_: dict[str, str] = {}  # path of a container → its hop
    ending: list[str] = []
    for pulse in pulses:
        if pulse.kind == kinds.FINISHED:
            break
        if pulse.kind == kinds.RESUMED:
            breaks.at.append(pulse.seq)
        if not pulse.step or pulse.kind in (kinds.LATE, kinds.SKIPPED, kinds.EMITTED):
            continue
        hop = hops.get(pulse.hop)
        if "ended_by" not in (pulse.data or {}):
            closed, ending = ending, []
        else:
            closed = []
        if hop is None and (pulse.kind != kinds.COMPLETED and pulse.kind != kinds.HALTED):
            parent = _parent(pulse, open_, hops)
            hop = hops[pulse.hop] = _Hop(pulse, parent, pulse.seq)
            if parent:
                hops[parent].children += 1
            if pulse.kind == kinds.SPAWNED and "opening" in (pulse.data or {}):
                open_[pulse.step], hop.is_container = pulse.hop, True
        if hop is None or pulse.kind not in _ENDS:
            continue
        failed = pulse.kind in ("failed", "retried", "undo_failed")
        if pulse.kind == kinds.TIMED_OUT:
            hop.timed_out = pulse.seq
        hop.ended = hop.timed_out if failed and hop.timed_out >= 0 else pulse.seq
        if pulse.kind == kinds.RETRIED:
            breaks.backed_off.add(pulse.hop)
        if "ended_by" in (pulse.data or {}):
            ending.append(pulse.step)
        elif open_.get(pulse.step) == pulse.hop:
            del open_[pulse.step]
        _extend(hops, hop)
        for path in closed:
            open_.pop(path, None)
    for number, hop in enumerate(hop for hop in hops.values() if hop.ended < 0):
        hop.ended = len(pulses) + number
        _extend(hops, hop)
    return hops, breaks


def _parent(pulse: Pulse, containers: Mapping[str, str], hops: Mapping[str, _Hop]) -> str:
    """The container that a hop is in, or the function around it."""
    path = pulse.step if pulse.direction == "forward" else ""
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in containers:
            opening = (hops[containers[path]].pulse.data or {})["opening"]
            functions = [
                name for name, hop in hops.items() if hop.parent == containers[path] and hop.ended < 0
                and hop.pulse.step == f"{path}/around" != pulse.step and [key for key, *_ in opening] == ["around"]
            ]  # fmt: skip
            return functions[0] if functions else containers[path]
    return ""


def _extend(hops: Mapping[str, _Hop], hop: _Hop) -> None:
    """What ended before what is in it ends with that."""
    above = hop.parent
    while above:
        if hops[above].ended >= 0:
            hops[above].ended = max(hops[above].ended, hop.ended)
        above = hops[above].parent
