"""A spawner, a store, a transport and a sink from outside the packages, each added by one call, and a pattern, which is
given to a step, in whole meshes.  That they keep their contracts is seen by the suites beside this one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bitactor import Context, Resource, Workflow
from bitactor.errors import ConfigurationError, DefinitionError, WorkflowFailed
from bitactor.kinds import KINDS, register_kind
from bitactor.patterns import Bulkhead
from bitactor.plan.kind import Kind
from bitactor.ports import StoreQueries
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.network.transports import open_transport
from mesh.sinks import open_sink
from mesh.stores import MemoryStore, open_reader, register_store
from registry import RegistryServer
from tests.extensions import CallCount, Tally
from tests.memory_transport import PROCESS_HUB
from tests.twice_kind import Twice, TwiceContainer

BOUND = 30.0


async def run(mesh: Mesh, workflow: str, input: object = None) -> object:
    """The result of a transaction."""
    return await (await mesh.stimulate(workflow, input)).result(BOUND)


def _thread() -> str:
    return threading.current_thread().name


def undone(spawn: str) -> tuple[Workflow, list[str]]:
    """A workflow that fails in the end, and where its functions have run."""
    workflow, ran = Workflow("undone", resources=[Resource("where", _thread)]), list[str]()

    @workflow.step(spawn=spawn, timeout=BOUND, policies=[Bulkhead("one", 1)])
    def first(where: str, ctx: Context) -> str:
        ran.append(f"{ctx.spawn} {_thread()}")
        return where

    @first.undo
    def take_back_first() -> None:
        ran.append(f"undo {_thread()}")

    @workflow.step(spawn=spawn, after=["first"])
    def second() -> None:
        ran.append(f"second {_thread()}")

    @second.undo
    async def take_back_second() -> None:
        ran.append(f"undo {_thread()}")

    @workflow.step(spawn=spawn, after=["second"])
    def fail() -> None:
        raise ValueError("enough")

    return workflow, ran


async def test_an_added_spawner_runs_steps_with_all_that_the_rules_grant_it() -> None:
    workflow, ran = undone("unpooled")
    async with Mesh(workflow) as mesh:
        with pytest.raises(WorkflowFailed, match="enough"):
            await run(mesh, "undone")
    assert ran == ["unpooled unpooled", "second unpooled", "undo MainThread", "undo unpooled"]
    assert "unpooled" in workflow.mermaid()


def test_an_added_spawner_is_among_those_that_are_known_and_says_what_it_does_not_take() -> None:
    async def awaits() -> None: ...

    with pytest.raises(DefinitionError, match="spawn='unpooled' cannot await; make it `def`"):
        Workflow("w").step(spawn="unpooled")(awaits)
    with pytest.raises(DefinitionError, match="Did you mean 'unpooled'"):
        Workflow("w").step(spawn="unpoled")(lambda: None)


async def test_an_added_store_keeps_a_meshs_transactions() -> None:
    workflow = Workflow("stored", input={"by": int})
    workflow.step(lambda by: by + 1, name="more")
    async with Mesh(workflow, store="tardy://") as mesh:
        first, again = [await mesh.stimulate("stored", {"by": 1}, key="one") for _ in range(2)]
        assert (first.id, await first.result(BOUND)) == (again.id, 2)
    with pytest.raises(ConfigurationError, match="tardy:// can be read only by the process it is in"):
        open_reader("tardy://")


def test_an_added_store_may_have_a_reader() -> None:
    kept: StoreQueries = MemoryStore().reader()
    register_store("tardy-and-read", lambda url, **options: MemoryStore(), lambda url: nullcontext(kept))
    with open_reader("tardy-and-read://") as reader:
        assert reader is kept
    with pytest.raises(ConfigurationError, match="'tardy-and-read://', 'tardy://'"):
        open_reader("redis://host")


async def test_an_added_transport_connects_nodes(tmp_path: Path) -> None:
    def served() -> Workflow:
        workflow = Workflow("served", input={"by": int})
        workflow.step(lambda by: by + 1, name="more")
        return workflow

    registry = f"ipc://{tmp_path}/registry"
    with RegistryServer(registry):
        async with (
            Mesh(served(), registry=registry, endpoint="memory://host"),
            Mesh(served(), registry=registry, endpoint="memory://asks", hosts=False, patience=BOUND) as mesh,
        ):
            assert await run(mesh, "served", {"by": 1}) == 2
            there = PROCESS_HUB.find("memory://host")
            assert there is not None and there.statistics()["messages_out"] == 1
    with pytest.raises(ConfigurationError, match="tcp://host:port or memory://name"):
        open_transport("x://a", loop=asyncio.get_running_loop())


async def test_an_added_sink_is_told() -> None:
    workflow = Workflow("told")
    workflow.step(lambda: 1, name="one")
    sink = open_sink("tally://")
    async with Mesh(workflow, sinks=[sink]) as mesh:
        assert await run(mesh, "told") == 1
    assert isinstance(sink, Tally)
    assert sink.kinds == {"accepted": 1, "spawned": 1, "completed": 1, "finished": 1}
    async with Mesh(workflow, sinks=["tally://"]) as mesh:
        assert await run(mesh, "told") == 1
    with pytest.raises(ConfigurationError, match="Did you mean 'tally'"):
        open_sink("taly://")


async def test_an_added_pattern_stands_around_a_steps_attempts() -> None:
    workflow = Workflow("counted", input={"by": int})

    @workflow.step(policies=[CallCount("calls"), Bulkhead("one", 1)], retries=1, retry_on=OSError)
    async def more(by: int, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise OSError("again")
        return by + 1

    async with Mesh(workflow) as mesh:
        assert await run(mesh, "counted", {"by": 1}) == 2
        _, about = mesh.node.about()["patterns"]
    assert about == {"pattern": "call count", "name": "calls", "calls": 2, "failed": 1}


def _raises(*given: Any) -> Any:
    raise KeyError("what a kind from outside does wrong")


def _answers(*given: Any) -> str:
    return "what a kind from outside does wrong"


def _exits(*given: Any) -> Any:
    raise SystemExit("what a kind from outside does wrong")


@pytest.mark.parametrize("wrong", [_raises, _answers, _exits])
async def test_an_added_kind_that_errs_fails_and_is_undone(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(TwiceContainer):
        after_scope = wrong

    class Wrong(Twice):
        label = "wrong"
        container = Bad

    monkeypatch.setitem(KINDS, "wrong", Wrong)  # as `register_kind` does, for this test only
    nested, outer, taken_back = Workflow("nested"), Workflow("outer"), list[str]()
    nested.step(lambda: 1, name="one").undo(lambda result: taken_back.append("one"))
    outer.declare(Wrong, name="wrong", workflow=nested)
    assert run_workflow(outer).status == "compensated" and taken_back == ["one"]
    async with Mesh(outer) as mesh:
        with pytest.raises(WorkflowFailed, match=r"what a kind from outside does wrong|answered a str;"):
            await run(mesh, "outer")
        assert mesh.node.about()["healthy"]
    assert taken_back == ["one", "one"]


async def test_an_added_kind_that_cannot_let_go_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TwiceContainer, "release", _exits)
    nested, outer = Workflow("nested"), Workflow("outer")
    nested.step(lambda: 1, name="one")
    outer.declare(Twice, name="it", workflow=nested)
    async with Mesh(outer) as mesh:
        assert await run(mesh, "outer") == 1
        assert mesh.node.about()["healthy"]
    assert "'outer/it', a twice, raised when a transaction had settled: SystemExit" in caplog.text


def test_an_added_kind_is_one_and_has_a_label_of_its_own() -> None:
    class Again(Twice):
        label = "map"

    for kind in (None, 3, object, Twice("it", Workflow("w")), type("Unnamed", (Twice,), {"label": ""})):
        with pytest.raises(ConfigurationError, match="register_kind takes a class"):
            register_kind(kind)  # type: ignore[arg-type]
    for base, lacking, said in (
        (Twice, {"keys": None}, "has no keys: a mapping"),
        (Twice, {"keys": {"workflow": Workflow}}, "has no keys: a mapping"),
        (Twice, {"container": None}, "has no container: its class below"),
        (Kind, {"keys": {}}, r"has no compile\(\), parameters\(\), result_type\(\)$"),
    ):
        with pytest.raises(ConfigurationError, match=f"the kind 'lacking', Lacking, {said}"):
            register_kind(type("Lacking", (base,), {"label": "lacking", **lacking}))
    with pytest.raises(ConfigurationError, match="there is a kind 'map' already"):
        register_kind(Again)
    register_kind(Twice)


def test_what_is_declared_is_a_kind_that_was_added() -> None:
    class Unknown(Twice):
        label = "unknown"

    class Again(Twice):
        pass

    nested, outer = Workflow("nested"), Workflow("outer")
    nested.step(lambda: 1, name="one")
    for kind in (None, 3, int, "map", object(), Unknown, Again, Twice("it", nested)):
        with pytest.raises(DefinitionError, match="workflow 'outer': declare takes the class of a kind that register_"):
            outer.declare(kind, name="it", workflow=nested)  # type: ignore[arg-type]
    assert not outer.steps


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": None}, "has depth=None; it is the number of hops"),
        ({"depth": True}, "has depth=True"),
        ({"depth": 0}, "has depth=0"),
        ({"bodies": ()}, "has no bodies; give it a tuple of plans"),
        ({"bodies": None}, "has no bodies"),
        ({"bodies": ("one",)}, "has no bodies"),
    ],
)
def test_a_container_that_cannot_work_is_refused(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad(TwiceContainer):
        def __init__(self, *made: Any) -> None:
            super().__init__(*made)
            vars(self).update(given)

    monkeypatch.setattr(Twice, "container", Bad)
    nested, outer = Workflow("nested"), Workflow("outer")
    nested.step(lambda: 1, name="one")
    outer.declare(Twice, name="it", workflow=nested)
    with pytest.raises(DefinitionError, match=f"step 'it' of 'outer': its container, of the kind 'twice', {said}"):
        outer.check()


def test_a_kind_whose_compiled_form_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nested, outer = Workflow("nested"), Workflow("outer")
    nested.step(lambda: 1, name="one")
    outer.declare(Twice, name="it", workflow=nested)
    monkeypatch.setattr(Twice, "container", lambda *given: "none")
    with pytest.raises(DefinitionError, match="its container, of the kind 'twice', is a str; it is one below"):
        outer.check()
    monkeypatch.setattr(Twice, "compile", lambda *given: None)
    with pytest.raises(DefinitionError, match="step 'it' of 'outer' compiles to a NoneType"):
        outer.check()
