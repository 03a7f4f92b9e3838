"""`bitactor stimulate NAME`"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from cyclopts import Parameter

from mesh.cli import work
from mesh.cli.exits import FAILED, OK, UsageError
from mesh.cli.http import Ingress
from mesh.cli.options import Curve, Http, Json, Registry, Timeout, ask, refuse_timeout
from mesh.cli.output import err, out, print_document, print_errors, short

_Fields = Annotated[
    list[str] | None,
    Parameter(
        ("-i", "--field"),
        negative=(),
        show_default=False,
        allow_leading_hyphen=True,
        help="One field, NAME=VALUE; VALUE is JSON, or else text.",
    ),
]
_Metadata = Annotated[
    list[str] | None,
    Parameter(
        negative=(),
        show_default=False,
        allow_leading_hyphen=True,
        help="What its steps see as ctx.metadata, NAME=VALUE; VALUE is JSON, or else text.",
    ),
]
_Async = Annotated[
    bool,
    Parameter("--async", negative=(), show_default=False, help="Do not wait for the end, only until it is accepted."),
]


async def stimulate(
    workflow: str,
    /,
    *,
    input: Annotated[
        str | None, Parameter(help="The whole input as JSON; @FILE reads a file, - standard input.")
    ] = None,
    field: _Fields = None,
    key: Annotated[str | None, Parameter(help="Idempotency key: the same key and input begin one transaction.")] = None,
    ttl: Annotated[int | None, Parameter(help="Hop budget, instead of the workflow's.")] = None,
    deadline: Annotated[float | None, Parameter(help="Seconds it may take, instead of the workflow's.")] = None,
    max_concurrency: Annotated[
        int | None, Parameter(help="How many of its hops may run at once, instead of the workflow's.")
    ] = None,
    priority: Annotated[int, Parameter(help="Added to the priority of its steps; the highest goes first.")] = 0,
    metadata: _Metadata = None,
    traceparent: Annotated[str | None, Parameter(help="W3C trace context that its span links to.")] = None,
    respond_async: _Async = False,
    timeout: Timeout = None,
    registry: Registry = "",
    http: Http = "",
    curve: Curve = None,
    json: Json = False,
) -> int:
    """Begin a transaction and show its result.

    Without --json the result goes to stdout as JSON, and the transaction's id to stderr.

    Example: bitactor stimulate users.signup -i name=Ada -i email=ada@example.org --http http://127.0.0.1:8000

    Parameters
    ----------
    workflow
        The workflow's name.
    """
    refuse_timeout(timeout)
    given = _input(input, field or ())
    options = work.StimulusOptions(
        key,
        ttl,
        deadline,
        _fields("--metadata", metadata or ()) or None,
        traceparent,
        max_concurrency,
        priority,
    )
    if http:
        path = f"/stimuli/{quote(workflow, safe='')}"
        summary = await Ingress(http).change(
            path, given, work.headers_of(options), wait=not respond_async, timeout=timeout
        )
    else:

        async def begin(client: work.Client) -> dict[str, Any]:
            began = await client.stimulate(workflow, given, **options.given())
            return began if respond_async else await client.ended(began["transaction"], timeout)

        summary = await ask(registry, curve, begin)
    return _show(summary, machine=json)


def _input(whole: str | None, fields: Sequence[str]) -> Any:
    if whole is not None and fields:
        raise UsageError("--input and -i were both given", "give the whole input as JSON, or its fields one by one")
    if whole is None:
        return _fields("-i", fields)
    if whole == "-":
        whole = sys.stdin.read()
    elif whole.startswith("@"):
        try:
            whole = Path(whole[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--input {whole}: {error}") from None
    try:
        return json_module.loads(whole)
    except ValueError as error:
        raise UsageError(
            f"--input is not JSON: {error}", """such as --input '{"name": "Ada"}', or -i name=Ada"""
        ) from None


def _fields(option: str, texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"{option} {text!r} is not NAME=VALUE", f"such as {option} name=Ada")
        if name in found:
            raise UsageError(f"{option} gives {name!r} twice", "a list is one value, such as -i 'tags=[1, 2]'")
        try:
            found[name] = json_module.loads(value)
        except ValueError:
            found[name] = value
    return found


def _show(summary: Mapping[str, Any], *, machine: bool) -> int:
    status = summary["status"]
    if machine:
        print_document(summary)
    else:
        err().print(f"{summary['transaction']} {status}")
        if "result" in summary:
            out().print(short(summary["result"], 100_000), soft_wrap=True)
        print_errors(summary)
    return OK if status in ("completed", "running") else FAILED
