"""The code under "The face" in DESIGN.md, as it is written there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from bitactor import Backoff, Context, Continue, Halt, Input, Result, Retry, Value, Workflow, WorkflowFailed, consumer
from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import DuplicateTransaction, InvalidInput, UnknownTransaction, UnknownWorkflow
from mesh import Mesh
from tests.e2e.support import BOUND, audit, pulse_lines, undone, until

assert Input and Continue and Halt  # the face imports them


class Busy(Exception):
    pass


class Users:
    """Stands in for the user's own service: a table, keyed by idempotency key."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.failures: list[BaseException] = []
        self.inserts = 0

    async def insert(self, row: dict[str, Any], key: str) -> dict[str, Any]:
        self.inserts += 1
        if self.failures:
            raise self.failures.pop(0)
        self.rows[key] = row
        return row

    async def delete_by_key(self, key: str) -> None:
        self.rows.pop(key, None)


users = Users()
greeted: list[Any] = []
mail_fails = False


class SignUp(BaseModel):
    name: str
    email: str


signup = Workflow("users.signup", input=SignUp, ttl=8, deadline=30.0)


@signup.step
def normalise(name: str, email: str) -> dict:
    return {"name": name.strip(), "email": email.lower()}


@signup.step(retries=3, backoff=Backoff(initial=0.05, factor=2, cap=1.0), timeout=2.0)
async def create_user(normalise: dict, ctx: Context) -> dict:
    return await users.insert(normalise, key=ctx.idempotency_key)


@create_user.undo(in_doubt=True)
async def delete_user(result: dict | None, ctx: Context):
    await users.delete_by_key(ctx.forward_key)


@create_user.compensate
def on_failure(error: Exception):
    return Retry(after=0.5) if isinstance(error, Busy) else None


@signup.step(bind={"to": Result("create_user", "email")}, after=["create_user"], when=lambda to: "@" in to)
async def welcome(to: str, ctx: Context):
    if mail_fails:
        raise ConnectionError("the mail server is down")
    await ctx.emit("user.created", {"email": to})


@consumer("user.created", concurrency=10)
async def greet(signal):
    greeted.append(signal)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    global mail_fails
    users.__init__()  # type: ignore[misc]
    greeted.clear()
    mail_fails = False
    yield


ADA = {"name": " Ada ", "email": "ADA@example.org"}


async def test_as_written(store: str) -> None:
    async with Mesh(signup, greet, store=store) as mesh:
        tx = await mesh.stimulate("users.signup", {"name": "Ada", "email": "ADA@example.org"}, key="req-17")
        assert len(tx.id) == 32 and int(tx.id, 16)
        assert await tx.result(timeout=5) is None
        assert tx.status == "completed"
        assert await tx.cancel() == "completed"
        assert tx.results() == {
            "normalise": {"name": "Ada", "email": "ada@example.org"},
            "create_user": {"name": "Ada", "email": "ada@example.org"},
            "welcome": None,
        }
        await until(lambda: greeted)
        signal = greeted[0]
        assert (signal.name, signal.token) == ("user.created", {"email": "ada@example.org"})
        assert signal.ttl == 4, "three hops of eight were spent, and the consumer's own is the fourth"
        assert signal.root == tx.id and signal.parent == tx.id
        await until(lambda: "emitted" in pulse_lines(tx))
        audit(tx)


async def test_pulses_tell_what_happened(store: str) -> None:
    async with Mesh(signup, greet, store=store) as mesh:
        tx = await mesh.stimulate("users.signup", ADA)
        await tx.result(timeout=5)
        await until(lambda: "emitted" in pulse_lines(tx))
        assert pulse_lines(tx) == [
            "accepted",
            "spawned normalise",
            "completed normalise",
            "spawned create_user",
            "completed create_user",
            "spawned welcome",
            "completed welcome",
            "finished",
            "emitted",
        ]
        pulses = tx.pulses()
        assert [pulse.seq for pulse in pulses] == list(range(len(pulses)))
        assert [pulse.ttl for pulse in pulses if pulse.kind == "spawned"] == [7, 6, 5]
        hops = {pulse.step: pulse.hop for pulse in pulses if pulse.kind == "spawned"}
        causes = {pulse.step: pulse.causes for pulse in pulses if pulse.kind == "spawned"}
        assert causes["normalise"] == ()
        assert causes["create_user"] == (hops["normalise"],)
        assert causes["welcome"] == (hops["create_user"],)
        ins = {pulse.step: pulse.token_in for pulse in pulses if pulse.kind == "spawned"}
        assert ins["normalise"] == ADA
        assert ins["create_user"] == {"normalise": {"name": "Ada", "email": "ada@example.org"}}
        assert ins["welcome"] == {"to": "ada@example.org"}
        outs = {pulse.step: pulse.token_out for pulse in pulses if pulse.kind == "completed"}
        assert outs["create_user"] == {"name": "Ada", "email": "ada@example.org"}
        assert pulses[0].token_out == ADA
        assert {pulse.workflow for pulse in pulses} == {"users.signup"}
        assert {pulse.root for pulse in pulses} == {tx.id}
        spawns = {pulse.step: pulse.spawn for pulse in pulses if pulse.kind == "spawned"}
        assert spawns == {"normalise": "thread", "create_user": "loop", "welcome": "loop"}


