"""A plan: a workflow's steps as a validated, indexed DAG that the saga and the hosts work from.

A step may be made of other steps: it then has a container, whose bodies are plans, and a scope is one instance of such
a body within a transaction.  So a plan, its steps, containers and scopes refer to each other, and stand here together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

from bitactor.declare.backoff import Backoff
from bitactor.declare.options import StepOptions
from bitactor.declare.policy import Policy
from bitactor.declare.resource import Resource
from bitactor.messages.codec import decode_token
from bitactor.messages.ids import path_code
from bitactor.messages.signal import MAX_TTL, Fault
from bitactor.plan.arguments import Argument, Converter
from bitactor.plan.container import Close, ContainerArguments, NextAction, Open, Opening, Progress, Skip


@dataclass(slots=True)
class Callback:
    """A user's function, with what it is given."""

    function: Callable[..., Any]
    is_async: bool
    injected: Mapping[str, str]
    """Parameter → what it is given: `ctx`, `result`, `error`, `attempt`, or `resource:name`."""
    takes: tuple[str, ...]
    """The step's arguments that the function takes."""
    in_doubt: bool = False
    retries: int = 0
    convert_result: Converter | None = None
    """Of an undo that takes `result`: the converter of the result to the annotation of that parameter."""
    resources: tuple[str, ...] = ()
    """Names of the resources among `injected`."""

    def result_of(self, token: Any) -> Any:
        """The step's result as an undo gets it, as its parameter's annotation asks."""
        if self.convert_result is None:
            return decode_token(token)
        value = decode_token(token, self.convert_result.classes)
        return value if value is None else self.convert_result.convert(value)


@dataclass(slots=True)
class PlanStep:
    """One step, compiled.  Indices are positions in the plan."""

    index: int
    name: str
    """The step's path within the transaction; in a scope, with all that lies above it."""
    address: str
    """`workflow/step`: the address of signals for the step, and the name that its hosts register; the same for all
    instances."""
    run: Callback
    spawn: str
    arguments: tuple[Argument, ...]
    dependencies: tuple[int, ...]
    dependents: tuple[int, ...] = ()
    options: StepOptions = field(default_factory=StepOptions)
    """The options as declared.  What hops read of them stands in the fields below, compiled; see
    `bitactor.plan.steps`."""
    retries: int = 0
    backoff: Backoff | Callback | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    timeout_ns: int | None = None
    required: bool = True
    priority: int = 0
    limit: str | None = None
    policies: tuple[Policy, ...] = ()
    when: Callback | None = None
    when_arguments: tuple[Argument, ...] = ()
    """The arguments of `when` and `guard` beside the step's own."""
    guard: Callback | None = None
    """A function that may answer instead of the step."""
    compensate: Callback | None = None
    undo: Callback | None = None
    needs_evaluation: bool = False
    """True: the supervisor has something to evaluate before the step can be spawned (`when`, transforms, …)."""
    container: Container | None = None
    """Set: the step is no hop, but opens scopes."""
    kind: str = "step"
    """The kind as it is printed: `step`, `map`, …"""
    takes_raw_arguments: bool = False
    """True: the step's function is given its arguments undecoded, as `tokens`."""
    around_container: SurroundingContainer | None = None
    """Set: the step is the function around nested steps, and asks this container to proceed."""
    deferred: bool = False
    """True: the step is planned only where a `Then` asks for it."""
    scope: Scope | None = None
    """The scope that the step was planned in; None for the steps of the plan itself."""
    replaces: int = -1
    """Index of the step that this one replaces, -1 for none; what waits for that one waits for this one."""
    has_beside: bool = False
    """True: some of the arguments are not for the step's function, only for its undo, compensate or backoff."""
    takes_signal: str | None = None
    """Of a consumer: the parameter that takes the signal itself."""
    token_in: tuple[str, ...] = ()
    forward_code: int = 0
    """`path_code` of the first forward attempt."""
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)

    def code(self, direction: str, attempt: int) -> int:
        """The step's half of a hop id; see `bitactor.messages.ids`."""
        key = (direction, attempt)
        code = self._codes.get(key)
        if code is None:
            code = path_code(self.name, direction, attempt)
            if attempt <= 16:
                self._codes[key] = code
        return code

    def instance(self, scope: Scope, path: str) -> PlanStep:
        """A copy of this step of a body as a step of the transaction: named by its whole path, with indices moved to
        the scope's block."""
        base = scope.base
        made = copy(self)
        made.index = base + self.index
        made.scope = scope
        made.arguments = tuple(argument.moved(base) for argument in self.arguments)
        made.when_arguments = tuple(argument.moved(base) for argument in self.when_arguments)
        made.dependencies = tuple(base + index for index in self.dependencies)
        made.dependents = tuple(base + index for index in self.dependents)
        made.rename(path)
        return made

    def rename(self, path: str) -> None:
        """Give the step, an instance in a scope, another path."""
        self.name = path
        self._codes = {}
        self.forward_code = self.code("forward", 1)

    @property
    def is_local_only(self) -> bool:
        """Whether the step can run only in the process that owns its transaction."""
        return self.takes_raw_arguments or self.around_container is not None

    @property
    def asks_compensation(self) -> bool:
        """Whether user code must be asked what a lost or timed out attempt means."""
        return self.compensate is not None or isinstance(self.backoff, Callback)


