"""What a user declares: workflows of steps, and consumers of signals.

    signup = Workflow("users.signup", input=SignUp, ttl=8, deadline=30.0)

    @signup.step(retries=3, timeout=2.0)
    async def create_user(normalise: dict, ctx: Context) -> dict: ...

A parameter's name says where its value comes from: an input field, or another step's result.  `ctx`, `result`, `error` and `attempt`
are reserved.  Everything that can be found wrong is found wrong while declaring, or by `check()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pydantic import BaseModel, PydanticUserError, ValidationError, create_model

from bitactor.arguments import Element, Input, Result, Source
from bitactor.compiling import compile_consumer, compile_workflow, dependencies_of, known_dependencies, named_later
from bitactor.describing import describe
from bitactor.errors import CycleError, DefinitionError, DuplicateName, InvalidInput, MissingReturn, suggest
from bitactor.functions import is_coroutine_function
from bitactor.graph import from_dict, to_dict
from bitactor.kinds.around import Around
from bitactor.kinds.collect import gather
from bitactor.kinds.compose import Compose
from bitactor.kinds.debug import look
from bitactor.kinds.flunk import refuse
from bitactor.kinds.group import Group
from bitactor.kinds.iterate import Iterate
from bitactor.kinds.kind import Kind
from bitactor.kinds.map import Map
from bitactor.kinds.recurse import Recurse
from bitactor.kinds.switch import Switch
from bitactor.kinds.template import fill_in
from bitactor.mermaid import mermaid
from bitactor.patterns.port import Policy
from bitactor.plan import SPAWNS, Plan, order, refuse_too_deep
from bitactor.policy import Backoff
from bitactor.pulse import Pulse
from bitactor.resources import Resource
from bitactor.signal import DEFAULT_TTL, MAX_TTL
from bitactor.then import Planned, planned

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_REDELIVERIES = 3
DEFAULT_GRACE = 2.0
DEFAULT_UNDO_TIMEOUT = 60.0
DEFAULT_UNDO_RETRIES = 3


class Step(Generic[P, R]):
    """A declared step.  Calling it calls the function it was made from."""

    def __init__(
        self,
        workflow: Workflow,
        name: str,
        function: Callable[P, R],
        options: Mapping[str, Any],
        *,
        kind: Kind | None = None,
        label: str = "step",
        deferred: bool = False,
    ) -> None:
        self.workflow = workflow
        self.name = name
        self.function = function
        self.options = options
        self.kind = kind
        """Set: it is made of other steps."""
        self.label = label if kind is None else kind.label
        """What people call its kind."""
        self.deferred = deferred
        self.undo_function: Callable[..., Any] | None = None
        self.undo_in_doubt = False
        self.undo_retries = DEFAULT_UNDO_RETRIES
        self.compensate_function: Callable[..., Any] | None = None
        self.takes: tuple[str, ...] | None = None
        """The names of its parameters, once they were looked at; what they are annotated with may be declared later."""
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", name)
        self.__qualname__ = getattr(function, "__qualname__", name)
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Step {self.workflow.name}/{self.name}>"

    @property
    def noun(self) -> str:
        """What its parameters are parameters of."""
        return "the function" if self.kind is None else f"the {self.label}"

    def planned(
        self, name: str | None = None, *, bind: Mapping[str, Any] | None = None, after: Iterable[str | Step[Any, Any]] = ()
    ) -> Planned:
        """This step, to be planned by a `Then`: under another name, with other sources for some of its arguments.

        Raises:
            DefinitionError: the name is none, or a source.
        """
        return planned(self.name, name, bind, after)

    @overload
    def undo(self, function: F, /) -> F: ...

    @overload
    def undo(self, /, *, in_doubt: bool = False, retries: int = DEFAULT_UNDO_RETRIES) -> Callable[[F], F]: ...

    def undo(self, function: Any = None, /, *, in_doubt: bool = False, retries: int = DEFAULT_UNDO_RETRIES) -> Any:
        """Declare how to take this step back after it had succeeded and a later one failed.

        The function may take `result`, the step's own arguments and `ctx`; it returns None or `Retry` (at most `retries` times).
        With `in_doubt=True` it is also called, with `result=None`, when nobody knows whether the step happened.
        """
        _refuse_negative(f"{self.workflow.name}/{self.name}.undo", "retries", retries)
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

        The function may take `error`, `attempt`, the step's own arguments and `ctx`.  It returns None (fail and undo), `Retry`,
        `Continue(value)` or `Halt`.
        """
        self._refuse_for_nested("compensate", "the steps within it have theirs")
        if self.compensate_function is not None:
            raise DuplicateName(
                f"step {self.name!r} of {self.workflow.name!r} has a compensate already: {_called(self.compensate_function)}"
            )
        self.compensate_function = function
        self.workflow._changed(self)
        return function

    def _refuse_for_nested(self, role: str, why: str) -> None:
        if self.kind is not None and self.function is _no_function:
            raise DefinitionError(f"{self.label} {self.name!r} of {self.workflow.name!r} cannot have {role}: {why}")


