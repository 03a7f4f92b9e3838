"""What a plan is made from: the shape of a declared workflow, and of a declared consumer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from bitactor.declare.resource import Resource
from bitactor.declare.step import Step
from bitactor.plan.plan import Plan


class Declaration(ABC):
    """A declared workflow, as whoever compiles it, nests it or writes it down sees it; see `bitactor.Workflow`."""

    name: str
    input_model: type[BaseModel]
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
    """The step whose result is the workflow's; None: the last declared one that is not deferred."""

    @abstractmethod
    def check(self) -> Plan:
        """Its plan.

        Raises:
            DefinitionError: or one of its kinds: it cannot work as declared.
        """

    @abstractmethod
    def nested_plan(self, address: str) -> Plan:
        """Its plan with the steps addressed below `address`.

        Raises:
            CycleError: it is nested in itself, directly or through others.
            DefinitionError: or another of its kinds.
        """

    @abstractmethod
    def validate_input(self, value: Any) -> dict[str, Any]:
        """`value` as the input model's fields, in plain data and models.

        Raises:
            InvalidInput: with `fields` naming each offending one.
        """


class ConsumerDeclaration(Protocol):
    """A declared consumer, as whoever compiles it sees it; see `bitactor.consumer`."""

    name: str
    __name__: str
    """Its function's."""
    listens: str
    """The signal name it listens to."""
    group: str
    broadcast: bool
    function: Callable[..., Any]
    options: Mapping[str, Any]
