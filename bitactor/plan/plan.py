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
from typing import Any, ClassVar

from bitactor.declare.backoff import Backoff
from bitactor.declare.policy import Policy
from bitactor.declare.resource import Resource
from bitactor.messages.ids import path_code
from bitactor.messages.signal import MAX_TTL, Fault
from bitactor.plan.arguments import Argument
from bitactor.plan.container import Close, ContainerArguments, NextAction, Open, Opening, Progress, Skip


@dataclass(slots=True)
class Callback:
    """A user's function with what it asks for beside the step's arguments."""

    function: Callable[..., Any]
    is_async: bool
    injected: Mapping[str, str]
    """Parameter name → what goes there: `ctx`, `result`, `error`, `attempt`, or `resource:name`."""
    takes: tuple[str, ...]
    """Which of the step's arguments it takes."""
    in_doubt: bool = False
    retries: int = 0
    convert_result: Callable[[Any], Any] | None = None
    """For an undo that takes `result`: what makes it what the parameter's annotation asks for."""
    resources: tuple[str, ...] = ()
    """Names of the resources among `injected`."""


@dataclass(slots=True)
class PlanStep:
    """One step, compiled.  Indices are positions in the plan."""

    index: int
    name: str
    """Its path within the transaction; in a scope, with all that lies above it."""
    address: str
    """`workflow/step`: what a signal for it is addressed to, and the name its hosts register; the same for all
    instances."""
    run: Callback
    spawn: str
    arguments: tuple[Argument, ...]
    dependencies: tuple[int, ...]
    dependents: tuple[int, ...] = ()
    retries: int = 0
    backoff: Backoff | Callback | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    timeout_ns: int | None = None
    when: Callback | None = None
    when_arguments: tuple[Argument, ...] = ()
    """What `when` and `guard` ask for beside the step's own arguments."""
    guard: Callback | None = None
    """May answer instead of the step."""
    required: bool = True
    """Whether its failure fails the transaction; otherwise it leaves None and a pulse."""
    priority: int = 0
    """Among hops that wait for a place, the highest goes first."""
    limit: str | None = None
    """The named pool that bounds how many such hops run at once."""
    policies: tuple[Policy, ...] = ()
    """Resilience patterns around each attempt, the outermost first."""
    compensate: Callback | None = None
    undo: Callback | None = None
    needs_evaluation: bool = False
    """Whether the supervisor has something to evaluate before the step can be spawned (`when`, transforms)."""
    container: Container | None = None
    """Set: it is no hop, but opens scopes."""
    kind: str = "step"
    """What people call it."""
    takes_raw_arguments: bool = False
    """Whether its function is given its arguments undecoded, as `tokens`."""
    around_container: SurroundingContainer | None = None
    """Set: it is the function around nested steps, and asks this container to proceed."""
    deferred: bool = False
    """Whether it is planned only where a `Then` asks for it."""
    scope: Scope | None = None
    """The scope it was planned in; None for those of the plan itself."""
    replaces: int = -1
    """The step it replaces; what waits for that one waits for this one."""
    takes_signal: str | None = None
    """For a consumer: the parameter that takes the signal itself."""
    token_in: tuple[str, ...] = ()
    forward_code: int = 0
    """`path_code` of the first forward attempt."""
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)

    def code(self, direction: str, attempt: int) -> int:
        """This step's half of a hop id; see `bitactor.messages.ids`."""
        key = (direction, attempt)
        code = self._codes.get(key)
        if code is None:
            code = path_code(self.name, direction, attempt)
            if attempt <= 16:
                self._codes[key] = code
        return code

    def instance(self, scope: Scope, path: str) -> PlanStep:
        """This step of a body as a step of the transaction: named by its whole path, its places moved to the scope's
        block."""
        base = scope.base
        made = copy(self)
        made.index = base + self.index
        made.scope = scope
        made.arguments = tuple(
            argument._replace(slot=argument.slot + base) if argument.slot >= 0 else argument
            for argument in self.arguments
        )
        made.when_arguments = tuple(argument._replace(slot=argument.slot + base) for argument in self.when_arguments)
        made.dependencies = tuple(base + index for index in self.dependencies)
        made.dependents = tuple(base + index for index in self.dependents)
        made.rename(path)
        return made

    def rename(self, path: str) -> None:
        """Give an instance another path."""
        self.name = path
        self._codes = {}
        self.forward_code = self.code("forward", 1)

    @property
    def is_local_only(self) -> bool:
        """Whether it can only run where its transaction is."""
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
    """Steps that wait for nobody."""
    dependency_counts: tuple[int, ...]
    """For each step, how many it waits for."""
    returns: int
    errors: Mapping[str, type[BaseException]]
    """Exceptions that travel as themselves, by `module:QualName`."""
    resources: Mapping[str, Resource] = field(default_factory=dict)
    """What its steps may ask for, by name."""
    max_concurrency: int | None = None
    """How many hops of one transaction run at once; None: as many as are ready."""
    max_hops: int | None = None
    """How many hops one transaction may take, undo not counted; None: no limit."""
    deferred: Mapping[str, PlanStep] = field(default_factory=dict)
    """Steps that a `Then` may plan, by name; their places are those of this plan."""
    depth: int = 0
    """Hops on its longest path."""
    has_no_undo: bool = False
    """Whether none of its steps, nor of their bodies', has an undo: a settled scope of it need not be kept."""

    @property
    def containers(self) -> tuple[PlanStep, ...]:
        """Its steps, on all levels, that are made of other steps."""
        if self._containers is None:
            self._containers = tuple(step for step in self.all_steps() if step.container is not None)
        return self._containers

    def all_steps(self) -> Iterator[PlanStep]:
        """Its steps, those it may plan later, and those of its containers' bodies; an address appears once."""
        for step in (*self.steps, *self.deferred.values()):
            yield step
            if step.container is not None:
                for body in step.container.bodies:
                    yield from body.all_steps()

    def at_address(self, address: str) -> PlanStep | None:
        """The step a signal is addressed to."""
        if not self._addresses:
            self._addresses.update((step.address, step) for step in self.all_steps())
        return self._addresses.get(address)

    _addresses: dict[str, PlanStep] = field(default_factory=dict)
    _containers: tuple[PlanStep, ...] | None = None
    listens: str = ""
    """For a consumer: the signal name it listens to."""
    group: str = ""
    broadcast: bool = False
    concurrency: int | None = None


