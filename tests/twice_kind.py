"""A kind of step that is not ours, in one file and added by one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typing_extensions import override

from bitactor.kinds import register_kind
from bitactor.kinds.base import (
    FUNCTION,
    NESTED,
    Arrow,
    Close,
    Container,
    ContainerArguments,
    ContainerKind,
    Declaration,
    NextAction,
    Open,
    Opening,
    Progress,
    Site,
    nested_inputs,
    require_workflow,
)


class TwiceContainer(Container):
    """A nested workflow, run twice on the same input; compiled: two scopes, one after the other."""

    chained = keyed = True
    mark = ", one after the other"

    def __init__(self, site: Site, declared: Twice) -> None:
        self._workflow = declared.workflow
        self.bodies = (declared.workflow.nested_plan(site.address),)
        self.depth = 2 * self.bodies[0].depth

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        return Open([Opening("1", 0, nested_inputs(self._workflow, self.bodies[0], arguments))])

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        return Open([Opening("2", 0, progress.inputs)]) if key == "1" else Close(token)

    @override
    def arrows(self, place: str) -> Iterable[Arrow]:
        body, at = self.bodies[0], f"{place}_0_s"
        return [Arrow(f"{at}{body.returns}", f"{at}{index}", "once more", dotted=True) for index in body.initial]


class Twice(ContainerKind):
    """A nested workflow, run twice; declared."""

    label = "twice"
    keys = {"workflow": NESTED, "note": FUNCTION}
    container = TwiceContainer
    workflow: Declaration

    def __init__(self, what: str, workflow: Declaration, note: Any = None) -> None:
        require_workflow(what, workflow)
        self.workflow, self.note = workflow, note


register_kind(Twice)
