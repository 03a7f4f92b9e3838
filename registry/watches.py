"""Watches: callbacks and futures that are told of notices.  For one thread at a time, the one that delivers.

A future of somebody who waits is answered once; one whose caller gave up is left alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any

from registry.entry import APPEARED, Entry, Loss, Notice, RegistryClosed, RegistryTimeout
from registry.limits import name_filter

_log = logging.getLogger("bitactor.registry")

Waiting = Future[Any]


class Watch:
    """A callback that is told of notices or losses, until cancelled."""

    def __init__(self, callback: Callable[[Any], None], removed: Callable[[Watch], None]) -> None:
        self.active = True
        self._callback = callback
        self._removed = removed

    def cancel(self) -> None:
        """Cancel the watch: no call begins after this returned, except one that is under way.  Safe on any thread.  A
        second call does nothing."""
        if self.active:
            self.active = False
            self._removed(self)

    def tell(self, news: Notice | tuple[Loss, ...]) -> None:
        """Call the callback; one that raises is logged and cancelled, and never called again."""
        if not self.active:
            return
        try:
            self._callback(news)
        except BaseException as error:
            self.cancel()
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise  # an interrupt of the whole program, which happened to be in here
            _log.exception("a registry callback raised; it is cancelled")


class Watches:
    """The watches and waiting futures of one holder."""

    def __init__(self, lookup: Callable[[str], tuple[Entry, ...]]) -> None:
        self._lookup = lookup
        self._watches: dict[Watch, Callable[[str], bool]] = {}
        self._loss_watches: dict[Watch, None] = {}
        self._names: dict[str, list[Future[tuple[Entry, ...]]]] = {}

    def add(self, watch: Watch, pattern: str, present: Iterable[Entry]) -> None:
        """Tell `watch` that the matching entries of `present` appeared, and from now on of every change of matching
        names."""
        matches = name_filter(pattern)
        if watch.active:
            self._watches[watch] = matches
        for entry in present:
            if matches(entry.name):
                watch.tell(Notice(APPEARED, entry))

    def add_loss(self, watch: Watch) -> None:
        """Tell `watch` of losses from now on."""
        if watch.active:
            self._loss_watches[watch] = None

    def remove(self, watch: Watch) -> None:
        """Tell `watch` of nothing any more."""
        self._watches.pop(watch, None)
        self._loss_watches.pop(watch, None)

    def add_name(self, name: str, waiting: Future[tuple[Entry, ...]]) -> None:
        """Complete `waiting` with the entries of `name` once there are any."""
        entries = self._lookup(name)
        if entries:
            resolve(waiting, entries)
        elif not waiting.done():
            self._names.setdefault(name, []).append(waiting)

    def remove_name(self, name: str, waiting: Future[tuple[Entry, ...]]) -> None:
        """Remove a future that `add_name` added."""
        others = self._names.get(name)
        if others is not None and waiting in others:
            others.remove(waiting)
            if not others:
                del self._names[name]

    def tell(self, notices: Iterable[Notice]) -> None:
        """Tell all watches and futures concerned of these notices, in order."""
        for notice in notices:
            name = notice.entry.name
            for watch, matches in list(self._watches.items()) if self._watches else ():
                if matches(name):
                    watch.tell(notice)
            if self._names and notice.kind == APPEARED:
                for waiting in self._names.pop(name, ()):
                    resolve(waiting, self._lookup(name) or (notice.entry,))

    def tell_losses(self, losses: tuple[Loss, ...]) -> None:
        """Tell all watches of losses."""
        for watch in list(self._loss_watches):
            watch.tell(losses)

    def close(self) -> None:
        """Cancel all watches and futures."""
        for watch in [*self._watches, *self._loss_watches]:
            watch.active = False
        waiting = [future for futures in self._names.values() for future in futures]
        self._watches.clear()
        self._loss_watches.clear()
        self._names.clear()
        for future in waiting:
            future.cancel()


def wait_for_name(waiting: Future[tuple[Entry, ...]], name: str, timeout: float) -> tuple[Entry, ...]:
    """The entries that `waiting` (see `Watches.add_name`) gets within `timeout` seconds.  Raises `RegistryTimeout`,
    `RegistryClosed`."""
    try:
        return waiting.result(timeout)
    except TimeoutError:
        waiting.cancel()
        raise RegistryTimeout(f"nobody registered {name!r} within {timeout:g} s") from None
    except CancelledError:
        raise RegistryClosed("the registry was closed meanwhile") from None


def resolve(waiting: Waiting, value: object) -> None:
    """Answer `waiting` with a value."""
    with suppress(InvalidStateError):
        waiting.set_result(value)


def fail(waiting: Waiting, error: BaseException) -> None:
    """Answer `waiting` with an error."""
    with suppress(InvalidStateError):
        waiting.set_exception(error)
