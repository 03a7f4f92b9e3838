"""What a dead owner had sent to others: whoever takes its transactions over asks them to stop it, first of all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from typing_extensions import override

from bitactor.declare.stimulus import StimulusOptions
from bitactor.messages.codec import encode_token, token_bytes
from bitactor.messages.signal import Cancel, Signal
from bitactor.messages.wire import decode_message
from bitactor.testing.fakes import FakeClock
from mesh.hops.ports import ENDED
from mesh.network.grant import NodeGrant
from mesh.network.remote_hops import RemoteHops
from mesh.runtime.node import Node, NodeParts
from mesh.runtime.settings import settings
from tests.e2e.support import turns
from tests.unit.mesh.test_waiting_hops import Elsewhere, orders


class Watched(Elsewhere):
    """Its one holder is there from the beginning; `said` is all that was said to it, in order."""

    def __init__(self, parts: NodeParts) -> None:
        super().__init__(parts)
        self.said: list[Any] = []
        self.comes("w", "pay", "ship", told=False)

    @override
    def revoke(self, address: str, cancel: Cancel) -> None:
        self.said.append((address, cancel))

    @override
    def send(self, endpoint: str, message: bytes) -> None:
        super().send(endpoint, message)
        self.said.append(decode_message(message))


def opened(store: Path) -> tuple[Node, list[Watched]]:
    made: list[Watched] = []

    def network(parts: NodeParts) -> Watched:
        made.append(Watched(parts))
        return made[0]

    chosen = settings(hosts=False, registry="memory://none", store=f"sqlite:///{store}", drain=0.0)
    return Node([orders()], chosen, network=network, clock=FakeClock()), made


async def test_whoever_takes_over_asks_to_stop_what_was_sent_before_it_sends_it_again(tmp_path: Path) -> None:
    first, network = opened(tmp_path / "store")
    await first.open()
    live = await first.intake.stimulate("orders", None, StimulusOptions())
    await turns()
    network[0].answers(token=1)
    await turns()
    sent = network[0].said[-1]
    assert (sent.name, sent.delivery) == ("orders/ship", 1)
    await first.close()

    heir, network = opened(tmp_path / "store")
    await heir.open()
    await turns()
    try:
        revoked, again = network[0].said
        assert revoked == ("orders/ship", Cancel(live.state.transaction, sent.hop, 1, 0))
        assert (again.hop, again.delivery, again.epoch) == (sent.hop, 2, 1)
    finally:
        await heir.close()


def test_what_arrives_after_it_was_to_be_stopped_does_not_begin() -> None:
    clock, sent, begun = FakeClock(), [], []

    def launch(plan: Any, step: Any, signal: Signal, *others: Any, **options: Any) -> Any:
        begun.append(signal.delivery)
        return SimpleNamespace(state=ENDED)

    hops = RemoteHops(
        SimpleNamespace(launch=launch),  # type: ignore[arg-type]
        {"orders": orders().check()},
        lambda endpoint, message: sent.append(decode_message(message)),
        NodeGrant(SimpleNamespace(granted_until_ns=lambda name, epoch: 0), "us", clock),  # type: ignore[arg-type]
    )
    parts = encode_token([bytes(token_bytes(encode_token(value))) for value in ({}, None)])
    transaction, hop = "f" * 32, "a" * 16
    hops.cancel(Cancel(transaction, hop, 1, 0))
    for delivery in (1, 2):
        hops.receive(
            Signal(
                "orders/pay", transaction, transaction, hop, (), "forward", 1, delivery, 0, 7, None, parts, "ipc://s"
            )
        )
    assert begun == [2]
    (reply,) = sent
    assert (reply.delivery, reply.outcome) == (1, "fail")
    assert "stopped before it had started" in reply.fault.message
