"""The file step that makes directories, and takes away again those that it has made."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitactor.declare.context import Context
from mesh.ready.declare import set_parameters
from mesh.ready.steps.file_action import fenced_undo, guarded_change
from mesh.ready.steps.file_backups import Backup
from mesh.ready.steps.file_paths import path_of, write_whole
from mesh.ready.templates import Template


@dataclass(frozen=True, kw_only=True)
class Make:
    """A directory is made, with those above it."""

    path: str
    within: str = ""
    parents: bool = True
    exist_ok: bool = True
    undoable: bool = True
    _path: Template = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_path", Template(self.path))
        set_parameters(self, [self._path])

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        place = path_of(self._path, given, self.within)
        with guarded_change(ctx):
            note = next(_notes(place, ctx), None) if self.undoable else None
            made = [Path(path) for path in json.loads(note.read_bytes())] if note is not None else _missing(place)
            if note is None:
                self._refuse(place, made)
                if self.undoable and made:
                    note = _note(made[0].parent, place, ctx)
                    _write(note, made)
            for directory in made:
                directory.mkdir(exist_ok=True)
        return {
            "path": str(place),
            "made": [str(directory) for directory in made],
            "kept": str(note) if note is not None else None,
        }

    def take_back(self, *, ctx: Context, **given: Any) -> None:
        place = path_of(self._path, given, self.within)
        with fenced_undo(ctx):
            for note in _notes(place, ctx):
                for path in reversed(json.loads(note.read_bytes())):
                    try:
                        Path(path).rmdir()
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                            raise
                        ctx.logger.warning("%s stays, for something is in it that this step has not put there", path)
                        break
                note.unlink()
            for directory in place.parents:
                _new(_note(directory, place, ctx)).unlink(missing_ok=True)

    def _refuse(self, place: Path, missing: list[Path]) -> None:
        if not missing and not (self.exist_ok and place.is_dir()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
        if len(missing) > 1 and not self.parents:
            raise FileNotFoundError(errno.ENOENT, "there is no such directory, and parents=False", str(place.parent))


def _missing(place: Path) -> list[Path]:
    """The directories of a path that do not exist, the highest first."""
    return [path for path in reversed((place, *place.parents)) if not path.exists()]


def _note(directory: Path, place: Path, ctx: Context) -> Path:
    return Backup(place, ctx.forward_key, directory).note


def _notes(place: Path, ctx: Context) -> Iterator[Path]:
    """The notes that the step has made: in the directory that was there already, whichever that was."""
    return (note for directory in place.parents if (note := _note(directory, place, ctx)).is_file())


def _write(note: Path, made: list[Path]) -> None:
    temporary = _new(note)
    temporary.unlink(missing_ok=True)
    write_whole(temporary, lambda file: _dump(file, made), durable=False)
    temporary.replace(note)


def _new(note: Path) -> Path:
    return note.with_name(f"{note.name}.new")


def _dump(file: Any, made: list[Path]) -> None:
    file.write(json.dumps([str(path) for path in made]).encode())
