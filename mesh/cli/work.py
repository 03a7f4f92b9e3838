"""What verbs do their work with, imported when it is first used: who asks for help or has mistyped needs none
of it."""

from typing import TYPE_CHECKING

from bitactor.face import late

if TYPE_CHECKING:
    from bitactor.declare.stimulus import StimulusOptions
    from bitactor.export.mermaid import mermaid
    from bitactor.messages.faults import chain_lines, fault_of_plain, shortened
    from bitactor.plan.consumer import Consumer
    from bitactor.plan.plan import Plan
    from bitactor.workflow import Workflow
    from mesh.cli.loop import awaited
    from mesh.ingress.headers import headers_of
    from mesh.ingress.server import DEFAULT_HOST, HttpServer
    from mesh.mesh import Mesh
    from mesh.network.client import Client
    from mesh.network.transports.addresses import MAX_IPC_PATH
    from mesh.sinks.plain import masked_pulse, plain, plain_dead_letter, plain_pulse
    from mesh.stores import SqliteReader, migrate_store, open_reader
    from mesh.stores.database import APPLICATION_ID
    from mesh.stores.dead_letters import find_dead_letters
    from mesh.stores.journal.tables import Tables
    from mesh.stores.journal.verify import Fault, Progress
    from registry import Curve, Entry, RegistryServer
    from registry.support.log import log_to_stderr, prepare_log

__all__ = [
    "APPLICATION_ID",
    "DEFAULT_HOST",
    "MAX_IPC_PATH",
    "Client",
    "Consumer",
    "Curve",
    "Entry",
    "Fault",
    "HttpServer",
    "Mesh",
    "Plan",
    "Progress",
    "RegistryServer",
    "SqliteReader",
    "StimulusOptions",
    "Tables",
    "Workflow",
    "awaited",
    "chain_lines",
    "fault_of_plain",
    "find_dead_letters",
    "headers_of",
    "log_to_stderr",
    "masked_pulse",
    "mermaid",
    "migrate_store",
    "open_reader",
    "plain",
    "plain_dead_letter",
    "plain_pulse",
    "prepare_log",
    "shortened",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = late(
        __name__,
        {
            "bitactor.plan.consumer": "Consumer",
            "bitactor.declare.stimulus": "StimulusOptions",
            "bitactor.export.mermaid": "mermaid",
            "bitactor.messages.faults": "chain_lines fault_of_plain shortened",
            "bitactor.plan.plan": "Plan",
            "bitactor.workflow": "Workflow",
            "mesh.cli.loop": "awaited",
            "mesh.ingress.headers": "headers_of",
            "mesh.ingress.server": "DEFAULT_HOST HttpServer",
            "mesh.mesh": "Mesh",
            "mesh.network.client": "Client",
            "mesh.network.transports.addresses": "MAX_IPC_PATH",
            "mesh.sinks.plain": "masked_pulse plain plain_dead_letter plain_pulse",
            "mesh.stores": "SqliteReader migrate_store open_reader",
            "mesh.stores.database": "APPLICATION_ID",
            "mesh.stores.dead_letters": "find_dead_letters",
            "mesh.stores.journal.tables": "Tables",
            "mesh.stores.journal.verify": "Fault Progress",
            "registry": "Curve Entry RegistryServer",
            "registry.support.log": "log_to_stderr prepare_log",
        },
    )