async def test_skipped_by_its_predicate(store: str) -> None:
    async with Mesh(signup, greet, store=store) as mesh:
        tx = await mesh.stimulate("users.signup", {"name": "x", "email": "nowhere"})
        assert await tx.result(timeout=5) is None
        assert "skipped welcome" in pulse_lines(tx)
        assert tx.results()["welcome"] is None
        audit(tx)
    assert not greeted


async def test_compensate_sees_the_live_exception_and_retries(store: str) -> None:
    users.failures = [Busy("try later")]
    async with Mesh(signup, greet, store=store) as mesh:
        tx = await mesh.stimulate("users.signup", ADA)
        await tx.result(timeout=5)
        retried = [pulse for pulse in tx.pulses() if pulse.kind == "retried"]
        assert [pulse.error for pulse in retried] == ["Busy: try later"]
        assert retried[0].data and retried[0].data["after_ns"] == 500_000_000
        attempts = [pulse.attempt for pulse in tx.pulses() if pulse.kind == "spawned" and pulse.step == "create_user"]
        assert attempts == [1, 2]
        assert len({pulse.ttl for pulse in tx.pulses() if pulse.step == "create_user"}) == 1, "retries do not spend TTL"
        audit(tx)


async def test_failure_undoes_and_tells(store: str) -> None:
    global mail_fails
    mail_fails = True
    async with Mesh(signup, greet, store=store) as mesh:
        tx = await mesh.stimulate("users.signup", ADA)
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result(timeout=5)
        failure = caught.value
        assert (failure.transaction, failure.status) == (tx.id, "compensated")
        assert isinstance(failure.errors[0], ConnectionError) and failure.__cause__ is failure.errors[0]
        assert len(failure.errors) == 1
        assert "users.signup" in str(failure) and "mail server" in str(failure)
        assert undone(tx) == ["create_user"]
        assert users.rows == {}
        assert tx.results()["normalise"] == {"name": "Ada", "email": "ada@example.org"}, "partial results are kept"
        audit(tx)
    assert not greeted


async def test_other_errors_are_not_retried(store: str) -> None:
    users.failures = [ValueError("no such column")]
    async with Mesh(signup, greet, store=store) as mesh:
        tx = await mesh.stimulate("users.signup", ADA)
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result(timeout=5)
        assert isinstance(caught.value.__cause__, ValueError)
        assert users.inserts == 1


async def test_key_is_idempotent(store: str) -> None:
    async with Mesh(signup, greet, store=store) as mesh:
        first = await mesh.stimulate("users.signup", ADA, key="req-17")
        at_once = await mesh.stimulate("users.signup", ADA, key="req-17")
        assert at_once.id == first.id
        await first.result(timeout=5)
        afterwards = await mesh.stimulate("users.signup", ADA, key="req-17")
        assert afterwards.id == first.id and await afterwards.result(timeout=5) is None
        with pytest.raises(DuplicateTransaction, match="req-17"):
            await mesh.stimulate("users.signup", {"name": "Eve", "email": "e@example.org"}, key="req-17")
        other = await mesh.stimulate("users.signup", ADA, key="req-18")
        assert other.id != first.id
        await other.result(timeout=5)
    assert users.inserts == 2


async def test_what_a_caller_gets_wrong_is_said_at_once() -> None:
    async with Mesh(signup, greet) as mesh:
        with pytest.raises(InvalidInput) as caught:
            await mesh.stimulate("users.signup", {"name": "Ada"})
        assert caught.value.fields == (("email", "Field required"),)
        with pytest.raises(UnknownWorkflow, match=r"Did you mean 'users\.signup'"):
            await mesh.stimulate("users.sigup", ADA)
        with pytest.raises(UnknownTransaction):
            await mesh.transaction("0" * 32)
        for ttl in (-1, 1001, True, "8", 2.0):
            with pytest.raises(InvalidInput, match="hop budget"):
                await mesh.stimulate("users.signup", ADA, ttl=ttl)
        for deadline in (0, -1, True, "1", float("nan"), float("inf")):
            with pytest.raises(InvalidInput, match="deadline"):
                await mesh.stimulate("users.signup", ADA, deadline=deadline)
        for key in ("", "x" * 256, 17):
            with pytest.raises(InvalidInput, match="key"):
                await mesh.stimulate("users.signup", ADA, key=key)
        assert mesh.node.about()["running"] == 0
    assert users.inserts == 0


