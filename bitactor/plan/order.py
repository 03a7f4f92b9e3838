"""The order of steps by their dependencies, and the number of hops on the longest path."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence

from bitactor.errors import CycleError, WorkflowTooDeep


def topological_order(dependencies: Mapping[str, Sequence[str]], owner: str) -> list[str]:
    """The names in an order in which each comes after those it depends on.

    Raises:
        CycleError: names the circle, from the first of its steps that was declared.
    """
    try:
        return [*graphlib.TopologicalSorter(dependencies).static_order()]
    except graphlib.CycleError as error:
        *circle, _ = error.args[1]
        first = min(range(len(circle)), key=lambda at: list(dependencies).index(circle[at]))
        shown = " → ".join([*circle[first:], *circle[: first + 1]])
        raise CycleError(f"{owner}: steps wait for each other: {shown}; remove one of these dependencies") from None


def longest_path(
    dependencies: Mapping[str, Sequence[str]], ordered: Iterable[str], depths: Mapping[str, int] | None = None
) -> tuple[int, list[str]]:
    """The longest chain of dependencies: how many hops it takes, and the names along it.

    Args:
        depths: how many hops a name itself takes, where that is not one.
    """
    best: dict[str, tuple[int, str | None]] = {}
    for name in ordered:
        parents = [(best[parent][0], parent) for parent in dependencies[name] if parent in best]
        depth, parent = max(parents, key=lambda item: item[0], default=(0, None))
        best[name] = (depth + (depths or {}).get(name, 1), parent)
    if not best:
        return 0, []
    at: str | None = max(best, key=lambda name: best[name][0])
    assert at is not None
    longest, path = best[at][0], []
    while at is not None:
        path.append(at)
        at = best[at][1]
    return longest, path[::-1]


def refuse_too_deep(
    owner: str,
    ttl: int,
    dependencies: Mapping[str, Sequence[str]],
    ordered: Iterable[str],
    depths: Mapping[str, int] | None = None,
) -> int:
    """The number of hops on the longest path.

    Raises:
        WorkflowTooDeep: it is more than `ttl`; names the path.
    """
    longest, path = longest_path(dependencies, ordered, depths)
    if longest > ttl:
        shown = [f"{name} ({depths[name]} hops)" if depths and depths.get(name, 1) != 1 else name for name in path]
        raise WorkflowTooDeep(
            f"{owner}: {longest} hops in a row, but ttl={ttl}: {' → '.join(shown)}; "
            f"raise ttl to {longest}, let steps run side by side, or emit a signal to continue elsewhere"
        )
    return longest
