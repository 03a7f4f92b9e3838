"""The resilience policies of a mesh: their states, and running an attempt inside them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import ConfigurationError
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.values import named_text
from bitactor.plan.plan import Plan
from bitactor.ports import Clock
from mesh.hops.exits import CODE_OF
from mesh.hops.lifecycle import cancel_all

logger = logging.getLogger("bitactor.policies")

CANCEL_WITHIN: Final = 0.5
"""Seconds that a policy's state which was too slow to close may take to be cancelled."""


class Policies:
    """The states of all policies of one mesh, each opened when first needed, and kept over all runs.

    Raises:
        ConfigurationError: a step in a worker process has a policy, or two policies of one pattern and name differ.
    """

    def __init__(self, plans: Iterable[Plan], clock: Callable[[], Clock]) -> None:
        self._clock = clock
        self._declared: dict[tuple[str, str], Policy] = {}
        self._states: dict[tuple[str, str], PolicyState] = {}
        self._draining = False
        for plan in plans:
            for step in plan.all_steps():
                for policy in step.policies:
                    self._add(policy, step.address, step.spawn)

    def __len__(self) -> int:
        return len(self._declared)

    async def run(self, policies: Sequence[Policy], call: Call, proceed: Proceed) -> Any:
        """Run one attempt inside `policies`, the first of which is the outermost; `proceed` runs the function once."""
        states = [self._state(policy) for policy in policies]
        return await _nested(states, call, proceed)

    def about(self) -> list[dict[str, Any]]:
        """How each policy's state stands, as plain data."""
        return [
            {"pattern": pattern, "name": name, **self._about(pattern, name)} for pattern, name in sorted(self._declared)
        ]

    def drain(self) -> None:
        """Hold nothing back from now on: the mesh begins to close, and nobody who waits for what is held back keeps it
        from closing."""
        self._draining = True
        for key, state in self._states.items():
            _drain_one(key, state)

    async def close(self, timeout: float) -> None:
        """Flush what policies hold back, within `timeout` seconds; an error is logged.  Twice is once."""
        states, self._states = self._states, {}
        closing = [asyncio.ensure_future(self._close_one(key, state, timeout)) for key, state in states.items()]
        if closing:
            _, slow = await asyncio.wait(closing, timeout=timeout)
            await cancel_all(slow, CANCEL_WITHIN)

    def _add(self, policy: Policy, address: str, spawn: str) -> None:
        if not SPAWNERS[spawn].carries_objects:
            raise ConfigurationError(
                f"step {address!r} has policies, whose state is in this process, and spawn={spawn!r}; let a step in a "
                "thread or on the loop carry them"
            )
        known = self._declared.setdefault(policy.key, policy)
        if known != policy:
            pattern, name = policy.key
            raise ConfigurationError(
                f"two policies are called {pattern} {name!r} and differ: {known!r} and, at step {address!r}, "
                f"{policy!r}; "
                "those of one name share one state, so give one of them another name"
            )

    def _state(self, policy: Policy) -> PolicyState:
        state = self._states.get(policy.key)
        if state is None:
            context = contextvars.Context()  # of no hop
            context.run(CODE_OF.set, True)
            state = self._states[policy.key] = context.run(policy.open, self._clock())
            if self._draining:
                _drain_one(policy.key, state)
        return state

    def _about(self, pattern: str, name: str) -> Mapping[str, Any]:
        state = self._states.get((pattern, name))
        try:
            return decode_token(encode_token(dict(state.about()))) if state is not None else {}
        except BaseException as error:  # a state is somebody's code
            return {"error": named_text(error)}

    async def _close_one(self, key: tuple[str, str], state: PolicyState, timeout: float) -> None:
        try:
            await state.close(timeout)
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%s %r could not be flushed", *key)


def _drain_one(key: tuple[str, str], state: PolicyState) -> None:
    try:
        state.drain()
    except BaseException:
        logger.exception("%s %r could not be told that the mesh closes", *key)


def _nested(states: Sequence[PolicyState], call: Call, proceed: Proceed) -> Awaitable[Any]:
    if not states:
        return proceed()
    outermost, *inner = states
    return outermost.around(call, lambda: _nested(inner, call, proceed))