class Workflow:
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
        if isinstance(ttl, bool) or not isinstance(ttl, int) or not 1 <= ttl <= MAX_TTL:
            raise DefinitionError(f"workflow {name!r}: ttl={ttl!r}; a hop budget is a whole number from 1 to {MAX_TTL:,}")
        for option, seconds in (("deadline", deadline), ("undo_timeout", undo_timeout), ("grace", grace)):
            _refuse_negative(f"workflow {name!r}", option, seconds)
        _refuse_negative(f"workflow {name!r}", "redeliveries", redeliveries)
        for option, given in (("undo_timeout", undo_timeout), ("grace", grace), ("redeliveries", redeliveries)):
            if given is None:
                raise DefinitionError(f"workflow {name!r}: {option}=None; it must be a number, zero or more")
        self.name = name
        self.ttl = ttl
        self.deadline = deadline
        self.undo_timeout = undo_timeout
        self.grace = grace
        self.redeliveries = redeliveries
        self.errors = _exception_classes(name, errors)
        self.resources = _resources(name, resources)
        for option, number in (("max_concurrency", max_concurrency), ("max_hops", max_hops)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise DefinitionError(f"workflow {name!r}: {option}={number!r}; it must be a whole number, at least 1")
        self.max_concurrency = max_concurrency
        self.max_hops = max_hops
        self.input_model = _input_model(name, input)
        self.steps: dict[str, Step[Any, Any]] = {}
        self.returned: str | None = None
        self._plan: Plan | None = None
        self._compiling = False
        self._depths: dict[str, int] = {}
        self._named_later: set[str] = set()
        clash = next((field for field in self.input_model.model_fields if field in RESERVED), None)
        if clash is not None:
            raise DefinitionError(
                f"workflow {name!r}: the input field {clash!r} has a reserved name ({', '.join(sorted(RESERVED))})"
            )

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r} of {len(self.steps)} steps>"

    @overload
    def step(self, function: Callable[P, R], /) -> Step[P, R]: ...

    @overload
    def step(
        self,
        /,
        *,
        name: str | None = None,
        bind: Mapping[str, Any] | None = None,
        after: Iterable[str | Step[Any, Any]] = (),
        when: Callable[..., bool] | None = None,
        guard: Callable[..., Any] | None = None,
        retries: int = 0,
        backoff: Backoff | Callable[..., float] | None = None,
        retry_on: type[BaseException] | Sequence[type[BaseException]] = Exception,
        timeout: float | None = None,
        spawn: str | None = None,
        required: bool = True,
        priority: int = 0,
        limit: str | None = None,
        policies: Sequence[Policy] = (),
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def step(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a function as a step; bare, or with options.

        Options:
            name: the step's name, by default the function's.
            bind: parameter → `Input`, `Result` or `Value`, overriding where its value comes from.
            after: steps to wait for without taking their results.
            when: a predicate over the arguments; false skips the step, and its result is None.
            guard: a function over the arguments that may answer instead of the step: None lets the step run, any other value is its
                result (`Ok(None)` for None itself).  The step has then done nothing, and has nothing to undo.
            retries: how many more times to try after a failure.
            backoff: a `Backoff`, or a function of `error`, `attempt` and the arguments that returns seconds.
            retry_on: which exceptions are worth another try.
            timeout: seconds one attempt may take.
            spawn: `inline | loop | thread | process`; by default `loop` for `async def` and `thread` for `def`.
            required: False: its failure leaves None and a pulse, and the transaction goes on.
            priority: among hops that wait for a place, the highest goes first; 0 is the ordinary one.
            limit: the named pool (`Mesh(pools={name: places})`) that bounds how many such hops run at once, over all transactions.
            policies: resilience patterns around each attempt, the outermost first; see `bitactor.patterns`.
        """

        def declare(function: Callable[..., Any]) -> Step[..., Any]:
            return self._declare(function, options)

        _refuse_unknown_options(self.name, options)
        options = _fixed(self.name, options)
        return declare if function is None else declare(function)

    def deferred(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a function as a step that runs only where a `Then` plans it; bare, or with the options of `step`.

        A parameter that names neither an input field nor a step is bound by whoever plans it; unbound it is None.
        """
        _refuse_unknown_options(self.name, options)
        options = _fixed(self.name, options)

        def declare(function: Callable[..., Any]) -> Step[..., Any]:
            return self._declare(function, options, deferred=True)

        return declare if function is None else declare(function)

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
        **options: Any,
    ) -> Step[P, R]:
        """Declare a function as a step in one call: what `step`, `undo` and `compensate` say as decorators.

        For workflows that are made in a loop.  Steps are named by themselves wherever a name will do: `after=[first]`, `Result(first)`,
        `over=rows`.

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
        _refuse_negative(f"workflow {self.name!r}", "undo_retries", undo_retries)
        step: Step[P, R] = (self.deferred if deferred else self.step)(**options)(function)
        if undo is not None:
            step.undo(in_doubt=undo_in_doubt, retries=undo_retries)(undo)
        if compensate is not None:
            step.compensate(compensate)
        return step

    # Kinds

    def map(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a function, or a nested workflow, over the elements of something that can be iterated; see `bitactor.kinds.map`.

            @orders.map(over="rows", batch=100)
            def clean(element: dict, rate: float) -> dict: ...

            orders.map(name="ship_all", workflow=shipping, over=Result("load", "orders"), bind={"order": Element()})

        The function takes the element as `element`, or by `bind={"row": Element(*path)}`, its position as `index`, and what any step may take.
        The result is the list of results; see `keep`, `reduce` and `on_error` for others.

        Options beside those of `step`:
            over: a step or input field, `Input`, `Result`, `Value`; or a factory: a function of inputs, results and resources that answers with
                an iterable, an iterator, or an async one.  A factory that takes `start` is told how many elements to leave out.
            workflow: a nested workflow for each element, instead of a function.
            batch: how many elements are in memory at once, and, over a function, in one hop.
            ordered: results in the order of the elements; otherwise as they complete.
            on_error: `fail`, or `collect`: the result is then `{"results": […], "errors": [{"index", "element", "error"}, …]}`.
            keep: False keeps no results; the result is then `{"count": …}`.
            reduce: a function of what was reduced so far and the results of a batch; the result is what it makes in the end.
            initial: where `reduce` begins.
            whole: the function takes a whole batch as `elements`, and answers once for it.
            retries, timeout, policies, …: of a batch, when it is over a function.
        """
        own = {name: options.pop(name, default) for name, default in _MAP_OPTIONS.items()}
        if own["over"] is None:
            raise DefinitionError(f"a map of {self.name!r} needs over=: what to iterate")
        elements = {name: source for name, source in (options.get("bind") or {}).items() if isinstance(source, Element)}
        options["bind"] = {name: source for name, source in (options.get("bind") or {}).items() if name not in elements}
        over = own["over"]
        if isinstance(over, str | Step):
            over = self._named(over)
        if isinstance(over, Source):
            options["bind"]["(over)"] = over

        def make(what: str, function: Callable[..., Any] | None) -> Kind:
            return Map(what, function=function, elements=elements, **{**own, "over": over})

        if own["workflow"] is not None and function is None:
            return self._declare_nested(options, lambda what: make(what, None))
        return self._declare_with_function(function, options, make)

    def iterate(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a function that is called again and again on what it answered before; see `bitactor.kinds.iterate`.

        Options beside those of `step`:
            start: what the first round gets as `state`: a step or input field, `Input`, `Result` or `Value`.
            until: a predicate over the result that says whether that is enough.
            at_most: the bound, in rounds; obligatory.
        """
        start, until, at_most = options.pop("start", None), options.pop("until", None), options.pop("at_most", None)
        if start is None:
            raise DefinitionError(f"an iterate of {self.name!r} needs start=: what the first round gets as its state")
        options["bind"] = {**(options.get("bind") or {}), "(start)": self._source(start)}
        return self._declare_with_function(function, options, lambda what, function: Iterate(what, function, until, at_most))

    def compose(self, name: str, workflow: Workflow, **options: Any) -> Step[..., Any]:
        """Declare a nested workflow as one step; its inputs are found by name, or by `bind`.  See `bitactor.kinds.compose`.

        Options: bind, after, when, guard.
        """
        return self._declare_nested({**options, "name": name}, lambda what: Compose(what, workflow))

    def switch(
        self,
        name: str,
        on: str | Step[Any, Any] | Source,
        cases: Mapping[Any, Any] | Sequence[tuple[Any, Any]],
        *,
        default: Workflow | Callable[..., Any] | None = None,
        optional: bool = False,
        **options: Any,
    ) -> Step[..., Any]:
        """Declare ordered cases, of which the first that fits `on` is run; see `bitactor.kinds.switch`.

        Args:
            on: what is looked at: a step or input field, `Input`, `Result` or `Value`.
            cases: value or predicate → branch: a workflow, or a function that makes a step.
            default: the branch when none fits; without one that is an error,
            optional: or, if True, the switch is skipped.
            options: bind, after, when, guard.
        """
        options["bind"] = {**(options.get("bind") or {}), "(on)": self._source(on)}
        return self._declare_nested({**options, "name": name}, lambda what: Switch(what, cases, default, optional))

    def group(
        self,
        name: str,
        workflow: Workflow,
        *,
        before_all: Callable[..., Any] | None = None,
        after_all: Callable[..., Any] | None = None,
        **options: Any,
    ) -> Step[..., Any]:
        """Declare a nested workflow with a step before and a step after it; see `bitactor.kinds.group`.

        Options: bind, after, when, guard.
        """
        return self._declare_nested({**options, "name": name}, lambda what: Group(what, workflow, before_all, after_all))

    def recurse(
        self, name: str, workflow: Workflow, *, at_most: int, until: Callable[[Any], bool] | None = None, **options: Any
    ) -> Step[..., Any]:
        """Declare a nested workflow that is repeated, each round fed with the result of the one before; see `bitactor.kinds.recurse`.

        Args:
            at_most: the bound, in rounds.
            until: a predicate over the result that says whether that is enough.
            options: bind, after, when, guard.
        """
        return self._declare_nested({**options, "name": name}, lambda what: Recurse(what, workflow, until, at_most))

    def collect(
        self, name: str, sources: Mapping[str, Any] | Sequence[Any], *, transform: Callable[..., Any] | None = None, **options: Any
    ) -> Step[..., Any]:
        """Declare a step that gathers results and inputs into a mapping; see `bitactor.kinds.collect`."""
        bind = {key: self._source(source) for key, source in _named_sources(sources).items()}
        return self._declare(gather(bind, transform), {"spawn": "inline", **options, "name": name, "bind": bind}, label="collect")

    def template(self, name: str, text: str, **options: Any) -> Step[..., Any]:
        """Declare a step that fills in a text: `{user.name}` is an argument and a path into it; see `bitactor.kinds.template`."""
        return self._declare(fill_in(text), {"spawn": "inline", **options, "name": name}, label="template")

    def debug(self, name: str, *sources: str, level: str = "info", **options: Any) -> Step[..., Any]:
        """Declare a step that logs its arguments and context, and answers with the arguments; see `bitactor.kinds.debug`."""
        return self._declare(look(sources, level), {"spawn": "inline", **options, "name": name}, label="debug")

    def flunk(self, name: str, text: str, **options: Any) -> Step[..., Any]:
        """Declare a step that fails, with a text filled in as a `template` is; see `bitactor.kinds.flunk`."""
        return self._declare(refuse(text), {"spawn": "inline", **options, "name": name}, label="flunk")

    def around(self, function: Any = None, /, *, workflow: Workflow, **options: Any) -> Any:
        """Declare a function around a nested workflow, which it runs with `await proceed()`; see `bitactor.kinds.around`.

        Options beside those of `step`:
            workflow: what runs within; its inputs are found by name, or by `bind`.
        """
        return self._declare_with_function(function, options, lambda what, function: Around(what, function, workflow))

    def _declare_nested(self, options: Mapping[str, Any], make: Callable[[str], Kind]) -> Step[..., Any]:
        unfit = next((option for option in options if option in _STEP_OPTIONS and option not in _NESTED_OPTIONS), None)
        if unfit is not None:
            raise DefinitionError(f"{options['name']!r} of {self.name!r}: {unfit}= is for the steps within it; say it there")
        if "name" not in options:
            raise DefinitionError(f"a step of {self.name!r} that nests a workflow needs name=")
        _refuse_unknown_options(self.name, options)
        return self._declare(_no_function, _fixed(self.name, options), make_kind=make)

    def _declare_with_function(
        self, function: Any, options: Mapping[str, Any], make: Callable[[str, Callable[..., Any]], Kind]
    ) -> Any:
        _refuse_unknown_options(self.name, options)
        options = _fixed(self.name, options)
        if options.get("required") is False:
            raise DefinitionError(f"a step of {self.name!r}: required=False is for single steps, not for what is made of several")

        def declare(function: Callable[..., Any]) -> Step[..., Any]:
            inner = function.function if isinstance(function, Step) else function
            return self._declare(function, options, make_kind=lambda what: make(what, inner))

        return declare if function is None else declare(function)

    def _source(self, given: Any) -> Source:
        return given if isinstance(given, Source) else self._named(given)

    def _named(self, given: Any) -> Source:
        """A step or an input field, by its name or itself."""
        if isinstance(given, Step):
            return Result(given.name)
        if not isinstance(given, str):
            raise DefinitionError(
                f"workflow {self.name!r}: {given!r} is no step, name or source; use Input(…), Result(…) or Value(…)"
            )
        return Input(given) if given in self.input_model.model_fields else Result(given)

    def returns(self, step: str | Step[Any, Any]) -> None:
        """Say which step's result is the workflow's; by default the last declared one's."""
        self.returned = step if isinstance(step, str) else step.name
        self._plan = None

    def check(self) -> Plan:
        """Validate everything and return the plan; cheap when nothing has changed since.

        Raises:
            DefinitionError: or one of its kinds.
        """
        if self._plan is None:
            if not self.steps:
                raise MissingReturn(f"workflow {self.name!r} has no steps; declare one with @workflow.step")
            if self.returned is not None and self.returned not in self.steps:
                raise MissingReturn(
                    f"workflow {self.name!r} returns {self.returned!r}, which is no step.{suggest(self.returned, self.steps)}"
                )
            self._plan = self.nested_plan(self.name)
        return self._plan

    def nested_plan(self, address: str) -> Plan:
        """The plan with its steps addressed below `address`.

        Raises:
            CycleError: it is nested in itself, directly or through others.
            DefinitionError: or another of its kinds.
        """
        if self._compiling:
            raise CycleError(f"workflow {self.name!r} is nested in itself; to repeat a workflow, use recurse with a bound")
        if not self.steps:
            raise MissingReturn(f"workflow {self.name!r} has no steps; declare one with @workflow.step")
        self._compiling = True
        try:
            return compile_workflow(self, address)
        finally:
            self._compiling = False

    def validate_input(self, value: Any) -> dict[str, Any]:
        """`value` as the input model's fields, in plain data and models.

        Raises:
            InvalidInput: with `fields` naming each offending one.
        """
        try:
            model = self.input_model.model_validate({} if value is None else value)
        except ValidationError as error:
            problems = [
                (".".join(str(part) for part in item["loc"]), item["msg"])
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            shown = "; ".join(f"{path or 'input'}: {message}" for path, message in problems[:5])
            raise InvalidInput(f"input of {self.name!r}: {shown}", problems) from None
        return dict(model.__dict__)

    # As data, and as a picture

    def to_dict(self) -> dict[str, Any]:
        """The graph as plain data that JSON can hold, functions by import path; see `bitactor.graph`.

        Raises:
            DefinitionError: something in it has no import path: a lambda, a closure; names step and option.  Or it cannot work.
        """
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workflow:
        """A workflow from what `to_dict` gives; checked.

        It imports the modules that the data name, and calls their functions when it runs: take data only from those you take code from.

        Raises:
            DefinitionError: the data are not of that form, name something that is not there, or make a workflow that cannot work.
        """
        return from_dict(cls, data)

    def describe(self) -> dict[str, Any]:
        """What it takes, does and answers, as plain data, with JSON Schemas of input and result; see `bitactor.describing`.

        Raises:
            DefinitionError: it cannot work.
        """
        return describe(self)

    def mermaid(self, pulses: Iterable[Pulse] = ()) -> str:
        """The graph as a Mermaid flowchart; with pulses, coloured by what happened.  See `bitactor.mermaid`.

        Raises:
            DefinitionError: it cannot work.
            InvalidInput: the pulses are of another workflow.
        """
        return mermaid(self.check(), pulses)

    def _declare(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        *,
        make_kind: Callable[[str], Kind] | None = None,
        label: str = "step",
        deferred: bool = False,
    ) -> Step[..., Any]:
        if isinstance(function, Step):
            function = function.function
        if not callable(function):
            raise DefinitionError(f"workflow {self.name!r}: a step is made from a function, not from {function!r}")
        name = str(options.get("name") or getattr(function, "__name__", ""))
        refuse_bad_name(f"a step of {self.name!r}", name)
        if "/" in name:
            raise DefinitionError(f"workflow {self.name!r}: step name {name!r}: '/' separates workflow and step")
        if "#" in name:
            raise DefinitionError(f"workflow {self.name!r}: step name {name!r}: '#' separates a step and its generation")
        if name in self.steps:
            raise DuplicateName(f"workflow {self.name!r} has a step {name!r} already; give one of them name=…")
        if name in self.input_model.model_fields:
            raise DuplicateName(
                f"workflow {self.name!r} has an input field {name!r}; a step of that name would be ambiguous; give it name=…"
            )
        if name in RESERVED:
            raise DefinitionError(f"workflow {self.name!r}: {name!r} is a reserved name ({', '.join(sorted(RESERVED))})")
        what = f"step {name!r} of {self.name!r}"
        kind = None if make_kind is None else make_kind(what)
        step: Step[..., Any] = Step(self, name, function, options, kind=kind, label=label, deferred=deferred)
        refuse_bad_spawn(what, function, options.get("spawn"))
        _refuse_without_effect(what, options)
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

    def _refuse_cycles_and_depth(self, step: Step[Any, Any]) -> None:
        """With the new step alone where that is enough; with the whole graph where an earlier step had named it, or it is too deep."""
        own = dependencies_of(self, step)
        depth = 1 + max((self._depths.get(name, 0) for name in own), default=0)
        if step.name in self._named_later or step.name in own or depth > self.ttl:
            dependencies = known_dependencies(self)
            ordered = order(dependencies, f"workflow {self.name!r}")
            refuse_too_deep(f"workflow {self.name!r}", self.ttl, dependencies, ordered)
            for name in ordered:
                self._depths[name] = 1 + max((self._depths[other] for other in dependencies[name]), default=0)
        else:
            self._depths[step.name] = depth
        self._named_later |= named_later(self, step)

    def _changed(self, step: Step[Any, Any]) -> None:
        self._plan = None


class Consumer:
    """A declared consumer of a signal name.  Calling it calls the function it was made from."""

    def __init__(self, listens: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.listens = listens
        self.function = function
        self.options = options
        self.group: str = options.get("group") or f"{function.__module__}.{function.__qualname__}"
        self.name = f"{getattr(function, '__name__', 'consumer')}@{listens}"
        self.broadcast: bool = options.get("broadcast", False)
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", "consumer")
        self.__doc__ = function.__doc__
        self._plan: Plan | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Consumer {self.name}>"

    def check(self) -> Plan:
        """The consumer's plan: one step; see `Workflow.check`."""
        if self._plan is None:
            self._plan = compile_consumer(self)
        return self._plan


def consumer(
    listens: str,
    *,
    concurrency: int | None = None,
    group: str | None = None,
    broadcast: bool = False,
    retries: int = 0,
    backoff: Backoff | Callable[..., float] | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
    spawn: str | None = None,
    limit: str | None = None,
    priority: int = 0,
    policies: Sequence[Policy] = (),
    resources: Iterable[Resource] = (),
) -> Callable[[Callable[..., Any]], Consumer]:
    """Declare a function as a consumer of the signals named `listens`.

    It takes the signal (`.name`, `.token`, `.ttl`, `.transaction`, …) and, if it asks for one, a `Context`.

    Args:
        concurrency: at most this many at once in one process; None: no limit of its own.
        group: of all consumers of one group in the mesh, one gets each signal; by default each function is a group.
        broadcast: every process that has this consumer gets each signal.
        retries, backoff, timeout, spawn, limit, priority, policies: as for a step.
        resources: what it may ask for by name or annotation, as a workflow's steps do.
        deadline: seconds from acceptance; the sender's remaining deadline holds as well.
    """
    refuse_bad_name("a consumer's signal", listens)
    for option, value in (("concurrency", concurrency), ("retries", retries), ("timeout", timeout), ("deadline", deadline)):
        _refuse_negative(f"consumer of {listens!r}", option, value)
    if concurrency == 0:
        raise DefinitionError(f"consumer of {listens!r}: concurrency=0 would never take a signal")
    options = {
        "concurrency": concurrency, "group": group, "broadcast": broadcast, "retries": retries, "backoff": backoff,
        "timeout": timeout, "deadline": deadline, "spawn": spawn, "limit": limit, "priority": priority, "policies": policies,
        "resources": _resources(f"consumer of {listens!r}", resources),
    }  # fmt: skip

    _refuse_bad_extras(f"consumer of {listens!r}", options)

    def declare(function: Callable[..., Any]) -> Consumer:
        refuse_bad_spawn(f"consumer of {listens!r}", function, spawn)
        _refuse_without_effect(f"consumer of {listens!r}", options)
        made = Consumer(listens, function, options)
        made.check()
        return made

    return declare


def _no_function() -> None:
    """Stands where a step is a workflow."""
    raise DefinitionError("this step is a workflow; run it in a mesh, or with bitactor.testing.run_workflow")


def _named_sources(sources: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(sources, Mapping):
        return dict(sources)
    return {source if isinstance(source, str) else source.name: source for source in sources}


_MAP_OPTIONS: Mapping[str, Any] = {
    "over": None, "workflow": None, "batch": 100, "ordered": True, "on_error": "fail", "keep": True, "reduce": None, "initial": None,
    "whole": False,
}  # fmt: skip
_NESTED_OPTIONS = ("name", "bind", "after", "when", "guard")

RESERVED = frozenset(("ctx", "result", "error", "attempt"))

_STEP_OPTIONS = (
    "name", "bind", "after", "when", "guard", "retries", "backoff", "retry_on", "timeout", "spawn", "required", "priority", "limit",
    "policies",
)  # fmt: skip


def refuse_bad_name(what: str, name: object) -> None:
    """Raises `DefinitionError` unless `name` is a printable string of 1 to 200 characters."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise DefinitionError(f"{what} needs a name of 1 to 200 printable characters, not {name!r}")


def refuse_bad_spawn(what: str, function: Callable[..., Any], spawn: str | None) -> None:
    """Raises `DefinitionError` if `function` cannot run where `spawn` says."""
    if spawn is None:
        return
    if spawn == "ray":
        raise DefinitionError(f"{what}: spawn='ray' is not built yet; use one of {', '.join(SPAWNS)}")
    if spawn not in SPAWNS:
        raise DefinitionError(f"{what}: spawn={spawn!r}.{suggest(str(spawn), SPAWNS)}")
    if spawn == "inline" and is_coroutine_function(function):
        raise DefinitionError(
            f"{what}: spawn='inline' runs on the supervisor's own turn and cannot await; make it `def` or use 'loop'"
        )
    if spawn == "loop" and not is_coroutine_function(function):
        raise DefinitionError(
            f"{what}: spawn='loop' needs `async def`; a `def` there would block everything; use 'thread' or 'inline'"
        )
    if spawn == "process":
        if "<locals>" in getattr(function, "__qualname__", "<locals>"):
            raise DefinitionError(
                f"{what}: spawn='process' finds functions by name, and a closure has none; define it at module level"
            )
        if function.__module__ == "__main__":
            raise DefinitionError(f"{what}: spawn='process' cannot import from __main__; move the workflow to a module of its own")


def _refuse_without_effect(what: str, options: Mapping[str, Any]) -> None:
    """An option that could never do anything is a mistake, and is said to be one."""
    if options.get("spawn") == "inline" and options.get("timeout") is not None:
        raise DefinitionError(
            f"{what}: timeout={options['timeout']!r}, but nothing can interrupt spawn='inline'; use 'thread' or 'loop'"
        )
    if not options.get("retries"):
        for option in ("backoff", "retry_on"):
            if options.get(option) is not None:
                raise DefinitionError(f"{what}: {option}= says how to try again, but retries=0; give retries=… or leave it out")


def _refuse_unknown_options(workflow: str, options: Mapping[str, Any]) -> None:
    for option in options:
        if option not in _STEP_OPTIONS:
            raise DefinitionError(f"step of {workflow!r}: unknown option {option!r}.{suggest(option, _STEP_OPTIONS)}")
    what = f"step of {workflow!r}"
    for option in ("retries", "timeout"):
        _refuse_negative(what, option, options.get(option))
    _refuse_bad_extras(what, options)


def _refuse_bad_extras(what: str, options: Mapping[str, Any]) -> None:
    priority, limit = options.get("priority", 0), options.get("limit")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise DefinitionError(f"{what}: priority={priority!r}; it must be a whole number, the highest goes first")
    if not isinstance(options.get("required", True), bool):
        raise DefinitionError(f"{what}: required={options['required']!r}; it is True or False")
    if limit is not None:
        refuse_bad_name(f"the pool that a {what} is limited by", limit)
    policies = options.get("policies", ())
    if not isinstance(policies, Sequence) or not all(isinstance(policy, Policy) for policy in policies):
        raise DefinitionError(f"{what}: policies={policies!r}; give a list of patterns from bitactor.patterns")


def _fixed(workflow: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they are now: an iterator is read once, and what the caller changes later changes nothing."""
    fixed = dict(options)
    if options.get("name") is not None:
        refuse_bad_name(f"a step of {workflow!r}", options["name"])
    bind, after = options.get("bind"), options.get("after")
    if bind is not None:
        if not isinstance(bind, Mapping):
            raise DefinitionError(f"step of {workflow!r}: bind={bind!r}; give a mapping of parameters to Input, Result or Value")
        fixed["bind"] = dict(bind)
    if after is not None and not isinstance(after, str):
        named = tuple(after) if isinstance(after, Iterable) else (after,)
        if isinstance(after, Step) or not all(isinstance(other, str | Step) for other in named):
            raise DefinitionError(f"step of {workflow!r}: after={after!r}; give a list of steps")
        fixed["after"] = named
    return fixed


def _exception_classes(workflow: str, errors: Any) -> tuple[type[BaseException], ...]:
    kinds = tuple(errors) if isinstance(errors, Iterable) else (errors,)
    if not isinstance(errors, Iterable) or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise DefinitionError(f"workflow {workflow!r}: errors={errors!r}; give a list of exception classes")
    return kinds


def _refuse_negative(what: str, option: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DefinitionError(f"{what}: {option}={value!r}; it must be a number, zero or more")
    if option in ("retries", "redeliveries", "concurrency") and not isinstance(value, int):
        raise DefinitionError(f"{what}: {option}={value!r}; it must be a whole number")
    if option in ("timeout", "deadline") and value == 0:
        raise DefinitionError(f"{what}: {option}=0 leaves no time at all; leave it out for no limit")


def _resources(workflow: str, declared: Iterable[Resource]) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
    for resource in declared:
        if not isinstance(resource, Resource):
            raise DefinitionError(f"workflow {workflow!r}: resources are made with Resource(name, factory), not {resource!r}")
        if resource.name in found:
            raise DuplicateName(f"workflow {workflow!r} has two resources {resource.name!r}")
        if resource.name in RESERVED:
            raise DefinitionError(
                f"workflow {workflow!r}: the resource {resource.name!r} has a reserved name ({', '.join(sorted(RESERVED))})"
            )
        found[resource.name] = resource
    return found


def _called(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))


def _input_model(name: str, declared: type[BaseModel] | Mapping[str, Any] | None) -> type[BaseModel]:
    if declared is None:
        declared = {}
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        return declared
    if isinstance(declared, Mapping):
        fields: dict[str, Any] = {}
        for field, kind in declared.items():
            if not isinstance(field, str) or not field.isidentifier():
                raise DefinitionError(f"workflow {name!r}: input field {field!r} is no identifier")
            fields[field] = kind if isinstance(kind, tuple) else (kind, ...)
        try:
            model = create_model(f"{name} input", __config__={"extra": "forbid"}, **fields)
            model.model_rebuild()
        except (PydanticUserError, NameError) as error:
            raise DefinitionError(
                f"workflow {name!r}: no input can be made of {declared!r} ({str(error).splitlines()[0]})"
            ) from None
        for field in fields.keys() - model.model_fields.keys():
            raise DefinitionError(f"workflow {name!r}: pydantic keeps the name {field!r} to itself; rename the input field")
        return model
    raise DefinitionError(f"workflow {name!r}: input is a pydantic model or a mapping of names to types, not {declared!r}")
