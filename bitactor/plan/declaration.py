"""The declaration that a workflow's plan is compiled from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from bitactor.declare.resource import Resource
from bitactor.declare.step import Step
from bitactor.messages.objects import Classes
from bitactor.plan.plan import Plan


class Declaration:
    """A declared workflow, as those see it that compile, nest or export it; see `bitactor.Workflow`."""

    name: str
    input_model: type[BaseModel]
    input_classes: Classes
    """The classes of objects that its input may hold."""
    ttl: int
    deadline: float | None
    undo_timeout: float
    grace: float
    redeliveries: int
    errors: tuple[type[BaseException], ...]
    resources: dict[str, Resource]
    max_concurrency: int | None
    max_hops: int | None
    steps: dict[str, Step[Any, Any]]
    returned: str | None
    """The step whose result is the workflow's; None: the last declared step that is not deferred."""

    def check(self) -> Plan:
        """The workflow's plan.

        Raises:
            DefinitionError: or one of its kinds: it cannot work as declared.
        """
        raise NotImplementedError

    def nested_plan(self, address: str) -> Plan:
        """The workflow's plan, its steps addressed below `address`.

        Raises:
            CycleError: it is nested in itself, directly or through others.
            DefinitionError: or another of its kinds.
        """
        raise NotImplementedError

    def validate_input(self, value: Any, *, named: bool = False) -> dict[str, Any]:
        """`value` as the input model's fields, in plain data and models; `named` if its keys are the fields' names,
        also of those that have an alias.

        Raises:
            InvalidInput: with `fields` naming each offending one.
        """
        raise NotImplementedError
