"""File steps that change something, and how each is taken back."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.errors import DefinitionError, InvalidInput
from mesh.ready.declare import is_again
from mesh.ready.steps.file_backups import Backup, copy_file, fenced_undo, guarded_change
from mesh.ready.steps.file_paths import HELD, FileStep, Identity, identity, is_one_of, open_regular, sync, write_whole
from mesh.ready.templates import Structure, Template


@dataclass(frozen=True, kw_only=True)
class Change(FileStep):
    """The base of steps that change a file: what is kept of it."""

    keep: str = ""
    durable: bool = False
    undoable: bool = True

    @override
    def __post_init__(self) -> None:
        if self.keep and not self.undoable:
            raise DefinitionError("keep= says where to keep what an undo needs, but undoable=False")
        super().__post_init__()

    def take_back(self, *, ctx: Context, **given: Any) -> None:
        with fenced_undo(ctx):
            self._backup(self.place(given), ctx).restore()

    def _backup(self, place: Path, ctx: Context) -> Backup:
        directory = Path(self.keep).absolute() if self.keep else None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        return Backup(place, ctx.forward_key, directory, self.durable)

    def _put(
        self, place: Path, ctx: Context, fill: Callable[[BinaryIO], object], like: Path | None = None
    ) -> dict[str, Any]:
        """Write a file beside the place, then put it there in one go."""
        _refuse_no_directory(place)
        backup = self._backup(place, ctx)
        temporary = backup.temporary(ctx.hop, ctx.signal.delivery, "tmp")
        made = write_whole(temporary, fill, self.durable)
        try:
            if like is not None:
                shutil.copystat(like, temporary)
            elif place.exists():
                temporary.chmod(stat.S_IMODE(place.stat().st_mode))
            size = temporary.stat().st_size
            with guarded_change(ctx):
                self._replace(backup, temporary, made)
        finally:
            temporary.unlink(missing_ok=True)
        return {"path": str(place), "size": size, "kept": str(backup.note) if self.undoable else None}

    def _replace(self, backup: Backup, by: Path, made: Identity, source: Identity | None = None) -> None:
        """Put `by` in the place, after a note of what is kept; if the step fails here, nothing has happened, and
        nothing is kept."""
        if backup.place.is_dir() and not backup.place.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(backup.place))
        fresh = self.undoable and backup.read() is None
        try:
            if self.undoable:
                backup.save(made, source)
            by.replace(backup.place)
        except OSError:
            if fresh:
                backup.forget()
            raise
        if self.durable:
            sync(backup.place.parent)


@dataclass(frozen=True, kw_only=True)
class Write(Change):
    """A file is written, over an old one or where there was none."""

    _FIELDS = {"path": Template, "content": Structure}
    content: Any
    encoding: str = "utf-8"

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        content = self._value("content", given)
        if isinstance(content, str):
            content = content.encode(self.encoding)
        if not isinstance(content, bytes):
            raise InvalidInput(
                f"the content of a file is text or bytes, not a {type(content).__name__}; make text of it in a step "
                "before"
            )
        return self._put(self.place(given), ctx, lambda file: file.write(content))


@dataclass(frozen=True, kw_only=True)
class FromSource(Change):
    """What steps have in common that bring a file from another place."""

    _FIELDS = {"source": Template, "path": Template}
    source: str

    def _paths(self, given: dict[str, Any]) -> tuple[Path, Path]:
        source, place = self.place(given, "source"), self.place(given)
        if identity(source) is not None and identity(source) == identity(place):
            raise InvalidInput(f"{str(source)!r} and {str(place)!r} are the same file")
        return source, place


@dataclass(frozen=True, kw_only=True)
class Copy(FromSource):
    """A file is copied, with its times and rights, over an old one or where there was none."""

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        source, place = self._paths(given)
        with open_regular(source) as content:
            return self._put(place, ctx, lambda file: shutil.copyfileobj(content, file), like=source)


@dataclass(frozen=True, kw_only=True)
class Move(FromSource):
    """A file is moved, also to another file system; an old one in its new place is kept."""

    FOLLOWS = False

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        source, place = self._paths(given)
        _refuse_no_directory(place)
        backup = self._backup(place, ctx)
        temporary = backup.temporary(ctx.hop, ctx.signal.delivery, "tmp")
        try:
            with guarded_change(ctx):
                note = backup.read() if self.undoable else None
                if note is not None:
                    done = is_one_of(identity(place), note["put"]) and not is_one_of(identity(source), note["source"])
                else:
                    done = (
                        not self.undoable and is_again(ctx) and identity(source) is None and identity(place) is not None
                    )
                if not done:
                    self._move(source, backup, temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return {"path": str(place), "from": str(source), "kept": str(backup.note) if self.undoable else None}

    @override
    def take_back(self, *, ctx: Context, **given: Any) -> None:
        source, place = self._paths(given)
        backup = self._backup(place, ctx)
        with fenced_undo(ctx):
            note = backup.read()
            if note is not None:
                there, origin = identity(place), identity(source)
                moved = is_one_of(there, note["put"])
                if moved and origin is None:
                    self._move_back(source, backup, ctx)
                elif moved and not is_one_of(origin, note["source"]):
                    raise backup.changed_by_others(source)
                elif not moved and origin is None and not is_one_of(there, note["was"]):
                    raise backup.changed_by_others(place)
            backup.restore()

    def _move(self, source: Path, backup: Backup, temporary: Path) -> None:
        there = identity(source)
        if there is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        if source.is_dir() and not source.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(source))
        if there[0] == backup.place.parent.stat().st_dev:
            self._replace(backup, source, there[:HELD])
        else:
            made = copy_file(source, temporary, self.durable)
            self._replace(backup, temporary, made[:HELD], there)
            source.unlink()
        if self.durable:
            sync(source.parent)

    def _move_back(self, source: Path, backup: Backup, ctx: Context) -> None:
        try:
            backup.place.replace(source)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            temporary = Backup(source, ctx.forward_key, None).temporary(ctx.hop, ctx.signal.delivery, "back")
            note = backup.read()
            assert note is not None
            note["source"].append(copy_file(backup.place, temporary, self.durable))
            backup.write(note)
            temporary.replace(source)


@dataclass(frozen=True, kw_only=True)
class Remove(Change):
    """A file is removed."""

    FOLLOWS = False
    missing_ok: bool = False

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        place = self.place(given)
        backup = self._backup(place, ctx)
        if place.is_dir() and not place.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        with guarded_change(ctx):
            removed = identity(place) is not None or backup.read() is not None
            if not removed and self.missing_ok:
                return {"path": str(place), "removed": False, "kept": None}
            if self.undoable:
                backup.stash()
            else:
                place.unlink(missing_ok=self.missing_ok or is_again(ctx))
        return {"path": str(place), "removed": True, "kept": str(backup.note) if self.undoable else None}


def _refuse_no_directory(place: Path) -> None:
    if not place.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "there is no such directory; a step of files.make makes it", str(place.parent)
        )
