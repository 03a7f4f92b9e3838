"""A node in a process of its own: `python -m tests.e2e.node_process '{"uses": ["signup"], "registry": …}'`.

Prints `ready`, then obeys lines on stdin: `run WORKFLOW JSON` prints the transaction's end; end of file ends the node.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from bitactor import BitActorError
from mesh import Mesh
from tests.e2e.apps import definitions


class PrintedSpans(SpanExporter):
    """Says on stdout which spans the user's code made."""

    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            say("span", f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else "-")
        return SpanExportResult.SUCCESS


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")  # in one piece, since several threads talk
    sys.stdout.flush()


async def run(mesh: Mesh, workflow: str, given: str) -> None:
    try:
        transaction = await mesh.stimulate(workflow, json.loads(given))
        await transaction.ended()
        say("ended", transaction.id, transaction.status)
    except BitActorError as error:
        say("refused", type(error).__name__, str(error))


async def live(options: dict[str, Any]) -> None:
    if options.pop("spans", False):
        provider = TracerProvider(resource=Resource.get_empty())
        provider.add_span_processor(SimpleSpanProcessor(PrintedSpans()))
        trace.set_tracer_provider(provider)
    uses = [definitions[name] for name in options.pop("uses")]
    loop = asyncio.get_running_loop()
    async with Mesh(*uses, **options) as mesh:
        say("ready", mesh.node.id)
        tasks = []
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            _, workflow, given = line.split(" ", 2)
            tasks.append(loop.create_task(run(mesh, workflow, given)))
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