@dataclass(slots=True)
class Plan:
    """A workflow, compiled.  Steps come in the order they were declared; tokens are indexed steps first, then input
    fields."""

    workflow: str
    digest: str
    ttl: int
    deadline_ns: int | None
    undo_timeout_ns: int
    grace_ns: int
    redeliveries: int
    steps: tuple[PlanStep, ...]
    by_name: Mapping[str, int]
    inputs: tuple[str, ...]
    initial: tuple[int, ...]
    """Indices of the steps that wait for no other."""
    dependency_counts: tuple[int, ...]
    """For each step, the number of steps it waits for."""
    returns: int
    errors: Mapping[str, type[BaseException]]
    """Exceptions that travel as themselves, by `module:QualName`."""
    resources: Mapping[str, Resource] = field(default_factory=dict)
    """The resources that steps may take, by name."""
    max_concurrency: int | None = None
    """Most hops of one transaction that run at once; None: no limit."""
    max_hops: int | None = None
    """Most hops that one transaction may take, undo not counted; None: no limit."""
    deferred: Mapping[str, PlanStep] = field(default_factory=dict)
    """Steps that a `Then` may plan, by name; their indices are those of this plan."""
    depth: int = 0
    """Number of hops on the longest path."""
    has_no_undo: bool = False
    """True: no step of the plan, nor of the bodies in it, has an undo; a settled scope of the plan need not be kept."""

    @property
    def containers(self) -> tuple[PlanStep, ...]:
        """The plan's steps, on all levels, that are made of other steps."""
        if self._containers is None:
            self._containers = tuple(step for step in self.all_steps() if step.container is not None)
        return self._containers

    def all_steps(self) -> Iterator[PlanStep]:
        """The plan's steps, its deferred ones, and those of its containers' bodies; an address appears once."""
        for step in (*self.steps, *self.deferred.values()):
            yield step
            if step.container is not None:
                for body in step.container.bodies:
                    yield from body.all_steps()

    def at_address(self, address: str) -> PlanStep | None:
        """The step that signals with this address are for; None if there is none."""
        if not self._addresses:
            self._addresses.update((step.address, step) for step in self.all_steps())
        return self._addresses.get(address)

    _addresses: dict[str, PlanStep] = field(default_factory=dict)
    _containers: tuple[PlanStep, ...] | None = None
    listens: str = ""
    """Of a consumer: the name of the signals it takes."""
    group: str = ""
    broadcast: bool = False
    concurrency: int | None = None


class Arrow(NamedTuple):
    """An arrow in a picture of a plan, from a place to another."""

    source: str
    target: str
    label: str = ""
    dotted: bool = False


