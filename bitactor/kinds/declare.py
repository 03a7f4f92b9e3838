"""The methods of a workflow that declare kinds, one for each; a decorator where a function is part of the kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from bitactor.declare.options import (
    NESTED_OPTIONS,
    STEP_OPTIONS,
    AttemptKeywords,
    NestedKeywords,
    StepKeywords,
    StepOptions,
    refuse_no_bool,
)
from bitactor.declare.source import Input, Result, Source
from bitactor.declare.step import Step, no_function
from bitactor.errors import DefinitionError
from bitactor.kinds import (
    Around,
    Collect,
    Compose,
    Debug,
    Flunk,
    FunctionKind,
    Group,
    Iterate,
    Map,
    Recurse,
    Switch,
    Template,
    is_registered,
)
from bitactor.plan.declaration import Declaration
from bitactor.plan.declaration import Declaration as Workflow  # what a user nests, and reads in these signatures
from bitactor.plan.kind import Kind

P = ParamSpec("P")
R = TypeVar("R")

MakeKind = Callable[[str, Callable[..., Any]], Kind]
"""Makes a kind of the step's description and function."""


class MapKeywords(StepKeywords, total=False):
    """The options of `map`, but for `workflow`."""

    over: str | Step[Any, Any] | Source | Callable[..., Any]
    batch: int
    ordered: bool
    on_error: str
    keep: bool
    reduce: Callable[[Any, list[Any]], Any] | None
    initial: Any
    whole: bool


