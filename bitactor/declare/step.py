"""A declared step, and the decorators that add its undo and compensation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from typing_extensions import override

from bitactor.declare.options import StepOptions, refuse_negative, refuse_no_bool
from bitactor.declare.then import Planned, planned
from bitactor.errors import DefinitionError, DuplicateName

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_UNDO_RETRIES = 3


class StepOwner(Protocol):
    """The workflow or consumer that a step is declared on, as the step sees it."""

    name: str

    def _changed(self, step: Step[Any, Any]) -> None:
        """Called when one of the steps was declared otherwise than before."""


class StepKind(Protocol):
    """The kind of a step, as the step sees it; see `bitactor.plan.kind`."""

    @property
    def label(self) -> str:
        """The kind as it is printed: `step`, `map`, `template`, …"""

    @property
    def noun(self) -> str:
        """The owner of the step's parameters in error messages."""


class Step(Generic[P, R_co]):
    """A declared step.  Calling it calls the function it was made from."""

    _calls_its_function = True

    def __init__(
        self,
        workflow: StepOwner,
        name: str,
        function: Callable[P, R_co],
        options: StepOptions,
        *,
        kind: StepKind,
        deferred: bool = False,
    ) -> None:
        self.workflow = workflow
        self.name = name
        self.function = function
        self.options = options
        self.kind = kind
        self.label = kind.label
        """The kind as it is printed."""
        self.deferred = deferred
        self.undo_function: Callable[..., Any] | None = None
        self.undo_in_doubt = False
        self.undo_retries = DEFAULT_UNDO_RETRIES
        self.compensate_function: Callable[..., Any] | None = None
        self.takes: tuple[str, ...] | None = None
        """The names of the parameters, once they were read; later than the declaration, because annotations may refer
        to what is declared after the step."""
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", name)
        self.__qualname__ = getattr(function, "__qualname__", name)
        self.__module__ = getattr(function, "__module__", None) or __name__  # a builtin's method has none
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.function(*args, **kwargs)

    @override
    def __repr__(self) -> str:
        return f"<Step {self.workflow.name}/{self.name}>"

    @property
    def noun(self) -> str:
        """The owner of the step's parameters in error messages: its function, or its kind."""
        return self.kind.noun

    def planned(
        self,
        name: str | None = None,
        *,
        bind: Mapping[str, Any] | None = None,
        after: Iterable[str | Step[Any, Any]] = (),
    ) -> Planned:
        """This step, to be planned by a `Then`: under another name, with other sources for some of its arguments.

        Raises:
            DefinitionError: the name, or a source, is invalid.
        """
        return planned(self.name, name, bind, after)

    @overload
    def undo(self, function: F, /) -> F: ...

    @overload
    def undo(self, /, *, in_doubt: bool = False, retries: int = DEFAULT_UNDO_RETRIES) -> Callable[[F], F]: ...

    def undo(self, function: Any = None, /, *, in_doubt: bool = False, retries: int = DEFAULT_UNDO_RETRIES) -> Any:
        """Declare how to take this step back after it had succeeded and a later one failed.

        The function may take `result`, the step's own arguments and `ctx`; it returns None or `Retry` (at most
        `retries` times). With `in_doubt=True` it is also called, with `result=None`, when nobody knows whether the step
        happened.
        """
        refuse_negative(f"{self.workflow.name}/{self.name}.undo", "retries", retries)
        refuse_no_bool(f"{self.workflow.name}/{self.name}.undo", in_doubt=in_doubt)
        self._refuse_for_nested("undo", "the steps within it have theirs, and are undone one by one")

        def declare(function: F) -> F:
            if self.undo_function is not None:
                raise DuplicateName(
                    f"step {self.name!r} of {self.workflow.name!r} has an undo already: {_called(self.undo_function)}"
                )
            self.undo_function, self.undo_in_doubt, self.undo_retries = function, in_doubt, retries
            self.workflow._changed(self)
            return function

        return declare if function is None else declare(function)

    def compensate(self, function: F, /) -> F:
        """Declare what to do when this step itself failed.

        The function may take `error`, `attempt`, the step's own arguments and `ctx`.  It returns None (fail and undo),
        `Retry`, `Continue(value)` or `Halt`.
        """
        self._refuse_for_nested("compensate", "the steps within it have theirs")
        if self.compensate_function is not None:
            raise DuplicateName(
                f"step {self.name!r} of {self.workflow.name!r} has a compensate already: "
                f"{_called(self.compensate_function)}"
            )
        self.compensate_function = function
        self.workflow._changed(self)
        return function

    def _refuse_for_nested(self, role: str, why: str) -> None:
        if self.function is no_function:
            raise DefinitionError(f"{self.label} {self.name!r} of {self.workflow.name!r} cannot have {role}: {why}")


def no_function() -> None:
    """Stands where a step is a workflow."""  # a step takes its function's docstring, and the HTTP API shows it
    raise DefinitionError("this step is a workflow; run it in a mesh, or with bitactor.testing.run_workflow")


def _called(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
