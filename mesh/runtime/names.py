"""The names under which nodes, workflows, steps and consumers are registered."""

from __future__ import annotations


def consumer_name(signal: str) -> str:
    """The name under which nodes register that they consume a signal; many hold it."""
    return f"signal:{signal}"


def step_name(address: str) -> str:
    """The name under which nodes register that they run a step (`workflow/step`); many hold it."""
    return f"step:{address}"


def workflow_name(workflow: str) -> str:
    """The name under which nodes register that they accept stimuli for a workflow; many hold it."""
    return f"workflow:{workflow}"


def node_name(node: str) -> str:
    """The name of one node; one holds it."""
    return f"node:{node}"
