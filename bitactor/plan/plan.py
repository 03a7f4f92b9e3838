"""A plan: a workflow's steps as a validated, indexed DAG that the saga and the hosts work from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from bitactor.declare.backoff import Backoff
from bitactor.declare.resource import Resource
from bitactor.errors import CycleError, WorkflowTooDeep
from bitactor.messages.ids import path_code
from bitactor.patterns.port import Policy
from bitactor.plan.arguments import Argument
from bitactor.plan.container import Container
from bitactor.plan.scope import Scope

if TYPE_CHECKING:
    from bitactor.kinds.around import AroundContainer

SPAWNS = ("inline", "loop", "thread", "process")


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
    around_container: AroundContainer | None = None
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


def topological_order(dependencies: Mapping[str, Sequence[str]], owner: str) -> list[str]:
    """The names so that each comes after those it depends on; declaration order otherwise.

    Raises:
        CycleError: names the circle.
    """
    placed: dict[str, None] = {}
    path: list[str] = []
    for start in dependencies:
        stack = [(start, iter(dependencies[start]))] if start not in placed else []
        path[:] = [start]
        while stack:
            name, rest = stack[-1]
            following = next((other for other in rest if other not in placed), None)
            if following is None:
                placed[name] = None
                stack.pop()
                path.pop()
            elif following in path:
                circle = [*path[path.index(following) :], following]
                raise CycleError(
                    f"{owner}: steps wait for each other: {' → '.join(reversed(circle))}; remove one of these "
                    "dependencies"
                )
            else:
                path.append(following)
                stack.append((following, iter(dependencies[following])))
    return list(placed)


def longest_path(
    dependencies: Mapping[str, Sequence[str]], ordered: Iterable[str], depths: Mapping[str, int] | None = None
) -> tuple[int, list[str]]:
    """The longest chain of dependencies: how many hops it takes, and the names along it.

    Args:
        depths: how many hops a name itself takes, where that is not one.
    """
    best: dict[str, tuple[int, str | None]] = {}
    for name in ordered:
        parents = [(best[parent][0], parent) for parent in dependencies[name] if parent in best]
        depth, parent = max(parents, key=lambda item: item[0], default=(0, None))
        best[name] = (depth + (depths or {}).get(name, 1), parent)
    if not best:
        return 0, []
    at: str | None = max(best, key=lambda name: best[name][0])
    assert at is not None
    longest, path = best[at][0], []
    while at is not None:
        path.append(at)
        at = best[at][1]
    return longest, path[::-1]


def refuse_too_deep(
    owner: str,
    ttl: int,
    dependencies: Mapping[str, Sequence[str]],
    ordered: Iterable[str],
    depths: Mapping[str, int] | None = None,
) -> int:
    """The number of hops on the longest path.

    Raises:
        WorkflowTooDeep: it is more than `ttl`; names the path.
    """
    longest, path = longest_path(dependencies, ordered, depths)
    if longest > ttl:
        shown = [f"{name} ({depths[name]} hops)" if depths and depths.get(name, 1) != 1 else name for name in path]
        raise WorkflowTooDeep(
            f"{owner}: {longest} hops in a row, but ttl={ttl}: {' → '.join(shown)}; "
            f"raise ttl to {longest}, let steps run side by side, or emit a signal to continue elsewhere"
        )
    return longest


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
