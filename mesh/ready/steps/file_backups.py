"""What a file step keeps so that it can be taken back, beside the file or in a directory of its own.

    .report.txt.<key>.note.bitactor      what was there, and what was put there: written before anything is changed
    .report.txt.<key>.kept.bitactor      the old content: the old file itself under a second name, where the file system
    can do that

The key is the hop's idempotency key: a second attempt, a second delivery and the undo find the same note.  What is in a
place is told by identity: what the note says was put there is ours, what it says was there is untouched or put back,
anything else is somebody else's and left alone, loudly.

A function in a thread cannot be stopped.  One that has timed out, or whose step is being undone, may still be about to
change something; so who does that does it in turn, in a short moment, and looks first whether it still may.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypedDict

from bitactor.declare.context import Context
from bitactor.errors import BitActorError, StepTimeout
from bitactor.messages.ids import idempotency_key
from mesh.ready.steps.file_paths import (
    HELD,
    Identity,
    identity,
    is_one_of,
    keep_json,
    open_regular,
    unfinished,
    write_whole,
)

SUFFIX: Final = ".bitactor"
_OURS: Final = re.compile(r"\..+\.[0-9a-f]{32}\.(note|kept|[0-9a-f]{16}-\d+\.\w+)\.bitactor(\.new)?")
_LONGEST_NAME: Final = 160
"""Bytes of a file's name that fit beside key and suffix into the longest name a file system takes."""
_NO_LINKS: Final = frozenset((errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS))
_LOCKS: Final = tuple(threading.Lock() for _ in range(64))
_MAX_FENCED: Final = 4_096
_fenced: OrderedDict[str, None] = OrderedDict()


class ChangedByOthers(BitActorError):
    """A file is not as a step left it, so undoing the step would destroy what somebody else did."""


class Note(TypedDict):
    """A note of what a step is about to change in one place."""

    had: bool
    """Whether there was anything in the place."""
    was: list[Identity]
    """Identities of what was in the place, or has been put back."""
    put: list[Identity]
    """Identities of what was put in its place; several, after several attempts."""
    source: list[Identity]
    """For a move, identities of what stood, or was put back, where the file came from."""


