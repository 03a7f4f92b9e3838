"""compose: a nested workflow as one step.

Its steps are steps of this transaction: `billing/charge`, with one hop budget, one deadline and one order of undo.
What the nested workflow says of itself as a whole (`ttl`, `deadline`, `undo_timeout`, …) holds where it is stimulated
by itself; nested, the outer one's holds.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from bitactor.kinds.nested import nested_inputs, require_workflow, workflow_parameters
from bitactor.plan.callbacks import Parameter
from bitactor.plan.container import Close, ContainerArguments, NextAction, Open, Opening, Progress
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind, Site
from bitactor.plan.plan import Container


class Compose(Kind):
    """A nested workflow, declared."""

    label = "compose"

    def __init__(self, what: str, workflow: Declaration) -> None:
        require_workflow(what, workflow)
        self.workflow = workflow

    @override
    def parameters(self, what: str) -> list[Parameter]:
        return workflow_parameters(self.workflow)

    @override
    def compile(self, site: Site) -> Container:
        return ComposeContainer(site, self.workflow)


class ComposeContainer(Container):
    """A nested workflow, compiled: one scope, whose result is the container's."""

    kind = "compose"

    def __init__(self, site: Site, workflow: Declaration) -> None:
        self._workflow = workflow
        body = site.body(workflow, site.address)
        self.bodies = (body,)
        self.depth = body.depth

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """The one scope is opened, with its inputs validated."""
        return Open([Opening("", 0, nested_inputs(self._workflow, self.bodies[0], arguments))])

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The result of the scope closes the container."""
        return Close(token)