class Container(ABC):
    """The compiled form of a kind that is made of other steps."""

    kind: ClassVar[str]
    """What people call it: `compose`, `map`, …"""
    bodies: tuple[Plan, ...] = ()
    depth: int = 0
    """Hops on its longest path."""
    catches: bool = False
    """Whether a failure in one of its scopes is its own affair (`after_failed_scope`), and no failure of the
    transaction."""
    max_rounds: int | None = None
    """Rounds at most, where it goes through its body again and again."""
    batch: int | None = None
    """Elements in memory at once, where it is over many."""
    cases: tuple[str, ...] = ()
    """What each body is for, where one of them is chosen."""
    surrounds: ClassVar[bool] = False
    """Whether its first scope is a function in which the others run; it then is a `SurroundingContainer`."""
    chained: ClassVar[bool] = False
    """Whether each round begins where the one before ended: it then spends the hop budget that one has left."""

    @abstractmethod
    def open(self, arguments: ContainerArguments) -> Open | Skip | Close:
        """What to begin with, by the container's arguments.  User code may run here: the supervisor asks once and
        records the answer."""

    @abstractmethod
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """A scope is settled and its result is `token`: what follows.  Pure, for the fold asks it too."""

    def after_failed_scope(self, progress: Progress, key: str, fault: Fault) -> NextAction:
        """A scope failed, and nothing of it runs any more: what follows.  Pure, as `after_scope` is."""
        raise NotImplementedError

    def consult(self, arguments: ContainerArguments, progress: Progress) -> Open | Close:
        """Asked after `after_scope` said `Consult`; user code may run here."""
        raise NotImplementedError

    def release(self, transaction: str) -> None:  # noqa: B027 - most hold nothing
        """The transaction has settled: let go of what was held for it here."""


class SurroundingContainer(Container):
    """A container whose first scope is a function in which the others run, when it asks to proceed; see
    `bitactor.kinds.around`."""

    surrounds = True

    @abstractmethod
    def nested(self, progress: Progress) -> list[Opening]:
        """What to open when the function proceeds; nothing if it has done so before."""

    @abstractmethod
    def attach_proceed(self, transaction: str, path: str, proceed: Callable[[], Awaitable[Any]]) -> None:
        """The function of this transaction is about to run here: that is what its `proceed()` does."""


class Scope:
    """One instance of a container's body within a transaction: where the body's steps and inputs lie among the
    transaction's, as one block, steps first, then inputs."""

    __slots__ = ("base", "body", "children", "container", "key", "pinned", "planned", "ttl_left", "unsettled_count")

    def __init__(self, body: Plan, base: int, container: int, key: str) -> None:
        self.body = body
        self.base = base
        self.planned: list[int] = []
        """Steps that a `Then` has planned into it, elsewhere."""
        self.pinned = False
        """Whether something may still come for one of its steps: a late reply, a timer, a decision."""
        self.open(container, key)

    def open(self, container: int, key: str) -> None:
        """Begin, or begin again for another container or key."""
        self.container = container
        self.key = key
        self.unsettled_count = len(self.body.steps)
        self.ttl_left = MAX_TTL
        """The least hop budget that any of its settled steps has left."""
        self.children: dict[int, Scope] = {}
        """Scopes within it that are not settled, by their place."""

    @property
    def indices(self) -> range:
        """Its steps."""
        return range(self.base, self.base + len(self.body.steps))

    @property
    def returns(self) -> int:
        """The step whose result is the scope's."""
        return self.base + self.body.returns


def plan_digest(workflow: str, ttl: int, returns: str, inputs: Sequence[str], steps: Iterable[PlanStep]) -> str:
    """64 bits over the graph's shape: names, where arguments come from, order, and who can undo.  Code and timings do
    not count."""
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
