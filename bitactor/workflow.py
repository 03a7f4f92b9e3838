"""The declaration of workflows.

    signup = Workflow("users.signup", input=SignUp, ttl=8, deadline=30.0)

    @signup.step(retries=3, timeout=2.0)
    async def create_user(normalise: dict, ctx: Context) -> dict: ...

A parameter's name says where its value comes from: an input field, or another step's result.  `ctx`, `result`, `error`
and `attempt` are reserved.  Everything that can be found wrong is found wrong while declaring, or by `check()`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, ParamSpec, Unpack, overload

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar, override

from bitactor.declare.input import input_model
from bitactor.declare.options import (
    RESERVED,
    StepKeywords,
    StepOptions,
    exception_classes,
    named_resources,
    refuse_bad_name,
    refuse_bad_path,
    refuse_negative,
    refuse_no_bool,
)
from bitactor.declare.resource import Resource
from bitactor.declare.step import DEFAULT_UNDO_RETRIES, Step
from bitactor.errors import CycleError, DefinitionError, DuplicateName, InvalidInput, MissingReturn, suggest
from bitactor.export.describe import describe
from bitactor.export.graph import from_dict, to_dict
from bitactor.export.mermaid import mermaid
from bitactor.kinds.base import FunctionKind
from bitactor.kinds.declare import DeclaresKinds, MakeKind
from bitactor.messages.annotations import BY_NAME, ModelReader, cause_of, problems_of
from bitactor.messages.classes import AnnotatedClasses
from bitactor.messages.codec import Unchanged
from bitactor.messages.faults import raised_text
from bitactor.messages.outcome import Outcome
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import DEFAULT_TTL, MAX_TTL
from bitactor.messages.values import shown
from bitactor.plan.compile import compile_workflow
from bitactor.plan.dependencies import dependencies_of, forward_references
from bitactor.plan.order import refuse_too_deep, topological_order
from bitactor.plan.plan import Plan

P = ParamSpec("P")
R = TypeVar("R")
U = TypeVar("U", bound=Unchanged)
Result_co = TypeVar("Result_co", covariant=True, default=Any)

DEFAULT_REDELIVERIES = 3
DEFAULT_GRACE = 2.0
DEFAULT_UNDO_TIMEOUT = 60.0


class Workflow(DeclaresKinds, Generic[Result_co]):
    """A named DAG of steps with an input, a hop budget and a deadline.

    Args:
        name: how stimuli address it; unique in a mesh.
        input: a pydantic model, or a mapping of names to types (`{}` or None: no input).
        ttl: hop budget a stimulus carries unless it says otherwise (1 … 1,000).
        deadline: seconds a transaction may take, undo not counted; None: no limit.
        undo_timeout: seconds undo may take, all in all.
        grace: seconds undo waits for a hop that is still in flight before it counts as in doubt.
        redeliveries: how often a hop lost with its worker is delivered again before it is `poison`.
        errors: exception classes that travel between processes as themselves.
        resources: what its steps may ask for by name or annotation.
        max_concurrency: how many hops of one transaction may run at once.
        max_hops: how many hops one transaction may take, retries counted and undo not.

    Raises:
        DefinitionError: or one of its kinds, naming what is wrong and how to mend it.
    """

    def __init__(
        self,
        name: str,
        *,
        input: type[BaseModel] | Mapping[str, Any] | None = None,
        ttl: int = DEFAULT_TTL,
        deadline: float | None = None,
        undo_timeout: float = DEFAULT_UNDO_TIMEOUT,
        grace: float = DEFAULT_GRACE,
        redeliveries: int = DEFAULT_REDELIVERIES,
        errors: Sequence[type[BaseException]] = (),
        resources: Iterable[Resource] = (),
        max_concurrency: int | None = None,
        max_hops: int | None = None,
    ) -> None:
        refuse_bad_name("a workflow", name)
        refuse_bad_path("workflow", name)
        if isinstance(ttl, bool) or not isinstance(ttl, int) or not 1 <= ttl <= MAX_TTL:
            raise DefinitionError(
                f"workflow {name!r}: ttl={ttl!r}; a hop budget is a whole number from 1 to {MAX_TTL:,}"
            )
        refuse_negative(f"workflow {name!r}", "deadline", deadline)
        for option, given in (("undo_timeout", undo_timeout), ("grace", grace), ("redeliveries", redeliveries)):
            refuse_negative(f"workflow {name!r}", option, given)
            if given is None:
                raise DefinitionError(f"workflow {name!r}: {option}=None; it must be a number, zero or more")
        self.name = name
        self.ttl = ttl
        self.deadline = deadline
        self.undo_timeout = undo_timeout
        self.grace = grace
        self.redeliveries = redeliveries
        self.errors = exception_classes(name, errors)
        self.resources = named_resources(name, resources)
        for option, number in (("max_concurrency", max_concurrency), ("max_hops", max_hops)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise DefinitionError(f"workflow {name!r}: {option}={number!r}; it must be a whole number, at least 1")
        self.max_concurrency = max_concurrency
        self.max_hops = max_hops
        self.input_model = input_model(name, input)
        self.input_classes = AnnotatedClasses(self.input_model)
        self._read_input = ModelReader(self.input_model)
        self.steps: dict[str, Step[Any, Any]] = {}
        self.returned: str | None = None
        self._plan: Plan | None = None
        self._compiling = False
        self._depths: dict[str, int] = {}
        self._forward_references: set[str] = set()

    @override
    def __repr__(self) -> str:
        return f"<Workflow {self.name!r} of {len(self.steps)} steps>"

    @overload
    def step(self, function: Callable[P, R], /) -> Step[P, R]: ...

    @overload
    def step(
        self,
        /,
        **options: Unpack[StepKeywords],
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def step(self, function: Any = None, /, **options: Unpack[StepKeywords]) -> Any:
        """Declare a function as a step; bare, or with options.

        Options:
            name: the step's name, by default the function's.
            bind: parameter, of any function of the step → `Input`, `Result` or `Value`: where its value comes from.
            after: steps to wait for without taking their results.
            when: a predicate over the arguments; false skips the step, and its result is None.
            guard: a function over the arguments that may answer instead of the step: None lets the step run, any other
                value is its result (`Ok(None)` for None itself).  The step has then done nothing, and has nothing to
                undo.
            retries: how many more times to try after a failure.
            backoff: a `Backoff`, or a function of `error`, `attempt` (how many have failed, 1 at the first; a halt is
                no failure) and the arguments that returns seconds.
            retry_on: which exceptions are worth another try.
            timeout: seconds one attempt may take.
            spawn: `inline | loop | thread | process`; by default `loop` for `async def` and `thread` for `def`.
            required: False: its failure leaves None and a pulse, and the transaction goes on.
            priority: among hops that wait for a place, the highest goes first; 0 is the ordinary one.
            limit: the named pool (`Mesh(pools={name: places})`) that bounds how many such hops run at once, over all
                transactions.
            policies: resilience patterns around each attempt, the outermost first; see `bitactor.patterns`.
        """
        return self._declare_with_function(function, options)

    @overload
    def deferred(self, function: Callable[P, R], /) -> Step[P, R]: ...

    @overload
    def deferred(self, /, **options: Unpack[StepKeywords]) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def deferred(self, function: Any = None, /, **options: Unpack[StepKeywords]) -> Any:
        """Declare a function as a step that runs only where a `Then` plans it; bare, or with the options of `step`.

        A parameter that names neither an input field nor a step is bound by whoever plans it; unbound it is None.
        """
        return self._declare_with_function(function, options, deferred=True)

    def add(
        self,
        function: Callable[P, R],
        /,
        *,
        undo: Callable[..., Any] | None = None,
        undo_in_doubt: bool = False,
        undo_retries: int = DEFAULT_UNDO_RETRIES,
        compensate: Callable[..., Any] | None = None,
        deferred: bool = False,
        **options: Unpack[StepKeywords],
    ) -> Step[P, R]:
        """Declare a function as a step in one call: what `step`, `undo` and `compensate` say as decorators.

        For workflows that are made in a loop.  Steps are named by themselves wherever a name will do: `after=[first]`,
        `Result(first)`, `over=rows`.

        Args:
            undo, undo_in_doubt, undo_retries: see `Step.undo`.
            compensate: see `Step.compensate`.
            deferred: only where a `Then` plans it; see `deferred`.
            options: those of `step`.

        Raises:
            DefinitionError: or one of its kinds; nothing was declared then.
        """
        if undo is None and (undo_in_doubt or undo_retries != DEFAULT_UNDO_RETRIES):
            raise DefinitionError(
                f"workflow {self.name!r}: undo_in_doubt= and undo_retries= say how to undo, but there is no undo="
            )
        for role, given in (("undo", undo), ("compensate", compensate)):
            if given is not None and not callable(given):
                raise DefinitionError(f"workflow {self.name!r}: {role}={given!r}; give a function")
        refuse_negative(f"workflow {self.name!r}", "undo_retries", undo_retries)
        refuse_no_bool(f"workflow {self.name!r}", undo_in_doubt=undo_in_doubt, deferred=deferred)
        self._require_function(function)
        step: Step[P, R] = self._declare_with_function(function, options, deferred=deferred)
        if undo is not None:
            step.undo(in_doubt=undo_in_doubt, retries=undo_retries)(undo)
        if compensate is not None:
            step.compensate(compensate)
        return step

    @overload
    def returns(self, step: Step[..., Enum] | Step[..., Coroutine[Any, Any, Enum]]) -> Workflow[Any]: ...

    @overload
    def returns(self, step: Step[..., Coroutine[Any, Any, U | Outcome]]) -> Workflow[U]: ...

    @overload
    def returns(self, step: Step[..., U | Outcome]) -> Workflow[U]: ...

    @overload
    def returns(self, step: str | Step[Any, Any]) -> Workflow[Any]: ...

    @override
    def returns(self, step: str | Step[Any, Any]) -> Workflow[Any]:
        """Say which step's result is the workflow's result; by default that of the last declared step.

        Returns the workflow itself, for a type checker with the type of that result: what the step's function returns,
        if that is plain data.
        """
        if not isinstance(step, str | Step):
            raise DefinitionError(f"workflow {self.name!r}: returns({shown(step)}); give a step, or the name of one")
        self.returned = step if isinstance(step, str) else step.name
        self._plan = None
        return self

    @override
    def check(self) -> Plan:
        """Validate the workflow and return its plan; cheap when nothing has changed since.

        Raises:
            DefinitionError: or one of its kinds.
        """
        if self._plan is None:
            if self.steps and self.returned is not None and self.returned not in self.steps:
                raise MissingReturn(
                    f"workflow {self.name!r} returns {self.returned!r}, which is no "
                    f"step.{suggest(self.returned, self.steps)}"
                )
            self._plan = self.nested_plan(self.name)
        return self._plan

    @override
    def nested_plan(self, address: str) -> Plan:
        """The plan with its steps addressed below `address`.

        Raises:
            CycleError: it is nested in itself, directly or through others.
            DefinitionError: or another of its kinds.
        """
        if self._compiling:
            raise CycleError(
                f"workflow {self.name!r} is nested in itself; to repeat a workflow, use recurse with a bound"
            )
        if not self.steps:
            raise MissingReturn(f"workflow {self.name!r} has no steps; declare one with @workflow.step")
        self._compiling = True
        try:
            return compile_workflow(self, address)
        finally:
            self._compiling = False

    @override
    def validate_input(self, value: Any, *, named: bool = False) -> dict[str, Any]:
        """`value` as the input model's fields, in plain data and models; `named` if its keys are the fields' names,
        also of those that have an alias.

        Raises:
            InvalidInput: with `fields` naming each offending one.
        """
        try:
            try:
                options: dict[str, Any] = BY_NAME if named else {}
                return dict(self._read_input({} if value is None else value, **options).__dict__)
            except ValidationError as error:
                problems, cause = problems_of(error), cause_of(error)
        except BaseException as error:  # of the value's methods, or a validator; an exit would end whoever asked, too
            raise InvalidInput(f"input of {self.name!r}: validating it raised {raised_text(error)}") from error
        shown = "; ".join(f"{path or 'input'}: {message}" for path, message in problems[:5])
        raise InvalidInput(f"input of {self.name!r}: {shown}", problems) from cause

    # As data, and as a picture

    def to_dict(self) -> dict[str, Any]:
        """The graph as plain data that JSON can hold, functions by import path; see `bitactor.export.graph`.

        Raises:
            DefinitionError: something in it has no import path: a lambda, a closure; names step and option.  Or it
                cannot work.
        """
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workflow:
        """A workflow from what `to_dict` gives; checked.

        It imports the modules that the data name, and calls their functions when it runs: take data only from those you
        take code from.

        Raises:
            DefinitionError: the data are not of that form, name something that is not there, or make a workflow that
                cannot work.
        """
        return from_dict(cls, data)

    def describe(self) -> dict[str, Any]:
        """The input, the steps and the result as plain data, with JSON Schemas of input and result; see
        `bitactor.export.describe`.

        Raises:
            DefinitionError: it cannot work.
        """
        return describe(self)

    def mermaid(self, pulses: Iterable[Pulse] = ()) -> str:
        """The graph as a Mermaid flowchart; with pulses, coloured by what happened.  See `bitactor.export.mermaid`.

        Raises:
            DefinitionError: it cannot work.
            InvalidInput: the pulses are of another workflow.
        """
        return mermaid(self.check(), pulses)

    @override
    def _declare(
        self,
        function: Callable[..., Any],
        options: StepOptions,
        *,
        make_kind: MakeKind = FunctionKind,
        deferred: bool = False,
    ) -> Step[..., Any]:
        if isinstance(function, Step):
            function = function.function
        self._require_function(function)
        name = str(options.name or getattr(function, "__name__", ""))
        if not name:
            raise DefinitionError(f"workflow {self.name!r}: {shown(function)} has no name; give the step one: name=…")
        refuse_bad_name(f"a step of {self.name!r}", name)
        for sign, parts in (("/", "workflow and step"), ("#", "a step and its generation")):
            if sign in name:
                raise DefinitionError(f"workflow {self.name!r}: step name {name!r}: {sign!r} separates {parts}")
        if name in self.steps:
            raise DuplicateName(f"workflow {self.name!r} has a step {name!r} already; give one of them name=…")
        if name in self.input_model.model_fields:
            raise DuplicateName(
                f"workflow {self.name!r} has an input field {name!r}; a step of that name would be ambiguous; give it "
                "name=…"
            )
        if name in RESERVED:
            raise DefinitionError(
                f"workflow {self.name!r}: {name!r} is a reserved name ({', '.join(sorted(RESERVED))})"
            )
        what = f"step {name!r} of {self.name!r}"
        kind = make_kind(what, function)
        step: Step[..., Any] = Step(self, name, function, options, kind=kind, deferred=deferred)
        options.refuse_unfit(what, function)
        self.steps[name] = step
        if deferred:
            self._plan = None
            return step
        try:
            self._refuse_cycles_and_depth(step)
        except DefinitionError:
            del self.steps[name]
            raise
        self._plan = None
        return step

    def _require_function(self, function: Any) -> None:
        if not callable(function):
            cure = "; make an object, and declare its method" if isinstance(function, classmethod | property) else ""
            raise DefinitionError(
                f"workflow {self.name!r}: a step is made from a function, not from {shown(function)}{cure}"
            )

    def _refuse_cycles_and_depth(self, step: Step[Any, Any]) -> None:
        """Check a new step for cycles and depth: alone where that is enough, with the whole graph where an earlier step
        had named it or it is too deep."""
        own = dependencies_of(self, step)
        depth = 1 + max((self._depths.get(name, 0) for name in own), default=0)
        if step.name in self._forward_references or step.name in own or depth > self.ttl:
            dependencies = {name: dependencies_of(self, other) for name, other in self.steps.items()}
            ordered = topological_order(dependencies, f"workflow {self.name!r}")
            refuse_too_deep(f"workflow {self.name!r}", self.ttl, dependencies, ordered)
            for name in ordered:
                self._depths[name] = 1 + max((self._depths[other] for other in dependencies[name]), default=0)
        else:
            self._depths[step.name] = depth
        self._forward_references |= forward_references(self, step)

    def _changed(self, step: Step[Any, Any]) -> None:
        self._plan = None