class Backup:
    """The backup of one file for one hop: its note, and its old content.

    Args:
        place: the file that is changed.
        key: the hop's idempotency key.
        directory: where to keep it; None: beside the file.
        durable: whether it has to survive a power failure.
    """

    def __init__(self, place: Path, key: str, directory: Path | None, durable: bool = False) -> None:
        self.place = place
        self.durable = durable
        name = (
            place.name
            if len(os.fsencode(place.name)) <= _LONGEST_NAME
            else blake2b(os.fsencode(place.name), digest_size=16).hexdigest()
        )
        self._beside = f".{name}.{key}"
        directory = directory or place.parent
        self.note = directory / f"{self._beside}.note{SUFFIX}"
        self.kept = directory / f"{self._beside}.kept{SUFFIX}"

    def temporary(self, hop: str, delivery: int, purpose: str) -> Path:
        """A name beside the file for one attempt's work; what an earlier delivery of that attempt left is removed."""
        for stale in self.place.parent.glob(f"{_escaped(self._beside)}.{hop}-*.{purpose}{SUFFIX}"):
            stale.unlink(missing_ok=True)
        return self.place.parent / f"{self._beside}.{hop}-{delivery}.{purpose}{SUFFIX}"

    def read(self) -> Note | None:
        """The note, or None if the step has not got so far."""
        try:
            note: Note = json.loads(self.note.read_bytes())
        except FileNotFoundError:
            return None
        return note

    def write(self, note: Note) -> None:
        """Keep a note, whole or not at all."""
        keep_json(self.note, note, self.durable)

    def save(self, put: Identity, source: Identity | None = None) -> None:
        """Keep what is in the place, before `put` replaces it.  An earlier attempt's note stands: what is in the place
        now may be its doing."""
        note = self.read()
        if note is None:
            self.kept.unlink(missing_ok=True)
            was = identity(self.place)
            if was is not None and self._keep_content():
                was = was[:HELD]
            note = {"had": was is not None, "was": [was] if was is not None else [], "put": [], "source": []}
        note["put"].append(put)
        note["was"] = [one for one in note["was"] if one[:HELD] != put]  # its number was free again
        if source is not None:
            note["source"].append(source)
        self.write(note)

    def stash(self) -> None:
        """Move what is in the place away, into what is kept; once, however often it is called.

        Raises:
            OSError: nothing is in the place, or it cannot be moved.
        """
        note, was = self.read(), identity(self.place)
        if note is None:
            if was is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.place))
            self.kept.unlink(missing_ok=True)
            held = was[0] == self.note.parent.stat().st_dev
            self.write({"had": True, "was": [was[:HELD] if held else was], "put": [], "source": []})
        elif not is_one_of(was, note["was"]):
            return
        try:
            self._move_to_backup()
        except OSError:
            if note is None:
                self.forget()
            raise

    def _move_to_backup(self) -> None:
        if not os.path.lexists(self.kept):
            try:
                self.place.replace(self.kept)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy_content()
            else:
                return
        self.place.unlink()

    def restore(self) -> None:
        """Put the place back as it was; nothing happens if nothing was changed, or all is put back already.

        Raises:
            ChangedByOthers: what is in the place is neither what was there nor what the step put there.
        """
        note = self.read()
        if note is not None:
            there = identity(self.place)
            if not is_one_of(there, note["was"]):
                if there is not None and not is_one_of(there, note["put"]):
                    raise self.changed_by_others(self.place)
                if note["had"]:
                    self._restore_content(note)
                else:
                    self.place.unlink(missing_ok=True)
        self.forget()

    def changed_by_others(self, place: Path) -> ChangedByOthers:
        """The error to raise when somebody else has changed a place."""
        kept = f"; what was there before is kept in {str(self.kept)!r}" if os.path.lexists(self.kept) else ""
        return ChangedByOthers(
            f"{str(place)!r} was changed by somebody else since{kept}: put things right by hand, remove "
            f"{str(self.note)!r}, and resume"
        )

    def forget(self) -> None:
        """Remove the note and the old content, and what interrupted attempts have left."""
        for path in (self.kept, self.note):
            path.unlink(missing_ok=True)
            unfinished(path).unlink(missing_ok=True)
        for stale in self.place.parent.glob(f"{_escaped(self._beside)}.*-*.*{SUFFIX}"):
            stale.unlink(missing_ok=True)

    def _keep_content(self) -> bool:
        """Whether the file itself is kept, and not a copy."""
        try:
            os.link(self.place, self.kept, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._copy_content()
            return False
        return True

    def _copy_content(self) -> None:
        """Keep a copy of the file, where it cannot be linked: on another file system, say."""
        temporary = unfinished(self.kept)
        temporary.unlink(missing_ok=True)
        copy_file(self.place, temporary, self.durable)
        temporary.replace(self.kept)

    def _restore_content(self, note: Note) -> None:
        if not os.path.lexists(self.kept):
            raise ChangedByOthers(
                f"{str(self.place)!r} cannot be put back: {str(self.kept)!r}, where its old content was kept, is gone"
            )
        try:
            self.kept.replace(self.place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            temporary = self.place.parent / f"{self._beside}.{'0' * 16}-0.back{SUFFIX}"
            temporary.unlink(missing_ok=True)
            note["was"].append(copy_file(self.kept, temporary, self.durable))
            note["put"] = [one for one in note["put"] if one != note["was"][-1][:HELD]]
            self.write(note)
            temporary.replace(self.place)


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


def forget(transaction: Any) -> int:
    """Remove what the file steps of a transaction keep for its undo; it cannot be undone any more.  Returns how many
    steps kept something.

    `transaction` is one that has completed, as `Mesh.stimulate` or `Mesh.transaction` gives it.
    """
    forgotten = 0
    for pulse in transaction.pulses():
        kept = pulse.token_out.get("kept") if pulse.kind == "completed" and isinstance(pulse.token_out, dict) else None
        key = idempotency_key(pulse.transaction, pulse.step)
        if isinstance(kept, str) and kept.endswith(f".{key}.note{SUFFIX}") and _OURS.fullmatch(Path(kept).name):
            note = Path(kept)
            forgotten += note.exists()
            note.with_name(note.name.removesuffix(f"note{SUFFIX}") + f"kept{SUFFIX}").unlink(missing_ok=True)
            note.unlink(missing_ok=True)
    return forgotten


def sweep(directory: str | Path, older_than: float) -> int:
    """Remove what file steps have kept in a directory and below it for longer than `older_than` seconds.  Returns how
    many files that were.

    Transactions that old cannot be undone any more; let it be longer than any of yours takes.
    """
    before, swept = time.time() - older_than, 0
    for path in Path(directory).rglob(f".*{SUFFIX}*"):
        if not _OURS.fullmatch(path.name):
            continue
        try:
            if path.lstat().st_ctime < before:
                path.unlink()
                swept += 1
        except FileNotFoundError:
            continue
    return swept


def copy_file(source: Path, target: Path, durable: bool) -> Identity:
    """Copy a regular file or a symbolic link, with times and rights, to where nothing is; returns the copy's
    identity."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
    else:
        with open_regular(source) as content:
            write_whole(target, lambda file: shutil.copyfileobj(content, file), durable)
        shutil.copystat(source, target)
    return identity(target) or []


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