class DeclaresKinds(Declaration):
    """The part of a workflow that declares steps made of other steps, and the small ready-made kinds."""

    def returns(self, step: str | Step[Any, Any]) -> object:
        """Say which step's result is the workflow's result."""
        raise NotImplementedError

    def _declare(
        self,
        function: Callable[..., Any],
        options: StepOptions,
        *,
        make_kind: MakeKind = FunctionKind,
        deferred: bool = False,
    ) -> Step[..., Any]:
        """Declare a function, or what `make_kind` makes of the step's description, as a step."""
        raise NotImplementedError

    def declare(self, kind: type[Kind], function: Any = None, /, *, deferred: bool = False, **options: Any) -> Any:
        """Declare a step of a kind by its class: what each of the other methods does for one kind, and how a kind of
        one's own is declared, that was added by `bitactor.kinds.register_kind`.  A decorator, if the kind needs a
        function and there is none.

        Options: those of the kind, beside those of `step`, or, if it has no function, bind, after, when, guard.
        """
        if not is_registered(kind):
            raise DefinitionError(
                f"workflow {self.name!r}: declare takes the class of a kind that register_kind was given, not {kind!r}"
            )
        own = {name: options.pop(name) for name in kind.keys if name in options}
        wanted = {name for name, key in kind.keys.items() if key.required}
        missing = next((name for name in kind.keys if name in wanted - own.keys() - {"function"}), None)
        if missing is not None:
            raise DefinitionError(f"a {kind.label} of {self.name!r} needs {missing}=")
        given = options.get("bind")
        if given is None or isinstance(given, Mapping):  # anything else is refused together with the other options
            bind = kind.bind(own, given or {}, self._source)
            options |= {"bind": bind} if bind or given else {}
        make: Callable[..., Kind] = partial(_made, kind)
        if not kind.takes_attempts or (function is None and "workflow" in own and "function" not in wanted):
            return self._declare_nested(options, lambda what, _: make(what, **own))
        if "function" in kind.keys:
            return self._declare_with_function(
                function,
                options,
                lambda what, function: make(what, function=function, **own),
                single=issubclass(kind, FunctionKind),
                deferred=deferred,
            )
        made: Any = make(f"step {options.get('name')!r} of {self.name!r}", **own)
        return self._declare(
            made.function, self._checked({"spawn": "inline", **options}), make_kind=lambda what, _: made
        )

    @overload
    def map(self, function: Callable[P, R], /, **options: Unpack[MapKeywords]) -> Step[P, R]: ...

    @overload
    def map(self, /, *, workflow: Workflow, **options: Unpack[MapKeywords]) -> Step[..., Any]: ...

    @overload
    def map(self, /, **options: Unpack[MapKeywords]) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def map(
        self,
        function: Any = None,
        /,
        *,
        over: Any = None,
        workflow: Workflow | None = None,
        batch: int = 100,
        ordered: bool = True,
        on_error: str = "fail",
        keep: bool = True,
        reduce: Callable[[Any, list[Any]], Any] | None = None,
        initial: Any = None,
        whole: bool = False,
        **options: Unpack[StepKeywords],
    ) -> Any:
        """Declare a function, or a nested workflow, over the elements of something that can be iterated; see
        `bitactor.kinds.map`.

            @orders.map(over="rows", batch=100)
            def clean(element: dict, rate: float) -> dict: ...

            orders.map(name="ship_all", workflow=shipping, over=Result("load", "orders"), bind={"order": Element()})

        The function takes the element as `element`, or by `bind={"row": Element(*path)}`, its position as `index`, and
        what any step may take. The result is the list of results; see `keep`, `reduce` and `on_error` for others.

        Options beside those of `step`:
            over: a step or input field, `Input`, `Result`, `Value`; or a factory: a function of inputs, results and
                resources that answers with an iterable, an iterator, or an async one.  A factory that takes `start` is
                told how many elements to leave out.
            workflow: a nested workflow for each element, instead of a function.
            batch: how many elements are in memory at once, and, over a function, in one hop.  After a full one the next
                element is read too, which says whether there is another batch.
            ordered: results in the order of the elements; otherwise as they complete.
            on_error: `fail`, or `collect`: the result is then `{"results": […], "errors": [{"index", "element",
                "error"}, …]}`.
            keep: False keeps no results; the result is then `{"count": …}`.
            reduce: a function of what was reduced so far and the results of a batch; the result is what it makes in the
                end.
            initial: where `reduce` begins.
            whole: the function takes a whole batch as `elements`, and answers once for it.
            retries, timeout, policies, …: of a batch, when it is over a function.
        """
        if over is None:
            raise DefinitionError(f"a map of {self.name!r} needs over=: what to iterate")
        own: dict[str, Any] = {} if workflow is None else {"workflow": workflow}
        return self.declare(
            Map, function, over=over, batch=batch, ordered=ordered, on_error=on_error, keep=keep, reduce=reduce,
            initial=initial, whole=whole, **own, **options,
        )  # fmt: skip

    @overload
    def iterate(
        self,
        function: Callable[P, R],
        /,
        *,
        start: str | Step[Any, Any] | Source,
        until: Callable[[Any], bool] | None = None,
        at_most: int,
        **options: Unpack[StepKeywords],
    ) -> Step[P, R]: ...

    @overload
    def iterate(
        self,
        /,
        *,
        start: str | Step[Any, Any] | Source,
        until: Callable[[Any], bool] | None = None,
        at_most: int,
        **options: Unpack[StepKeywords],
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def iterate(
        self,
        function: Any = None,
        /,
        *,
        start: Any = None,
        until: Callable[[Any], bool] | None = None,
        at_most: Any = None,
        **options: Unpack[StepKeywords],
    ) -> Any:
        """Declare a function that is called again and again on what it answered before; see `bitactor.kinds.iterate`.

        Options beside those of `step`:
            start: what the first round gets as `state`: a step or input field, `Input`, `Result` or `Value`.
            until: a predicate over the result that says whether that is enough.
            at_most: the bound, in rounds; obligatory.
        """
        if start is None:
            raise DefinitionError(f"an iterate of {self.name!r} needs start=: what the first round gets as its state")
        return self.declare(Iterate, function, start=start, until=until, at_most=at_most, **options)

    def compose(self, name: str, workflow: Workflow, **options: Unpack[NestedKeywords]) -> Step[..., Any]:
        """Declare a nested workflow as one step; its inputs are found by name, or by `bind`.  See
        `bitactor.kinds.compose`.

        Options: bind, after, when, guard.
        """
        return self._of_kind(Compose, name, workflow=workflow, **options)

    def switch(
        self,
        name: str,
        on: str | Step[Any, Any] | Source,
        cases: Mapping[Any, Any] | Sequence[tuple[Any, Any]],
        *,
        default: Workflow | Callable[..., Any] | None = None,
        optional: bool = False,
        **options: Unpack[NestedKeywords],
    ) -> Step[..., Any]:
        """Declare ordered cases, of which the first that fits `on` is run; see `bitactor.kinds.switch`.

        Args:
            on: what is looked at: a step or input field, `Input`, `Result` or `Value`.
            cases: value or predicate → branch: a workflow, or a function that makes a step.
            default: the branch when none fits.
            optional: without a default, True: the switch is skipped when no case fits; False: that is an error.
            options: bind, after, when, guard.
        """
        return self._of_kind(Switch, name, on=on, cases=cases, default=default, optional=optional, **options)

    def group(
        self,
        name: str,
        workflow: Workflow,
        *,
        before_all: Callable[..., Any] | None = None,
        after_all: Callable[..., Any] | None = None,
        **options: Unpack[NestedKeywords],
    ) -> Step[..., Any]:
        """Declare a nested workflow with a step before and a step after it; see `bitactor.kinds.group`.

        Options: bind, after, when, guard.
        """
        return self._of_kind(Group, name, workflow=workflow, before_all=before_all, after_all=after_all, **options)

    def recurse(
        self,
        name: str,
        workflow: Workflow,
        *,
        at_most: int,
        until: Callable[[Any], bool] | None = None,
        **options: Unpack[NestedKeywords],
    ) -> Step[..., Any]:
        """Declare a nested workflow that is repeated, each round fed with the result of the one before; see
        `bitactor.kinds.recurse`.

        Args:
            at_most: the bound, in rounds.
            until: a predicate over the result that says whether that is enough.
            options: bind, after, when, guard.
        """
        return self._of_kind(Recurse, name, workflow=workflow, until=until, at_most=at_most, **options)

    def collect(
        self,
        name: str,
        sources: Mapping[str, Any] | Sequence[Any],
        *,
        transform: Callable[..., Any] | None = None,
        spawn: str | None = "inline",
        **options: Unpack[AttemptKeywords],
    ) -> Step[..., Any]:
        """Declare a step that gathers results and inputs into a mapping; see `bitactor.kinds.collect`."""
        return self._of_kind(Collect, name, sources=sources, transform=transform, spawn=spawn, **options)

    def template(
        self, name: str, text: str, *, spawn: str | None = "inline", **options: Unpack[AttemptKeywords]
    ) -> Step[..., Any]:
        """Declare a step that fills in a text: `{user.name}` is an argument and a path into it; see
        `bitactor.kinds.template`."""
        return self._of_kind(Template, name, text=text, spawn=spawn, **options)

    def debug(
        self,
        name: str,
        *sources: str,
        level: str = "info",
        spawn: str | None = "inline",
        **options: Unpack[AttemptKeywords],
    ) -> Step[..., Any]:
        """Declare a step that logs its arguments and context, and answers with the arguments; see
        `bitactor.kinds.debug`."""
        return self._of_kind(Debug, name, sources=sources, level=level, spawn=spawn, **options)

    def flunk(
        self, name: str, text: str, *, spawn: str | None = "inline", **options: Unpack[AttemptKeywords]
    ) -> Step[..., Any]:
        """Declare a step that fails, with a text filled in as a `template` is; see `bitactor.kinds.flunk`."""
        return self._of_kind(Flunk, name, text=text, spawn=spawn, **options)

    @overload
    def around(
        self, function: Callable[P, R], /, *, workflow: Workflow, **options: Unpack[StepKeywords]
    ) -> Step[P, R]: ...

    @overload
    def around(
        self, /, *, workflow: Workflow, **options: Unpack[StepKeywords]
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...

    def around(self, function: Any = None, /, *, workflow: Workflow, **options: Unpack[StepKeywords]) -> Any:
        """Declare a function around a nested workflow, which it runs with `await proceed()`; see
        `bitactor.kinds.around`.

        Options beside those of `step`:
            workflow: what runs within; its inputs are found by name, or by `bind`.
        """
        return self.declare(Around, function, workflow=workflow, **options)

    def _of_kind(self, kind: type[Kind], name: str, /, **options: Any) -> Step[..., Any]:
        step: Step[..., Any] = self.declare(kind, **options, name=name)
        return step

    def _declare_nested(self, options: Mapping[str, Any], make: MakeKind) -> Step[..., Any]:
        unfit = next((option for option in options if option in STEP_OPTIONS and option not in NESTED_OPTIONS), None)
        if unfit is not None:
            raise DefinitionError(
                f"{options['name']!r} of {self.name!r}: {unfit}= is for the steps within it; say it there"
            )
        if "name" not in options:
            raise DefinitionError(f"a step of {self.name!r} that nests a workflow needs name=")
        return self._declare(no_function, self._checked(options), make_kind=make)

    def _declare_with_function(
        self,
        function: Any,
        options: Mapping[str, Any],
        make: MakeKind = FunctionKind,
        *,
        single: bool = True,
        deferred: bool = False,
    ) -> Any:
        """The step of the function; without a function, what declares one of the function it is given."""
        checked = self._checked(options, function)
        if not single and not checked.required:
            raise DefinitionError(
                f"a step of {self.name!r}: required=False is for single steps, not for what is made of several"
            )
        declare = partial(self._declare, options=checked, make_kind=make, deferred=deferred)
        return declare if function is None else declare(function)

    def _checked(self, options: Mapping[str, Any], function: Any = None) -> StepOptions:
        name = options.get("name") or getattr(function, "__name__", None)
        what = f"step {name!r} of {self.name!r}" if isinstance(name, str) else f"step of {self.name!r}"
        return StepOptions.of(what, options)

    def _source(self, given: Any) -> Source:
        return given if isinstance(given, Source) else self._named(given)

    def _named(self, given: Any) -> Source:
        """The source that a step or input field, or the name of one, stands for."""
        if isinstance(given, Step):
            return Result(given.name)
        if not isinstance(given, str):
            raise DefinitionError(
                f"workflow {self.name!r}: {given!r} is no step, name or source; use Input(…), Result(…) or Value(…)"
            )
        return Input(given) if given in self.input_model.model_fields else Result(given)


def _made(kind: type[Kind], what: str, **own: Any) -> Kind:
    """A step's kind, made of its own options; those that are True or False are looked at here, for all kinds."""
    made: Callable[..., Kind] = kind
    for name, value in own.items():
        annotation = kind.keys[name].annotation if name in kind.keys else Any
        if annotation is bool or (annotation == bool | None and value is not None):
            refuse_no_bool(what, **{name: value})
    return made(what, **own)
