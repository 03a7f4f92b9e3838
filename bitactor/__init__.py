"""BitActor, the part that says *what* runs: workflows, signals, the saga state machine, pulses; pure, without sockets,
threads or clocks.

A domain module imports only this package; a service's entry imports `mesh`.
"""

from typing import TYPE_CHECKING

from bitactor.face import late

if TYPE_CHECKING:
    from bitactor.declare.backoff import Backoff
    from bitactor.declare.context import Context
    from bitactor.declare.resource import Resource
    from bitactor.declare.source import Element, Input, Result, Value
    from bitactor.declare.step import Step
    from bitactor.declare.then import Then
    from bitactor.errors import (
        BitActorError,
        CallError,
        Cancelled,
        ConfigurationError,
        CycleError,
        DamagedJournal,
        DeadlineExceeded,
        DefinitionError,
        DefinitionWarning,
        DuplicateName,
        DuplicateTransaction,
        InboxChanged,
        InvalidInput,
        InvalidOutcome,
        MalformedSignal,
        MissingReturn,
        Overloaded,
        ProtocolError,
        RemoteError,
        ResourceUnavailable,
        RunError,
        SignalTooLarge,
        StaleOwner,
        StepExited,
        StepFailed,
        StepTimeout,
        StoreError,
        TooManyHops,
        TtlExpired,
        UndoFailed,
        UnknownArgument,
        UnknownTransaction,
        UnknownWorkflow,
        Unroutable,
        UnsupportedVersion,
        WorkerLost,
        WorkflowFailed,
        WorkflowTooDeep,
    )
    from bitactor.messages.outcome import Continue, Fail, Halt, Ok, Retry
    from bitactor.messages.pulse import Pulse
    from bitactor.messages.signal import Signal
    from bitactor.plan.consumer import Consumer, consumer
    from bitactor.workflow import Workflow

__all__ = [
    "Backoff",
    "BitActorError",
    "CallError",
    "Cancelled",
    "ConfigurationError",
    "Consumer",
    "Context",
    "Continue",
    "CycleError",
    "DamagedJournal",
    "DeadlineExceeded",
    "DefinitionError",
    "DefinitionWarning",
    "DuplicateName",
    "DuplicateTransaction",
    "Element",
    "Fail",
    "Halt",
    "InboxChanged",
    "Input",
    "InvalidInput",
    "InvalidOutcome",
    "MalformedSignal",
    "MissingReturn",
    "Ok",
    "Overloaded",
    "ProtocolError",
    "Pulse",
    "RemoteError",
    "Resource",
    "ResourceUnavailable",
    "Result",
    "Retry",
    "RunError",
    "Signal",
    "SignalTooLarge",
    "StaleOwner",
    "Step",
    "StepExited",
    "StepFailed",
    "StepTimeout",
    "StoreError",
    "Then",
    "TooManyHops",
    "TtlExpired",
    "UndoFailed",
    "UnknownArgument",
    "UnknownTransaction",
    "UnknownWorkflow",
    "Unroutable",
    "UnsupportedVersion",
    "Value",
    "WorkerLost",
    "Workflow",
    "WorkflowFailed",
    "WorkflowTooDeep",
    "consumer",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = late(
        __name__,
        {
            "bitactor.errors": " ".join(__all__),  # those that no other has
            "bitactor": "errors patterns ports",
            "bitactor.plan.consumer": "Consumer consumer",
            "bitactor.declare.backoff": "Backoff",
            "bitactor.declare.context": "Context",
            "bitactor.declare.resource": "Resource",
            "bitactor.declare.source": "Element Input Result Value",
            "bitactor.declare.step": "Step",
            "bitactor.declare.then": "Then",
            "bitactor.messages.outcome": "Continue Fail Halt Ok Retry",
            "bitactor.messages.pulse": "Pulse",
            "bitactor.messages.signal": "Signal",
            "bitactor.workflow": "Workflow",
        },
    )
