"""compose: a nested workflow as one step.

Its steps are steps of this transaction: `billing/charge`, with one hop budget, one deadline and one order of undo.
What the nested workflow says of itself as a whole (`ttl`, `deadline`, `undo_timeout`, …) holds where it is stimulated
by itself; nested, the outer one's holds.
"""

from __future__ import annotations

from typing_extensions import override

from bitactor.kinds.base import (
    NESTED,
    Container,
    ContainerArguments,
    ContainerKind,
    Declaration,
    Open,
    Opening,
    Site,
    nested_inputs,
    require_workflow,
)


class ComposeContainer(Container):
    """A nested workflow, compiled: one scope, whose result is the container's."""

    def __init__(self, site: Site, declared: Compose) -> None:
        self._workflow = declared.workflow
        body = declared.workflow.nested_plan(site.address)
        self.bodies = (body,)
        self.depth = body.depth

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """The one scope is opened, with its inputs validated."""
        return Open([Opening("", 0, nested_inputs(self._workflow, self.bodies[0], arguments))])


class Compose(ContainerKind):
    """A nested workflow, declared."""

    label = "compose"
    keys = {"workflow": NESTED}
    container = ComposeContainer
    workflow: Declaration

    def __init__(self, what: str, workflow: Declaration) -> None:
        require_workflow(what, workflow)
        self.workflow = workflow
