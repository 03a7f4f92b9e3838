"""The names under which nodes, workflows, steps and consumers are registered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bitactor.errors import UnknownWorkflow
from bitactor.messages.values import exact_text, is_text, shown
from bitactor.plan.plan import Plan


def consumer_name(signal: str) -> str:
    """The name under which nodes register that they consume a signal; many hold it."""
    return f"signal:{signal}"


def step_name(address: str) -> str:
    """The name under which nodes register that they run a step (`workflow/step`); many hold it."""
    return f"step:{address}"


def workflow_name(workflow: str) -> str:
    """The name under which nodes register that they accept stimuli for a workflow; many hold it."""
    return f"workflow:{workflow}"


def name_of(workflow: object) -> str:
    """The name of a workflow, given by it or as itself.

    Raises:
        UnknownWorkflow: it is neither, or its attributes raise.
    """
    try:
        name = workflow if issubclass(type(workflow), str) else getattr(workflow, "name", None)
    except BaseException:  # of a user's object
        name = None
    if not is_text(name):
        raise UnknownWorkflow(f"{shown(workflow)} is no workflow, nor the name of one")
    return exact_text(name)  # type: ignore[arg-type]


def node_name(node: str) -> str:
    """The name of one node; one holds it."""
    return f"node:{node}"


def consumer_entries(consumers: Iterable[Plan], endpoint: str) -> dict[str, dict[str, Any]]:
    """Registrations of a node's consumers: name → value."""
    entries: dict[str, dict[str, Any]] = {}
    for plan in consumers:
        entry = entries.setdefault(consumer_name(plan.listens), {"groups": [], "endpoint": endpoint})
        entry["groups"].append([plan.group, plan.broadcast])
    return entries
