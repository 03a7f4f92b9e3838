"""Tools for users' tests: run a workflow without any runtime, with time, ids and faults of your choosing.

    from bitactor.testing import Hang, run_workflow

    def test_the_user_is_deleted_again_when_the_mail_cannot_be_sent():
        trace = run_workflow(signup, {"name": "Ada", "email": "ada@example.org"}, steps={"welcome": broken})
        assert trace.status == "compensated"
        assert trace.undone == ["create_user"]

Nothing here opens a socket, starts a thread or reads a clock.
"""

from bitactor.testing.fakes import FakeClock, FakeTimer, RecordingSink, SequentialIds
from bitactor.testing.faults import Crash, Hang, InjectedFault, Lose
from bitactor.testing.hops import NeedsMesh
from bitactor.testing.run import Emitted, Trace, run_workflow

__all__ = [
    "Crash",
    "Emitted",
    "FakeClock",
    "FakeTimer",
    "Hang",
    "InjectedFault",
    "Lose",
    "NeedsMesh",
    "RecordingSink",
    "SequentialIds",
    "Trace",
    "run_workflow",
]
