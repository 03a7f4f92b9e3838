"""Paths and files as file steps see them: within their directory, regular, and known again by what they are; and what
all file steps have in common."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from bitactor.errors import InvalidInput
from mesh.ready.declare import ReadyStep
from mesh.ready.templates import Template

Identity = list[int]
"""The identity of a file, whatever it is called: device and inode.  Where nothing holds on to the file, its number may
go to another one; then size and time of the last change stand behind."""
HELD = 2
"""How many numbers of an identity are enough for a file that is still there, under whatever name."""


@dataclass(frozen=True, kw_only=True)
class FileStep(ReadyStep):
    """The base of steps that do something with a file: where it is."""

    _FIELDS = {"path": Template}
    FOLLOWS: ClassVar[bool] = True
    """Whether a symbolic link at the end of a path stands for its target."""
    path: str
    within: str = ""

    def place(self, given: Mapping[str, Any], field: str = "path") -> Path:
        """The path that a field gives; see `path_within`."""
        return path_within(self._text(field, given), self.within, follow=self.FOLLOWS)


def path_within(text: str, within: str, *, follow: bool) -> Path:
    """The path that a text says; with `follow`, of the target of a symbolic link at its end.

    Raises:
        InvalidInput: the path is empty, or not below `within`.
    """
    if not text or "\0" in text:
        raise InvalidInput(f"{text!r} is no path")
    path = Path(within, text)
    real = Path(os.path.realpath(path)) if follow else Path(os.path.realpath(path.parent), path.name)
    if within and not real.is_relative_to(os.path.realpath(within)):
        raise InvalidInput(f"{text!r} leads out of {within!r}, to {str(real)!r}")
    return real


def identity(path: Path) -> Identity | None:
    """The identity of what is at `path`, a symbolic link itself; None if nothing is."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def is_one_of(there: Identity | None, known: Iterable[Identity]) -> bool:
    """Whether the identity `there` is one of `known`."""
    return there is not None and any(there[: len(one)] == one for one in known)


def open_regular(path: Path) -> BinaryIO:
    """A regular file opened for reading; a pipe would block and a device never end.

    Raises:
        OSError: there is no file, or it is not a regular one.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{str(path)!r} is no regular file")
    return file


def sync(path: Path) -> None:
    """Write a directory's entries to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, fill: Callable[[BinaryIO], object], durable: bool) -> Identity:
    """Write a new file to its end; returns its identity.  On failure the file is gone again.

    Raises:
        OSError: the file exists already, or cannot be written.
    """
    with path.open("xb") as file:
        try:
            fill(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        made = os.fstat(file.fileno())
    return [made.st_dev, made.st_ino]


def keep_json(path: Path, value: Any, durable: bool) -> None:
    """Write plain data to a file, over an old one or where there was none, whole or not at all."""
    temporary = unfinished(path)
    temporary.unlink(missing_ok=True)
    write_whole(temporary, lambda file: file.write(json.dumps(value).encode()), durable)
    temporary.replace(path)
    if durable:
        sync(path.parent)


def unfinished(path: Path) -> Path:
    """The name, beside `path`, of what is to be put there."""
    return path.with_name(f"{path.name}.new")
