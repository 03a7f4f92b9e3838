"""When a file step changes something: in one short moment, and not at all once nobody waits for it any more.

A function in a thread cannot be stopped.  One that has timed out, or whose step is being undone, may still be about to
act; so who acts does it in turn, and looks first whether it still may.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bitactor.context import Context
from bitactor.errors import StepTimeout

_LOCKS: Final = tuple(threading.Lock() for _ in range(64))
_REMEMBERED: Final = 4_096
_given_up: OrderedDict[str, None] = OrderedDict()


@contextmanager
def acting(ctx: Context) -> Iterator[None]:
    """Around what changes something in a step.

    Raises:
        StepTimeout: the attempt's time is over, or the step has been taken back meanwhile.
    """
    with _turn(ctx):
        if ctx.forward_key in _given_up or ctx.deadline_left == 0:
            raise StepTimeout(f"{ctx.workflow}/{ctx.step} was given up before it had changed anything")
        yield


@contextmanager
def taking_back(ctx: Context) -> Iterator[None]:
    """Around what takes a step back; from here on none of its attempts in this process acts."""
    with _turn(ctx):
        _given_up[ctx.forward_key] = None
        while len(_given_up) > _REMEMBERED:
            _given_up.popitem(last=False)
        yield


def _turn(ctx: Context) -> threading.Lock:
    return _LOCKS[hash(ctx.forward_key) % len(_LOCKS)]
