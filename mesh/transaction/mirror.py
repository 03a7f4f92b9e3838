"""`BlockingTransaction`, and how the blocking form of a method is made of the async one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from typing_extensions import override

from bitactor.errors import BitActorError
from mesh.runtime.live import LiveTransaction
from mesh.transaction.bridge import Bridge
from mesh.transaction.transaction import Handle, R_co, Transaction

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, Transaction]],
) -> Callable[Concatenate[Any, P], BlockingTransaction]: ...
@overload
def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]: ...
@overload
def blocking(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]: ...
def blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """The blocking form of a method: the same in name, parameters and words, called by `_call` of the class that has
    it."""

    @like(method)
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return self._call(method.__name__, *arguments, **options)

    return call


def like(method: Callable[..., Any]) -> Callable[[Function], Function]:
    """Have a function say of itself what `method` does, save what it returns; for results whose type the checkers would
    lose in `blocking`."""

    def told(function: Function) -> Function:
        own = inspect.signature(function)
        about: Any = function
        about.__signature__ = inspect.signature(method).replace(return_annotation=own.return_annotation)
        first, gap, rest = (inspect.getdoc(method) or "").partition("\n\n")
        waits = "\n\nBlocks the calling thread meanwhile." if inspect.iscoroutinefunction(method) else ""
        about.__doc__ = f"{first}{waits}{gap}{rest}"
        return function

    return told


class BlockingTransaction(Handle, Generic[R_co]):
    """A `Transaction` for threads that are not the mesh's: the same methods, which block where those are awaited."""

    def __init__(self, bridge: Bridge, transaction: Transaction[R_co]) -> None:
        self._bridge = bridge
        self._transaction = transaction

    @override
    def _look(self) -> LiveTransaction:
        return self._transaction._look()

    @override
    def _current(self, *, closely: bool = True) -> LiveTransaction:
        if self._transaction._is_certain():
            return self._look()
        with suppress(BitActorError):  # on the loop itself, in a fork, or when the loop has ended
            return self._bridge.call(self._transaction._current, closely=closely)
        return self._transaction._current(closely=closely)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._bridge.call(getattr(self._transaction, method), *arguments, **options)

    @like(Transaction.result)
    def result(self, timeout: float | None = None) -> R_co:
        return self._bridge.call(self._transaction.result, timeout)

    @like(Transaction.value)
    def value(self) -> R_co:
        return self._bridge.call(self._transaction.value)

    ended = blocking(Transaction.ended)
    results = blocking(Transaction.results)
    progress = blocking(Transaction.progress)
    errors = blocking(Transaction.errors)
    faults = blocking(Transaction.faults)
    pulses = blocking(Transaction.pulses)
    raw_pulses = blocking(Transaction.raw_pulses)
    about = blocking(Transaction.about)
    snapshot = blocking(Transaction.snapshot)
    cancel = blocking(Transaction.cancel)
    request_cancel = blocking(Transaction.request_cancel)
    resume = blocking(Transaction.resume)
    undo = blocking(Transaction.undo)
