"""The file step that makes directories, and takes away again those that it has made."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitactor.declare.context import Context
from mesh.ready.steps.file_backups import Backup, fenced_undo, guarded_change
from mesh.ready.steps.file_paths import FileStep, keep_json, unfinished


@dataclass(frozen=True, kw_only=True)
class Make(FileStep):
    """A directory is made, with those above it."""

    parents: bool = True
    exist_ok: bool = True
    undoable: bool = True

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        place = self.place(given)
        with guarded_change(ctx):
            note = next(_notes(place, ctx), None) if self.undoable else None
            made = [Path(path) for path in json.loads(note.read_bytes())] if note is not None else _missing(place)
            if note is None:
                self._refuse(place, made)
                if self.undoable and made:
                    note = _note(made[0].parent, place, ctx)
                    keep_json(note, [str(path) for path in made], durable=False)
            for directory in made:
                directory.mkdir(exist_ok=True)
        return {
            "path": str(place),
            "made": [str(directory) for directory in made],
            "kept": str(note) if note is not None else None,
        }

    def take_back(self, *, ctx: Context, **given: Any) -> None:
        place = self.place(given)
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
                unfinished(_note(directory, place, ctx)).unlink(missing_ok=True)

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
