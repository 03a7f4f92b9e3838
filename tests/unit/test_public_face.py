"""What users see is what they saw: a change of it is made on purpose, with a word in the changelog.

The listing was made by `python -m tests.public_face` at 67fa6fb; what came since stands in `ADDED` until the listing is
made again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mesh.cli.app import VERBS
from mesh.ingress.problems import TITLES
from tests.public_face import LISTING

ROOT = Path(__file__).parents[2]

PROBLEMS = [f"urn:bitactor:problem:{name}" for name in TITLES]
LISTED_PROBLEMS = [name for name in PROBLEMS if not name.endswith((":other-status", ":journal-damaged"))]

ADDED = {
    # What a store keeps of one transaction is damaged: said, and no reason to try again.
    "names/bitactor/DamagedJournal",
    "names/bitactor.errors/DamagedJournal",
    "http/components/schemas/BitActorTransaction/properties/parked",
    "http/paths//transactions/{transaction}/pulses/get/responses/500",
    "http/paths//transactions/{transaction}/cancel/post/responses/500",
    "http/paths//stimuli/example/post/responses/500",
    # What a journal keeps is copied out of it; one of an earlier release has another form.
    "command line/export",
    "command line/migrate",
    # A store says what it finds to be wrong with itself.
    "names/bitactor.ports/StoreFault",
    "names/bitactor.ports/Store/members/on_fault",
    # A sink of spans knows its node, what a process before has told of, and the spans that users make.
    *(f"names/mesh.sinks/OtelSink/members/{name}" for name in ("recall", "serve", "take")),
    # Why a transaction that runs cannot go on at this node.
    "http/components/schemas/BitActorTransactionRow/required: ['transaction', 'root', 'parent', 'workflow', 'status', "
    "'created_at', 'updated_at'] became ['transaction', 'root', 'parent', 'workflow', 'status', 'created_at', "
    "'updated_at', 'parked']",
    "http/components/schemas/BitActorTransactionRow/properties/parked",
    # The log as a machine reads it; a registry's, too.
    "command line/registry serve: --verbose -v Log more than warnings to stderr. --log-format CHOICE How to log: text, "
    "or json (an object a line). [choices: text, json]",
    # Who serves a registry learns that it has ended by itself.
    "names/registry/RegistryServer/members/join",
    # A mesh's loop goes on while its store waits for a locked file; a store of one's own inherits it.
    "names/bitactor.ports/Store/members/open_on_loop",
    # A journal is verified by whoever has its file.
    "command line/verify",
    "names/bitactor.ports/Followed",
    # Beside its sink's own statistics, for `mesh.about()`.
    "names/mesh.sinks/SinkRelay/members/about",
    # Who uses a store is told that another process has taken over, and takes part again under another name.
    "names/bitactor.ports/Store/members/on_fenced",
    "names/bitactor.ports/Store/members/rejoin",
    "names/bitactor/StaleOwner/members/owner",
    "names/bitactor.errors/StaleOwner/members/owner",
    # What is probably a slip is warned of, in a category of its own.
    "names/bitactor/DefinitionWarning",
    "names/bitactor.errors/DefinitionWarning",
    # A failure names its workflow, step and attempt; a task of a step that exits is an error of its own.
    "names/bitactor/StepExited",
    "names/bitactor.errors/StepExited",
    *(
        f"names/{module}/WorkflowFailed/signature: \"(message: 'str', transaction: 'str', status: 'str', errors: "
        "'Iterable[BaseException]' = ()) -> 'None'\" became \"(message: 'str', transaction: 'str', status: 'str', "
        "errors: 'Iterable[BaseException]' = (), step: 'str' = '', attempt: 'int' = 0, workflow: 'str' = '') -> "
        "'None'\""
        for module in ("bitactor", "bitactor.errors")
    ),
    *(
        f"names/{module}/TtlExpired/signature: '?' became \"(message: 'str', path: 'Iterable[str]' = ()) -> 'None'\""
        for module in ("bitactor", "bitactor.errors")
    ),
    # A deadline says by which clock it passed, how long ago, and whether any process ran the transaction then.
    *(
        f"names/{module}/DeadlineExceeded/signature: '?' became \"(message: 'str', late_by: 'float' = 0.0, clock: "
        "'str' = 'monotonic', unattended: 'bool' = False) -> 'None'\""
        for module in ("bitactor", "bitactor.errors")
    ),
    "names/bitactor.testing/Trace/members/failure",
    "names/bitactor.testing/Trace/signature: \"(transaction: 'str', status: 'str', result: 'Any', results: "
    "'Mapping[str, Any]', errors: 'Sequence[BaseException]', pulses: 'Sequence[Pulse]', emitted: "
    "'Sequence[Emitted]' = ()) -> None\" became \"(transaction: 'str', status: 'str', result: 'Any', results: "
    "'Mapping[str, Any]', errors: 'Sequence[BaseException]', pulses: 'Sequence[Pulse]', emitted: 'Sequence[Emitted]' "
    "= (), failure: 'WorkflowFailed | None' = None) -> None\"",
    "http/components/schemas/BitActorError",
    *(
        f"http/components/schemas/{schema}/properties/errors/items/properties/{name}"
        for schema in ("BitActorProblem", "BitActorTransaction")
        for name in ("attempt", "cause", "context", "direction", "left_out", "members", "notes", "step")
    ),
    "http/components/schemas/BitActorProblem/properties/errors/description: as well as where it happened "
    "and what came with it",
    # What an owner that ended in order has left spends no redelivery.
    "names/bitactor.ports/Claim/signature: \"(transaction: ForwardRef('str'), epoch: ForwardRef('int'))\" became "
    "\"(transaction: ForwardRef('str'), epoch: ForwardRef('int'), given_back: ForwardRef('bool') = False, pulses: "
    "ForwardRef('Sequence[Pulse] | None') = None)\"",
    "names/bitactor.ports/Claim/members/given_back",
    # What `emit` answers with is known until it is awaited, so that a signal which would not be sent is refused.
    "names/bitactor/Context/members/emit: \"(self, name: 'str', value: 'Any' = None) -> 'None'\" became \"(self, name: "
    "'str', value: 'Any' = None) -> 'Coroutine[Any, Any, None]'\"",
    "names/bitactor/Context/members/end",
    "names/bitactor/Context/members/unawaited",
    # A node waits for its registry without a thread that waits.
    "names/registry/RegistryClient/members/connect",
    "names/registry/RegistryClient/members/refusal",
    # Adds a sink that is not ours, by its URL's scheme.
    "names/mesh.sinks/register_sink",
    # `mesh.about()` asks any transport.
    "names/bitactor.ports/Transport/members/statistics",
    # A reader of somebody else's store has the queries of the port.
    "names/bitactor.ports/StoreQueries",
    # A store answers later; its reader answers at once, and what it has read as it claimed is not read again.
    "names/bitactor.ports/Store/bases: ['Protocol'] became ['AsyncStoreQueries', 'Protocol']",
    "names/bitactor.ports/Store/members/reader",
    "names/bitactor.ports/AsyncStoreQueries",
    "names/bitactor.ports/Claim/members/pulses",
    "command line/stimulate: --max-concurrency INT How many of its hops may run at once, instead of the workflow's. "
    "--priority INT Added to the priority of its steps; the highest goes first. [default: 0] "
    "--metadata STR... What its steps see as ctx.metadata, NAME=VALUE; VALUE is JSON, or else text. "
    "--traceparent STR W3C trace context that its span links to.",
    "http/paths//stimuli/example/post/parameters/BitActor-Max-Concurrency",
    "http/paths//stimuli/example/post/parameters/BitActor-Priority",
    "http/paths//stimuli/example/post/parameters/BitActor-Metadata",
    # A kind from outside has no method of its own.
    "names/bitactor/Workflow/members/declare",
    # A nested workflow's input is given by the fields' names, aliases or not.
    "names/bitactor/Workflow/members/validate_input: \"(self, value: 'Any') -> 'dict[str, Any]'\" became "
    "\"(self, value: 'Any', *, named: 'bool' = False) -> 'dict[str, Any]'\"",
    "names/mesh/Mesh/members/about",
    # A body may be as large as a value may be in its mesh.
    *(
        f"names/{module}/HttpServer/signature: \"(mesh: 'Mesh', *, host: 'str' = '127.0.0.1', port: 'int' = 8000, "
        "drain: 'float | None' = None, max_body_bytes: 'int' = 4194304, max_connections: 'int' = 10000, allowed_hosts: "
        "'Sequence[str] | None' = None, access_log: 'bool' = False, ready: 'Callable[[str], None] | None' = None) -> "
        "'None'\" became \"(mesh: 'Mesh', *, host: 'str' = '127.0.0.1', port: 'int' = 8000, drain: 'float | None' = "
        "None, max_body_bytes: 'int | None' = None, max_connections: 'int' = 10000, allowed_hosts: 'Sequence[str] | "
        "None' = None, access_log: 'bool' = False, root_path: 'str' = '', ready: 'Callable[[str], None] | None' = "
        "None) -> 'None'\""
        for module in ("mesh.ingress.http", "mesh.ingress.server")
    ),
    "names/mesh.ingress.http/application: \"(mesh: 'Mesh', *, open_mesh: 'bool' = True, max_body_bytes: 'int' = "
    "4194304, allowed_hosts: 'Sequence[str] | None' = None) -> 'Starlette'\" became \"(mesh: 'Mesh', *, open_mesh: "
    "'bool' = True, max_body_bytes: 'int | None' = None, allowed_hosts: 'Sequence[str] | None' = None) -> "
    "'Starlette'\"",
    # For annotations: what `transactions` answers with, and what middleware is told.
    "names/mesh/CallEvent",
    "names/mesh/TransactionRow",
    # Its transactions are listed by a consumer itself, as by a workflow.
    "names/mesh/Mesh/members/transactions: Consumer |",
    # What an ingress asks, ours or one of somebody else's, instead of reaching into the node.
    *(
        f"names/{face}/members/{name}"
        for face in ("mesh/Mesh", "mesh.testing/FixtureMesh")
        for name in ("begin", "journal", "loop", "settings", "state", "workflows")
    ),
    "names/mesh/Transaction/members/request_cancel",
    "names/mesh/Transaction/members/about",
    "names/mesh/Transaction/members/plan",
    "names/mesh/Transaction/members/snapshot",
    "names/mesh.ingress.http/HttpServer/members/answering",
    "names/mesh.ingress.server/HttpServer/members/answering",
    "names/mesh.ready.resources.cache/Cache/members/making",
    "names/mesh.testing/FixtureMesh/members/about",
    "names/registry/Table/members/size",
    # Both adapters say which port they are of, and take its words.
    "names/registry/LocalRegistry/bases: [] became ['Adapter']",
    "names/registry/RegistryClient/bases: [] became ['Adapter']",
    # A sink may be given by its URL.
    "names/mesh/Mesh/signature: \"(*definitions: 'Workflow | Consumer', sinks: 'Sequence[Sink]' "
    "= (), clock: 'Clock | None' = None, ids: 'Ids | None' = None, replace: 'Mapping[str, Any] "
    "| None' = None, middleware: 'Sequence[Any]' = (), **options: 'Any') -> 'None'\" became \"(*d"
    "efinitions: 'Workflow | Consumer', sinks: 'Sequence[Sink | str]' = (), clock: 'Clock | Non"
    "e' = None, ids: 'Ids | None' = None, replace: 'Mapping[str, Any] | None' = None, middlewar"
    "e: 'Sequence[Any]' = (), **options: 'Any') -> 'None'\"",
    # Ready-made steps share what fills in their templates.
    "names/mesh.ready.steps.http/Request/bases: [] became ['ReadyStep']",
    "names/mesh.ready.steps.subprocess/Program/bases: [] became ['ReadyStep']",
    # What the command line does to a transaction can be asked of an ingress too.
    *(
        f"http/paths/{path}/post/responses/409/description: `other-status`: The transaction does not stand so that "
        "this can be done;"
        for path in ("/stimuli/example", "/transactions/{transaction}/cancel")
    ),
    f"http/components/schemas/BitActorProblem/properties/type/enum: {LISTED_PROBLEMS!r} became {PROBLEMS!r}",
    # Why it halted: only the trace said that
    "http/components/schemas/BitActorTransaction/properties/halt",
    "http/components/schemas/BitActorProblem/properties/halt",
    "http/paths//transactions/{transaction}/resume",
    "http/paths//transactions/{transaction}/undo",
    "http/info/description: 'Begin transactions, look at them, cancel them.  Every refusal is an RFC 9457 problem.' "
    "became 'Begin transactions, look at them, cancel, resume and undo them.  Every refusal is an RFC 9457 problem.'",
    # Typed by their result. At run time nothing is different, but that `returns` answers with the workflow.
    "names/bitactor/Workflow/bases: ['DeclaresKinds'] became ['DeclaresKinds', 'Generic']",
    "names/bitactor/Workflow/members/returns: \"(self, step: 'str | Step[Any, Any]') -> 'None'\" became "
    "\"(self, step: 'str | Step[Any, Any]') -> 'Workflow'\"",
    "names/bitactor.testing/Trace/bases: [] became ['Generic']",
    "names/mesh/BlockingTransaction/bases: [] became ['Handle', 'Generic']",
    "names/mesh/Transaction/bases: [] became ['Handle', 'Generic']",
    # The blocking face has what the async one has.
    "names/mesh/BlockingMesh",
    *(
        f"names/mesh/BlockingTransaction/members/{name}"
        for name in (
            "about",
            "faults",
            "plan",
            "progress",
            "raw_pulses",
            "request_cancel",
            "snapshot",
            "value",
        )
    ),
    *(f"names/{face}/members/blocking" for face in ("mesh/Mesh", "mesh.testing/FixtureMesh")),
    "names/mesh/Mesh/bases: [] became ['MeshFacts']",
    # A mesh that is opened again asks its sinks.
    *(f"names/mesh.sinks/{sink}/members/ended" for sink in ("JsonlSink", "LiveSink", "OtelSink")),
    # One `map` for all sources.
    *(
        f"names/bitactor/{kind}/members/map: \"(self, function: 'Callable[[Any], Any]') -> '{kind}'\" became "
        "\"(self, function: 'Callable[[Any], Any]') -> 'Self'\""
        for kind in ("Element", "Input", "Result", "Value")
    ),
    # A holder that was stopped begins nothing that was given to another meanwhile.
    "names/bitactor.ports/Store/members/lease_until_ns",
    "names/registry/RegistryClient/members/granted_until_ns",
    "names/bitactor/Signal/members/sending",
    # What ended nowhere is listed, with name and payload; a store says which transactions have any.
    "names/mesh/DeadLetter",
    *(f"names/{face}/members/dead_letters" for face in ("mesh/Mesh", "mesh.testing/FixtureMesh")),
    "names/bitactor.ports/Write/members/dead",
    # What a transaction waits for stands in the store's port: messages, a due time; what ended is forgotten.
    *(f"names/bitactor.ports/Write/members/{name}" for name in ("due_ns", "receives", "read", "unread")),
    *(f"names/bitactor.ports/Store/members/{name}" for name in ("due", "send", "inbox", "arrived", "forget")),
    *(f"names/bitactor.ports/{name}" for name in ("Arrived", "Due", "Inbox", "Message", "Sent")),
    *(f"names/bitactor.ports/{name}" for name in ("INBOX_BYTES", "INBOX_MESSAGES")),
    *(f"names/{module}/InboxChanged" for module in ("bitactor", "bitactor.errors")),
    "command line/dead-letters",
    *(f"http/components/schemas/BitActorDeadLetter{several}" for several in ("", "s")),
    "http/paths//dead-letters",
    # … and can be sent again.
    *(f"names/{face}/members/send_again" for face in ("mesh/Mesh", "mesh.testing/FixtureMesh")),
    "command line/send-again",
    "http/paths//dead-letters/{letter}/send-again",
}

TYPED = {
    **dict.fromkeys(("add", "around", "deferred", "step"), "**options: 'Unpack[StepKeywords]'"),
    **dict.fromkeys(("compose", "group", "recurse", "switch"), "**options: 'Unpack[NestedKeywords]'"),
    **dict.fromkeys(("collect", "debug"), "spawn: 'str | None' = 'inline', **options: 'Unpack[AttemptKeywords]'"),
    **dict.fromkeys(("flunk", "template"), "*, spawn: 'str | None' = 'inline', **options: 'Unpack[AttemptKeywords]'"),
    "iterate": "*, start: 'Any' = None, until: 'Callable[[Any], bool] | None' = None, at_most: 'Any' = None, "
    "**options: 'Unpack[StepKeywords]'",
    "map": "*, over: 'Any' = None, workflow: 'Workflow | None' = None, batch: 'int' = 100, ordered: 'bool' = True, "
    "on_error: 'str' = 'fail', keep: 'bool' = True, reduce: 'Callable[[Any, list[Any]], Any] | None' = None, "
    "initial: 'Any' = None, whole: 'bool' = False, **options: 'Unpack[StepKeywords]'",
}
"""Methods of a workflow → what stands now for their `**options: 'Any'`, for completion and type checkers."""


STIMULATES = {
    "stimulate": (" = 0) ->", " = 0, **unknown: 'Never') ->"),
    **dict.fromkeys(("run", "submit"), ("**options: 'Any'", "**options: 'Unpack[StimulusKeywords]'")),
}
"""Methods of a mesh → what of their signature was replaced by what: completion for options, an explanation for what is
none."""

SENT = (" = '')", " = '', sending: ForwardRef('Sending | None') = None)")
"""What of a signal's fields was replaced by what: to whom and when it was sent, for the receiver's eyes."""

NOTED = {
    "Store": (
        "before: 'str | None' = None) -> '_Rows'",
        "before: 'str | None' = None, dead: 'bool' = False) -> '_Rows'",
    ),
    "Write": (
        "key: ForwardRef('str') = '')",
        "key: ForwardRef('str') = '', dead: ForwardRef('bool') = False, due_ns: "
        "ForwardRef('int') = 0, receives: ForwardRef('bool') = False, read: ForwardRef('Sequence[int]') = (), unread: "
        "ForwardRef('int') = 0)",
    ),
}
"""What of these ports was replaced by what: which transactions have dead letters, and what they wait for."""

RETOLD = ("cancel", "list", "resume", "run", "trace", "undo")
"""Verbs with other words in their help: `--http` and `--store`, the beginning of an id, `--no-wait`, `--all`,
`--log-format`, `--root-path`, `--when-fenced` and `--payload-limit`."""


NEW_VERBS = ("dead-letters", "export", "migrate", "send-again", "verify")


def without_results(listing: str) -> Any:
    """The listing without the types of results, which only type checkers see; `tests/typing_expected.py` has them."""
    listing = re.sub(r"\b(Workflow|Transaction|BlockingTransaction|Trace)\[(?:R|Any)\]", r"\1", listing)
    return json.loads(re.sub(r"'R(?:_co)?'", "'Any'", listing))


def test_the_public_face_is_as_it_was_listed(tmp_path: Path) -> None:
    """In a process of its own, so that no other test's imports, warnings or terminal have a part in it."""
    script = "import json, sys, tests.public_face as face; json.dump(face.listing(), open(sys.argv[1], 'w'))"
    environment = {"COLUMNS": "100", "NO_COLOR": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    made = tmp_path / "face.json"
    subprocess.run([sys.executable, "-c", script, str(made)], cwd=ROOT, env=environment, check=True, timeout=120)
    text = LISTING.read_text().replace("Unpack[StepOptions]", "Unpack[ReadyKeywords]")  # two classes had one name
    listed = without_results(text)
    declares = listed["names"]["bitactor"]["Workflow"]["members"]
    for method, options in TYPED.items():
        declares[method] = declares[method].replace("**options: 'Any'", options)
    for face in (listed["names"]["mesh"]["Mesh"], listed["names"]["mesh.testing"]["FixtureMesh"]):
        for method, (before, now) in STIMULATES.items():
            face["members"][method] = face["members"][method].replace(before, now)
    listed["names"]["bitactor"]["Signal"]["signature"] = listed["names"]["bitactor"]["Signal"]["signature"].replace(
        *SENT
    )
    ports = listed["names"]["bitactor.ports"]
    ports["Store"]["members"]["list"] = ports["Store"]["members"]["list"].replace(*NOTED["Store"])
    ports["Write"]["signature"] = ports["Write"]["signature"].replace(*NOTED["Write"])
    found = without_results(made.read_text())
    for verb in NEW_VERBS:
        before, line, after = found["command line"][""].partition(f"{verb} {VERBS[verb].about} ")
        assert line
        found["command line"][""] = before + after
    for verb in RETOLD:
        assert listed["command line"].pop(verb) != found["command line"].pop(verb)
    # The journal has tables of its own use; those of before are what an export has, and have no owners.
    listed["tables"] = [table for table in listed["tables"] if not table.startswith("CREATE TABLE owners")]
    assert set(differences(listed, found)) == ADDED


def differences(listed: Any, found: Any, path: str = "") -> Iterator[str]:
    """The places where two listings differ; behind a place that is only in one of them stands nothing, else what was
    and what is."""
    if isinstance(listed, dict) and isinstance(found, dict):
        for key in listed | found:
            if key in listed and key in found:
                yield from differences(listed[key], found[key], f"{path}/{key}".strip("/"))
            else:
                yield f"{path}/{key}" if key in found else f"{path}/{key} is gone"
    elif is_named(listed) and is_named(found):
        yield from differences(*({item["name"]: item for item in items} for items in (listed, found)), path)
    elif isinstance(listed, str) and isinstance(found, str) and (inserted := insertion(listed, found)):
        yield f"{path}: {inserted}"
    elif listed != found:
        yield f"{path}: {listed!r} became {found!r}"


def is_named(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) and "name" in item for item in items)


def insertion(listed: str, found: str) -> str:
    """The words that stand in `found` in one place, and are all that is different; empty if there is more."""
    before, after = listed.split(), found.split()
    start = 0
    while before[start : start + 1] == after[start : start + 1] != []:
        start += 1
    more = len(after) - len(before)
    return " ".join(after[start : start + more]) if more > 0 and after[start + more :] == before[start:] else ""


def test_differences_are_seen() -> None:
    assert list(differences("a b c", "a b x y c", "p")) == ["p: x y"]
    assert list(differences("a b c", "a x y c", "p")) == ["p: 'a b c' became 'a x y c'"]
    assert list(differences([{"name": "a"}], [{"name": "a"}, {"name": "b"}], "p")) == ["p/b"]
    assert set(differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 2, "b": {"c": 2, "e": 4}})) == {
        "a: 1 became 2", "b/d is gone", "b/e",
    }  # fmt: skip
