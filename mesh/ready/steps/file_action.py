"""The moment in which a file step changes something: a short one, and never once nobody waits for the step any more.

A function in a thread cannot be stopped.  One that has timed out, or whose step is being undone, may still be about to
act; so who acts does it in turn, and looks first whether it still may.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bitactor.declare.context import Context
from bitactor.errors import StepTimeout

_LOCKS: Final = tuple(threading.Lock() for _ in range(64))
_MAX_FENCED: Final = 4_096
_fenced: OrderedDict[str, None] = OrderedDict()


@contextmanager
def guarded_change(ctx: Context) -> Iterator[None]:
    """A context manager around what changes something in a step: one attempt or undo at a time, and none that is
    fenced.

    Raises:
        StepTimeout: the attempt's time is over, or the step has been taken back meanwhile.
    """
    with _lock_of(ctx):
        if ctx.forward_key in _fenced or ctx.deadline_left == 0:
            raise StepTimeout(f"{ctx.workflow}/{ctx.step} was given up before it had changed anything")
        yield


@contextmanager
def fenced_undo(ctx: Context) -> Iterator[None]:
    """A context manager around what takes a step back: its attempts in this process are fenced, and change nothing from
    here on."""
    with _lock_of(ctx):
        _fenced[ctx.forward_key] = None
        while len(_fenced) > _MAX_FENCED:
            _fenced.popitem(last=False)
        yield


def _lock_of(ctx: Context) -> threading.Lock:
    return _LOCKS[hash(ctx.forward_key) % len(_LOCKS)]