class Container(ABC):
    """The compiled form of a kind that is made of other steps."""

    bodies: tuple[Plan, ...] = ()
    depth: int = 0
    """Number of hops on the container's longest path."""
    catches: bool = False
    """True: the container handles failures in its scopes (`after_failed_scope`); they do not fail the transaction."""
    max_rounds: int | None = None
    """Most rounds of a container that opens its body again and again; else None."""
    batch: int | None = None
    """Elements in memory at once of a container over many; else None."""
    cases: tuple[str, ...] = ()
    """Names of the bodies of a container that chooses one of them."""
    surrounds: ClassVar[bool] = False
    """True: the container's first scope is a function in which the others run; it is a `SurroundingContainer`."""
    chained: ClassVar[bool] = False
    """True: each round begins where the one before ended, and spends the hop budget that one has left."""
    keyed: ClassVar[bool] = False
    """True: the key of a scope is a segment of the paths in it."""
    function_key: ClassVar[str] = ""
    """The key of the scope of its function, where that is a segment of its path alone."""
    main_body: ClassVar[int] = 0
    """Number of the body that is the nested workflow."""
    drawn: ClassVar[slice] = slice(None)
    """The bodies that pictures show."""
    mark: str = ""
    """What stands in pictures behind the name of the kind."""

    @abstractmethod
    def open(self, arguments: ContainerArguments) -> Open | Skip | Close:
        """The scopes that the container begins with, by its arguments.  User code may run here: the supervisor asks
        once, and records the answer."""

    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The next action once scope `key` has settled with result `token`: closing with it, if nothing else is said.
        Pure apart from `progress`, for the fold asks too."""
        return Close(token)

    def after_failed_scope(self, progress: Progress, key: str, fault: Fault) -> NextAction:
        """The next action once scope `key` has failed and nothing of it runs any more.  Pure, as `after_scope` is."""
        raise NotImplementedError(f"{type(self).__name__} catches failures; give it an after_failed_scope()")

    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open | Close:
        """The next action after `after_scope` said `Consult`.  User code may run here, as in `open`."""
        raise NotImplementedError(f"{type(self).__name__} asks to be consulted; give it a consult()")

    def release(self, transaction: str) -> None:  # noqa: B027 - most hold nothing
        """Drop what is held in this process for a transaction, which has settled."""

    def arrows(self, place: str) -> Iterable[Arrow]:
        """The arrows between its bodies in a picture, where step 2 of body 1 is at `{place}_1_s2`."""
        return ()

    def elements(self, token: Any) -> tuple[int, int] | None:
        """The elements that a hop with this result has done, and that failed in it; None: the hop counts as one."""
        return None


class SurroundingContainer(Container):
    """A container whose first scope is a function in which the others run, when it asks to proceed; see
    `bitactor.kinds.around`."""

    surrounds = True

    @abstractmethod
    def nested(self, progress: Progress) -> list[Opening]:
        """The scopes to open when the function calls `proceed()`; none if it has done so before."""

    @abstractmethod
    def attach_proceed(self, transaction: str, path: str, proceed: Callable[[], Awaitable[Any]]) -> None:
        """Give the function of a transaction, which is about to run in this process, its `proceed`."""


class Scope:
    """One instance of a container's body within a transaction: a block of places among the transaction's, first the
    body's steps, then its inputs."""

    __slots__ = ("base", "body", "children", "container", "key", "pinned", "planned", "ttl_left", "unsettled_count")

    def __init__(self, body: Plan, base: int, container: int, key: str) -> None:
        self.body = body
        self.base = base
        self.planned: list[int] = []
        """Steps that a `Then` has planned into the scope, at places outside its block."""
        self.pinned = False
        """True: something may still come for one of the scope's steps: a late reply, a timer, a decision."""
        self.open(container, key)

    def open(self, container: int, key: str) -> None:
        """Begin, for the first time or again, for a container and a key."""
        self.container = container
        self.key = key
        self.unsettled_count = len(self.body.steps)
        self.ttl_left = MAX_TTL
        """The least hop budget that any settled step of the scope has left."""
        self.children: dict[int, Scope] = {}
        """Scopes within this one that are not settled, by place."""

    @property
    def indices(self) -> range:
        """Places of the scope's steps."""
        return range(self.base, self.base + len(self.body.steps))

    @property
    def returns(self) -> int:
        """Place of the step whose result is the scope's."""
        return self.base + self.body.returns


def plan_digest(workflow: str, ttl: int, returns: str, inputs: Sequence[str], steps: Iterable[PlanStep]) -> str:
    """Digest, 64 bits of BLAKE2b, of the graph's shape: names, where arguments come from, order, and who can undo.
    Code and timings do not count."""
    said = [workflow, str(ttl), returns, *inputs]
    for step in steps:
        said += [
            step.name,
            *step.token_in,
            *(str(index) for index in step.dependencies),
            "u" if step.undo else "",
            "w" if step.when else "",
            *((step.kind, *(body.digest for body in step.container.bodies)) if step.container is not None else ()),
        ]
    return blake2b("\x00".join(said).encode(), digest_size=8).hexdigest()