@pytest.mark.parametrize("asked", [[1], 3, None, "\ud800", "x" * 10**6])
async def test_odd_questions_are_answered_alike_by_every_store(store: str, asked: Any) -> None:
    async with Mesh(signup, store=store) as mesh:
        for question in (mesh.transaction, mesh.journal):
            with pytest.raises(UnknownTransaction):
                await question(asked)
        if asked is not None and not (isinstance(asked, str) and asked.isascii()):
            with pytest.raises(InvalidInput, match="before="):
                await mesh.transactions(before=asked)
            with pytest.raises(UnknownWorkflow):
                await mesh.transactions(workflow=asked)
        assert await mesh.transactions(limit=10**30) == []


async def test_the_same_from_the_store_by_another_mesh(sqlite: str) -> None:
    async with Mesh(signup, greet, store=sqlite) as mesh:
        tx = await mesh.stimulate("users.signup", ADA, key="req-17")
        await tx.result(timeout=5)
        await until(lambda: "emitted" in pulse_lines(tx))
        before = pulse_lines(tx)
    async with Mesh(signup, greet, store=sqlite) as mesh:
        again = await mesh.transaction(tx.id)
        assert again.status == "completed" and await again.result(timeout=5) is None
        assert pulse_lines(again) == before
        same = await mesh.stimulate("users.signup", ADA, key="req-17")
        assert same.id == tx.id
    assert users.inserts == 1


async def test_a_decorated_function_stays_a_function() -> None:
    assert normalise(" A ", "B@C") == {"name": "A", "email": "b@c"}
    assert on_failure(Busy()).after == 0.5
    await greet("x")
    assert greeted == ["x"]


async def test_many_at_once(store: str) -> None:
    async with Mesh(signup, greet, store=store) as mesh:
        transactions = [await mesh.stimulate("users.signup", {"name": str(n), "email": f"{n}@x"}) for n in range(200)]
        await asyncio.gather(*(tx.result(timeout=BOUND) for tx in transactions))
        await until(lambda: len(greeted) == 200)
    assert sorted(signal.token["email"] for signal in greeted) == sorted(f"{n}@x" for n in range(200))


async def test_begin_refuses_as_stimulate_does() -> None:
    workflow = Workflow("begun", input={"by": int})
    workflow.add(lambda by: by, name="one", spawn="inline")
    options = StimulusOptions()
    async with Mesh(workflow) as mesh:
        for given in (workflow, "begun"):
            assert await (await mesh.begin(given, {"by": 1}, options)).result(BOUND) == 1
        for unknown, said in (
            ("begin", "Did you mean 'begun'"),
            (None, "None is no workflow"),
            (3, "3 is no workflow"),
        ):
            with pytest.raises(UnknownWorkflow, match=said):
                await mesh.begin(unknown, {"by": 1}, options)  # type: ignore[arg-type]
            with pytest.raises(UnknownWorkflow, match=said):
                await mesh.stimulate(unknown, {"by": 1})  # type: ignore[arg-type]
        for values in (None, {}, {"bye": 1}, "by"):
            with pytest.raises(InvalidInput, match="begin takes what validate_input returns, a mapping of by"):
                await mesh.begin("begun", values, options)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="begin takes StimulusOptions"):
            await mesh.begin("begun", {"by": 1}, None)  # type: ignore[arg-type]
        assert len(await mesh.transactions()) == 2


async def test_a_snapshot_is_plain_and_ones_own() -> None:
    workflow = Workflow("shown", input={"by": int})
    workflow.map(lambda element: element, over=Value([1, 2, 3]), batch=1, name="each", spawn="inline")
    workflow.add(lambda: Halt("look"), name="halts", spawn="inline")
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow, {"by": 1})
        await transaction.ended(BOUND)
        snapshot, again = transaction.snapshot(), transaction.snapshot()
        assert all(type(value) is dict for value in snapshot.values() if isinstance(value, Mapping))
        for value in snapshot.values():
            if isinstance(value, dict | list | set):
                value.clear()
        assert transaction.snapshot() == again
