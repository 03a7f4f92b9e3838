"""Options that several verbs share, and questions to the nodes by a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter

from bitactor.messages.duration import duration_rule, is_duration
from mesh.cli import work
from mesh.cli.exits import UsageError

T = TypeVar("T")

Json = Annotated[
    bool,
    Parameter("--json", negative=(), show_default=False, help="For machines: JSON on stdout and nothing else there."),
]
Store = Annotated[
    str, Parameter("--store", env_var="BITACTOR_STORE", help="The journal's URL, such as sqlite:///pulses.db.")
]
Registry = Annotated[
    str,
    Parameter("--registry", env_var="BITACTOR_REGISTRY", help="Endpoint of the registry, to ask the nodes it knows."),
]
Curve = Annotated[
    Path | None,
    Parameter("--curve", env_var="BITACTOR_CURVE", help="File with the mesh's key pair; tcp endpoints need it."),
]
Verbose = Annotated[
    bool, Parameter(("-v", "--verbose"), negative=(), show_default=False, help="Log more than warnings to stderr.")
]
LogAs = Annotated[
    Literal["text", "json"] | None,
    Parameter("--log-format", show_default=False, help="How to log: text, or json (an object a line)."),
]
Http = Annotated[str, Parameter("--http", help="Address of a node's HTTP ingress, instead of a registry.")]

Timeout = Annotated[float | None, Parameter("--timeout", help="Seconds to wait for the end; by default for ever.")]


def refuse_timeout(timeout: float | None) -> None:
    """Refuse a time to wait that is none.

    Raises:
        UsageError: what it is, and what it may be.
    """
    if timeout is not None and not is_duration(timeout, zero=True):
        raise UsageError(f"--timeout {timeout:g} is no time to wait", f"give {duration_rule(zero=True)}")


async def ask(registry: str, curve: Path | None, question: Callable[[work.Client], Awaitable[T]]) -> T:
    """The answer to a question, asked with a client that is open for that time.

    Raises:
        UsageError: no registry is given.
    """
    if not registry:
        raise UsageError("where is the mesh? --registry was not given", "give it, or set BITACTOR_REGISTRY")
    async with work.Client(registry, curve=curve) as client:
        return await question(client)
