"""Every option of a stimulus, through every way in: what it says has its effect, and what is wrong is refused in the
same words."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import pytest

from bitactor import Context, Workflow
from bitactor.declare.stimulus import StimulusOptions
from bitactor.errors import BitActorError, InvalidInput
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.signal import Answer, Question
from bitactor.messages.wire import decode_message, encode_message
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.cli import main
from mesh.ingress.headers import HEADERS
from mesh.ingress.openapi import describe_api
from mesh.ingress.server import HttpServer
from mesh.network.client import Client
from mesh.network.transports import open_transport
from registry import RegistryClient, RegistryServer
from tests.e2e.support import BOUND

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = StimulusOptions._fields
GIVEN: Final[dict[str, Any]] = {
    "key": "req-17",
    "ttl": 3,
    "deadline": 2.5,
    "metadata": {"who": "Ada", "shops": [1, 2]},
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "max_concurrency": 2,
    "priority": -7,
}
WRONG: Final[dict[str, tuple[Any, str]]] = {
    "key": ("x" * 256, "key is .*1 to 255 .*characters"),
    "ttl": (1_001, "a hop budget is a whole number from 0 to 1,000"),
    "deadline": (0, "a deadline is a number of seconds"),
    "metadata": ("Ada", "metadata|not JSON"),
    "traceparent": (7, "a trace context is a string"),
    "max_concurrency": (0, "how many hops may run at once is a whole number, at least 1"),
    "priority": (1_000_000_001, "a whole number from -1,000,000,000 to 1,000,000,000, the highest goes first"),
}
TEXTS_ONLY: Final = ("http", "command")
"""Ways on which all is text, so that a trace context cannot be anything else; a malformed one is ignored everywhere."""

shown = Workflow("shown")


@shown.step
async def show(ctx: Context) -> Any:
    return dict(ctx.metadata)


class House:
    """A mesh in a thread, with a registry, a client and an HTTP server: every door there is."""

    def __init__(self, mesh: Mesh, registry: str, url: str, client: Client) -> None:
        self.mesh, self.registry, self.url, self.client = mesh, registry, url, client

    def on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.mesh.node.loop).result(BOUND)

    def post(self, headers: Mapping[str, str | bytes]) -> tuple[int, Any]:
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=BOUND)
        try:
            connection.request("POST", "/stimuli/shown", headers=headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def effects(self, transaction: str) -> dict[str, Any]:
        """The options as the transaction has them."""
        tx = self.on_loop(self.mesh.transaction(transaction))
        self.on_loop(tx.ended())
        accepted = tx.raw_pulses()[0]
        return {
            "key": accepted.data["key"],
            "ttl": accepted.ttl,
            "deadline": pytest.approx((accepted.data["deadline_ns"] - accepted.at_ns) / 1e9, abs=0.1),
            "metadata": tx.value(),
            "traceparent": accepted.data["traceparent"],
            "max_concurrency": tx.about()["max_concurrency"],
            "priority": tx.about()["priority"],
        }


async def stimulate(house: House, **options: Any) -> str:
    return (await house.mesh.stimulate(shown, **options)).id


def by_mesh(house: House, **options: Any) -> str:
    return str(house.on_loop(stimulate(house, **options)))


def by_blocking_mesh(house: House, **options: Any) -> str:
    return house.mesh.submit(shown, **options).id


def by_client(house: House, **options: Any) -> str:
    return str(house.on_loop(house.client.stimulate("shown", **options))["transaction"])


def by_http(house: House, **options: Any) -> str:
    said = {HEADERS[name]: json.dumps(value).strip('"') for name, value in options.items()}
    status, answer = house.post(said)
    if status == 422:
        (error,) = answer["errors"]
        assert error["field"] == HEADERS[next(iter(options))]
        raise InvalidInput(error["message"])
    return str(answer["transaction"])


def typed(**options: Any) -> list[str]:
    words = []
    for name, value in options.items():
        pairs = value.items() if isinstance(value, dict) else ()
        texts = [f"{key}={json.dumps(item)}" for key, item in pairs] or [value]
        words += [f"--{name.replace('_', '-')}={text}" for text in texts]
    return ["stimulate", "shown", "--json", *words]


def by_command(house: House, capsys: pytest.CaptureFixture[str], *where: str, **options: Any) -> str:
    code = main([*typed(**options), *where])
    said = capsys.readouterr()
    if code == 2:
        raise InvalidInput(said.err)
    return str(json.loads(said.out)["transaction"])


WAYS: Final[dict[str, Callable[..., str]]] = {
    "mesh": by_mesh,
    "blocking": by_blocking_mesh,
    "client": by_client,
    "http": by_http,
}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    directory = Path(tempfile.mkdtemp(prefix="ba-"))
    registry = f"ipc://{directory}/registry"
    mesh = Mesh(shown, registry=registry)
    with RegistryServer(registry), mesh:
        loop = mesh.node.loop
        server = HttpServer(mesh, port=0, drain=0.0)
        serving = asyncio.run_coroutine_threadsafe(server.run(), loop)
        asyncio.run_coroutine_threadsafe(server.started.wait(), loop).result(BOUND)
        client = Client(registry)
        house = House(mesh, registry, server.url, client)
        house.on_loop(client.open())
        yield house
        house.on_loop(client.close())
        loop.call_soon_threadsafe(server.stop)
        serving.result(BOUND)
    shutil.rmtree(directory)


@pytest.fixture
def way(request: pytest.FixtureRequest, house: House, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    if request.param == "command":
        return lambda **options: by_command(house, capsys, "--registry", house.registry, **options)
    if request.param == "command-http":
        return lambda **options: by_command(house, capsys, "--http", house.url, **options)
    return lambda **options: WAYS[request.param](house, **options)


EVERY_WAY: Final = pytest.mark.parametrize("way", [*WAYS, "command", "command-http"], indirect=True)


def test_the_tables_are_whole() -> None:
    assert set(GIVEN) == set(WRONG) == set(HEADERS) == set(NAMES)
    operation = describe_api([shown], 1)["paths"]["/stimuli/shown"]["post"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {"Prefer", *HEADERS.values()}


@EVERY_WAY
def test_what_is_given_has_its_effect(house: House, way: Callable[..., str], request: pytest.FixtureRequest) -> None:
    given = GIVEN | {"key": request.node.name}
    transaction = way(**given)
    assert house.effects(transaction) == given
    assert way(**given) == transaction, "the same key is the same transaction"


@EVERY_WAY
@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_refused(way: Callable[..., str], name: str, request: pytest.FixtureRequest) -> None:
    if name == "traceparent" and request.node.callspec.params["way"].startswith(TEXTS_ONLY):
        return
    value, said = WRONG[name]
    with pytest.raises(InvalidInput, match=said):
        way(**{name: value})


def test_a_command_of_its_own(house: House) -> None:
    words = [sys.executable, "-P", "-m", "bitactor", *typed(**GIVEN), "--registry", house.registry]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert house.effects(json.loads(ended.stdout)["transaction"]) == GIVEN


def test_options_of_a_run_without_a_mesh() -> None:
    trace = run_workflow(shown, ttl=3, deadline=2.5, metadata=GIVEN["metadata"])
    assert trace.result == GIVEN["metadata"]
    for name in ("ttl", "deadline", "metadata"):
        value, said = WRONG[name]
        with pytest.raises(InvalidInput, match=said):
            run_workflow(shown, **{name: value})


def test_the_first_wrong_option_is_said_and_all_are_listed() -> None:
    with pytest.raises(InvalidInput, match=r"^ttl=True; a hop budget") as caught:
        StimulusOptions(ttl=True, max_concurrency=1.5, priority=None)  # type: ignore[arg-type]
    assert [name for name, _ in caught.value.fields] == ["ttl", "max_concurrency", "priority"]
    with pytest.raises(InvalidInput, match=r"^metadata: .* cannot be carried"):
        StimulusOptions(metadata={"who": object()})
    assert StimulusOptions(ttl=0, max_concurrency=10**12).given() == {"ttl": 0, "max_concurrency": 1_000_000_000}


@pytest.mark.parametrize("text", ["[1]", "7", "{", '{"a": NaN}', '{"a": "\\ud800"}', "", '{"ü": 1}', "[" * 9_000])
def test_metadata_in_a_header_are_an_object(house: House, text: str) -> None:
    status, answer = house.post({"BitActor-Metadata": text.encode()})
    assert (status, [error["field"] for error in answer["errors"]]) == (422, ["BitActor-Metadata"])


class Peer:
    """A process of another version, in this one: speaks to nodes and clients as it did."""

    VERBS: Final = ("stimulate", "status", "result", "pulses", "cancel", "resume", "undo", "list", "node", "patterns")

    def __init__(self, endpoint: str) -> None:
        self.transport = open_transport(endpoint, loop=asyncio.get_running_loop(), curve=None)
        self.transport.open(self._receive)
        self.asked: list[tuple[str, Any]] = []
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()

    def _receive(self, messages: list[bytes]) -> None:
        for message in map(decode_message, messages):
            if isinstance(message, Answer):
                self.answers.put_nowait(message)
            elif isinstance(message, Question):
                self.asked.append((message.verb, decode_token(message.argument)))
                answer = Answer(message.id, encode_token({"transaction": "0" * 32, "status": "running"}))
                if message.verb not in self.VERBS:
                    error = f"no such question: {message.verb!r}; known are {', '.join(self.VERBS)}"
                    answer = Answer(message.id, None, error, "bitactor.errors:InvalidInput")
                self.transport.send(message.reply_to, encode_message(answer))

    async def ask(self, endpoint: str, **argument: Any) -> Answer:
        question = Question("q1", "stimulate", encode_token(argument), self.transport.endpoint)
        self.transport.send(endpoint, encode_message(question))
        return await asyncio.wait_for(self.answers.get(), BOUND)


async def test_a_node_of_before_refuses_what_it_does_not_know(house: House, tmp_path: Path) -> None:
    peer = Peer(f"ipc://{Path(house.registry.removeprefix('ipc://')).parent}/before")
    registry = RegistryClient(house.registry, "before")
    await asyncio.to_thread(registry.start, BOUND)
    await asyncio.to_thread(registry.register, "workflow:before", {"endpoint": peer.transport.endpoint})
    try:
        async with Client(house.registry) as client:
            await client.stimulate("before", {}, key="k", ttl=0)
            with pytest.raises(BitActorError, match="no such question"):
                await client.stimulate("before", {}, priority=1)
    finally:
        await asyncio.to_thread(registry.close)
        peer.transport.close()
    assert peer.asked == [
        ("stimulate", {"workflow": "before", "input": {}, "key": "k", "ttl": 0}),
        ("stimulate_with", {"workflow": "before", "input": {}, "priority": 1}),
    ]


async def test_a_client_of_another_version_is_understood_or_refused(house: House) -> None:
    peer = Peer(f"ipc://{Path(house.registry.removeprefix('ipc://')).parent}/client")
    endpoint = house.mesh.about()["endpoint"]
    before = dict.fromkeys(("key", "ttl", "deadline", "metadata", "traceparent"))
    try:
        began = await peer.ask(endpoint, workflow="shown", input=None, **before)
        refused = await peer.ask(endpoint, workflow="shown", input=None, urgency=1)
    finally:
        peer.transport.close()
    assert decode_token(began.value)["transaction"] and not began.error
    assert refused.error.startswith("a stimulus has no option 'urgency' here.")
    assert refused.error_type == "bitactor.errors:InvalidInput"
