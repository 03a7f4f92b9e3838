"""What a container from outside answers or raises against the protocol: it fails its step, which the error names with
the kind, and what was done is undone; the same whoever asks, and when another process folds the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from typing_extensions import override

from bitactor import Fail, Halt, Retry, Workflow
from bitactor.errors import ConfigurationError, WorkflowFailed
from bitactor.kinds import KINDS
from bitactor.messages.codec import MAX_TOKEN_BYTES, Packed
from bitactor.messages.signal import Fault
from bitactor.plan.container import (
    ANSWER_FUNCTION_AROUND,
    CONSULT,
    WAIT,
    Close,
    FailContainer,
    NextAction,
    Open,
    Opening,
    Progress,
    Skip,
    Slot,
)
from bitactor.saga import Recovered, Saga
from bitactor.testing import run_workflow
from mesh import Mesh
from tests.twice_kind import Twice, TwiceContainer
from tests.unit.bitactor.saga_driver import Driver

BOUND = 30.0


def scope(key: Any = "9", body: Any = 0, inputs: Any = (1,)) -> Opening:
    return Opening(key, body, inputs)


class Derived(Close):
    """As good as a `Close`, if nobody looks at the class."""


def raises(error: BaseException) -> Callable[[], Any]:
    def wrong() -> Any:
        raise error

    return wrong


class Wrong(NamedTuple):
    """What a container does, and what the error says of it."""

    answer: Callable[[], Any]
    said: str


ANYWHERE: dict[str, Wrong] = {
    "nothing": Wrong(lambda: None, "answered a NoneType; it answers one of Open, Close"),
    "its class": Wrong(lambda: Open, "answered a type;"),
    "a class derived": Wrong(lambda: Derived(1), "answered a Derived;"),
    "no scope": Wrong(lambda: Open([]), "opens no scope, and would wait for ever"),
    "scopes that are none": Wrong(lambda: Open(3), "'int' object is not iterable"),  # type: ignore[arg-type]
    "no Opening": Wrong(lambda: Open([("9", 0, (1,))]), "opens a tuple; what it opens is an Opening"),  # type: ignore[list-item]
    "the same twice": Wrong(lambda: Open([scope(), scope()]), "opens scope '9' twice"),
    "no key": Wrong(lambda: Open([scope(None)]), "whose key is a NoneType; a key is a printable text without '/'"),
    "a number for key": Wrong(lambda: Open([scope(9)]), "whose key is a int"),
    "a path for key": Wrong(lambda: Open([scope("a/b")]), "whose key is 'a/b'"),
    "a key of no bytes": Wrong(lambda: Open([scope("\ud800")]), "a key is a printable text"),
    "a key without end": Wrong(lambda: Open([scope("k" * 201)]), "a key is a printable text"),
    "no body": Wrong(lambda: Open([scope(body=7)]), "opens scope '9' of body 7; it has 1, from 0 on"),
    "a body from behind": Wrong(lambda: Open([scope(body=-1)]), "of body -1"),
    "a text for body": Wrong(lambda: Open([scope(body="0")]), "of body a str"),
    "a mapping of inputs": Wrong(lambda: Open([scope(inputs={"x": 1})]), "gives scope '9' a dict; it gives a tuple"),
    "an object of inputs": Wrong(lambda: Open([scope(inputs=object())]), "gives scope '9' a object"),
    "no inputs": Wrong(lambda: Open([scope(inputs=())]), "gives scope '9' 0 inputs; its body takes x"),
    "inputs over": Wrong(lambda: Open([scope(inputs=(1, 2))]), "gives scope '9' 2 inputs; its body takes x"),
    "a value as input": Wrong(lambda: Open([scope(inputs=([1],))]), "opens scope '9' with a list where a token"),
    "a place too far": Wrong(lambda: Open([scope(inputs=(Slot(99),))]), "a Slot that is no place"),
    "a place from behind": Wrong(lambda: Open([scope(inputs=(Slot(-1),))]), "a Slot that is no place"),
    "an object for result": Wrong(lambda: Close(object()), "closes with a object where a token should be"),
    "a value for result": Wrong(lambda: Close([1, 2]), "closes with a list where a token should be"),
    "bytes for result": Wrong(lambda: Close(b"1"), "closes with a bytes where a token should be"),
    "a number too large": Wrong(lambda: Close(1 << 70), "closes with a int where a token should be"),
    "a text of no bytes": Wrong(lambda: Close("\ud800"), "closes with a str cannot be carried"),
    "a result too large": Wrong(lambda: Close(Packed(bytes(MAX_TOKEN_BYTES + 1))), "4,194,305 bytes packed"),
    "a number packed": Wrong(lambda: Close(Packed(b"\x05")), "closes with a Packed where a token should be"),
    "nothing packed": Wrong(lambda: Close(Packed(b"")), "closes with a Packed where a token should be"),
    "no code packed": Wrong(lambda: Open([scope(inputs=(Packed(b"\xc1"),))]), "opens scope '9' with a Packed where a"),
    "an error": Wrong(raises(KeyError("a bug")), "a bug"),
    "an exit": Wrong(raises(SystemExit("a way out")), "a way out"),
    "a verdict, halt": Wrong(raises(Halt("stop")), r"Halt is for a step's function to say.*Halt: stop.*let a step"),
    "a verdict, retry": Wrong(raises(Retry(reason="again")), "Retry is for a step's function to say"),
    "a verdict, fail": Wrong(raises(Fail("no")), "no"),
    "a verdict as answer": Wrong(lambda: Halt("stop"), "answered a Halt;"),
}
OPENED: dict[str, Wrong] = {
    "what is for later": Wrong(lambda: WAIT, "answered a Wait; it answers one of Open, Close, Skip"),
}
FOLLOWING: dict[str, Wrong] = {
    "what is for the beginning": Wrong(Skip, "answered a Skip"),
    "the scope again": Wrong(lambda: Open([scope("1")]), "opens scope '1' twice"),
    "waiting for nothing": Wrong(lambda: WAIT, "waits, and none of its scopes is open"),
    "consult without": Wrong(lambda: CONSULT, r"Bad asks to be consulted; give it a consult\(\)"),
    "an answer to no function": Wrong(lambda: ANSWER_FUNCTION_AROUND, "has no function around it"),
    "a fault that is none": Wrong(lambda: FailContainer("no"), "fails with a str; it fails with a Fault"),  # type: ignore[arg-type]
    "a fault of nothing": Wrong(lambda: FailContainer(Fault(None, "no")), "it fails with a Fault of texts"),  # type: ignore[arg-type]
    "a fault of no bytes": Wrong(lambda: FailContainer(Fault("a:B", "\ud800")), "cannot be carried"),
}
CONSULTED: dict[str, Wrong] = {"a skip": Wrong(Skip, "answered a Skip; it answers one of Open, Close( |$)")}

CASES: dict[str, tuple[str, Wrong]] = {
    **{f"open: {name}": ("open", wrong) for name, wrong in (ANYWHERE | OPENED).items()},
    **{f"after_scope: {name}": ("after_scope", wrong) for name, wrong in (ANYWHERE | FOLLOWING).items()},
    **{f"consult: {name}": ("consult", wrong) for name, wrong in (ANYWHERE | CONSULTED).items()},
}


def one(x: int) -> int:
    return x


def undo_one(result: int) -> None: ...  # one that can be undone is kept, with its path


def made(name: str, method: str, wrong: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """A workflow with one step of a kind whose container does this wrong in this method."""

    class Bad(TwiceContainer):
        @override
        def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
            return CONSULT if method == "consult" else super().after_scope(progress, key, token)

    class Misfit(Twice):
        label = "misfit"
        container = Bad

    setattr(Bad, method, lambda *given: wrong())
    monkeypatch.setitem(KINDS, "misfit", Misfit)  # as `register_kind` does, for this test only
    nested = Workflow("nested", input={"x": int})
    nested.add(one, name="one", undo=undo_one)
    workflow = Workflow(name, input={"x": int})
    workflow.add(one, name="first", undo=undo_one)
    workflow.declare(Misfit, name="it", workflow=nested, after=["first"])
    return workflow


def faults(saga: Saga) -> list[tuple[str, str]]:
    return [(fault.type, fault.message) for _, fault, *_ in saga.state.errors]


@pytest.mark.parametrize("case", CASES)
def test_it_fails_its_step_and_is_undone_also_by_another_process(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, wrong = CASES[case]
    workflow = made("w", method, wrong.answer, monkeypatch)
    driver = Driver(workflow, {"x": 1})
    driver.run_all()
    assert driver.status == "compensated" and driver.kinds("undone")[-1] == "undone first"
    assert Saga.fold(driver.plan, driver.journal).snapshot() == driver.saga.snapshot()
    ((_, message),) = faults(driver.saga)
    assert message.startswith("deciding on 'w/it': ")
    trace = run_workflow(workflow, {"x": 1})
    assert trace.status == "compensated" and trace.kinds == driver.kinds()
    with pytest.raises(type(trace.errors[0]), match=wrong.said):
        raise trace.errors[0]
    if "InvalidOutcome" in faults(driver.saga)[0][0]:
        assert str(trace.errors[0]) == message and ("kind 'misfit'" in message or "verdict" in case)
    before = driver.kinds().index("failed it")
    other = Saga.fold(driver.plan, driver.journal[:before])
    driver.saga, driver.journal, was = other, driver.journal[:before], driver.saga
    driver.commands.clear()
    driver.feed(Recovered("another", other.state.epoch + 1))
    driver.run_all()
    assert (driver.status, faults(driver.saga)) == ("compensated", faults(was))


async def test_it_fails_its_transaction_alone_in_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    workflows = [made(case, method, wrong.answer, monkeypatch) for case, (method, wrong) in CASES.items()]
    async with Mesh(*workflows) as mesh:
        runs = [await mesh.stimulate(workflow, {"x": 1}) for workflow in workflows]
        for run, workflow in zip(runs, workflows, strict=True):
            assert (workflow.name, await run.ended(BOUND)) == (workflow.name, "compensated")
            with pytest.raises(WorkflowFailed, match=CASES[workflow.name][1].said):
                await run.result(BOUND)
        assert mesh.about()["healthy"]


def test_a_container_that_waits_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lies(container: Any, progress: Progress, key: str, token: Any) -> NextAction:
        progress.open += 1  # of which nobody knows
        return WAIT

    monkeypatch.setattr(TwiceContainer, "after_scope", lies)
    nested, workflow = Workflow("nested", input={"x": int}), Workflow("w", input={"x": int})
    nested.add(one, name="one")
    workflow.declare(Twice, name="again", workflow=nested)
    with pytest.raises(ConfigurationError, match=r"^'again' would hang for ever; give it a timeout"):
        run_workflow(workflow, {"x": 1})
